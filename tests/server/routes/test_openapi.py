"""The OpenAPI documents: valid, in fal's form, one for each endpoint."""

from typing import Any

import pytest

from server.catalogue import CATALOGUE
from server.routes.openapi import build_document


@pytest.mark.parametrize("endpoint_id", CATALOGUE)
def test_the_document_has_fal_s_form(endpoint_id: str) -> None:
    """Paths, names and the security scheme are where generators for fal look for them."""
    endpoint = CATALOGUE[endpoint_id]
    document = build_document(endpoint, "http://box/queue")
    assert document["openapi"] == "3.0.4"
    assert document["info"]["title"] == f"Queue OpenAPI for {endpoint_id}"
    assert document["info"]["x-fal-metadata"]["endpointId"] == endpoint_id
    assert document["servers"] == [{"url": "http://box/queue"}]
    kept = f"/{endpoint_id}/requests/{{request_id}}"
    assert {path: list(item) for path, item in document["paths"].items()} == {
        f"{kept}/status": ["get"],
        f"{kept}/cancel": ["put"],
        f"/{endpoint_id}": ["post"],
        kept: ["get"],
    }
    schemas = document["components"]["schemas"]
    for name in (f"{endpoint.title}Input", f"{endpoint.title}Output", "QueueStatus", "ImageFile"):
        assert schemas[name]["x-fal-order-properties"] == list(schemas[name]["properties"])
    assert schemas["QueueStatus"]["required"][:2] == ["status", "request_id"]


@pytest.mark.parametrize("endpoint_id", CATALOGUE)
def test_references_resolve_and_no_null_type_is_left(endpoint_id: str) -> None:
    """OpenAPI 3.0 has no null type, and every $ref has to lead somewhere."""
    document = build_document(CATALOGUE[endpoint_id], "http://box/queue")
    schemas = document["components"]["schemas"]

    def walk(node: Any) -> None:
        if isinstance(node, dict):
            assert node.get("type") != "null"
            if "$ref" in node:
                assert node["$ref"].removeprefix("#/components/schemas/") in schemas
            for value in node.values():
                walk(value)
        elif isinstance(node, list):
            for value in node:
                walk(value)

    walk(document)
