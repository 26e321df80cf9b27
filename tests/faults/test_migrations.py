"""Databases of earlier versions: E9 of the promises."""

import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import httpx2

from tests.faults.conftest import MakeGateway
from tests.faults.gateway import ROOT, Client
from tests.faults.migrate_stepwise import make_database, migrations
from tests.faults.rows import files_on_disk

FILE_NAME = f"{'ab' * 16}.png"
QUEUED = "11111111-1111-4111-8111-111111111111"
DONE = "22222222-2222-4222-8222-222222222222"
RESULT = '{"images": [], "seed": 7}'


def add_old_jobs(path: Path) -> None:
    """Add a queued job, and a completed one with a file, as the first version stored them."""
    now = time.time()
    job = "INSERT INTO jobs (request_id, endpoint_id, origin, input, status, attempts,"
    job += " runner_deaths, cancel_requested, created_at, completed_at, expires_at, http_status,"
    job += " result, logs) VALUES (?, 'fal-ai/flux-2', 'http://box', ?, ?, ?, 0, 0, ?, ?, ?, ?, ?,"
    job += " '[]')"
    body = '{"prompt": "plain", "image_size": "square"}'
    with closing(sqlite3.connect(path)) as database, database:
        queued = (QUEUED, body, "IN_QUEUE", 0, now, None, None, None, None)
        done = (DONE, body, "COMPLETED", 1, now, now, now + 3600, 200, RESULT)
        database.execute(job, queued)
        database.execute(job, done)
        file = (FILE_NAME, DONE, "image/png", 4)
        database.execute("INSERT INTO files VALUES (?, ?, ?, ?)", file)


def test_an_upgrade_killed_at_any_statement_is_old_or_new(tmp_path: Path) -> None:
    """Every version is reached in one transaction: no kill leaves anything between two."""
    make_database(tmp_path / "queue.sqlite3", 1)
    add_old_jobs(tmp_path / "queue.sqlite3")
    command = [sys.executable, "-m", "tests.faults.migrate_stepwise", str(tmp_path)]
    printed = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    versions = printed.stdout.split()
    assert "torn" not in versions
    assert versions == sorted(versions, key=int)
    assert versions[0] == "1"
    assert versions[-1] == str(len(migrations()))
    assert len(versions) > 20


def test_jobs_and_files_of_the_first_version_are_still_there(make_gateway: MakeGateway) -> None:
    """What waited is made, and what was done is answered with its file."""
    gateway = make_gateway()
    folder = gateway.data_dir / "files" / FILE_NAME[:2]
    folder.mkdir(parents=True)
    (folder / FILE_NAME).write_bytes(b"\x89PNG")
    make_database(gateway.data_dir / "queue.sqlite3", 1)
    add_old_jobs(gateway.data_dir / "queue.sqlite3")
    client = Client(gateway.start())
    assert client.get(DONE).text == RESULT
    assert client.http.get(f"/files/{FILE_NAME}").content == b"\x89PNG"
    result = client.wait(QUEUED)
    assert result.status_code == 200
    url = httpx2.URL(result.json()["images"][0]["url"])
    assert client.http.get(url.path).status_code == 200
    assert len(files_on_disk(gateway.data_dir)) == 2
