"""The server's own OpenAPI document: every route of what is served, with all its answers.

The documents in fal's form, one for each endpoint, are in `openapi.py`.
"""

from collections.abc import Iterable, Sequence
from importlib.metadata import version
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import JsonSchemaMode, models_json_schema

from server.family.endpoint import Endpoint
from server.jobs import app_id_of
from server.routes.document_files import file_paths, storage_paths
from server.routes.document_parts import (
    ERRORS,
    LOGS,
    OF_A_BODY,
    OF_A_JOB,
    PATH_ID,
    SCHEMAS,
    TEXT,
    WISHES,
    AlreadyCompleted,
    InputErrors,
    Json,
    PlatformError,
    UnknownRequest,
    answer,
    body,
    error_answer,
    operation,
    parameter,
    record,
    ref,
)
from server.schemas import CancelAnswer, QueueStatus


def build_own_document(endpoints: Sequence[Endpoint], origin: str) -> Json:
    """Build the document of the server that serves these and is reached under `origin`."""
    paths: Json = {}
    for endpoint in endpoints:
        app_id = app_id_of(endpoint.id)
        paths[f"/{endpoint.id}"] = {"post": _run(endpoint.id, endpoint.title)}
        paths[f"/{endpoint.id}/stream"] = {"post": _stream(endpoint.id, endpoint.title)}
        paths[f"/queue/{endpoint.id}"] = {"post": _submit(endpoint.id, endpoint.title, app_id)}
    for app_id in sorted({app_id_of(endpoint.id) for endpoint in endpoints}):
        titles = [each.title for each in endpoints if app_id_of(each.id) == app_id]
        paths |= _kept(app_id, {"anyOf": [ref(f"{title}Output") for title in titles]})
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
        "paths": {**paths, **storage_paths(), **file_paths(), **_requests(), **_others(endpoints)},
        "components": {
            "securitySchemes": {
                "key": {
                    "type": "apiKey",
                    "in": "header",
                    "name": "Authorization",
                    "description": "`Key id:secret`; needed only where keys are configured.",
                }
            },
            "schemas": _schemas(endpoints),
            "responses": {str(code): error_answer(code) for code in ERRORS},
        },
    }


def _run(endpoint_id: str, title: str) -> Json:
    return operation(
        f"run {endpoint_id}",
        "Ask, wait, and get the images on the same connection.",
        {200: answer("The result.", ref(f"{title}Output"))},
        OF_A_JOB,
        tags=["run"],
        parameters=WISHES,
        requestBody=body(ref(f"{title}Input")),
    )


def _stream(endpoint_id: str, title: str) -> Json:
    return operation(
        f"watch {endpoint_id}",
        "Ask, and watch the images come, as server-sent events: previews in the shape of the "
        "output with `progress` beside it, and the result last. An error after the first event "
        "is an event whose data is no JSON.",
        {200: answer("Previews, and the result.", media="text/event-stream")},
        OF_A_JOB,
        tags=["run"],
        parameters=WISHES,
        requestBody=body(ref(f"{title}Input")),
    )


def _submit(endpoint_id: str, title: str, app_id: str) -> Json:
    accepted = answer("The request is queued.", ref("QueueStatus"))
    accepted["links"] = {
        what: {
            "operationId": f"{what} {app_id}",
            "parameters": {"request_id": "$response.body#/request_id"},
        }
        for what in ("status", "stream", "result", "cancel")
    }
    return operation(
        f"submit {endpoint_id}",
        "Queue a request. The input is validated by the job: mistakes are its result.",
        {200: accepted},
        OF_A_BODY,
        tags=["queue"],
        parameters=WISHES,
        requestBody=body(ref(f"{title}Input")),
    )


def _kept(app_id: str, outputs: Json) -> Json:
    """Describe the requests of one application; its endpoints answer any of `outputs`."""
    base = f"/queue/{app_id}/requests/{{request_id}}"
    tag: Json = {"tags": ["queue"]}
    status = ref("QueueStatus")
    return {
        f"{base}/status": {
            "get": operation(
                f"status {app_id}",
                "Where the request is.",
                {200: answer("It is completed.", status), 202: answer("It is not.", status)},
                parameters=[PATH_ID, LOGS],
                **tag,
            )
        },
        f"{base}/status/stream": {
            "get": operation(
                f"stream {app_id}",
                "Where the request is, as server-sent events, until it is completed.",
                {200: answer("One event for each change.", media="text/event-stream")},
                parameters=[PATH_ID, LOGS],
                **tag,
            )
        },
        f"{base}/cancel": {
            "put": operation(
                f"cancel {app_id}",
                "Cancel the request.",
                {
                    200: answer("It left the queue.", ref("CancelAnswer")),
                    202: answer("It runs, and will stop.", ref("CancelAnswer")),
                },
                parameters=[PATH_ID],
                **tag,
            )
        },
        **{
            f"{base}{rest}": {
                "get": operation(
                    f"{name} {app_id}",
                    "The outcome, a failure too, byte for byte the same every time.",
                    {200: answer("The result.", outputs)},
                    OF_A_JOB,
                    parameters=[PATH_ID],
                    **tag,
                )
            }
            for rest, name in (("", "result"), ("/response", "response"))
        },
    }


def _requests() -> Json:
    base = "/v1/models/requests"
    texts = ("cursor", "start", "end", "status", "request_id", "expand", "sort_by")
    page = record(
        items={"type": "array", "items": {"type": "object"}},
        next_cursor={"type": ["string", "null"]},
        has_more={"type": "boolean"},
    )
    erased = record(cdn_delete_results={"type": "array", "items": {"type": "object"}})
    endpoint_id = parameter("query", "endpoint_id", TEXT, "Of which endpoints.", required=True)
    limit: Json = {"type": "integer", "minimum": 1, "maximum": 100}
    return {
        f"{base}/by-endpoint": {
            "get": operation(
                "list requests",
                "The caller's completed requests, the newest first.",
                {200: answer("One page.", page)},
                (422,),
                tags=["requests"],
                parameters=[
                    endpoint_id,
                    parameter("query", "limit", limit, "Most requests of a page."),
                    *(parameter("query", name, TEXT, "As on fal.") for name in texts),
                ],
            )
        },
        f"{base}/{{request_id}}/payloads": {
            "delete": operation(
                "erase request",
                "Erase a completed request and its files.",
                {200: answer("What was erased.", erased)},
                tags=["requests"],
                parameters=[PATH_ID],
            )
        },
    }


def _others(endpoints: Sequence[Endpoint]) -> Json:
    status = record(status=TEXT)
    keys = record(keys={"type": "array", "items": {"type": "object"}})
    ids = [endpoint.id for endpoint in endpoints]
    endpoint_id = parameter("query", "endpoint_id", {**TEXT, "enum": ids}, "Which.", required=True)
    ready = answer("An image cannot be made; `reason` says why.", status)

    def get(name: str, text: str, found: Json, errors: Iterable[int] = (), **more: Any) -> Json:
        return {"get": operation(name, text, {200: found}, errors, tags=["server"], **more)}

    paths: Json = {
        "/health": get("health", "The server answers.", answer("It does.", status)),
        "/health/live": get("live", "The server answers.", answer("It does.", status)),
        "/health/ready": get("ready", "An image can be made.", answer("It can.", status)),
        "/metrics": get(
            "metrics", "Figures in Prometheus' text format.", answer("The figures.", None, "*/*")
        ),
        "/.well-known/jwks.json": get(
            "jwks", "The keys that webhooks are signed with.", answer("The key set.", keys)
        ),
        "/openapi.json": get(
            "openapi", "This document.", answer("The document.", {"type": "object"})
        ),
        "/api/openapi/queue/openapi.json": get(
            "endpoint openapi",
            "The document of one endpoint, in fal's form.",
            answer("The document.", {"type": "object"}),
            (422,),
            parameters=[endpoint_id],
        ),
    }
    paths["/health/ready"]["get"]["responses"]["503"] = ready
    return paths


def _schemas(endpoints: Sequence[Endpoint]) -> Json:
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
    for endpoint in endpoints:
        models += [(endpoint.input, "validation"), (endpoint.output, "serialization")]
    refs, definitions = models_json_schema(models, ref_template=SCHEMAS + "{model}")
    # Endpoints share models: each gets its own name, as in fal's documents.
    named = {
        f"{endpoint.title}{suffix}": dict(refs[model, mode])
        for endpoint in endpoints
        for suffix, model, mode in _sides(endpoint.input, endpoint.output)
    }
    return {**definitions["$defs"], **named}


def _sides(
    given: type[BaseModel], made: type[BaseModel]
) -> Iterable[tuple[str, type[BaseModel], JsonSchemaMode]]:
    yield "Input", given, "validation"
    yield "Output", made, "serialization"
