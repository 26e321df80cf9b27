"""The marker in every file: that the picture was made by a model, which one, and by what program.

The words that others look for: EXIF, XMP with IPTC's digital source type, PNG's own texts. Nothing
of the request is in it, and the same picture gives the same bytes.
"""

from dataclasses import dataclass
from typing import Any
from xml.sax.saxutils import escape, quoteattr

from PIL import ExifTags, Image
from PIL.PngImagePlugin import PngInfo

from server.provenance.credentials import Credentials
from server.provenance.words import SOFTWARE, SOURCE_TYPE, STATEMENT, software_version
from server.schemas import OutputFormat

_XMP = """<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/">
 <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
  <rdf:Description rdf:about=""
    xmlns:xmp="http://ns.adobe.com/xap/1.0/"
    xmlns:dc="http://purl.org/dc/elements/1.1/"
    xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
    xmp:CreatorTool={software}
    Iptc4xmpExt:DigitalSourceType={source_type}
    Iptc4xmpExt:AISystemUsed={model}>
   <dc:description>
    <rdf:Alt><rdf:li xml:lang="x-default">{statement}</rdf:li></rdf:Alt>
   </dc:description>
  </rdf:Description>
 </rdf:RDF>
</x:xmpmeta>
<?xpacket end="r"?>"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Marking:
    """What the operator wants in each file: the marker, the watermark, signed credentials."""

    model: str = "FLUX.2"
    marker: bool = True
    watermark: bool = False
    credentials: Credentials | None = None


DEFAULT_MARKING = Marking()


def marker_options(model: str, output_format: OutputFormat) -> dict[str, Any]:
    """Return what Pillow's `save` takes to write the marker into a file of this format."""
    model = "".join(character for character in model if character.isprintable())
    options: dict[str, Any] = {"exif": _exif(model)}
    if output_format is OutputFormat.PNG:
        texts = PngInfo()
        for keyword, text in _texts(model).items():
            texts.add_text(keyword, text)
        texts.add_itxt("XML:com.adobe.xmp", make_xmp(model))
        return {**options, "pnginfo": texts}
    return {**options, "xmp": make_xmp(model).encode("utf-8")}


def make_xmp(model: str) -> str:
    """Return the XMP packet (ISO 16684-1), not to be padded or changed in place."""
    return _XMP.format(
        software=quoteattr(_software()),
        source_type=quoteattr(SOURCE_TYPE),
        model=quoteattr(model),
        statement=escape(_statement(model)),
    )


def _exif(model: str) -> Image.Exif:
    exif = Image.Exif()
    exif[ExifTags.Base.ImageDescription] = _ascii(_statement(model))
    exif[ExifTags.Base.Make] = SOFTWARE
    exif[ExifTags.Base.Model] = _ascii(model)
    exif[ExifTags.Base.Software] = f"AI generated;{_software()}"
    return exif


def _texts(model: str) -> dict[str, str]:
    """Return texts under the keywords of the PNG specification, section 11.3.3.1."""
    return {"Description": _statement(model), "Software": _software(), "Source": model}


def _statement(model: str) -> str:
    return f"{STATEMENT}, made by the model {model} with {_software()}"


def _ascii(text: str) -> str:
    """EXIF's texts are ASCII."""
    return text.encode("ascii", "replace").decode("ascii")


def _software() -> str:
    return f"{SOFTWARE} {software_version()}"
