"""How well the watermark survives: `python -m scripts.measure_watermark FOLDER` of pictures.

Prints a table for docs/PROVENANCE.md. Use pictures like yours, at least 512 pixels wide and high.
"""

import io
import math
import sys
from collections.abc import Callable
from pathlib import Path

from PIL import Image, ImageChops, ImageStat

from server.provenance.watermark import detect, embed


def recode(image: Image.Image, kind: str, quality: int) -> Image.Image:
    """Return the picture after a lossy format."""
    buffer = io.BytesIO()
    image.save(buffer, kind, quality=quality)
    return Image.open(io.BytesIO(buffer.getvalue())).convert("RGB")


def shrink(image: Image.Image, divisor: int) -> Image.Image:
    """Return the picture at a fraction of its sides."""
    size = (image.width // divisor, image.height // divisor)
    return image.resize(size, Image.Resampling.LANCZOS)


COPIES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "as made": lambda image: image,
    "JPEG quality 80": lambda image: recode(image, "JPEG", 80),
    "JPEG quality 50": lambda image: recode(image, "JPEG", 50),
    "WebP quality 80": lambda image: recode(image, "WEBP", 80),
    "half the sides": lambda image: shrink(image, 2),
    "half the sides, then JPEG quality 80": lambda image: recode(shrink(image, 2), "JPEG", 80),
    "a quarter of the sides": lambda image: shrink(image, 4),
    "8 pixels cut off each edge": lambda image: image.crop(
        (8, 8, image.width - 8, image.height - 8)
    ),
}


def decibels(first: Image.Image, second: Image.Image) -> float:
    """Return the PSNR of two RGB pictures."""
    total = sum(ImageStat.Stat(ImageChops.difference(first, second)).sum2)
    return 10 * math.log10(255**2 * first.width * first.height * 3 / total)


def main() -> None:
    """Measure every picture of the folder."""
    pictures = [path for path in sorted(Path(sys.argv[1]).iterdir()) if path.is_file()]
    scores: dict[str, list[float]] = {name: [] for name in ("without it", *COPIES)}
    ratios, found = [], dict.fromkeys(scores, 0)
    for path in pictures:
        image = Image.open(path).convert("RGB")
        marked = embed(image)
        ratios.append(decibels(image, marked))
        copies = {name: spoil(marked) for name, spoil in COPIES.items()}
        for name, copy in {"without it": image, **copies}.items():
            told = detect(copy)
            scores[name].append(told.score)
            found[name] += told.is_marked
    print("| copy | found | least score | greatest score |\n|---|---|---|---|")
    for name, values in scores.items():
        print(f"| {name} | {found[name]} of {len(values)} | {min(values)} | {max(values)} |")
    print(f"\nPSNR: least {min(ratios):.1f} dB, median {sorted(ratios)[len(ratios) // 2]:.1f} dB")


if __name__ == "__main__":
    main()
