"""Runs in namespaces of its own, where fal's names resolve to a server on port 443.

Arguments: an empty folder, the folder of the model, and as JSON the programs to run, by name, each
a list of words, and further settings of the server. The programs get the environment and the hosts
file that `client-env --mode hosts` prints; a web server with pictures stands for the host in fal's
own examples. Prints as JSON how each ended.
"""

import http.server
import json
import os
import ssl
import subprocess
import sys
import threading
from pathlib import Path

from tests.contract.conftest import WAIT_SECONDS, make_picture
from tests.contract.python.offline import raise_loopback, start

COMMAND = str(Path(sys.executable).parent / "flux2-serve")
PICTURES_HOST, PICTURES_ADDRESS = "storage.googleapis.com", "127.0.0.2"


class Pictures(http.server.BaseHTTPRequestHandler):
    """Answers every GET with the same picture."""

    def do_GET(self) -> None:
        """Send it."""
        data = make_picture()
        self.send_response(200)
        self.send_header("content-type", "image/png")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_arguments: object) -> None:
        """Stay silent."""


def serve_pictures(folder: Path) -> Path:
    """Serve pictures over TLS on the address for them; return the authority to trust."""
    words = [COMMAND, "certs", "--data-dir", str(folder), "--name", PICTURES_HOST]
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "tls" / "server.pem", folder / "tls" / "server-key.pem")
    web = http.server.ThreadingHTTPServer((PICTURES_ADDRESS, 443), Pictures)
    web.socket = context.wrap_socket(web.socket, server_side=True)
    threading.Thread(target=web.serve_forever, daemon=True).start()
    return folder / "tls" / "ca.pem"


def map_names(recipe: str, folder: Path) -> None:
    """Put a hosts file with the recipe's lines in the place of the machine's own."""
    (command,) = [line.removeprefix("#") for line in recipe.splitlines() if "printf" in line]
    lines = subprocess.check_output(["bash", "-c", command.partition("|")[0]], text=True)
    hosts = folder / "hosts"
    hosts.write_text(f"127.0.0.1 localhost\n{lines}{PICTURES_ADDRESS} {PICTURES_HOST}\n")
    subprocess.run(["mount", "--bind", hosts, "/etc/hosts"], check=True)


def main() -> None:
    """Print one JSON object."""
    folder, model = map(Path, sys.argv[1:3])
    programs: dict[str, list[str]] = json.loads(sys.argv[3])
    raise_loopback()
    ca_path = serve_pictures(folder / "pictures")
    env = {
        "FLUX2_TLS_PORT": "443",
        "FLUX2_OUTBOUND_CA_FILE": str(ca_path),
        "FLUX2_FETCH_ALLOW": PICTURES_ADDRESS,
        **json.loads(sys.argv[4]),
    }
    told = {}
    server = start(Path(COMMAND), model, folder / "data", **env)
    try:
        words = [COMMAND, "client-env", "--mode", "hosts", "--data-dir", str(folder / "data")]
        recipe = subprocess.check_output(words, env={**os.environ, **env}, text=True)
        map_names(recipe, folder)
        for name, program in programs.items():
            done = subprocess.run(
                ["bash", "-c", f'{recipe}\nexec "$@"', "bash", *program],
                env={"PATH": os.environ["PATH"]},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=WAIT_SECONDS,
                check=False,
            )
            told[name] = {"code": done.returncode, "out": done.stdout, "err": done.stderr}
    finally:
        server.stop()
    json.dump(told, sys.stdout)


if __name__ == "__main__":
    main()
