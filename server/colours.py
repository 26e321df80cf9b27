"""From whatever a picture's pixels mean to plain sRGB: depth, palette, profile, transparency."""

import functools
import io

from PIL import Image, ImageCms

GREY_MODES = ("1", "L", "LA", "La")
PROFILED_MODES = ("L", "RGB", "CMYK")


def to_rgb(picture: Image.Image) -> Image.Image:
    """Return the picture as sRGB, laid over white where it is transparent.

    A colour profile that is broken or belongs to another kind of picture is passed over, as
    browsers do.
    """
    colour, alpha = _split(picture)
    rgb = _to_srgb(colour, picture.info.get("icc_profile"))
    if alpha is None:
        return rgb
    ground = Image.new("RGB", rgb.size, "white")
    ground.paste(rgb, mask=alpha)
    return ground


def _split(picture: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """Return the colours in a mode that a profile can be for, and the alpha if there is any."""
    if picture.mode == "I;16":
        return _split_deep_grey(picture)
    base = "L" if picture.mode in GREY_MODES else "RGB"
    if picture.has_transparency_data:
        layer = picture.convert("LA" if base == "L" else "RGBA")
        return layer.convert(base), layer.getchannel("A")
    return picture if picture.mode in PROFILED_MODES else picture.convert(base), None


def _split_deep_grey(picture: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """Bring grey of 16 bits to 8, rounded; Pillow's own conversion cuts off what exceeds 255."""
    wide = picture.convert("I")  # the only mode that Pillow maps through 65,536 entries
    grey = wide.point([(value * 255 + 32767) // 65535 for value in range(65536)], "L")
    clear = picture.info.get("transparency")
    if clear is None:
        return grey, None
    return grey, wide.point([0 if value == clear else 255 for value in range(65536)], "L")


def _to_srgb(colour: Image.Image, profile: bytes | None) -> Image.Image:
    if profile:
        try:
            given = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            converted = ImageCms.profileToProfile(colour, given, _srgb(), outputMode="RGB")
        except (ImageCms.PyCMSError, OSError, ValueError):
            converted = None
        if converted:
            return converted
    return colour.convert("RGB")


@functools.cache
def _srgb() -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
