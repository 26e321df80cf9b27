"""Markers that other programs read: written by us, read by Pillow and an XML parser."""

import io
import random
import xml.etree.ElementTree as ET
from typing import Any

import pytest
from PIL import ExifTags, Image

from server.images import encode
from server.provenance.markers import Marking, make_xmp
from server.provenance.words import SOURCE_TYPE, software_version
from server.schemas import OutputFormat

IPTC = "{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}"
XMP = "{http://ns.adobe.com/xap/1.0/}"
RDF = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}"

FORMATS = list(OutputFormat)


def picture() -> Image.Image:
    """Return a picture of which lossy formats lose something."""
    return Image.frombytes("RGB", (96, 64), random.Random(3).randbytes(96 * 64 * 3))


def opened(data: bytes) -> Image.Image:
    """Return the picture of a file, as any program reads it."""
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def packet_of(image: Image.Image) -> str:
    """Return the XMP packet, from where each format has it."""
    packet: Any = image.info.get("xmp") or image.info["XML:com.adobe.xmp"]
    return packet.decode("utf-8") if isinstance(packet, bytes) else str(packet)


@pytest.mark.parametrize("output_format", FORMATS)
def test_exif_and_xmp_survive_the_round_trip(output_format: OutputFormat) -> None:
    """Each format carries the statement, the model and the program in both vocabularies."""
    image = opened(encode(picture(), output_format, Marking(model="FLUX.2-dev")).data)
    exif = image.getexif()
    assert exif[ExifTags.Base.Software] == f"AI generated;flux2-serve {software_version()}"
    assert exif[ExifTags.Base.Model] == "FLUX.2-dev"
    assert exif[ExifTags.Base.ImageDescription].startswith("AI-generated image")
    described = ET.fromstring(packet_of(image)).find(f".//{RDF}Description")  # noqa: S314  (ours)
    assert described is not None
    assert described.attrib[f"{IPTC}DigitalSourceType"] == SOURCE_TYPE
    assert described.attrib[f"{IPTC}AISystemUsed"] == "FLUX.2-dev"
    assert described.attrib[f"{XMP}CreatorTool"] == f"flux2-serve {software_version()}"


def test_png_has_texts_of_its_own() -> None:
    """Viewers that know neither EXIF nor XMP show the text chunks of a PNG."""
    texts = opened(encode(picture(), OutputFormat.PNG, Marking(model="FLUX.2-dev")).data).info
    assert "AI-generated" in texts["Description"]
    assert texts["Software"] == f"flux2-serve {software_version()}"
    assert texts["Source"] == "FLUX.2-dev"


@pytest.mark.parametrize("output_format", FORMATS)
def test_the_marker_is_on_by_default(output_format: OutputFormat) -> None:
    """Who says nothing gets a file that says what it is."""
    assert SOURCE_TYPE in packet_of(opened(encode(picture(), output_format).data))


@pytest.mark.parametrize("output_format", FORMATS)
def test_the_marker_changes_no_pixel_and_can_be_left_out(output_format: OutputFormat) -> None:
    """With and without it the decoded pictures are the same, and without it nothing is said."""
    marked = opened(encode(picture(), output_format).data)
    bare = opened(encode(picture(), output_format, Marking(marker=False)).data)
    assert marked.tobytes() == bare.tobytes()
    assert not bare.getexif()
    assert not {"xmp", "XML:com.adobe.xmp", "Description"} & bare.info.keys()


@pytest.mark.parametrize("output_format", FORMATS)
def test_equal_pictures_are_equal_files(output_format: OutputFormat) -> None:
    """No time, no random id: the same request can be compared byte for byte."""
    assert encode(picture(), output_format).data == encode(picture(), output_format).data


@pytest.mark.parametrize("model", ["a&b <\"c'>", "Grüße-模型", "two\nlines\x00\udcff", ""])
@pytest.mark.parametrize("output_format", FORMATS)
def test_any_name_of_a_model_can_be_written(output_format: OutputFormat, model: str) -> None:
    """A folder may have any name; what XML or EXIF cannot hold is left out or replaced."""
    image = opened(encode(picture(), output_format, Marking(model=model)).data)
    assert SOURCE_TYPE in packet_of(image)
    ET.fromstring(packet_of(image))  # noqa: S314  (ours)
    assert str(image.getexif()[ExifTags.Base.Model]).isascii()


def test_nothing_of_the_request_is_in_the_marker() -> None:
    """Who receives a picture learns of the model and the program, and of no person."""
    assert "prompt" not in make_xmp("FLUX.2").lower()
