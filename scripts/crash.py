"""Kill a real server again and again while real clients submit; then check what they were told.

The same `--seed` gives the same kills at the same offsets; how far the server is by then is the
machine's doing.
"""

import argparse
import contextlib
import json
import os
import random
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.faults.crash_check import (
    Findings,
    Ledgers,
    check_answers,
    check_disk,
    check_repeated,
)
from tests.faults.gateway import ROOT, START_SECONDS, Gateway, free_port, wait_until

SHOWN_VIOLATIONS = 20
CLIENT_SECONDS = 300
QUEUE_LIMIT = 1_000_000
CALLER = (sys.executable, "-m", "tests.faults.crash_client")


@dataclass(frozen=True)
class Pace:
    """How long a pipeline takes, in seconds, and so when to strike."""

    load_seconds: float
    job_seconds: float


PACES = {"instant": Pace(0.4, 0.012), "tiny": Pace(6.0, 0.6)}
START_PHASE_SECONDS = 1.0
"""From the start of the gateway's process until it listens."""


@dataclass(frozen=True)
class Kill:
    """One SIGKILL: at whom, and how long after which moment."""

    target: str
    since: str
    seconds: float


def main() -> int:
    """Run what the command line asks for; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--pipeline", choices=sorted(PACES), default="instant")
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--keep", type=Path, help="a folder for data, ledgers and logs, kept")
    parser.add_argument("--stepwise", action="store_true", help="kill at every call instead")
    parser.add_argument("--every", type=int, default=1, help="with --stepwise: of N kill points")
    options = parser.parse_args()
    if options.stepwise:
        from tests.faults.stepwise import walk  # noqa: PLC0415

        return walk(options.every)
    seed = secrets.randbelow(2**32) if options.seed is None else options.seed
    print(f"seed {seed}", flush=True)
    with _workspace(options.keep) as folder:
        run = Run(folder, options.jobs, options.kills, options.pipeline, random.Random(seed))  # noqa: S311
        try:
            return run.whole()
        finally:
            run.close()


class Run:
    """One run: the server, its callers, the kills, and the findings."""

    def __init__(
        self, folder: Path, jobs: int, kills: int, pipeline: str, dice: random.Random
    ) -> None:
        self._folder = folder
        self._jobs = jobs
        self._pipeline = pipeline
        self._pace = PACES[pipeline]
        self._kills = plan(dice, kills, max(1, jobs // (kills + 1)), self._pace)
        self._gateway = Gateway(
            folder / "data",
            {"QUEUE_LIMIT": str(QUEUE_LIMIT), **self._pipeline_settings()},
            tls_port=free_port(),
        )
        self._callers: list[subprocess.Popen[str]] = []
        self._ledgers: list[Path] = []
        self._findings = Findings()
        self._last_runner = 0

    def whole(self) -> int:
        """Kill, let everything finish, check, print the summary, and return the exit status."""
        started = time.monotonic()
        self._gateway.start(until="listening on https://")
        self._start_callers()
        self._kill_all()
        killing_seconds = time.monotonic() - started
        self._finish()
        self._check()
        self._summarize(killing_seconds, time.monotonic() - started)
        return 1 if self._findings.violations else 0

    def close(self) -> None:
        """Leave no process behind."""
        for caller in self._callers:
            if caller.poll() is None:
                caller.kill()
                caller.wait()
        self._gateway.close()
        (self._folder / "gateway.log").write_text("".join(self._gateway.lines), encoding="utf-8")

    def _pipeline_settings(self) -> dict[str, str]:
        if self._pipeline == "instant":
            return {"PIPELINE_FACTORY": "fault_pipelines:instant"}
        model = self._folder / "model"
        command = [str(Path(sys.executable).parent / "flux2-serve"), "demo-model", str(model)]
        subprocess.run(command, check=True)  # noqa: S603
        return {"PIPELINE_FACTORY": "pipelines.loading:load_pipeline", "MODEL": str(model)}

    def _start_callers(self) -> None:
        """Start one caller with fal's own client over TLS, and two over plain HTTP."""
        addresses = [f"localhost:{self._gateway.tls_port}", self._gateway.url, self._gateway.url]
        for number, address in enumerate(addresses):
            ledger = self._folder / f"ledger-{number}"
            ledger.touch()
            self._ledgers.append(ledger)
            kind = "plain" if number else "fal"
            first_seed = 1 + number * 10_000_000
            authority = self._gateway.data_dir / "tls" / "ca.pem"
            self._callers.append(
                subprocess.Popen(  # noqa: S603
                    [*CALLER, kind, address, str(ledger), str(first_seed)],
                    cwd=ROOT,
                    env={**os.environ, "SSL_CERT_FILE": str(authority)},
                    stdin=subprocess.PIPE,
                    text=True,
                )
            )

    def _grant(self, jobs: int) -> None:
        """Allow so many more requests: a fifth to fal's client, the rest to the others."""
        shares = [jobs // 5, (jobs - jobs // 5) // 2]
        for caller, share in zip(self._callers, [*shares, jobs - sum(shares)], strict=True):
            if caller.stdin:
                caller.stdin.write(f"{share}\n")
                caller.stdin.flush()

    def _kill_all(self) -> None:
        granted = 0
        for number, kill in enumerate(self._kills, start=1):
            share = self._jobs * number // (len(self._kills) + 1) - granted
            self._grant(share)
            granted += share
            self._strike(kill)
            print(
                f"kill {number}/{len(self._kills)}: {kill.target} "
                f"{kill.seconds:.3f} s after {kill.since}",
                flush=True,
            )
        self._grant(self._jobs - granted)

    def _strike(self, kill: Kill) -> None:
        gateway = self._gateway
        if kill.target == "runner":
            wait_until(self._new_runners, START_SECONDS, "no new runner")
            time.sleep(kill.seconds)
            for pid in gateway.runners():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                self._last_runner = pid
            return
        if kill.since == "listening":
            gateway.wait_line("listening on https://")
        time.sleep(kill.seconds)
        gateway.kill()
        gateway.spawn()

    def _new_runners(self) -> list[int]:
        runners = self._gateway.runners()
        self._findings.require(len(runners) < 2, f"two runners of one gateway: {runners}")
        return [pid for pid in runners if pid != self._last_runner]

    def _finish(self) -> None:
        """Let the callers send what is left, and the server finish all of it."""
        for caller in self._callers:
            if caller.stdin:
                caller.stdin.close()
        for caller in self._callers:
            status = caller.wait(CLIENT_SECONDS)
            self._findings.require(status == 0, f"a caller ended with {status}")
        self._gateway.wait_line("listening on https://")
        limit = START_SECONDS + self._jobs * 10 * self._pace.job_seconds
        with self._gateway.client() as http:

            def is_idle() -> bool:
                queue = http.get("/health/ready").json()["queue"]
                return not any(queue.values())

            wait_until(is_idle, limit, "the queue does not become empty")

    def _check(self) -> None:
        ledgers = Ledgers.read(self._ledgers)
        self._findings.counts["accepted"] = len(ledgers.seeds)
        accepted_all = len(ledgers.seeds) == self._jobs
        self._findings.require(accepted_all, f"{len(ledgers.seeds)} of {self._jobs} accepted")
        colours = self._pipeline == "instant"
        check_answers(self._gateway.url, ledgers, self._findings, colours=colours)
        status = self._gateway.stop()
        self._findings.require(status == 0, f"the gateway stopped with {status}")
        self._gateway.start(until=None)
        check_repeated(self._gateway.url, ledgers, self._findings)
        self._gateway.stop()
        self._gateway.close()
        check_disk(self._gateway.data_dir, ledgers, self._findings)
        self._check_log()

    def _check_log(self) -> None:
        """Look for requests that were completed twice, in what all lives of the server said."""
        said = [json.loads(line) for line in self._gateway.lines if line.startswith("{")]
        completed = Counter(line["request_id"] for line in said if line["msg"] == "completed")
        for request_id, count in completed.items():
            self._findings.require(count == 1, f"{request_id}: completed {count} times")
        for line in said:
            if line["msg"] == "recovered":
                self._findings.counts["put back at a start"] += line["requeued_jobs"]
                self._findings.counts["orphans swept at a start"] += line["orphaned_files"]
            self._findings.counts["exceptions in the log"] += "exception" in line

    def _summarize(self, killing_seconds: float, seconds: float) -> None:
        findings, struck = self._findings, [kill.target for kill in self._kills]
        print(
            f"\n{self._jobs} jobs, {len(struck)} kills "
            f"({struck.count('gateway')} gateway, {struck.count('runner')} runner), "
            f"{self._pipeline} pipeline: {killing_seconds:.0f} s of killing, {seconds:.0f} s in all"
        )
        for name, count in sorted(findings.counts.items()):
            print(f"  {name}: {count}")
        for violation in findings.violations[:SHOWN_VIOLATIONS]:
            print(f"VIOLATION {violation}")
        print(f"{len(findings.violations)} violations")


def plan(dice: random.Random, kills: int, jobs_each: int, pace: Pace) -> list[Kill]:
    """Draw the kills: at start, while loading, and while it works on the next few requests."""
    work_seconds = jobs_each * pace.job_seconds
    choices = [
        ("gateway", "its start", 0.0, START_PHASE_SECONDS),
        ("gateway", "listening", 0.0, pace.load_seconds),
        ("gateway", "listening", pace.load_seconds, work_seconds),
        ("gateway", "listening", pace.load_seconds, work_seconds),
        ("runner", "its start", 0.0, pace.load_seconds),
        ("runner", "its start", pace.load_seconds, work_seconds),
        ("runner", "its start", pace.load_seconds, work_seconds),
    ]
    plans = (dice.choice(choices) for _ in range(kills))
    return [
        Kill(target, since, offset + dice.random() * window)
        for target, since, offset, window in plans
    ]


@contextlib.contextmanager
def _workspace(keep: Path | None) -> Iterator[Path]:
    """Give a folder: the one to keep, or one that is deleted again."""
    if keep:
        keep.mkdir(parents=True, exist_ok=True)
        yield keep
        return
    folder = Path(tempfile.mkdtemp(prefix="crash-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
