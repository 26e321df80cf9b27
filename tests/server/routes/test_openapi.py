"""The OpenAPI documents: valid, in fal's form, one for each endpoint."""

import re
from typing import Any

import pytest
from openapi_spec_validator import validate

from server.catalogue import CATALOGUE
from server.routes.document import build_own_document
from server.routes.openapi import build_document

EVERYTHING = tuple(CATALOGUE.values())


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


@pytest.mark.parametrize("endpoint_id", CATALOGUE)
def test_a_stranger_s_tool_reads_the_document(endpoint_id: str) -> None:
    """It is OpenAPI 3.0 to the letter, with no word of a later version."""
    validate(build_document(CATALOGUE[endpoint_id], "http://box/queue"))


def test_a_stranger_s_tool_reads_the_own_document() -> None:
    """The same for OpenAPI 3.1, with everything served at once."""
    validate(build_own_document(EVERYTHING, "http://box"))


def own_operations() -> list[tuple[str, str, dict[str, Any]]]:
    """Return path, method and description of every operation of the server's own document."""
    paths = build_own_document(EVERYTHING, "http://box")["paths"]
    return [
        (path, method, item) for path, methods in paths.items() for method, item in methods.items()
    ]


def test_the_own_document_names_each_operation_once() -> None:
    """Links and generators go by the ids, and every endpoint can be run and queued."""
    operations = own_operations()
    names = [item["operationId"] for _, _, item in operations]
    assert len(names) == len(set(names))
    posts = {path for path, method, _ in operations if method == "post"}
    assert {f"{prefix}/{name}" for prefix in ("", "/queue") for name in CATALOGUE} <= posts


def test_links_and_references_of_the_own_document_lead_somewhere() -> None:
    """No `$ref` and no link is left dangling."""
    document = build_own_document(EVERYTHING, "http://box")
    names = {item["operationId"] for _, _, item in own_operations()}

    def walk(node: Any) -> None:
        if isinstance(node, dict):
            if isinstance(node.get("$ref"), str):
                found: Any = document
                for key in node["$ref"].removeprefix("#/").split("/"):
                    found = found[key]
            for link in node.get("links", {}).values():
                assert link["operationId"] in names
            for value in node.values():
                walk(value)
        elif isinstance(node, list):
            for value in node:
                walk(value)

    walk(document)


def test_every_path_parameter_is_described() -> None:
    """What is in braces is a parameter, and the other way round."""
    for path, _, item in own_operations():
        described = {found["name"] for found in item.get("parameters", ()) if found["in"] == "path"}
        assert described == set(re.findall(r"{(\w+)}", path)), path


@pytest.mark.parametrize("endpoint_id", CATALOGUE)
def test_every_integer_of_an_input_has_bounds(endpoint_id: str) -> None:
    """No number can be sent that would break something further in."""

    def walk(node: Any) -> None:
        if isinstance(node, dict):
            if node.get("type") in ("integer", "number"):
                assert {"minimum", "maximum"} <= set(node), node
            for value in node.values():
                walk(value)
        elif isinstance(node, list):
            for value in node:
                walk(value)

    walk(CATALOGUE[endpoint_id].input.model_json_schema())
