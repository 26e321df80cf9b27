"""Pieces of an OpenAPI document: operations, answers, parameters, and the bodies of errors."""

from collections.abc import Iterable, Mapping
from typing import Any, Literal

from pydantic import BaseModel

Json = dict[str, Any]

SCHEMAS = "#/components/schemas/"
RESPONSES = "#/components/responses/"


class Mistake(BaseModel):
    """One mistake in the input, in pydantic's and fal's words."""

    type: str
    loc: list[str | int]
    msg: str
    input: Any = None
    ctx: dict[str, Any] = {}
    url: str = ""


class InputErrors(BaseModel):
    """Body of a 422: what is wrong with the input."""

    detail: list[Mistake]


class PlatformError(BaseModel):
    """Body of every other error; `error_type` is also the header `x-fal-error-type`."""

    detail: str
    error_type: str = ""


class UnknownRequest(BaseModel):
    """Body of a 404 for a request that is not kept here."""

    status: Literal["NOT_FOUND"]


class AlreadyCompleted(BaseModel):
    """Body of a 400 for a cancel that came too late."""

    status: Literal["ALREADY_COMPLETED"]


ERRORS: Mapping[int, str] = {
    400: "The request cannot be read, or not now.",
    401: "A key is needed, or the one given is not known.",
    403: "The caller, or its origin, may not do that.",
    404: "There is no such thing, or not for this caller.",
    405: "The path does not know this method.",
    408: "The request took too long to arrive.",
    410: "The file is gone from the disk.",
    413: "The body is too long.",
    416: "The file has no such range.",
    422: "The input was refused.",
    429: "Too much at once; try again after `retry-after` seconds.",
    431: "The head is too long.",
    499: "The request was cancelled.",
    500: "The model failed.",
    503: "The server cannot do that at the moment.",
    504: "The request did not start in the time that its caller set.",
}

ALWAYS = (400, 401, 403, 404, 405, 408, 429, 431, 503)
"""What any route may answer: bad heads, hosts, origins and keys, limits, a stop."""

OF_A_BODY = (413, 422)
OF_A_JOB = (*OF_A_BODY, 499, 500, 504)
OF_AN_UPLOAD = (*OF_A_BODY, 499)
OF_A_FILE = (410, 416)


def operation(
    name: str,
    summary: str,
    answers: Mapping[int, Json],
    errors: Iterable[int] = (),
    **more: Any,
) -> Json:
    """Make an operation; `errors` are those beyond the ones that any route may answer."""
    codes = sorted({*ALWAYS, *errors} - set(answers))
    failures = {str(code): {"$ref": f"{RESPONSES}{code}"} for code in codes}
    responses = {**{str(code): answer for code, answer in answers.items()}, **failures}
    return {"operationId": name, "summary": summary, **more, "responses": responses}


def answer(description: str, schema: Json | None = None, media: str = "application/json") -> Json:
    """Describe an answer; without a schema its body may be anything."""
    content = {"schema": schema} if schema else {}
    return {"description": description, "content": {media: content}}


def error_answer(code: int) -> Json:
    """Describe the answer of an error."""
    names = {
        400: ["PlatformError", "AlreadyCompleted"],
        404: ["PlatformError", "UnknownRequest"],
        422: ["InputErrors", "PlatformError"],
        500: ["InputErrors", "PlatformError"],
        504: ["InputErrors", "PlatformError"],
    }.get(code, ["PlatformError"])
    schema = ref(names[0]) if len(names) == 1 else {"anyOf": [ref(name) for name in names]}
    found = answer(ERRORS[code], schema)
    if code in (400, 416):
        found["content"]["text/plain"] = {}  # ranges are refused in plain words
    return found


def ref(name: str) -> Json:
    """Point to a schema."""
    return {"$ref": SCHEMAS + name}


def body(schema: Json, media: str = "application/json") -> Json:
    """Describe the body of a request, which must have one."""
    return {"required": True, "content": {media: {"schema": schema}}}


def record(required: bool = True, **properties: Json) -> Json:
    """Describe an object of these properties: all of them required, or none."""
    found: Json = {"type": "object", "properties": properties}
    return {**found, "required": list(properties)} if required else found


def parameter(place: str, name: str, schema: Json, description: str, **more: Any) -> Json:
    """Describe a parameter; `more` may say that it is required."""
    given = {"name": name, "in": place, "required": place == "path", "description": description}
    return {**given, **more, "schema": schema}


TEXT: Json = {"type": "string"}
NAME: Json = {"type": "string", "minLength": 1}
PATH_ID = parameter("path", "request_id", NAME, "The id that the submit answered.")
LOGS = parameter("query", "logs", {"type": "string", "enum": ["0", "1"]}, "Whether to add logs.")
STORAGE_TYPE = parameter("query", "storage_type", TEXT, "fal's word; any is accepted.")
LIFECYCLE = parameter(
    "header",
    "X-Fal-Object-Lifecycle-Preference",
    TEXT,
    "JSON: `expiration_duration_seconds` and `initial_acl` of the files.",
    example='{"expiration_duration_seconds": 3600}',
)
WISHES = [
    parameter(
        "header",
        "X-Fal-Request-Timeout",
        {"type": "number", "exclusiveMinimum": 0.1},
        "Seconds within which the request must have begun.",
    ),
    parameter(
        "header",
        "X-Fal-Queue-Priority",
        {"type": "string", "enum": ["normal", "low"]},
        "Low waits until nothing else does.",
    ),
    parameter(
        "header", "X-Fal-No-Retry", {"type": "string", "enum": ["0", "1"]}, "1: one attempt only."
    ),
    parameter(
        "header",
        "X-Fal-Store-IO",
        {"type": "string", "enum": ["0", "1"]},
        "0: keep neither input nor result once it is over.",
    ),
    LIFECYCLE,
    parameter("query", "fal_webhook", {**TEXT, "format": "uri"}, "Whom to tell the outcome."),
    parameter(
        "query",
        "fal_max_queue_length",
        {"type": "integer", "minimum": 0, "maximum": 999_999_999},
        "Refuse the request when more than this many wait.",
    ),
]
