"""Every limit, path and switch of the server, in one frozen object.

Sources, weakest first: a TOML file, `FLUX2_*` environment variables, command line flags.
This is the only module that reads the environment.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from pipelines.demonstration import DEMO_CHECKPOINT, is_demo_checkpoint
from pipelines.instructions import MAX_NEW_TOKENS
from pipelines.types import CACHE_BYTES, LORA_CACHE_BYTES, FlashSchedule, Model
from pipelines.verdicts import DEFAULT_THRESHOLD
from server.config_file import list_mistakes, read_toml, unknown_keys
from server.errors import ConfigurationError
from server.keyfile import SafetyRule
from server.limits import Limits
from server.placement import Place, all_folders, check_places, read_folders, read_place

ENV_PREFIX = "FLUX2_"
CONFIG_VARIABLE = "FLUX2_CONFIG"


def _default_model(validated: dict[str, Any]) -> Path | None:
    """Take the demonstration checkpoint where no folder of any model is given."""
    return None if validated["models"] else DEMO_CHECKPOINT


def _default_safety(validated: dict[str, Any]) -> SafetyRule:
    """Demand a checker, but for the checkpoint that can draw nothing to check for."""
    folders = all_folders(validated["model"], validated["models"])
    return "off" if all(map(is_demo_checkpoint, folders.values())) else "required"


class Settings(Limits, BaseSettings):
    """One server's settings. Each field is also `FLUX2_<NAME>` and a key of the TOML file."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        env_parse_none_str="none",
        frozen=True,
        extra="forbid",
        protected_namespaces=(),
    )

    models: Annotated[Mapping[Model, Path], NoDecode] = Field(
        default_factory=dict,
        description="The diffusers folder of each model, as `NAME=FOLDER` separated by commas; "
        "names are `dev`, `klein-4b`, `klein-9b`, `klein-4b-base` and `klein-9b-base`.",
    )
    model: Path | None = Field(
        default_factory=_default_model,
        description="Short for `dev=FOLDER` among `FLUX2_MODELS`; the demonstration checkpoint if "
        "`none`, or if neither is given.",
    )
    data_dir: Path = Field(Path("data"), description="Queue, files, certificates and caches.")
    host: str = Field("127.0.0.1", description="The address to listen on.")
    port: int = Field(8000, ge=0, le=65535, description="HTTP port; 0 picks a free one.")
    tls_port: int | None = Field(
        8443, ge=0, le=65535, description="HTTPS port; 0 picks a free one, `none` switches it off."
    )
    tls_names: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="Further host names and addresses for the certificate, separated by commas; "
        "this machine's own and fal's are always in it.",
    )
    public_url: str | None = Field(
        None,
        description="Origin for the URLs in answers, such as https://images.example; "
        "by default the one that the caller used.",
    )
    api_key: SecretStr | None = Field(
        None,
        description="One key without limits, beside those of `flux2-serve keys`: callers send it "
        "as `Authorization: Key ...`.",
    )
    allow_anonymous: bool = Field(
        False, description="Whether others than this machine may call although there is no key."
    )
    origins: Annotated[tuple[str, ...], NoDecode] = Field(
        ("localhost",),
        description="Whose web pages may call while there is no key: origins such as "
        "`https://app.example`, or host names for any scheme and port, separated by commas.",
    )
    connect_port: int | None = Field(
        None,
        ge=0,
        le=65535,
        description="Port of a proxy that leads fal's host names, and no others, to this server; "
        "0 picks a free one.",
    )
    devices: Annotated[tuple[str, ...], NoDecode] = Field(
        ("auto",),
        min_length=1,
        description="`cuda`, `cuda:1`, `cpu` or `auto`, separated by commas: a runner for each. "
        "`cuda:1=klein-4b` is kept for that model, `cuda:1=klein-4b+klein-9b` for these.",
    )
    overtake_jobs: int = Field(
        16,
        ge=0,
        description="With several models: how many later requests, whose model is loaded, may be "
        "made before one whose model is not.",
    )
    overtake_seconds: float = Field(
        30, ge=0, description="For how long at most they may, before that model is loaded."
    )
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="Number format of the weights: bfloat16 on CUDA, float32 on the CPU."
    )
    profile: Literal["auto", "141gb", "96gb", "80gb", "48gb", "32gb", "24gb", "cpu"] = Field(
        "auto",
        description="How the model is laid out in memory; by default in the best way that has "
        "room. `flux2-serve doctor` tells which have.",
    )
    text_encoder: Literal["auto", "whole", "prompts"] = Field(
        "auto",
        description="Whether all of the text encoder is loaded, so that it can expand prompts and "
        "judge: by default where that takes neither another profile nor room for usual requests.",
    )
    compile: Literal["auto", "on", "off"] = Field(
        "auto",
        description="Whether the transformer's blocks are compiled: on a GPU, by default. `off` "
        "also keeps to torch's own attention, and `none` is then diffusers' image to the bit.",
    )
    attention: Literal["auto", "native", "cudnn", "flash3", "sage"] = Field(
        "auto", description="Attention kernel; by default the fastest exact one that is installed."
    )
    flash_lora: Path | None = Field(
        None,
        description="The eight-step LoRA of the flash and turbo endpoints; by default "
        "`flash/flux.2-turbo-lora.safetensors` in the model folder.",
    )
    flash_fallback: Literal["none", "steps"] = Field(
        "none",
        description="What these endpoints do without that file: answer 503, or take the eight "
        "steps without it.",
    )
    flash_schedule: FlashSchedule = Field(
        FlashSchedule.CARD,
        description="Their noise levels: as the model card's code takes them, or `shift-3` at "
        "every size.",
    )
    lora_dir: Path | None = Field(
        None,
        description="Folder of LoRAs that callers may name: `NAME.safetensors`, or "
        "`OWNER/NAME.safetensors` for a Hugging Face repository.",
    )
    lora_cache_bytes: int = Field(
        LORA_CACHE_BYTES,
        ge=0,
        description="Most memory of the device for LoRAs of callers, between requests.",
    )
    cache_bytes: int = Field(
        CACHE_BYTES, ge=0, description="Most memory for remembered prompts and reference images."
    )
    aliases: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="Endpoints of models whose weights are not public, such as "
        "`fal-ai/flux-2-pro`, that FLUX.2 [dev] stands in for, separated by commas.",
    )
    safety: SafetyRule = Field(
        default_factory=_default_safety,
        description="Whether images must pass the safety checker: `required`, `optional` for "
        "callers to choose, or `off`, as by default for the demonstration checkpoint.",
    )
    safety_model: Path | None = Field(
        None,
        description="The folder of the safety checker, one for all models; by default "
        "`safety_checker` in the first model folder that has one.",
    )
    safety_threshold: float = Field(
        DEFAULT_THRESHOLD, gt=0, le=1, description="The least score that is flagged."
    )
    safety_labels: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="Which labels of the checker are unsafe, separated by commas; by default those "
        "with words such as `nsfw` or `porn`.",
    )
    safety_references: bool = Field(
        False, description="Whether reference images must pass the safety checker too."
    )
    safety_quarantine: Path | None = Field(
        None, description="A folder where blocked images are kept for review; by default nowhere."
    )
    prompt_deny: Path | None = Field(
        None,
        description="A file of words that no prompt may have: one entry a line, `#` for comments.",
    )
    prompt_criteria: Path | None = Field(
        None,
        description="File of criteria, one yes-or-no question a line, that prompts are refused by; "
        "the model's own text encoder answers, so all of it must be loaded.",
    )
    expansion_url: str | None = Field(
        None,
        description="Base URL of an OpenAI-compatible server of yours, such as "
        "http://10.0.0.5:8000/v1, that expands prompts instead of the model's own text encoder.",
    )
    expansion_model: str | None = Field(
        None, description="The model that is asked for there, if it must be named."
    )
    expansion_key: SecretStr | None = Field(
        None, description="The key for it, sent as `Authorization: Bearer ...`."
    )
    expansion_seconds: float = Field(
        30, gt=0, description="How long that server may take; then the caller's prompt is used."
    )
    expansion_tokens: int = Field(
        MAX_NEW_TOKENS,
        gt=0,
        le=MAX_NEW_TOKENS,
        description="Longest text that a prompt is expanded to, by whichever of the two.",
    )
    marker: Literal["on", "off"] = Field(
        "on", description="Whether each file says that it is AI-generated, by what model."
    )
    watermark: Literal["on", "off"] = Field(
        "off", description="Whether the pixels have a watermark that re-encoding leaves."
    )
    c2pa_cert: Path | None = Field(
        None,
        description="PEM file of the certificate that Content Credentials (C2PA) are signed with, "
        "those of its authorities behind it.",
    )
    c2pa_key: Path | None = Field(None, description="PEM file of its private key.")
    c2pa_timestamp_url: str | None = Field(
        None, description="Time-stamp authority to ask for each signature."
    )
    pipeline_factory: str = Field(
        "pipelines.loading:load_pipeline",
        description="Import path of what makes a pipeline. For tests that inject faults.",
    )
    fetch_allow: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="Where image URLs may lead beside the public internet: host names, `*.domain`, "
        "addresses and networks (CIDR), separated by commas.",
    )
    start_mode: Literal["resume", "hold"] = Field(
        "resume", description="Whether the queue runs from the start, or waits for SIGUSR1."
    )
    cancel_on_disconnect: bool = Field(
        True,
        description="Whether a synchronous caller who leaves cancels a request not begun yet.",
    )
    webhook_allow: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="Whom webhooks may be sent to beside the public internet: host names, "
        "`*.domain`, addresses and networks (CIDR), separated by commas.",
    )
    outbound_ca_file: Path | None = Field(
        None,
        description="PEM file of authorities to trust beside the system's, for image URLs, "
        "webhooks and the server that expands prompts.",
    )
    log_prompts: bool = Field(
        False, description="Whether the log has the first 200 characters of each prompt."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Least severe log line that is written."
    )

    @property
    def folders(self) -> dict[Model, Path]:
        """The folder of every model that this server has, [dev] first."""
        return all_folders(self.model, self.models)

    @property
    def places(self) -> tuple[Place, ...]:
        """The runners: for each its device and the models that it may load."""
        return tuple(read_place(entry, self.folders) for entry in self.devices)

    @field_validator("models", mode="before")
    @classmethod
    def _folders_have_names(cls, value: Any) -> Any:
        if isinstance(value, str):
            return read_folders(item for item in value.split(",") if item.strip())
        return value

    @field_validator("model", mode="before")
    @classmethod
    def _none_is_the_demonstration(cls, value: Any, info: ValidationInfo) -> Any:
        """Take an empty text as if it was not given, so that an image's own can be taken back."""
        if value in (None, "") and "models" in info.data:
            return _default_model(info.data)
        return DEMO_CHECKPOINT if str(value).lower() == "none" else value

    @field_validator("model")
    @classmethod
    def _dev_has_one_folder(cls, value: Path | None, info: ValidationInfo) -> Path | None:
        if value and Model.DEV in info.data.get("models", {}):
            raise ValueError("this is the folder of dev, which models has too; leave one out")
        return value

    @field_validator("tls_port", "connect_port", mode="before")
    @classmethod
    def _none_switches_off(cls, value: Any) -> Any:
        return None if isinstance(value, str) and value.lower() == "none" else value

    @field_validator(
        *(
            "tls_names",
            "devices",
            "origins",
            "fetch_allow",
            "webhook_allow",
            "safety_labels",
            "aliases",
        ),
        mode="before",
    )
    @classmethod
    def _items_are_separated_by_commas(cls, value: Any) -> Any:
        if isinstance(value, str):
            return tuple(name.strip() for name in value.split(",") if name.strip())
        return value

    @field_validator("devices")
    @classmethod
    def _every_model_has_a_device(
        cls, value: tuple[str, ...], info: ValidationInfo
    ) -> tuple[str, ...]:
        if {"model", "models"} <= info.data.keys():  # else there is a mistake in these
            served = all_folders(info.data["model"], info.data["models"])
            check_places([read_place(entry, served) for entry in value], served)
        return value

    @field_validator("public_url")
    @classmethod
    def _origin_has_no_slash(cls, value: str | None) -> str | None:
        return value.rstrip("/") if value else None

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003  (the names are pydantic-settings')
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Take values as given: `load_settings` does the merging, so that tests can go without."""
        return (init_settings,)


def load_settings(
    flags: Mapping[str, Any] | None = None, environ: Mapping[str, str] | None = None
) -> Settings:
    """Merge the TOML file, the environment and the flags (None means not given).

    Raises `ConfigurationError`, which lists every mistake with its place and, for an unknown
    key, the nearest known one.
    """
    environ = os.environ if environ is None else environ
    given = {key: value for key, value in (flags or {}).items() if value is not None}
    config_file = given.pop("config", None) or environ.get(CONFIG_VARIABLE)
    from_file = read_toml(Path(config_file)) if config_file else {}
    in_environ = [
        name.removeprefix(ENV_PREFIX).lower()
        for name in environ
        if name.startswith(ENV_PREFIX) and name != CONFIG_VARIABLE
    ]
    known = list(Settings.model_fields)
    mistakes = [
        *unknown_keys(from_file, known, f"{config_file}: "),
        *unknown_keys(in_environ, known, spell=lambda key: ENV_PREFIX + key.upper()),
    ]
    if mistakes:
        raise ConfigurationError("\n".join(mistakes))
    try:
        return Settings(**{**from_file, **_read_environment(environ), **given})
    except ValidationError as error:
        raise ConfigurationError("\n".join(list_mistakes(error))) from error


def _read_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    source = EnvSettingsSource(Settings)
    source.env_vars = {key.lower(): value for key, value in environ.items()}
    return source()
