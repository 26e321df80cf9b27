"""What a canonical path asks for beside the queue: the endpoint of a stream or of a websocket."""

from server.catalogue import CATALOGUE, find_endpoint
from server.errors import RequestError
from server.family.endpoint import Endpoint
from server.routes.doors import WS_PREFIX

STREAM_SUFFIX = "/stream"
REALTIME_SUFFIX = "/realtime"


def find_streamed(path: str) -> Endpoint:
    """Return the endpoint of `/{id}/stream`. Raises `RequestError` 404."""
    return _find(path, STREAM_SUFFIX)


def find_realtime(path: str) -> Endpoint:
    """Return the endpoint of `/{id}/realtime`, or of `/{id}` where the id ends so itself.

    fal's JavaScript client adds no second suffix to such an id, the Python client does. Raises
    `RequestError` 404.
    """
    endpoint_id = path.strip("/")
    if endpoint_id.endswith(REALTIME_SUFFIX) and endpoint_id in CATALOGUE:
        return CATALOGUE[endpoint_id]
    return _find(path, REALTIME_SUFFIX)


def find_carried(path: str) -> Endpoint:
    """Return the endpoint of `/ws/{id}`, HTTP over a websocket. Raises `RequestError` 404."""
    return find_endpoint(path.removeprefix(WS_PREFIX).strip("/"))


def _find(path: str, suffix: str) -> Endpoint:
    endpoint_id = path.strip("/")
    if not endpoint_id.endswith(suffix):
        raise RequestError(404, f"Path /{endpoint_id} not found: it is /{{endpoint id}}{suffix}")
    return find_endpoint(endpoint_id.removesuffix(suffix))
