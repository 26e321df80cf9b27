"""Start a server on the demonstration checkpoint, ask its endpoints, draw a contact sheet."""

import argparse
import os
import subprocess
import sys
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from demo_sheet import Answer, draw_sheet
from PIL import Image

OUTPUT = Path("demo-output")
COMMAND = str(Path(sys.executable).parent / "flux2-serve")


@dataclass(frozen=True, slots=True)
class Ask:
    """One request; `edits` are the places, in the list, of the answers that it works on."""

    endpoint: str
    prompt: str
    edits: tuple[int, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)


ASKS = (
    Ask("fal-ai/flux-2", "a red circle on the right on a yellow background"),
    Ask("fal-ai/flux-2/flash/edit", "add a blue square in the lower left corner", edits=(0,)),
    Ask("fal-ai/flux-2-flex", "a green square to the left of an orange star on white"),
    Ask("fal-ai/flux-2-dev", "three purple hearts against a gradient from white at the top to "
        "cyan at the bottom", options={"output_format": "webp"}),
    Ask("fal-ai/flux-2/flash", "a small pink star in the top left corner on a black background"),
    Ask("fal-ai/flux-2/flash/edit", "put the star from image 2 into image 1", edits=(0, 4)),
)  # fmt: skip
"""Prompts of the world that the checkpoint knows; an edit stands right of what it edits."""

SEED = 7


def main() -> int:
    """Run the demonstration; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true", help="in each endpoint's default size")
    parser.add_argument("--serve", action="store_true", help="stay up afterwards")
    options = parser.parse_args()
    OUTPUT.mkdir(exist_ok=True)
    server = start_server(stay_up=options.serve)
    try:
        ports = read_ports(server)
        sheet = OUTPUT / "contact-sheet.png"
        draw_sheet(ask_every_endpoint(ports["https"], full=options.full), sheet)
        print(f"\nThe contact sheet: {sheet.resolve()}\n")
        print_connection(ports if options.serve else {"http": 8000, "https": 8443})
        if options.serve:
            print("\nServing until Ctrl-C.", flush=True)
            server.wait()
    except KeyboardInterrupt:
        print("\nstopping")
    finally:
        server.terminate()
        server.wait()
    return 0


def start_server(*, stay_up: bool) -> subprocess.Popen[str]:
    """Start the server: on any free ports for a quick run, on the usual ones to stay.

    Only a server that stays takes settings from the environment, among them another model.
    """
    settings = {
        "FLUX2_DATA_DIR": str(OUTPUT / "data"),
        "FLUX2_LOG_LEVEL": "error",  # the demonstration checkpoint is no news here
    }
    environment = dict(os.environ)
    if not stay_up:
        settings |= {"FLUX2_PORT": "0", "FLUX2_TLS_PORT": "0"}
        environment = {
            name: value for name, value in environment.items() if not name.startswith("FLUX2_")
        }
    return subprocess.Popen(  # noqa: S603
        [COMMAND, "serve"], env={**settings, **environment}, stdout=subprocess.PIPE, text=True
    )


def read_ports(server: subprocess.Popen[str]) -> dict[str, int]:
    """Read from the server's own output where it listens; it prints HTTPS last."""
    ports: dict[str, int] = {}
    for line in server.stdout or ():
        print(line, end="", flush=True)
        if line.startswith("listening on "):
            scheme, _, address = line.split()[-1].partition("://")
            ports[scheme] = int(address.rpartition(":")[2])
            if scheme == "https":
                return ports
    raise SystemExit("the server did not start")


def ask_every_endpoint(tls_port: int, *, full: bool) -> list[Answer]:
    """Send the requests one after the other, save each picture, and return them all."""
    address = f"localhost:{tls_port}"
    os.environ |= {
        "FAL_RUN_HOST": address,
        "FAL_QUEUE_RUN_HOST": f"{address}/queue",
        "SSL_CERT_FILE": str(OUTPUT / "data" / "tls" / "ca.pem"),
        "FAL_KEY": os.environ.get("FLUX2_API_KEY", "local:local"),
    }
    answers: list[Answer] = []
    urls: list[str] = []
    for number, ask in enumerate(ASKS, start=1):
        arguments: dict[str, Any] = {"prompt": ask.prompt, "seed": SEED, **ask.options}
        if not full:
            arguments["image_size"] = "square"
        if ask.edits:
            arguments["image_urls"] = [urls[place] for place in ask.edits]
        image, seconds = subscribe(ask.endpoint, arguments)
        name = f"{number}-{ask.endpoint.removeprefix('fal-ai/').replace('/', '-')}"
        urls.append(image["url"])
        path = (OUTPUT / name).with_suffix(Path(image["file_name"]).suffix)
        path.write_bytes(download(image["url"]))
        picture = Image.open(path).convert("RGB")
        answers.append(Answer(ask.endpoint, ask.prompt, picture, seconds, ask.edits))
        print(f"{ask.endpoint:26} {image['width']}x{image['height']} {seconds:5.1f} s -> {path}",
              flush=True)  # fmt: skip
    return answers


def subscribe(endpoint: str, arguments: dict[str, Any]) -> tuple[dict[str, Any], float]:
    """Ask with fal's client; return the image's entry and the seconds that the server took."""
    import fal_client  # noqa: PLC0415  (it reads its hosts when it is imported)

    updates: list[Any] = []
    result = fal_client.subscribe(endpoint, arguments, on_queue_update=updates.append)
    return result["images"][0], updates[-1].metrics["inference_time"]


def download(url: str) -> bytes:
    """Fetch an image of the answer; SSL_CERT_FILE makes the server's certificate trusted."""
    with urllib.request.urlopen(url) as response:  # noqa: S310  (a URL of our own server)
        data: bytes = response.read()
    return data


def print_connection(ports: dict[str, int]) -> None:
    """Print what to paste so that other programs talk to this server."""
    command = [COMMAND, "client-env", "--data-dir", str(OUTPUT / "data"), "--port",
               str(ports["http"]), "--tls-port", str(ports["https"])]  # fmt: skip
    lines = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603
    print("While scripts/demo --serve runs, clients reach it so:\n")
    print(lines.stdout)


if __name__ == "__main__":
    sys.exit(main())
