"""From a local diffusers folder to a ready pipeline. Never from a hub, never from a pickle."""

from pipelines.folder import check_model_folder
from pipelines.types import LoadOptions, OnLoadProgress, Pipeline, ignore_load_progress


def load_pipeline(
    options: LoadOptions, on_progress: OnLoadProgress = ignore_load_progress
) -> tuple[Pipeline, str]:
    """Load the model, laid out as fits the device, and describe it in a few words.

    Raises `ModelNotFoundError`, before anything is loaded, naming every file that is missing or
    cut short, and `DoesNotFitError` where the device or main memory has no room for it.
    """
    check_model_folder(options.model)
    # Only now: a missing file should be told in a second, not after torch's import.
    from pipelines.construction import construct  # noqa: PLC0415

    return construct(options, on_progress)
