"""Hooks for schemathesis: what a generated request may not ask for.

Loaded by name, from SCHEMATHESIS_HOOKS.
"""

from typing import Any

import schemathesis

NOBODY = "http://127.0.0.1:9/"
TIMEOUT = "X-Fal-Request-Timeout"
LONG_SECONDS = 600.0


@schemathesis.hook  # type: ignore[untyped-decorator, unused-ignore]
def before_call(_context: Any, case: Any, _options: Any) -> None:
    """Send no webhook to a stranger, and ask for no deadline that cannot be met: that is a 504."""
    if "fal_webhook" in (case.query or {}):
        case.query["fal_webhook"] = NOBODY
    try:
        seconds = float((case.headers or {}).get(TIMEOUT, "nan"))
    except ValueError:
        return
    if 0 < seconds < LONG_SECONDS:
        case.headers[TIMEOUT] = str(LONG_SECONDS + seconds)
