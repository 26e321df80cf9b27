"""The server's own OpenAPI document: every route, made from the catalogue, with all its answers.

The documents in fal's form, one for each endpoint, are in `openapi.py`.
"""

from collections.abc import Iterable, Mapping
from importlib.metadata import version
from typing import Any, Literal

from pydantic import BaseModel
from pydantic.json_schema import JsonSchemaMode, models_json_schema

from server.catalogue import APP_IDS, CATALOGUE
from server.schemas import CancelAnswer, QueueStatus

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
    409: "It is not in a state for that.",
    410: "The file is gone from the disk.",
    411: "The length must be announced.",
    413: "The body is too long.",
    416: "The file has no such range.",
    422: "The input was refused.",
    429: "Too much at once; try again after `retry-after` seconds.",
    431: "The head is too long.",
    499: "The request was cancelled.",
    500: "The model failed.",
    503: "The server cannot do that at the moment.",
    504: "The request did not start in the time that its caller set.",
    507: "There is no room for the file.",
}

ALWAYS = (400, 401, 403, 404, 405, 408, 429, 431, 503)
"""What any route may answer: bad heads, hosts, origins and keys, limits, a stop."""

OF_A_BODY = (413, 422)
OF_A_JOB = (*OF_A_BODY, 499, 500, 504)
OF_AN_UPLOAD = (*OF_A_BODY, 409, 410, 411, 507)
OF_A_FILE = (410, 416)


def build_own_document(origin: str) -> Json:
    """Build the document of the server that is reached under `origin`."""
    paths: Json = {}
    for endpoint in CATALOGUE.values():
        # Applications are also endpoints, and links lead from a submit to what it is kept under.
        app_id = next(app for app in APP_IDS if f"{endpoint.id}/".startswith(f"{app}/"))
        paths[f"/{endpoint.id}"] = {"post": _run(endpoint.id, endpoint.title)}
        paths[f"/queue/{endpoint.id}"] = {"post": _submit(endpoint.id, endpoint.title, app_id)}
    for app_id in sorted(APP_IDS):
        paths |= _kept(app_id)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "flux2-serve",
            "version": version("flux2-serve"),
            "description": "FLUX.2 on this machine, with the paths of fal's hosts: synchronous "
            "runs at the root, the queue under /queue, the REST interface under /rest.",
        },
        "servers": [{"url": origin}],
        "security": [{"key": []}, {}],
        "paths": {**paths, **_storage(), **_files(), **_requests(), **_others()},
        "components": {
            "securitySchemes": {
                "key": {
                    "type": "apiKey",
                    "in": "header",
                    "name": "Authorization",
                    "description": "`Key id:secret`; needed only where keys are configured.",
                }
            },
            "schemas": _schemas(),
            "responses": {str(code): _error(code) for code in ERRORS},
        },
    }


def _operation(
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


def _answer(description: str, schema: Json | None = None, media: str = "application/json") -> Json:
    content = {"schema": schema} if schema else {}
    return {"description": description, "content": {media: content}}


def _error(code: int) -> Json:
    names = {
        400: ["PlatformError", "AlreadyCompleted"],
        404: ["PlatformError", "UnknownRequest"],
        422: ["InputErrors", "PlatformError"],
        500: ["InputErrors", "PlatformError"],
        504: ["InputErrors", "PlatformError"],
    }.get(code, ["PlatformError"])
    schema = _ref(names[0]) if len(names) == 1 else {"anyOf": [_ref(name) for name in names]}
    answer = _answer(ERRORS[code], schema)
    if code in (400, 416):
        answer["content"]["text/plain"] = {}  # ranges are refused in plain words
    return answer


def _ref(name: str) -> Json:
    return {"$ref": SCHEMAS + name}


def _body(schema: Json, media: str = "application/json") -> Json:
    return {"required": True, "content": {media: {"schema": schema}}}


def _object(required: bool = True, **properties: Json) -> Json:
    found: Json = {"type": "object", "properties": properties}
    return {**found, "required": list(properties)} if required else found


def _parameter(place: str, name: str, schema: Json, description: str, **more: Any) -> Json:
    given = {"name": name, "in": place, "required": place == "path", "description": description}
    return {**given, **more, "schema": schema}


TEXT: Json = {"type": "string"}
NAME: Json = {"type": "string", "minLength": 1}
PATH_ID = _parameter("path", "request_id", NAME, "The id that the submit answered.")
LOGS = _parameter("query", "logs", {"type": "string", "enum": ["0", "1"]}, "Whether to add logs.")
STORAGE_TYPE = _parameter("query", "storage_type", TEXT, "fal's word; any is accepted.")
LIFECYCLE = _parameter(
    "header",
    "X-Fal-Object-Lifecycle-Preference",
    TEXT,
    "JSON: `expiration_duration_seconds` and `initial_acl` of the files.",
    example='{"expiration_duration_seconds": 3600}',
)
WISHES = [
    _parameter(
        "header",
        "X-Fal-Request-Timeout",
        {"type": "number", "exclusiveMinimum": 0.1},
        "Seconds within which the request must have begun.",
    ),
    _parameter(
        "header",
        "X-Fal-Queue-Priority",
        {"type": "string", "enum": ["normal", "low"]},
        "Low waits until nothing else does.",
    ),
    _parameter(
        "header", "X-Fal-No-Retry", {"type": "string", "enum": ["0", "1"]}, "1: one attempt only."
    ),
    _parameter(
        "header",
        "X-Fal-Store-IO",
        {"type": "string", "enum": ["0", "1"]},
        "0: keep neither input nor result once it is over.",
    ),
    LIFECYCLE,
    _parameter("query", "fal_webhook", {**TEXT, "format": "uri"}, "Whom to tell the outcome."),
    _parameter(
        "query",
        "fal_max_queue_length",
        {"type": "integer", "minimum": 0, "maximum": 999_999_999},
        "Refuse the request when more than this many wait.",
    ),
]


def _run(endpoint_id: str, title: str) -> Json:
    return _operation(
        f"run {endpoint_id}",
        "Ask, wait, and get the images on the same connection.",
        {200: _answer("The result.", _ref(f"{title}Output"))},
        OF_A_JOB,
        tags=["run"],
        parameters=WISHES,
        requestBody=_body(_ref(f"{title}Input")),
    )


def _submit(endpoint_id: str, title: str, app_id: str) -> Json:
    accepted = _answer("The request is queued.", _ref("QueueStatus"))
    accepted["links"] = {
        what: {
            "operationId": f"{what} {app_id}",
            "parameters": {"request_id": "$response.body#/request_id"},
        }
        for what in ("status", "stream", "result", "cancel")
    }
    return _operation(
        f"submit {endpoint_id}",
        "Queue a request. The input is validated by the job: mistakes are its result.",
        {200: accepted},
        OF_A_BODY,
        tags=["queue"],
        parameters=WISHES,
        requestBody=_body(_ref(f"{title}Input")),
    )


def _kept(app_id: str) -> Json:
    base = f"/queue/{app_id}/requests/{{request_id}}"
    tag: Json = {"tags": ["queue"]}
    status, outputs = _ref("QueueStatus"), _outputs(app_id)
    return {
        f"{base}/status": {
            "get": _operation(
                f"status {app_id}",
                "Where the request is.",
                {200: _answer("It is completed.", status), 202: _answer("It is not.", status)},
                parameters=[PATH_ID, LOGS],
                **tag,
            )
        },
        f"{base}/status/stream": {
            "get": _operation(
                f"stream {app_id}",
                "Where the request is, as server-sent events, until it is completed.",
                {200: _answer("One event for each change.", media="text/event-stream")},
                parameters=[PATH_ID, LOGS],
                **tag,
            )
        },
        f"{base}/cancel": {
            "put": _operation(
                f"cancel {app_id}",
                "Cancel the request.",
                {
                    200: _answer("It left the queue.", _ref("CancelAnswer")),
                    202: _answer("It runs, and will stop.", _ref("CancelAnswer")),
                },
                parameters=[PATH_ID],
                **tag,
            )
        },
        **{
            f"{base}{rest}": {
                "get": _operation(
                    f"{name} {app_id}",
                    "The outcome, a failure too, byte for byte the same every time.",
                    {200: _answer("The result.", outputs)},
                    OF_A_JOB,
                    parameters=[PATH_ID],
                    **tag,
                )
            }
            for rest, name in (("", "result"), ("/response", "response"))
        },
    }


def _outputs(app_id: str) -> Json:
    """Describe what any endpoint of an application answers."""
    titles = [item.title for item in CATALOGUE.values() if f"{item.id}/".startswith(f"{app_id}/")]
    return {"anyOf": [_ref(f"{title}Output") for title in titles]}


def _storage() -> Json:
    announced = _body(_object(required=False, file_name=TEXT, content_type=TEXT))
    placed = _object(upload_url=TEXT, file_url=TEXT)
    tag: Json = {"tags": ["storage"]}
    token = _object(token=TEXT, token_type=TEXT, base_url=TEXT, expires_at=TEXT)
    paths: Json = {
        "/rest/storage/auth/token": {
            "post": _operation(
                "token",
                "Get a token to upload with.",
                {200: _answer("The token.", token)},
                OF_A_BODY,
                parameters=[STORAGE_TYPE],
                requestBody=_body({"type": "object"}),
                **tag,
            )
        }
    }
    for word in ("initiate", "initiate-multipart"):
        paths[f"/rest/storage/upload/{word}"] = {
            "post": _operation(
                word,
                "Get a URL to upload to without a key.",
                {200: _answer("Where to put the file, and where it will be.", placed)},
                OF_AN_UPLOAD,
                parameters=[STORAGE_TYPE, LIFECYCLE],
                requestBody=announced,
                **tag,
            )
        }
    return paths


def _files() -> Json:
    tag: Json = {"tags": ["files"]}
    raw = _body({}, "application/octet-stream")
    name = _parameter("path", "name", NAME, "The name in the file's URL.")
    upload_id = _parameter("path", "upload_id", NAME, "The id that the announcement answered.")
    number = _parameter(
        "path", "number", {"type": "integer", "minimum": 1, "maximum": 10_000}, "Which part it is."
    )
    ticket = _parameter("path", "ticket", NAME, "The signed ticket in the `upload_url`.")
    file_name = _parameter("header", "X-Fal-File-Name", TEXT, "What the sender calls the file.")
    part = _object(partNumber={"type": "integer"}, etag=TEXT)
    parts = _body(_object(parts={"type": "array", "items": part}))
    there = _object(access_url=TEXT)
    begun = _object(access_url=TEXT, uploadId=TEXT)
    ranged = _parameter("header", "Range", TEXT, "Which bytes.", example="bytes=0-99")
    file = {code: _answer("The file.", media="*/*") for code in (200, 206)}
    file[304] = {"description": "It is what the caller has."}

    def take(key: str, text: str, code: int, answer: Json | None, **more: Any) -> Json:
        return _operation(key, text, {code: _answer("Taken.", answer)}, OF_AN_UPLOAD, **more, **tag)

    def put(key: str, *parameters: Json) -> Json:
        return take(key, "Upload.", 200, None, parameters=[*parameters], requestBody=raw)

    def finish(key: str, *parameters: Json) -> Json:
        text = "Put the parts together."
        return take(key, text, 200, None, parameters=[*parameters], requestBody=parts)

    upload, inside = "/files/upload", "/files/{name}/multipart/{upload_id}"
    return {
        upload: {"post": take("upload", "Upload a file.", 200, there, requestBody=raw,
                              parameters=[file_name, LIFECYCLE])},
        f"{upload}/multipart": {"post": take("begin", "Begin to upload in parts.", 200, begun,
                                             parameters=[file_name, LIFECYCLE])},
        f"{inside}/{{number}}": {"put": put("part", name, upload_id, number)},
        f"{inside}/complete": {"post": finish("complete", name, upload_id)},
        "/uploads/{ticket}": {"put": put("put", ticket)},
        "/uploads/{ticket}/{number}": {"put": put("put part", ticket, number)},
        "/uploads/{ticket}/complete": {"post": finish("complete put", ticket)},
        "/files/{name}": {
            method: _operation(
                f"{method} file", "A stored file.", file, OF_A_FILE, parameters=[name, ranged], **tag
            )
            for method in ("get", "head")
        },
    }  # fmt: skip


def _requests() -> Json:
    base = "/v1/models/requests"
    texts = ("cursor", "start", "end", "status", "request_id", "expand", "sort_by")
    page = _object(
        items={"type": "array", "items": {"type": "object"}},
        next_cursor={"type": ["string", "null"]},
        has_more={"type": "boolean"},
    )
    erased = _object(cdn_delete_results={"type": "array", "items": {"type": "object"}})
    endpoint_id = _parameter("query", "endpoint_id", TEXT, "Of which endpoints.", required=True)
    limit: Json = {"type": "integer", "minimum": 1, "maximum": 100}
    return {
        f"{base}/by-endpoint": {
            "get": _operation(
                "list requests",
                "The caller's completed requests, the newest first.",
                {200: _answer("One page.", page)},
                (422,),
                tags=["requests"],
                parameters=[
                    endpoint_id,
                    _parameter("query", "limit", limit, "Most requests of a page."),
                    *(_parameter("query", name, TEXT, "As on fal.") for name in texts),
                ],
            )
        },
        f"{base}/{{request_id}}/payloads": {
            "delete": _operation(
                "erase request",
                "Erase a completed request and its files.",
                {200: _answer("What was erased.", erased)},
                tags=["requests"],
                parameters=[PATH_ID],
            )
        },
    }


def _others() -> Json:
    status = _object(status=TEXT)
    keys = _object(keys={"type": "array", "items": {"type": "object"}})
    endpoint_id = _parameter(
        "query", "endpoint_id", {**TEXT, "enum": list(CATALOGUE)}, "Which.", required=True
    )
    ready = _answer("An image cannot be made; `reason` says why.", status)

    def get(name: str, text: str, answer: Json, errors: Iterable[int] = (), **more: Any) -> Json:
        return {"get": _operation(name, text, {200: answer}, errors, tags=["server"], **more)}

    found: Json = {
        "/health": get("health", "The server answers.", _answer("It does.", status)),
        "/health/live": get("live", "The server answers.", _answer("It does.", status)),
        "/health/ready": get("ready", "An image can be made.", _answer("It can.", status)),
        "/metrics": get(
            "metrics", "Figures in Prometheus' text format.", _answer("The figures.", None, "*/*")
        ),
        "/.well-known/jwks.json": get(
            "jwks", "The keys that webhooks are signed with.", _answer("The key set.", keys)
        ),
        "/openapi.json": get(
            "openapi", "This document.", _answer("The document.", {"type": "object"})
        ),
        "/api/openapi/queue/openapi.json": get(
            "endpoint openapi",
            "The document of one endpoint, in fal's form.",
            _answer("The document.", {"type": "object"}),
            (422,),
            parameters=[endpoint_id],
        ),
    }
    found["/health/ready"]["get"]["responses"]["503"] = ready
    return found


def _schemas() -> Json:
    models: list[tuple[type[BaseModel], JsonSchemaMode]] = [
        (model, "serialization")
        for model in (
            QueueStatus,
            CancelAnswer,
            InputErrors,
            PlatformError,
            UnknownRequest,
            AlreadyCompleted,
        )
    ]
    for endpoint in CATALOGUE.values():
        models += [(endpoint.input, "validation"), (endpoint.output, "serialization")]
    refs, definitions = models_json_schema(models, ref_template=SCHEMAS + "{model}")
    # Endpoints share models: each gets its own name, as in fal's documents.
    named = {
        f"{endpoint.title}{suffix}": dict(refs[model, mode])
        for endpoint in CATALOGUE.values()
        for suffix, model, mode in _sides(endpoint.input, endpoint.output)
    }
    return {**definitions["$defs"], **named}


def _sides(
    given: type[BaseModel], made: type[BaseModel]
) -> Iterable[tuple[str, type[BaseModel], JsonSchemaMode]]:
    yield "Input", given, "validation"
    yield "Output", made, "serialization"
