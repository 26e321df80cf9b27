"""Every endpoint's own document against what the endpoint takes, whatever models there are.

FUZZ_EXAMPLES scales the run.
"""

import json
import os
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.generation import GenerationMode

from server.catalogue import CATALOGUE
from server.errors import InputError
from server.routes.openapi import build_document

EXAMPLES = max(1, int(os.environ.get("FUZZ_EXAMPLES", "45")) // 6)
JSON_TYPES = (dict, list, str, int, float, bool)

FEW = settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)


def bodies(endpoint_id: str, mode: GenerationMode) -> Any:
    """Return a strategy of requests that the document allows, or that it does not."""
    document = build_document(CATALOGUE[endpoint_id], "http://box/queue")
    schema = schemathesis.openapi.from_dict(document)
    return schema[f"/{endpoint_id}"]["POST"].as_strategy(generation_mode=mode)


@pytest.mark.parametrize("endpoint_id", CATALOGUE)
def test_what_the_document_allows_is_accepted(endpoint_id: str) -> None:
    """A client that is made from the document sends nothing that is refused."""

    @given(case=bodies(endpoint_id, GenerationMode.POSITIVE))
    @FEW
    def check(case: Any) -> None:
        order = CATALOGUE[endpoint_id].parse(case.body)
        assert order.prompt == case.body.get("prompt", order.prompt)
        assert order.needs_size or order.settings.width >= 512

    check()


@pytest.mark.parametrize("endpoint_id", CATALOGUE)
def test_what_it_forbids_is_refused_or_read_kindly(endpoint_id: str) -> None:
    """Each refusal names its place and can be sent; nothing else is ever raised."""

    @given(case=bodies(endpoint_id, GenerationMode.NEGATIVE))
    @FEW
    def check(case: Any) -> None:
        try:
            CATALOGUE[endpoint_id].parse(case.body if isinstance(case.body, JSON_TYPES) else None)
        except InputError as error:
            detail = json.loads(json.dumps(error.body))["detail"]
            assert detail
            assert all(item["loc"][0] == "body" for item in detail)

    check()
