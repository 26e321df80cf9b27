"""Structured logs: one JSON object a line, on standard error."""

import logging
import re
import sys
from typing import Any

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

PROMPT_CHARACTERS = 200
"""How much of a prompt the log has, where it has any."""

HIDDEN = "[hidden]"
_SECRETS = re.compile(
    r"(?i)(\b(?:bearer|basic) +)[\w.~+/=:-]{8,}"
    r"|(\bkey +)[\w.~+/=-]*:[\w.~+/=:-]+"
    r"|(\b(?:fal_jwt_token|token|ticket|signature|key|api_key|fal_key)=)[^&\s\"\\]+"
    r"|(/multipart/)[^/?\s\"\\]+"
)
"""What opens a door: keys and tokens as clients send them, and the tickets in upload URLs."""


def configure_logging(level: str) -> None:
    """Send our own lines and those of the libraries to standard error, at `level` and above.

    JSON escapes control characters and all that is not ASCII, so that no prompt or path can forge
    a line, and what looks like a key or a ticket is hidden, whoever logs it.
    """
    number = logging.getLevelNamesMapping()[level.upper()]
    shared: list[Processor] = [
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="ts"),
        structlog.processors.format_exc_info,
        structlog.processors.EventRenamer("msg"),
    ]
    structlog.configure(
        processors=[*shared, _render],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                _render,
            ],
            foreign_pre_chain=shared,
        )
    )
    logging.raiseExceptions = False  # a record that cannot be formatted is told as plain text
    logging.basicConfig(level=max(number, logging.WARNING), handlers=[handler], force=True)


def prompt_in(body: Any) -> str | None:
    """Return the beginning of the prompt in a request's input, for the log; None without one."""
    prompt = body.get("prompt") if isinstance(body, dict) else None
    return prompt[:PROMPT_CHARACTERS] if isinstance(prompt, str) else None


_to_json = structlog.processors.JSONRenderer()


def _render(logger: WrappedLogger, method: str, event: EventDict) -> str:
    line = _to_json(logger, method, event)
    text = line if isinstance(line, str) else line.decode("ascii")
    return _SECRETS.sub(lambda found: next(filter(None, found.groups())) + HIDDEN, text)
