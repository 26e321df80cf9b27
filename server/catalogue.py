"""Every endpoint by its id.

Routes, OpenAPI documents and tests are made from these entries: a new endpoint is a new entry, in
the group of `server/family` that it belongs to.
"""

from collections.abc import Mapping
from types import MappingProxyType

from server.errors import RequestError
from server.family import dev, hosted, klein, loras
from server.family.endpoint import Endpoint

CATALOGUE: Mapping[str, Endpoint] = MappingProxyType(
    {
        entry.id: entry
        for entry in (*dev.ENDPOINTS, *klein.ENDPOINTS, *hosted.ENDPOINTS, *loras.ENDPOINTS)
    }
)

APP_IDS = frozenset("/".join(endpoint_id.split("/")[:2]) for endpoint_id in CATALOGUE)
"""fal's applications: the first two segments, under which requests are kept."""


def find_endpoint(endpoint_id: str) -> Endpoint:
    """Return the endpoint of this id, whether or not this server serves it.

    Raises `RequestError` 404 in fal's two wordings: for an application that is not served, and
    for a path that the application does not have.
    """
    endpoint = CATALOGUE.get(endpoint_id)
    if endpoint:
        return endpoint
    segments = endpoint_id.split("/")
    app_id, path = "/".join(segments[:2]), "/".join(segments[2:])
    if app_id in APP_IDS and path:
        detail = f"Path /{path} not found"
    else:
        detail = f'Application "{app_id}" not found'
    raise RequestError(404, detail, headers={"x-fal-billable-units": "0"})
