"""From the settings to what a runner must know to load its pipeline."""

from pipelines.errors import CriteriaError
from pipelines.screening import read_criteria
from pipelines.types import LoadOptions, Model
from server.errors import ConfigurationError
from server.safety import safety_options
from server.settings import Settings

BUILDS_FOLDER = "builds"
"""Of the data folder: what images came from, by id, and the hashes of the files."""


def load_options(settings: Settings, model: Model, device: str) -> LoadOptions:
    """Return the operator's choices for one of the models on one device.

    Raises `ConfigurationError` for a file of criteria that cannot be used.
    """
    return LoadOptions(
        model=settings.folders[model],
        device=device,
        dtype=settings.dtype,
        compile=settings.compile,
        attention=settings.attention,
        flash_lora=settings.flash_lora if model is Model.DEV else None,
        flash_fallback=settings.flash_fallback == "steps",
        flash_schedule=settings.flash_schedule,
        compile_cache=settings.data_dir / "cache",
        builds=settings.data_dir / BUILDS_FOLDER,
        cache_bytes=settings.cache_bytes,
        lora_cache_bytes=settings.lora_cache_bytes,
        profile=settings.profile,
        text_encoder=text_encoder_for(settings),
        expansion_tokens=settings.expansion_tokens,
        prompt_criteria=criteria_of(settings),
        safety=safety_options(settings),
    )


def criteria_of(settings: Settings) -> tuple[str, ...]:
    """Read the questions that prompts are refused by.

    Raises `ConfigurationError` for a file that cannot be used.
    """
    if settings.prompt_criteria is None:
        return ()
    try:
        return read_criteria(settings.prompt_criteria)
    except CriteriaError as error:
        raise ConfigurationError(f"FLUX2_PROMPT_CRITERIA: {error}") from error


def text_encoder_for(settings: Settings) -> str:
    """Say how much of the text encoder is wanted: what another server writes needs none of ours."""
    needs_none = settings.prompt_criteria is None and settings.safety == "off"
    if settings.text_encoder == "auto" and settings.expansion_url and needs_none:
        return "prompts"
    return settings.text_encoder
