"""Folders that are whole by all that can be told without loading them, and hold no weights.

For pipelines of `fault_pipelines`, which read none.
"""

import json
import struct
from pathlib import Path

from pipelines.folder import COMPONENT_FILES, WEIGHTS
from pipelines.types import Model


def make_model_folder(folder: Path, model: Model) -> Path:
    """Write a folder that says it is this model, and return it."""
    folder.mkdir(parents=True)
    index = {"_class_name": "Flux2Pipeline" if model is Model.DEV else "Flux2KleinPipeline"}
    is_distilled = model in (Model.KLEIN_4B, Model.KLEIN_9B)
    (folder / "model_index.json").write_text(json.dumps({**index, "is_distilled": is_distilled}))
    for component, name in COMPONENT_FILES.items():
        (folder / component).mkdir()
        (folder / component / name).write_text("{}")
    for component, stem in WEIGHTS.items():
        header = json.dumps({}).encode("ascii")
        data = struct.pack("<Q", len(header)) + header
        (folder / component / f"{stem}.safetensors").write_bytes(data)
    return folder
