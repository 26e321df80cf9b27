"""What a checkpoint says of itself to this server: `flux2_serve.json` beside `model_index.json`.

The file may be absent; then everything has its default.
"""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from pipelines.errors import ModelNotFoundError

DECLARATION_NAME = "flux2_serve.json"


class Declaration(BaseModel):
    """The file's content. A key that is not known here is an error: it may be a wrong spelling."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    expander: bool = True
    """Whether the text encoder can write and answer; one that was trained only to read cannot."""


def read_declaration(folder: Path) -> Declaration:
    """Read what the checkpoint in this folder declares.

    Raises `ModelNotFoundError`, naming the file and what is wrong with it.
    """
    path = folder / DECLARATION_NAME
    if not path.exists():
        return Declaration()
    try:
        return Declaration.model_validate_json(path.read_bytes())
    except OSError as error:
        raise ModelNotFoundError(f"{path}: cannot be read: {error.strerror}") from error
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, e['loc']))} {e['msg']}".strip() for e in error.errors()]
        raise ModelNotFoundError(f"{path}: {'; '.join(problems)}") from error
