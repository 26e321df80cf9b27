"""What all marks call things: the program, and the origin in IPTC's word for it."""

from functools import cache
from importlib.metadata import version

SOFTWARE = "flux2-serve"

STATEMENT = "AI-generated image"

SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
"""Media made by a trained model (https://cv.iptc.org/newscodes/digitalsourcetype)."""


@cache
def software_version() -> str:
    """Return the version of this program."""
    return version(SOFTWARE)
