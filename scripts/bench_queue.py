"""Measure what the queue costs on this machine, beside nothing and beside a long backlog.

The gateway is kept to one core and the runner to another; load comes from the core that is
named with each figure. Everything runs on the tiny checkpoint.
"""

import argparse
import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench_cores import choose_cores, on_core
from bench_load import Load, make_load
from bench_report import Costs, Figures, append, write_report
from bench_server import (
    COMMAND,
    SUBMIT_PATH,
    Served,
    bare_pipeline,
    fill,
    serve,
    status_path,
    working_folder,
)

from server.store import Store

SUBMITTERS, POLLERS = 8, 16


@dataclass(frozen=True)
class Plan:
    """How much to measure, and where."""

    backlogs: tuple[int, ...]
    rounds: int
    samples: int
    seconds: float
    pairs: int
    steps: int
    folder: Path
    model: Path
    cores: tuple[int, int]

    @property
    def one_image(self) -> dict[str, Any]:
        """The input whose time is compared: one image of 512x512 pixels."""
        return {
            "prompt": "A lighthouse on a cliff at dusk",
            "image_size": "square",
            "num_inference_steps": self.steps,
            "seed": 5,
        }

    @property
    def long_job(self) -> dict[str, Any]:
        """The input that a backlog is made of: it keeps a runner busy."""
        return {**self.one_image, "num_images": 4, "num_inference_steps": 50}


def main() -> int:
    """Measure, print, and append to the report."""
    options = parse_options()
    load_before = os.getloadavg()[0]
    with working_folder(options.data) as folder:
        figures = measure(make_plan(options, folder), load_before)
    text = write_report(figures)
    print(text)
    if options.append:
        append(text)
    return 0


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="scripts/bench queue", description=__doc__)
    parser.add_argument("--backlogs", type=numbers, default=(0, 10_000, 100_000), metavar="N,N")
    parser.add_argument("--rounds", type=int, default=5, help="of each cost, in turns")
    parser.add_argument("--samples", type=int, default=200, help="of each cost, a round")
    parser.add_argument("--seconds", type=float, default=10, help="of load, each time")
    parser.add_argument("--pairs", type=int, default=7, help="of images with and without server")
    parser.add_argument("--steps", type=int, default=50, help="of these images")
    parser.add_argument("--data", type=Path, default=Path("data"), help="a folder on a real disk")
    parser.add_argument("--model", type=Path, help="a tiny checkpoint that is there already")
    parser.add_argument("--no-append", dest="append", action="store_false", help="only print")
    return parser.parse_args()


def numbers(text: str) -> tuple[int, ...]:
    """Read whole numbers separated by commas, ascending."""
    return tuple(sorted(int(word) for word in text.split(",")))


def say(text: str) -> None:
    """Tell whoever waits what goes on."""
    print(f"bench: {text}", file=sys.stderr, flush=True)


def make_plan(options: argparse.Namespace, folder: Path) -> Plan:
    """Put what is to be done into one object; make the tiny checkpoint unless there is one."""
    model = options.model
    if model is None:
        say("making the tiny checkpoint")
        model = folder / "model"
        command = [COMMAND, "demo-model", str(model)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)  # noqa: S603
    return Plan(
        backlogs=options.backlogs,
        rounds=options.rounds,
        samples=options.samples,
        seconds=options.seconds,
        pairs=options.pairs,
        steps=options.steps,
        folder=folder,
        model=model,
        cores=choose_cores(),
    )


def measure(plan: Plan, load_before: float) -> Figures:
    """Measure everything, one after the other."""
    sync = measure_sync(plan)
    last_ids = fill_backlogs(plan)
    costs = Costs()
    measure_claims(plan, costs)
    shortest, longest = min(plan.backlogs), max(plan.backlogs)
    with standing_servers(plan) as servers:
        measure_costs(plan, costs, servers, last_ids)
        submits = measure_submits(plan, servers[shortest])
        polls, steps_alone, steps_polled = measure_polls(plan, servers[longest], last_ids[longest])
    bare, served = measure_pairs(plan)
    return Figures(
        submits=submits,
        polls=polls,
        submitters=SUBMITTERS,
        pollers=POLLERS,
        steps_alone=steps_alone,
        steps_polled=steps_polled,
        bare=bare,
        served=served,
        sync=sync,
        costs=costs,
        load_before=load_before,
    )


def measure_sync(plan: Plan) -> list[float]:
    """Return what the disk takes to keep a page: that bounds every change of the queue."""
    taken = []
    with (plan.folder / "sync").open("wb", buffering=0) as file:
        for _ in range(plan.samples):
            started = time.perf_counter()
            file.write(bytes(4096))
            os.fsync(file.fileno())
            taken.append(time.perf_counter() - started)
    return taken


def queue_folder(plan: Plan, backlog: int) -> Path:
    """Return the data folder of the server that has this backlog."""
    return plan.folder / f"backlog-{backlog}"


def claim_folder(plan: Plan, backlog: int) -> Path:
    """Return the folder of the same queue, for claims without a server."""
    return plan.folder / f"claims-{backlog}"


def fill_backlogs(plan: Plan) -> dict[int, str]:
    """Make the queues and return each one's last request. The empty one has just that one.

    A queue to claim from has at least as many requests as will be claimed.
    """
    last_ids = {}
    for backlog in plan.backlogs:
        say(f"filling a queue with {backlog} requests")
        last_ids[backlog] = fill(queue_folder(plan, backlog), max(1, backlog), plan.long_job)[-1]
        claimed = max(backlog, plan.rounds * plan.samples)
        fill(claim_folder(plan, backlog), claimed, plan.long_job)
    return last_ids


def measure_claims(plan: Plan, costs: Costs) -> None:
    """Measure claims where the workers make them: at the store, on the gateway's core."""
    say("claiming")

    async def claim_all() -> None:
        stores = {backlog: Store(claim_folder(plan, backlog)) for backlog in plan.backlogs}
        for store in stores.values():
            await store.open()
        for _ in range(plan.rounds):
            for backlog, store in stores.items():
                for _ in range(plan.samples):
                    started = time.perf_counter()
                    job = await store.claim(time.time())
                    costs.add("claim", backlog, time.perf_counter() - started)
                    if job is None:
                        raise RuntimeError("the queue ran out")
        for store in stores.values():
            await store.close()

    with on_core(plan.cores[0]):
        asyncio.run(claim_all())


@contextmanager
def standing_servers(plan: Plan) -> Iterator[dict[int, Served]]:
    """Start a server for each backlog, none of which works on it."""
    with ExitStack() as running:
        servers = {}
        for backlog in plan.backlogs:
            say(f"starting a server with a backlog of {backlog}")
            folder = queue_folder(plan, backlog)
            served = serve(plan.model, folder, plan.cores, held=True)
            servers[backlog] = running.enter_context(served)
        yield servers


def measure_costs(
    plan: Plan, costs: Costs, servers: dict[int, Served], last_ids: dict[int, str]
) -> None:
    """Measure single calls beside each backlog, in turns: what disturbs one, disturbs all."""
    say("submitting, asking and cancelling")
    with on_core(plan.cores[1]):
        for _ in range(plan.rounds):
            for backlog, server in servers.items():
                take_samples(plan, costs, backlog, server, last_ids[backlog])


def take_samples(plan: Plan, costs: Costs, backlog: int, server: Served, last_id: str) -> None:
    """Measure each call some times over; what was submitted is cancelled again."""
    ids = []
    for _ in range(plan.samples):
        ids.append(server.line.ask("POST", SUBMIT_PATH, plan.one_image)["request_id"])
        costs.add("submit", backlog, server.line.seconds)
    for _ in range(plan.samples):
        server.line.ask("GET", status_path(last_id))
        costs.add("status", backlog, server.line.seconds)
    for request_id in ids:
        server.line.ask("PUT", f"{SUBMIT_PATH}/requests/{request_id}/cancel")
        costs.add("cancel", backlog, server.line.seconds)


def measure_submits(plan: Plan, server: Served) -> Load:
    """Measure how many submits a server takes from several clients, on the runner's core."""
    say("submitting from several clients")
    return make_load(
        server.address,
        "POST",
        SUBMIT_PATH,
        plan.one_image,
        connections=SUBMITTERS,
        seconds=plan.seconds,
        core=plan.cores[1],
    )


def measure_polls(plan: Plan, server: Served, last_id: str) -> tuple[Load, float, float]:
    """Let the queue run, and ask for its last request while the runner works on the first.

    The load comes from the gateway's core. Also returns the runner's steps a second before, and
    meanwhile.
    """
    say("polling while the runner computes")
    server.process.send_signal(signal.SIGUSR1)
    steps, started = steps_done(server), time.perf_counter()
    time.sleep(plan.seconds)
    alone = (steps_done(server) - steps) / (time.perf_counter() - started)
    steps, started = steps_done(server), time.perf_counter()
    polls = make_load(
        server.address,
        "GET",
        status_path(last_id),
        connections=POLLERS,
        seconds=plan.seconds,
        core=plan.cores[0],
    )
    polled = (steps_done(server) - steps) / (time.perf_counter() - started)
    return polls, alone, polled


def steps_done(server: Served) -> float:
    """Return how many denoising steps the runner has told of."""
    return server.metric("flux2_step_seconds_count")


def measure_pairs(plan: Plan) -> tuple[list[float], list[float]]:
    """Make the same image without the server and with it, in turns, always on the same core."""
    say(f"making {plan.pairs} pairs of images, with and without the server")
    without: list[float] = []
    served: list[float] = []
    with (
        serve(plan.model, plan.folder / "pairs", plan.cores, held=False) as server,
        bare_pipeline(plan.model, plan.one_image, plan.cores[1]) as bare,
        on_core(plan.cores[0]),
    ):
        bare.measure()
        make_served(plan, server)
        for number in range(plan.pairs):
            # Each is first as often as the other, so that a trend of the machine favours neither.
            if number % 2:
                without.append(bare.measure())
            served.append(make_served(plan, server))
            if not number % 2:
                without.append(bare.measure())
    return without, served


def make_served(plan: Plan, server: Served) -> float:
    """Submit, and return the seconds from its acceptance to the event that says COMPLETED."""
    line = server.new_line()
    request_id = line.ask("POST", SUBMIT_PATH, plan.one_image)["request_id"]
    accepted = time.perf_counter()
    line.follow(status_path(request_id))
    seconds = time.perf_counter() - accepted
    line.close()
    line = server.new_line()
    line.ask("GET", f"{SUBMIT_PATH}/requests/{request_id}")
    line.close()
    return seconds


if __name__ == "__main__":
    sys.exit(main())
