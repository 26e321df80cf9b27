"""What must hold after any number of crashes: P1 to P4, asked of the server and of its disk."""

import io
import sqlite3
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
from PIL import Image

from tests.faults.crash_client import ENDPOINT, digest

READERS = 4


@dataclass
class Ledgers:
    """What all callers noted, by request id."""

    seeds: dict[str, int] = field(default_factory=dict)
    cancels: dict[str, int] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, paths: list[Path]) -> "Ledgers":
        """Read the ledgers of several callers."""
        ledgers = cls()
        for path in paths:
            for line in path.read_text(encoding="ascii").splitlines():
                kind, request_id, word = line.split()
                if kind == "S":
                    ledgers.seeds[request_id] = int(word)
                elif kind == "C":
                    ledgers.cancels[request_id] = int(word)
                else:
                    ledgers.digests[request_id] = word
        return ledgers


class Findings:
    """Numbers for the summary, and everything that must not be."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.violations: list[str] = []

    def require(self, holds: object, violation: str) -> None:
        """Note the violation unless it holds."""
        if not holds:
            self.violations.append(violation)


def check_answers(address: str, ledgers: Ledgers, findings: Findings, *, colours: bool) -> None:
    """Read every accepted request's result twice, and its files, through the server."""
    with (
        httpx2.Client(base_url=address, trust_env=False, timeout=60) as http,
        ThreadPoolExecutor(READERS) as readers,
    ):

        def check(request_id: str) -> None:
            _check_one(http, request_id, ledgers, findings, colours=colours)

        list(readers.map(check, sorted(ledgers.seeds)))


def check_repeated(address: str, ledgers: Ledgers, findings: Findings) -> None:
    """Read every result once more: it must be, byte for byte, what it was before."""
    with httpx2.Client(base_url=address, trust_env=False, timeout=60) as http:
        for request_id in ledgers.seeds:
            answer = http.get(f"/queue/{ENDPOINT}/requests/{request_id}")
            same = digest(answer.status_code, answer.content) == ledgers.digests.get(request_id)
            findings.require(same, f"{request_id}: another result after a restart")


def _check_one(
    http: httpx2.Client, request_id: str, ledgers: Ledgers, findings: Findings, *, colours: bool
) -> None:
    path = f"/queue/{ENDPOINT}/requests/{request_id}"
    status = http.get(f"{path}/status")
    word = status.json().get("status")
    if (status.status_code, word) != (200, "COMPLETED"):
        findings.violations.append(f"{request_id}: lost, its status is {status.text}")
        return
    first, second = http.get(path), http.get(path)
    seen = {digest(answer.status_code, answer.content) for answer in (first, second)}
    seen |= {ledgers.digests.get(request_id, next(iter(seen)))}
    findings.require(len(seen) == 1, f"{request_id}: answered with different results")
    ledgers.digests[request_id] = digest(first.status_code, first.content)
    _check_outcome(request_id, first, ledgers, findings)
    if first.status_code == 200:
        for image in first.json()["images"]:
            _check_image(http, request_id, image, ledgers, findings, colours=colours)


def _check_outcome(
    request_id: str, result: httpx2.Response, ledgers: Ledgers, findings: Findings
) -> None:
    cancelled = ledgers.cancels.get(request_id)
    word = result.headers.get("x-fal-error-type", "")
    findings.counts[f"{result.status_code} {word}".strip()] += 1
    if result.status_code == 499:
        findings.require(cancelled in (0, 200, 202), f"{request_id}: cancelled by nobody")
    elif cancelled == 200:
        findings.violations.append(f"{request_id}: cancelled in the queue, and made all the same")
    elif result.status_code != 200:
        findings.require(word == "runner_disconnected", f"{request_id}: failed: {result.text}")


def _check_image(
    http: httpx2.Client,
    request_id: str,
    image: dict[str, object],
    ledgers: Ledgers,
    findings: Findings,
    *,
    colours: bool,
) -> None:
    file = http.get(httpx2.URL(str(image["url"])).raw_path.decode("ascii"))
    findings.counts["files"] += 1
    if (file.status_code, len(file.content)) != (200, image["file_size"]):
        findings.violations.append(f"{request_id}: its file answers {file.status_code}")
        return
    with Image.open(io.BytesIO(file.content)) as picture:
        picture.load()
        corner = picture.getpixel((0, 0))
    expected = (ledgers.seeds[request_id] % 256, 0, 0)
    findings.require(not colours or corner == expected, f"{request_id}: somebody else's image")


def check_disk(data_dir: Path, ledgers: Ledgers, findings: Findings) -> None:
    """Look at the rows and files that a stopped server left."""
    uri = f"file:{data_dir / 'queue.sqlite3'}?mode=ro"
    with closing(sqlite3.connect(uri, uri=True)) as database:
        jobs = database.execute("SELECT request_id, status, attempts, runner_deaths FROM jobs")
        rows = {row[0]: row[1:] for row in jobs}
        files = dict(database.execute("SELECT name, size_bytes FROM files").fetchall())
        owners = {row[0] for row in database.execute("SELECT DISTINCT request_id FROM files")}
        (verdict,) = database.execute("PRAGMA integrity_check").fetchone()
    findings.require(verdict == "ok", f"the database is damaged: {verdict}")
    findings.require(ledgers.seeds.keys() <= rows.keys(), "an accepted request has no row")
    findings.require(owners <= rows.keys(), "a file belongs to no request")
    for request_id, (status, attempts, deaths) in rows.items():
        findings.require(status == "COMPLETED", f"{request_id}: {status} at the end")
        findings.require(deaths <= 2 and attempts <= 3, f"{request_id}: charged {attempts} tries")
        if deaths:
            findings.counts[f"charged {deaths} runner deaths"] += 1
    findings.counts["accepted, answer lost"] = len(rows) - len(ledgers.seeds)
    on_disk = {path.name: path.stat().st_size for path in (data_dir / "files").glob("*/*")}
    findings.require(on_disk == files, f"files and rows differ: {on_disk.keys() ^ files.keys()}")
    spool = data_dir / "spool"
    findings.require(not spool.exists() or not any(spool.iterdir()), "the spool was left")
