"""A process that downloads one URL of this machine, for a test that measures its memory.

`python -m tests.server.fetch_child URL TARGET LIMIT_BYTES SECONDS` prints as JSON how it ended and
by how many bytes the most memory it ever held exceeds what it held before.
"""

import asyncio
import json
import re
import sys
from pathlib import Path

from server.fetch import Fetcher, FetchError
from server.outbound import Outbound, trusted_authorities
from server.targets import AllowList


def memory(field: str) -> int:
    """Return a figure of this process in bytes: `VmRSS` is now, `VmHWM` the most ever."""
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) * 1024


async def main(url: str, target: Path, limit_bytes: int, seconds: float) -> None:
    """Download and tell."""
    allowed = AllowList.parse("FLUX2_FETCH_ALLOW", ["127.0.0.1"])
    outbound = Outbound(allowed.resolve, trusted_authorities(None))
    fetcher = Fetcher(outbound, limit_bytes, seconds, failure_seconds=0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far was that of the imports
    before, outcome = memory("VmRSS"), "fetched"
    try:
        await fetcher.fetch(url, target)
    except FetchError as error:
        outcome = error.error_type
    await fetcher.close()
    json.dump({"outcome": outcome, "growth_bytes": memory("VmHWM") - before}, sys.stdout)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])))
