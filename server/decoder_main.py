"""The decoder: a child process that meets strangers' pictures in the gateway's place.

Started by `decoder` as `python -m server.decoder_main FD MEMORY_BYTES LIMIT_PIXELS`, FD being its
end of a socket pair. It reads orders and writes answers, a line of JSON each, one at a time. It
has no secrets, may take no more memory than it is told, and ends with the gateway.
"""

import contextlib
import os
import resource
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from PIL import Image

from server.children import die_with_parent
from server.decoder_messages import ANSWER, ORDER, Answer, Order, Refusal
from server.images import ImageRefusedError
from server.references import decode

ORDERS_PER_LIFE = 500
RESIDENT_LIMIT_BYTES = 512 * 2**20
"""A decoder retires after so many orders, or when it holds more memory than that between two:
a leak in one of the decoding libraries then stays small."""
NICENESS = 5
FIRST_TO_KILL = "500"
"""oom_score_adj (proc(5)): when the box runs out of memory, this process goes, not the gateway."""
OUTPUT_BYTES_PER_PIXEL = 4
OUTPUT_OVERHEAD_BYTES = 2**20

Decode = Callable[[BinaryIO, int], Image.Image]


def serve(connection: socket.socket, limit_pixels: int, decode_with: Decode = decode) -> None:
    """Say that we are ready, then follow orders until the gateway hangs up or it is time to go."""
    with connection.makefile("rb") as orders:
        connection.sendall(_line(Answer()))
        for number, line in enumerate(orders, start=1):
            refusal, problem = _follow(ORDER.validate_json(line), limit_pixels, decode_with)
            retires = number >= ORDERS_PER_LIFE or _resident_bytes() > RESIDENT_LIMIT_BYTES
            connection.sendall(_line(Answer(refusal=refusal, problem=problem, retires=retires)))
            if retires:
                return


def confine(memory_bytes: int, limit_pixels: int) -> None:
    """Give up what decoding pictures does not need. Not to be undone in this process."""
    output_bytes = limit_pixels * OUTPUT_BYTES_PER_PIXEL + OUTPUT_OVERHEAD_BYTES
    for limit, value in (
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_FSIZE, output_bytes),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(limit, (value, value))
    os.nice(NICENESS)
    with contextlib.suppress(OSError):  # a sandbox may leave /proc out
        Path("/proc/self/oom_score_adj").write_text(FIRST_TO_KILL, encoding="ascii")


def main(decode_with: Decode = decode) -> None:
    """Serve the gateway at the other end of the socket whose descriptor is the first argument."""
    die_with_parent()
    descriptor, memory_bytes, limit_pixels = (int(argument) for argument in sys.argv[1:])
    confine(memory_bytes, limit_pixels)
    with socket.socket(fileno=descriptor) as connection:
        serve(connection, limit_pixels, decode_with)


def _follow(
    order: Order, limit_pixels: int, decode_with: Decode
) -> tuple[Refusal | None, str | None]:
    try:
        with order.source.open("rb") as source:
            picture = decode_with(source, limit_pixels)
        # It lives for seconds: no time is spent on its size.
        picture.save(order.target, "PNG", compress_level=0)
    except ImageRefusedError as error:
        return Refusal(error_type=error.error_type, message=str(error), ctx=error.ctx), None
    except OSError as error:
        return None, str(error)
    return None, None


def _resident_bytes() -> int:
    _, resident_pages, *_ = Path("/proc/self/statm").read_text(encoding="ascii").split()
    return int(resident_pages) * resource.getpagesize()


def _line(answer: Answer) -> bytes:
    return ANSWER.dump_json(answer) + b"\n"


if __name__ == "__main__":
    main()
