"""Draws with diffusers' own pipeline and nothing of ours but the shim for a CPU-only torch.

Arguments, each as JSON: the model's folder, the picture's file, and the arguments of
`Flux2Pipeline.__call__` with the seed as `seed`. Prints as JSON which modules of ours are loaded.
Whatever looks for the network fails.
"""

import json
import socket
import sys
from typing import NoReturn

import pipelines.compat

pipelines.compat.declare_torchvision_operators()

import torch  # noqa: E402
from diffusers import Flux2Pipeline  # noqa: E402


def refuse(*_arguments: object, **_named: object) -> NoReturn:
    """Stand in for every way out."""
    raise OSError("something reached for the network")


def main() -> None:
    """Save one picture and print one JSON list."""
    folder, path, arguments = map(json.loads, sys.argv[1:])
    socket.getaddrinfo = refuse
    socket.socket.connect = refuse  # type: ignore[method-assign]
    pipe = Flux2Pipeline.from_pretrained(folder)
    generator = torch.Generator("cpu").manual_seed(arguments.pop("seed"))
    pipe(**arguments, generator=generator).images[0].save(path)
    names = (name for name in sys.modules if name.partition(".")[0] in ("pipelines", "server"))
    json.dump(sorted(names), sys.stdout)


if __name__ == "__main__":
    main()
