"""From the settings to what a runner must know to load its pipeline."""

from pipelines.types import LoadOptions
from server.settings import Settings

BUILDS_FOLDER = "builds"
"""Of the data folder: what images came from, by id, and the hashes of the files."""


def load_options(settings: Settings, device: str) -> LoadOptions:
    """Return the operator's choices for one device."""
    return LoadOptions(
        model=settings.model,
        device=device,
        dtype=settings.dtype,
        compile=settings.compile,
        attention=settings.attention,
        flash_lora=settings.flash_lora,
        flash_fallback=settings.flash_fallback == "steps",
        flash_schedule=settings.flash_schedule,
        compile_cache=settings.data_dir / "cache",
        builds=settings.data_dir / BUILDS_FOLDER,
        cache_bytes=settings.cache_bytes,
    )
