"""How the HEIC files in `samples/` were made; run by hand, as HEIC encoders are not installed.

`pip install pillow-heif` (it carries x265, under the GPL) into an environment of its own, then
`python -m tests.server.make_samples`.
"""

from pathlib import Path
from typing import Any

from PIL import Image

from tests.server.icc import DISPLAY_P3, make_rgb_profile

SAMPLES = Path(__file__).parent / "samples"


def make_scene(width: int, height: int) -> Image.Image:
    """Draw four quarters of plain colours, which lossy encoders keep."""
    scene = Image.new("RGB", (width, height), (200, 30, 40))
    scene.paste((40, 170, 60), (width // 2, 0, width, height // 2))
    scene.paste((30, 60, 190), (0, height // 2, width // 2, height))
    scene.paste((230, 220, 90), (width // 2, height // 2, width, height))
    return scene


def main() -> None:
    """Write every sample."""
    import pillow_heif  # type: ignore[import-not-found,unused-ignore]

    pillow_heif.register_heif_opener()
    scene = make_scene(96, 80)
    exact: dict[str, Any] = {"quality": -1, "chroma": 444}

    def save(name: str, image: Image.Image, **options: object) -> None:
        image.save(SAMPLES / f"{name}.heic", **{**exact, **options})

    save("plain", scene)
    save("subsampled", scene, quality=60, chroma=420)
    save("grey", scene.convert("L"))
    clear = scene.copy()
    clear.putalpha(Image.new("L", scene.size, 255))
    clear.paste((0, 0, 0, 0), (0, 0, 48, 40))
    save("alpha", clear)
    exif = Image.Exif()
    exif[0x0112] = 6
    save("turned", scene, exif=exif.tobytes())
    # The encoder does not look into this kind of EXIF: the file itself is not turned.
    save("exif_turned", scene, exif=exif)
    save("display_p3", scene, icc_profile=make_rgb_profile(DISPLAY_P3, 2.2))
    save(
        "second_is_primary",
        Image.new("RGB", (96, 80)),
        save_all=True,
        append_images=[scene],
        primary_index=1,
    )
    save("thumbnail", scene, thumbnails=[32])
    save("bomb", Image.new("RGB", (5000, 5000), "gray"), quality=10, chroma=420)
    # Each byte twice is the sample in sixteen bits.
    deep = bytes(byte for sample in scene.tobytes() for byte in (sample, sample))
    ten_bits = pillow_heif.from_bytes("RGB;16", scene.size, deep)
    ten_bits.save(SAMPLES / "ten_bits.heic", **exact)


if __name__ == "__main__":
    main()
