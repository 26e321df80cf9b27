"""Each endpoint's OpenAPI document, in the form of fal's own, made from the catalogue.

The route to the server's own document is here, too.
"""

from copy import deepcopy
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel
from starlette.responses import Response

from server.family.endpoint import Endpoint
from server.offer import Offer
from server.routes.answers import AsciiJSONResponse
from server.routes.document import build_own_document
from server.routes.doors import door_of
from server.schemas import QueueStatus

DEFINITIONS = "#/components/schemas/{model}"


def make_router(offer: Offer) -> APIRouter:
    """Make the routes over what is served."""
    router = APIRouter(tags=["documents"])

    async def document(request: Request, endpoint_id: Annotated[str, Query()]) -> Response:
        """Answer the OpenAPI document of one endpoint."""
        endpoint = offer.find(endpoint_id)
        return AsciiJSONResponse(build_document(endpoint, door_of(request).queue_url))

    async def own_document(request: Request) -> Response:
        """Answer the document of the server itself."""
        return AsciiJSONResponse(build_own_document(offer.endpoints, door_of(request).files_origin))

    router.add_api_route("/openapi.json", own_document, methods=["GET"])
    router.add_api_route("/api/openapi/queue/openapi.json", document, methods=["GET"])
    return router


def build_document(endpoint: Endpoint, queue_url: str) -> dict[str, Any]:
    """Build the document; `queue_url` is where the queue's paths begin."""
    schemas: dict[str, Any] = {}
    for model, name, mode in (
        (QueueStatus, "QueueStatus", "serialization"),
        (endpoint.input, f"{endpoint.title}Input", "validation"),
        (endpoint.output, f"{endpoint.title}Output", "serialization"),
    ):
        _add_schema(schemas, model, name, mode)
    return {
        "openapi": "3.0.4",
        "info": {
            "title": f"Queue OpenAPI for {endpoint.id}",
            "version": "1.0.0",
            "description": f"The OpenAPI schema for the {endpoint.id} queue.",
            "x-fal-metadata": {
                "endpointId": endpoint.id,
                "category": endpoint.category,
                "description": endpoint.description,
            },
        },
        "components": {
            "securitySchemes": {
                "apiKeyAuth": {
                    "type": "apiKey",
                    "in": "header",
                    "name": "Authorization",
                    "description": "Fal Key",
                }
            },
            "schemas": schemas,
        },
        "paths": _paths(endpoint),
        "servers": [{"url": queue_url}],
        "security": [{"apiKeyAuth": []}],
    }


def _paths(endpoint: Endpoint) -> dict[str, Any]:
    base = f"/{endpoint.id}"
    request_id = {
        "name": "request_id",
        "in": "path",
        "required": True,
        "schema": {"type": "string", "description": "Request ID"},
    }
    logs = {
        "name": "logs",
        "in": "query",
        "required": False,
        "schema": {"type": "number", "description": "Whether to include logs (1) or not (0)."},
    }
    status = {"$ref": DEFINITIONS.format(model="QueueStatus")}
    answer = {"$ref": DEFINITIONS.format(model=f"{endpoint.title}Output")}
    cancelled = {
        "type": "object",
        "properties": {"success": {"type": "boolean", "description": "Whether it was cancelled."}},
    }
    body = {
        "required": True,
        "content": {
            "application/json": {
                "schema": {"$ref": DEFINITIONS.format(model=f"{endpoint.title}Input")}
            }
        },
    }
    kept = f"{base}/requests/{{request_id}}"
    return {
        f"{kept}/status": {
            "get": {
                "parameters": [request_id, logs],
                "responses": {
                    "200": _response("The request is completed.", status),
                    "202": _response("The request waits or runs.", status),
                },
            }
        },
        f"{kept}/cancel": {
            "put": {
                "parameters": [request_id],
                "responses": {
                    "200": _response("The request was cancelled.", cancelled),
                    "202": _response("The running request will stop.", cancelled),
                },
            }
        },
        base: {
            "post": {
                "requestBody": body,
                "responses": {"200": _response("The request is queued.", status)},
            }
        },
        kept: {
            "get": {
                "parameters": [request_id],
                "responses": {"200": _response("Result of the request.", answer)},
            }
        },
    }


def _response(description: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _add_schema(schemas: dict[str, Any], model: type[BaseModel], name: str, mode: Any) -> None:
    schema = deepcopy(model.model_json_schema(ref_template=DEFINITIONS, mode=mode))
    for sub_name, sub_schema in schema.pop("$defs", {}).items():
        schemas[sub_name] = _in_fal_form(sub_schema, sub_name)
    schemas[name] = _in_fal_form(schema, name)


def _in_fal_form(schema: dict[str, Any], name: str) -> dict[str, Any]:
    """Name the schema, note the order of its fields, and write optional types as OpenAPI 3.0."""
    properties = {key: _as_older(value) for key, value in schema.get("properties", {}).items()}
    form = {
        "title": name,
        "type": "object",
        "description": schema.get("description", ""),
        "x-fal-order-properties": list(properties),
        "properties": properties,
    }
    # Where nothing is required, 3.0 wants no list rather than an empty one.
    return {**form, "required": schema["required"]} if schema.get("required") else form


def _as_older(node: Any) -> Any:
    """Write a schema in the words of OpenAPI 3.0, which has no null type, `const` or `examples`."""
    if isinstance(node, list):
        return [_as_older(item) for item in node]
    if not isinstance(node, dict):
        return node
    node = {key: _as_older(item) for key, item in node.items()}
    if "const" in node:
        node["enum"] = [node.pop("const")]
    if "examples" in node:
        node["example"] = node.pop("examples")[0]
    return _without_null(node)


def _without_null(value: dict[str, Any]) -> dict[str, Any]:
    """Turn `anyOf [X, null]` into X: OpenAPI 3.0 knows no null type."""
    branches = [item for item in value.get("anyOf", ()) if item != {"type": "null"}]
    if not branches or len(branches) == len(value["anyOf"]):
        return value
    rest = {key: item for key, item in value.items() if key not in ("anyOf", "default")}
    return {**(branches[0] if len(branches) == 1 else {"anyOf": branches}), **rest}
