"""Runs in a network namespace of its own: makes the tiny model, serves it, asks for an image.

Argument: an empty folder. Prints what happened as JSON: whether there was a network after all,
and what fal's Python client got over TLS.
"""

import errno
import fcntl
import json
import os
import socket
import struct
import subprocess
import sys
import threading
from pathlib import Path

import httpx2

from tests.conftest import START_SECONDS, RunningServer
from tests.contract.conftest import SMALL_INPUTS, connect, run_python_client

SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 0x1
"""From Linux's <linux/sockios.h> and <linux/if.h>."""

ENDPOINT = "fal-ai/flux-2-flex"


def raise_loopback() -> None:
    """Switch the loopback interface on, which a new namespace has off; needs no `ip` command."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as handle:
        request = struct.pack("16sH14x", b"lo", 0)
        flags = struct.unpack("16sH14x", fcntl.ioctl(handle, SIOCGIFFLAGS, request))[1]
        fcntl.ioctl(handle, SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", flags | IFF_UP))


def find_network() -> str:
    """Return what happens to a packet to the outside (an address reserved for documents)."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as handle:
        code = handle.connect_ex(("192.0.2.1", 53))
    return errno.errorcode.get(code, "none")


def start(command: Path, model: Path, data_dir: Path, **env: str) -> RunningServer:
    """Start a server, with `env` too, and wait until it can make images."""
    settings = {"FLUX2_SAFETY": "off", "FLUX2_TLS_PORT": "0", **env}
    process = subprocess.Popen(
        [command, "serve", "--model", model, "--data-dir", data_dir, "--port=0"],
        env={**os.environ, **settings},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    server = RunningServer(process, data_dir)
    threading.Thread(target=server.read_output, daemon=True).start()
    server.http = server.wait_for("listening on http://").split()[-1]
    server.https = server.wait_for("listening on https://").split()[-1]
    server.wait_for('"runner ready"')
    return server


def main() -> None:
    """Print one JSON object."""
    folder = Path(sys.argv[1])
    command = Path(sys.executable).parent / "flux2-serve"
    raise_loopback()
    model = folder / "tiny"
    subprocess.run(
        [command, "demo-model", model],
        check=True,
        timeout=START_SECONDS,
        stdout=subprocess.DEVNULL,
    )
    server = start(command, model, folder / "data")
    try:
        found = run_python_client(server, "every_way.py", ENDPOINT, SMALL_INPUTS[ENDPOINT])
        image = found["sync"]["subscribe"]["images"][0]
        with connect(server) as http:
            file: httpx2.Response = http.get(f"/files/{image['file_name']}")
    finally:
        exit_code = server.stop()
    told = {
        "interfaces": [name for _, name in socket.if_nameindex()],
        "network": find_network(),
        "image": image,
        "file_bytes": len(file.content),
        "async_seed": found["async"]["run"]["seed"],
        "exit_code": exit_code,
        "log": server.lines,
    }
    json.dump(told, sys.stdout)


if __name__ == "__main__":
    main()
