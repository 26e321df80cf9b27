"""The one door into the queue."""

import json
import time
import uuid
from collections.abc import Callable
from typing import Any

from server.catalogue import Endpoint
from server.jobs import Job
from server.store import Store


class Admission:
    """Accepts requests: once `accept` returns, the job is kept until it is answered."""

    def __init__(self, store: Store, on_accepted: Callable[[], None]) -> None:
        self._store = store
        self._on_accepted = on_accepted

    async def accept(self, endpoint: Endpoint, body: Any, origin: str) -> Job:
        """Store a new job for this input, which is not validated here, and wake the dispatcher.

        `origin` is the scheme, host and port under which the caller knows this server.
        """
        job = Job(
            request_id=str(uuid.uuid4()),
            endpoint_id=endpoint.id,
            origin=origin,
            # ASCII, so that lone surrogates survive the way through UTF-8.
            input=json.dumps(body, ensure_ascii=True),
            created_at=time.time(),
        )
        await self._store.insert(job)
        self._on_accepted()
        return job
