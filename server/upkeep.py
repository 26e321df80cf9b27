"""Order in the data folder: at start, after a stop of any kind, and while the server runs."""

import asyncio

import structlog

from server.clock import SteadyClock
from server.files import FileStore
from server.inputs import InputPreparer
from server.store import Store, StoreUnavailableError

log = structlog.get_logger(__name__)


async def recover(
    store: Store, files: FileStore, inputs: InputPreparer, clock: SteadyClock
) -> None:
    """Put back what ran, sweep what belongs to nobody; before any request is taken."""
    latest = await store.latest_moment()
    if latest is not None:
        clock.not_before(latest)
    requeued = await store.requeue_all_in_progress()
    inputs.sweep()
    orphans = await asyncio.to_thread(files.sweep, await store.all_file_names())
    if requeued or orphans:
        log.info("recovered", requeued_jobs=len(requeued), orphaned_files=orphans)


async def sweep(store: Store, files: FileStore, clock: SteadyClock, every_seconds: float) -> None:
    """Erase what is past its time, for as long as the server runs.

    Its writes also tell, on an idle server, that the database takes them: `Store.problem`.
    """
    while True:
        try:
            for name in await store.erase_expired(clock()):
                await asyncio.to_thread(_delete, files, name)
        except StoreUnavailableError as error:
            log.error("the sweep failed", reason=str(error))
        except Exception:
            # It must not end here unseen: nothing would ever be erased again.
            log.exception("the sweep stumbled")
        await asyncio.sleep(every_seconds)


def _delete(files: FileStore, name: str) -> None:
    try:
        files.delete(name)
    except OSError as error:
        log.error("an expired file cannot be deleted", name=name, reason=str(error))
