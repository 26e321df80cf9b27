"""A decoder that does what the file it is given says, and decodes every other file well.

Run in place of `server.decoder_main`.
"""

import ctypes
import os
import signal
import sys
from typing import BinaryIO

from PIL import Image

from server import decoder_main
from server.references import decode

LIFE = 3


def misbehave(source: BinaryIO, limit_pixels: int) -> Image.Image:
    """Follow the word at the start of the file."""
    socket_descriptor = int(sys.argv[1])
    match source.read(16):
        case b"abort":
            os.abort()
        case b"crash":
            ctypes.string_at(0)
        case b"leave":
            os._exit(0)
        case b"hang":
            signal.pause()
        case b"eat":
            hoard = [bytearray(2**20)]
            while True:
                hoard.append(bytearray(len(hoard[-1]) * 2))
        case b"garbage":
            os.write(socket_descriptor, b"\0\xff{]\n")
        case b"flood":
            os.write(socket_descriptor, b"x" * 2**17)
        case b"wrong":
            os.write(socket_descriptor, b'{"refusal": {"error_type": "none"}}\n')
    source.seek(0)
    return decode(source, limit_pixels)


if __name__ == "__main__":
    decoder_main.ORDERS_PER_LIFE = LIFE
    decoder_main.main(misbehave)
