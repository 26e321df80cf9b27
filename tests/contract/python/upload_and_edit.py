"""Uploads a picture in each way that fal's Python client has, and edits it by each URL.

Arguments: the path of a PNG, with the same picture in a large `big.png` beside it, and a folder
to write to. Prints as JSON the URLs that the uploads
gave, what a plain GET of each gives, and a digest of the image that each edit made: `data` from a
data URI of the same bytes, `none` from the same prompt without a picture.
"""

import base64
import hashlib
import json
import sys
from pathlib import Path

import fal_client
import httpx
from PIL import Image

EDIT, PLAIN = "fal-ai/flux-2/flash/edit", "fal-ai/flux-2/flash"
INPUT = {"prompt": "A lighthouse", "image_size": "square", "seed": 5}


def digest_of(url: str) -> str:
    """Fetch a file and return its digest."""
    return hashlib.sha256(httpx.get(url).raise_for_status().content).hexdigest()


def main() -> None:
    """Print one JSON object."""
    path, folder = map(Path, sys.argv[1:])
    data = path.read_bytes()
    plain_text = folder / "notes.txt"
    plain_text.write_text("just words")
    urls = {
        "upload": fal_client.upload(data, "image/png", "picture.png"),
        "upload_file": fal_client.upload_file(path),
        "upload_file in parts": fal_client.upload_file(path.with_name("big.png")),
        "upload_image": fal_client.upload_image(Image.open(path), format="png"),
    }
    text_url = fal_client.upload_file(plain_text)
    sources = {**urls, "data": "data:image/png;base64," + base64.b64encode(data).decode("ascii")}
    made = {
        way: fal_client.subscribe(EDIT, {**INPUT, "image_urls": [url]})["images"][0]["url"]
        for way, url in sources.items()
    }
    made["none"] = fal_client.subscribe(PLAIN, INPUT)["images"][0]["url"]
    told = {
        "urls": urls,
        "stored": {way: digest_of(url) for way, url in urls.items()},
        "sent": hashlib.sha256(data).hexdigest(),
        "text": httpx.get(text_url).text,
        "made": {way: digest_of(url) for way, url in made.items()},
    }
    json.dump(told, sys.stdout)


if __name__ == "__main__":
    main()
