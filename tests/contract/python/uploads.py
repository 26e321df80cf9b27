"""Uploads in every way that fal's Python client has; prints the URLs that came back as JSON.

Arguments, each as JSON: the server's https origin, or null where something else leads fal's names
to it; the path of a picture, and of one that is so large that the client uploads it in parts.
"""

import asyncio
import json
import logging
import sys
from io import BytesIO
from pathlib import Path

import fal_client
import fal_client.client
from fal_client import StorageACL, StorageSettings
from PIL import Image

TEXT = "Hello, World!"
PRIVATE = StorageSettings(expires_in="immediate", initial_acl=StorageACL(default="forbid"))


def call(small: Path, big: Path) -> dict[str, str]:
    """Upload with the blocking client."""
    data = small.read_bytes()
    return {
        "upload": fal_client.upload(data, "image/png", "../small.png"),
        "upload, no name": fal_client.upload(data, "image/png"),
        "upload_file": fal_client.upload_file(small),
        "upload_file in parts": fal_client.upload_file(big),
        "upload_image": fal_client.upload_image(Image.open(BytesIO(data)), "png"),
        "repository": fal_client.upload(data, "image/png", repository="fal"),
        "text": fal_client.upload(TEXT, "text/plain", "hello.txt"),
        "private": fal_client.upload(data, "image/png", lifecycle=PRIVATE),
        "private repository": fal_client.upload(
            data, "image/png", repository="fal", lifecycle=PRIVATE
        ),
    }


async def call_async(small: Path, big: Path) -> dict[str, str]:
    """Upload with the asynchronous client."""
    client = fal_client.AsyncClient()
    data = small.read_bytes()
    return {
        "async upload": await client.upload(data, "image/png"),
        "async upload in parts": await client.upload(big.read_bytes(), "image/png"),
        "async upload_file": await client.upload_file(small),
        "async upload_image": await client.upload_image(Image.open(BytesIO(data)), "png"),
        "async repository": await client.upload(data, "image/png", repository="fal"),
        "async text": await client.upload(TEXT, "text/plain", "hello.txt"),
    }


def call_without_cdn(small: Path) -> dict[str, str]:
    """Upload when the CDN refuses, so that the client falls back by itself."""
    fal_client.client.CDN_URL += "/no-cdn"
    return {"fallback": fal_client.upload(small.read_bytes(), "image/png", "small.png")}


def main() -> None:
    """Point the client to the server, unless something else does, and upload."""
    origin, small, big = map(json.loads, sys.argv[1:])
    logging.disable()
    if origin:
        fal_client.client.REST_URL = f"{origin}/rest"
        fal_client.client.CDN_URL = origin
    found = call(Path(small), Path(big))
    found |= asyncio.run(call_async(Path(small), Path(big)))
    found |= call_without_cdn(Path(small))
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
