"""Writes the transformer's weights in 8 bits into the model folder, once, for faster starts."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from pipelines.errors import ModelNotFoundError
from pipelines.folder import check_model_folder
from pipelines.memory import FAST_FROM
from pipelines.types import Precision


def main(arguments: Sequence[str] | None = None) -> int:
    """Quantise a model folder's transformer, on any machine. Exits with 1 if that cannot be."""
    parser = argparse.ArgumentParser(prog="quantize", description=main.__doc__)
    parser.add_argument("--model", type=Path, required=True, help="a diffusers folder")
    parser.add_argument("--precision", choices=[name.value for name in FAST_FROM], default="fp8")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="bfloat16")
    options = parser.parse_args(arguments)
    try:
        check_model_folder(options.model)
        # Only now: a broken folder is told without waiting for torch.
        from pipelines.construction import make_transformer  # noqa: PLC0415
        from pipelines.prequantised import write_set  # noqa: PLC0415

        folder = write_set(
            make_transformer(options.model),
            options.model,
            Precision(options.precision),
            Precision(options.dtype),
            lambda fraction: print(f"\r{fraction:4.0%}", end="", file=sys.stderr),
        )
    except (ModelNotFoundError, OSError) as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    size_bytes = sum(path.stat().st_size for path in folder.iterdir())
    print(f"\r{folder}: {size_bytes / 1e9:.2f} GB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
