"""Hooks for schemathesis: what a generated request may not ask for.

Loaded by name, from SCHEMATHESIS_HOOKS.
"""

import base64
import io
import zlib
from typing import Any

import schemathesis
from PIL import Image

NOBODY = "http://127.0.0.1:9/"
TIMEOUT = "X-Fal-Request-Timeout"
LONG_SECONDS = 600.0

_png = io.BytesIO()
Image.linear_gradient("L").resize((64, 64)).save(_png, "PNG")
PICTURE = "data:image/png;base64," + base64.b64encode(_png.getvalue()).decode("ascii")
ONE_IN = 20


@schemathesis.hook  # type: ignore[untyped-decorator, unused-ignore]
def before_call(_context: Any, case: Any, _options: Any) -> None:
    """Send no webhook to a stranger, and ask for no deadline that cannot be met: that is a 504.

    Texts are no images: most are replaced by one, since a failed download is told only after a
    second.
    """
    if isinstance(case.body, dict) and isinstance(case.body.get("image_urls"), list):
        case.body["image_urls"] = [_image_for(item) for item in case.body["image_urls"]]
    if "fal_webhook" in (case.query or {}):
        case.query["fal_webhook"] = NOBODY
    try:
        seconds = float((case.headers or {}).get(TIMEOUT, "nan"))
    except ValueError:
        return
    if 0 < seconds < LONG_SECONDS:
        case.headers[TIMEOUT] = str(LONG_SECONDS + seconds)


def _image_for(item: Any) -> Any:
    """Return a picture in the place of a text, but for one text in twenty, which is no URL."""
    if not isinstance(item, str) or zlib.crc32(item.encode("utf-8", "replace")) % ONE_IN == 1:
        return item
    return PICTURE
