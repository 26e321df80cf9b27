"""What the head of the queue waits for, ready before its turn: images, LoRAs, expanded prompts.

Nothing here changes a row, except that a request whose images or LoRAs cannot be had is ended at
once. A restart prepares again.

What is here already, images from elsewhere and LoRAs from elsewhere have places of their own, so
that hosts that are slow or dead hold up nobody but requests of their own kind; among these the
owners take turns. What waits for an operator's language model is as if it came from elsewhere.
Requests that need neither are not looked at here at all, and never wait for any of this.
"""

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import structlog

from pipelines.types import LoraUse, Model
from server.errors import FalError
from server.family.endpoint import Order
from server.inputs import Expanded, InputPreparer
from server.jobs import Job, Need
from server.store import Store, StoreUnavailableError

log = structlog.get_logger(__name__)

STORAGE_RETRY_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Prepared:
    """What a job waited for: images, LoRAs, and its prompt if that was written elsewhere."""

    references: tuple[Path, ...] = ()
    loras: tuple[LoraUse, ...] = ()
    expanded: Expanded | None = None

    @property
    def is_there(self) -> bool:
        """Whether all of its files still are."""
        return all(map(Path.exists, (*self.references, *(use.path for use in self.loras))))

    def apply_to(self, order: Order) -> Order:
        """Return the order as it is to be drawn."""
        order = replace(order, settings=replace(order.settings, loras=self.loras))
        if self.expanded is None:
            return order
        settings = replace(order.settings, expand_prompt=False)
        prompt, seed = self.expanded.prompt, self.expanded.seed
        return replace(order, prompt=prompt, seed=seed, settings=settings)


@dataclass(eq=False, slots=True)
class _Entry:
    """What one job needs: on its way, ready (`prepared`), or with a runner (`taken`)."""

    job: Job
    task: asyncio.Task[None] | None = None
    prepared: Prepared | None = None
    taken: bool = False


class Prefetcher:
    """Prepares a few jobs ahead of the workers and keeps what they need until they are over.

    `places` says how many jobs of each need may be under way or ready at a time, for each of the
    `models`, lest one that is not loaded hold up the others: that bounds the room in the spool.
    `on_ready` hears when one may be claimed; `on_failed` gets the job that
    cannot be, with the reason (None: a fault of ours), and ends it.
    """

    def __init__(
        self,
        store: Store,
        inputs: InputPreparer,
        places: Mapping[Need, int],
        on_ready: Callable[[], None],
        on_failed: Callable[[Job, FalError | None], Awaitable[None]],
        *,
        models: Collection[Model],
    ) -> None:
        self._models = tuple(models)
        self._store = store
        self._inputs = inputs
        self._places = places
        self._on_ready = on_ready
        self._on_failed = on_failed
        self._entries: dict[str, _Entry] = {}
        self._over: set[str] = set()
        self._discards: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()
        self._watcher: asyncio.Task[None] | None = None
        self.problem: str | None = None
        self.held = False

    def start(self) -> None:
        """Begin with what waits already."""
        self._changed.set()
        self._watcher = asyncio.create_task(self._watch(), name="prefetcher")

    async def stop(self) -> None:
        """Prepare nothing more, and give up all that no runner has."""
        if self._watcher:
            self._watcher.cancel()
            await asyncio.wait({self._watcher})
        await self._drop_all(with_taken=False)

    async def clear(self) -> None:
        """Give up the rest, after the workers have stopped."""
        await self._drop_all(with_taken=True)

    def wake(self) -> None:
        """Look at the queue again."""
        self._changed.set()

    def ready(self) -> list[str]:
        """Return the ids of the jobs that have what they need and may be claimed."""
        return [
            request_id
            for request_id, entry in self._entries.items()
            if entry.prepared is not None and not entry.taken
        ]

    async def take(self, job: Job) -> Prepared:
        """Return what a claimed job needs, and keep its images until it is over or given back.

        What is not there any more is prepared again. Raises as `InputPreparer.prepare`.
        """
        entry = self._entries.get(job.request_id)
        prepared = entry.prepared if entry else None
        if entry is None or prepared is None or not prepared.is_there:
            prepared = await self._make(job)
            entry = self._entries[job.request_id] = _Entry(job, prepared=prepared)
        entry.taken = True
        self.wake()
        return prepared

    def give_back(self, request_id: str) -> None:
        """Note that a job's attempt was lost: it waits again, with its images."""
        entry = self._entries.get(request_id)
        if entry:
            entry.taken = False

    def drop(self, request_id: str) -> None:
        """Give up the images of a job that is over, or stop preparing them."""
        self._over.add(request_id)
        entry = self._entries.pop(request_id, None)
        if entry:
            discard = asyncio.create_task(self._discard(entry))
            self._discards.add(discard)
            discard.add_done_callback(self._discards.discard)
            self.wake()

    async def _watch(self) -> None:
        while True:
            await self._changed.wait()
            self._changed.clear()
            if self.held:
                continue
            try:
                for model, need in itertools.product(self._models, self._places):
                    await self._fill(model, need, self._places[need])
            except StoreUnavailableError as error:
                log.error("the storage refuses", reason=error.body["detail"])
                await asyncio.sleep(STORAGE_RETRY_SECONDS)
                self._changed.set()

    async def _fill(self, model: Model, need: Need, places: int) -> None:
        """Begin with as many more jobs as there are places free."""
        waiting = [entry.job for entry in self._entries.values() if not entry.taken]
        free = places - sum(job.needs is need and job.model is model for job in waiting)
        if free <= 0:
            return
        self._over.clear()
        jobs = await self._store.next_in_need(model, need, places)
        # Whatever ended while the store was asked is in `_over`, and must not be begun any more.
        news = [
            job
            for job in jobs
            if job.request_id not in self._entries and job.request_id not in self._over
        ]
        for job in news[:free]:
            entry = self._entries[job.request_id] = _Entry(job)
            entry.task = asyncio.create_task(self._prepare(entry), name=f"prepare {job.request_id}")

    async def _prepare(self, entry: _Entry) -> None:
        while True:
            try:
                await self._prepare_once(entry)
            except (StoreUnavailableError, OSError) as error:
                self.problem = f"storage: {error}"
                log.error("cannot prepare, trying again", reason=str(error))
                await asyncio.sleep(STORAGE_RETRY_SECONDS)
            else:
                self.problem = None
                return

    async def _prepare_once(self, entry: _Entry) -> None:
        try:
            entry.prepared = await self._make(entry.job)
        except (StoreUnavailableError, OSError):
            raise
        except FalError as error:
            await self._on_failed(entry.job, error)
        except Exception:
            # A fault of ours fails this job alone: left in the queue, it would come back for ever.
            log.exception("the preparation failed", request_id=entry.job.request_id)
            await self._on_failed(entry.job, None)
        else:
            self._on_ready()

    async def _make(self, job: Job) -> Prepared:
        references = await self._inputs.prepare(job)
        loras = await self._inputs.find_loras(job)
        return Prepared(references, loras, await self._inputs.expand(job, references))

    async def _drop_all(self, *, with_taken: bool) -> None:
        for request_id, entry in list(self._entries.items()):
            if with_taken or not entry.taken:
                self.drop(request_id)
        while self._discards:
            await asyncio.wait(self._discards)

    async def _discard(self, entry: _Entry) -> None:
        if entry.task and not entry.task.done():
            entry.task.cancel()
            await asyncio.wait({entry.task})
        await self._inputs.release(entry.job.request_id)
