"""Which of fal's endpoints this server serves: the one place where that is decided.

Whatever takes a new request, or tells what may be asked, goes by it. What was accepted once is
made, although the settings be others by then.
"""

from collections.abc import Collection, Container
from pathlib import Path

from pipelines.types import Model
from server.catalogue import CATALOGUE, find_endpoint
from server.errors import ConfigurationError, RequestError
from server.family.endpoint import Endpoint
from server.lora_folder import find_local
from server.settings import ENV_PREFIX, Settings

ALIASES_SETTING = f"{ENV_PREFIX}ALIASES"
MODELS_SETTING = f"{ENV_PREFIX}MODELS"


class Offer:
    """The endpoints that are served by `models`; aliases only where they are named.

    One that has a LoRA of its own needs that in `lora_dir`, where it may come and go.
    """

    def __init__(
        self,
        models: Collection[Model],
        aliases: Container[str],
        lora_dir: Path | None = None,
    ) -> None:
        self._models = models
        self._aliases = aliases
        self._lora_dir = lora_dir

    @classmethod
    def of(cls, settings: Settings) -> "Offer":
        """Make the offer of a server with these settings.

        Raises `ConfigurationError` for an alias that is none.
        """
        known = [endpoint.id for endpoint in CATALOGUE.values() if endpoint.is_alias]
        for name in settings.aliases:
            if name not in known:
                raise ConfigurationError(
                    f"{ALIASES_SETTING} names {name!r}, which is no endpoint that another model "
                    f"could stand in for; those are {', '.join(known)}"
                )
        return cls(settings.folders, settings.aliases, settings.lora_dir)

    @property
    def endpoints(self) -> tuple[Endpoint, ...]:
        """All that is served, in the catalogue's order."""
        return tuple(each for each in CATALOGUE.values() if self.problem_of(each) is None)

    def find(self, endpoint_id: str) -> Endpoint:
        """Return the endpoint of this id.

        Raises `RequestError` 404 for one that fal does not have, and one that says what is missing
        for one that is not served here.
        """
        endpoint = find_endpoint(endpoint_id)
        problem = self.problem_of(endpoint)
        if problem:
            raise _not_found(problem)
        return endpoint

    def problem_of(self, endpoint: Endpoint) -> str | None:
        """Say why an endpoint is not served, and what would change that; None if it is."""
        if endpoint.is_alias and endpoint.id not in self._aliases:
            return (
                f"{endpoint.id} is not served here: its weights are not public. The operator of "
                f"this server may let FLUX.2 [dev] stand in for it: "
                f"{ALIASES_SETTING}={endpoint.id}"
            )
        if endpoint.model not in self._models:
            return f"{endpoint.id} is not served here: {_want_of(endpoint.model, self._models)}"
        if endpoint.lora and find_local(self._lora_dir, endpoint.lora) is None:
            return (
                f"{endpoint.id} is not served here: this server has no {endpoint.lora}.safetensors "
                f"in its folder of LoRAs ({ENV_PREFIX}LORA_DIR)"
            )
        return None


def missing_model(model: Model, served: Collection[Model]) -> RequestError:
    """Make the answer for a request whose model this server does not have."""
    return _not_found(f"The request cannot be made: {_want_of(model, served)}")


def _want_of(model: Model, served: Collection[Model]) -> str:
    return (
        f"this server does not have the model {model}, only {', '.join(served)}. Its operator may "
        f"add it: {MODELS_SETTING}={model}=FOLDER"
    )


def _not_found(detail: str) -> RequestError:
    return RequestError(404, detail, headers={"x-fal-billable-units": "0"})
