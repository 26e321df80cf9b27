"""Start a server on the tiny checkpoint, ask every endpoint with fal's client, save the images."""

import argparse
import base64
import io
import os
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

OUTPUT = Path("demo-output")
COMMAND = str(Path(sys.executable).parent / "flux2-serve")


def main() -> int:
    """Run the demonstration; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--serve", action="store_true", help="stay up afterwards")
    stay_up = parser.parse_args().serve
    OUTPUT.mkdir(exist_ok=True)
    model = OUTPUT / "model"
    subprocess.run([COMMAND, "demo-model", str(model)], check=True)  # noqa: S603
    server = start_server(model, stay_up=stay_up)
    try:
        ports = read_ports(server)
        ask_every_endpoint(ports["https"])
        print(f"\nFive images are in {OUTPUT.resolve()}.")
        print_connection(ports if stay_up else {"http": 8000, "https": 8443})
        if stay_up:
            print("\nServing until Ctrl-C.", flush=True)
            server.wait()
    except KeyboardInterrupt:
        print("\nstopping")
    finally:
        server.terminate()
        server.wait()
    return 0


def start_server(model: Path, *, stay_up: bool) -> subprocess.Popen[str]:
    """Start the server: on any free ports for a quick run, on the usual ones to stay."""
    settings = {
        "FLUX2_MODEL": str(model),
        "FLUX2_DATA_DIR": str(OUTPUT / "data"),
        "FLUX2_SAFETY": "off",
        "FLUX2_LOG_LEVEL": "warning",
    }
    if not stay_up:
        settings |= {"FLUX2_PORT": "0", "FLUX2_TLS_PORT": "0"}
    environment = {**settings, **os.environ} if stay_up else {**os.environ, **settings}
    return subprocess.Popen(  # noqa: S603
        [COMMAND, "serve"], env=environment, stdout=subprocess.PIPE, text=True
    )


def read_ports(server: subprocess.Popen[str]) -> dict[str, int]:
    """Read from the server's own output where it listens; it prints HTTPS last."""
    ports: dict[str, int] = {}
    for line in server.stdout or ():
        print(line, end="")
        if line.startswith("listening on "):
            scheme, _, address = line.split()[-1].partition("://")
            ports[scheme] = int(address.rpartition(":")[2])
            if scheme == "https":
                return ports
    raise SystemExit("the server did not start")


def ask_every_endpoint(tls_port: int) -> None:
    """Send one request to each of the five endpoints and save the images."""
    address = f"localhost:{tls_port}"
    os.environ |= {
        "FAL_RUN_HOST": address,
        "FAL_QUEUE_RUN_HOST": f"{address}/queue",
        "SSL_CERT_FILE": str(OUTPUT / "data" / "tls" / "ca.pem"),
        "FAL_KEY": os.environ.get("FLUX2_API_KEY", "local:local"),
    }
    import fal_client  # noqa: PLC0415  (it reads its hosts when it is imported)

    requests: dict[str, dict[str, Any]] = {
        "fal-ai/flux-2": {"prompt": "a lighthouse at dusk", "num_inference_steps": 8},
        "fal-ai/flux-2-dev": {"prompt": "a fox in the snow", "image_size": "square_hd",
                              "num_inference_steps": 8, "output_format": "webp"},
        "fal-ai/flux-2/flash": {"prompt": "a bowl of lemons", "image_size": "portrait_4_3"},
        "fal-ai/flux-2/flash/edit": {"prompt": "make the circle blue",
                                     "image_urls": [draw_reference()]},
        "fal-ai/flux-2-flex": {"prompt": "a poster that says HELLO",
                               "image_size": {"width": 640, "height": 512},
                               "num_inference_steps": 8},
    }  # fmt: skip
    for endpoint, arguments in requests.items():
        result = fal_client.subscribe(endpoint, arguments=arguments)
        image = result["images"][0]
        path = OUTPUT / f"{endpoint.removeprefix('fal-ai/').replace('/', '-')}"
        path = path.with_suffix(Path(image["file_name"]).suffix)
        path.write_bytes(download(image["url"]))
        print(f"{endpoint:26} {image['width']}x{image['height']} "
              f"{image['content_type']:10} -> {path}", flush=True)  # fmt: skip


def draw_reference() -> str:
    """Draw a picture to edit and return it as a data URI."""
    picture = Image.new("RGB", (512, 512), "white")
    ImageDraw.Draw(picture).ellipse((128, 128, 384, 384), fill="red")
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


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
