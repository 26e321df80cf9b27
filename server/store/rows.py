"""Between jobs and rows."""

import sqlite3
from dataclasses import asdict
from typing import Any

from pipelines.types import Model
from server.jobs import Job, JobStatus, Need, Outcome, Priority, StoredFile

OUTCOME_COLUMNS = (
    "http_status",
    "error_type",
    "inference_seconds",
    "applied",
    "verdicts",
    "prompt",
    "logs",
)


def row_of(job: Job) -> dict[str, Any]:
    """Return the job as the parameters of `insert_job`, `insert_input` and `update_job`."""
    row = asdict(job)
    outcome = row.pop("outcome") or {}
    row["result"] = outcome.get("body")
    for column in OUTCOME_COLUMNS:
        row[column] = outcome.get(column)
    return row


def job_of(row: sqlite3.Row, files: tuple[StoredFile, ...] = ()) -> Job:
    """Return the job of a row, with the files of its outcome."""
    outcome = None
    if row["http_status"] is not None:
        outcome = Outcome(
            http_status=row["http_status"],
            body=row["result"],
            keep_seconds=row["expires_at"] - row["completed_at"],
            error_type=row["error_type"],
            inference_seconds=row["inference_seconds"],
            applied=row["applied"],
            verdicts=row["verdicts"],
            prompt=row["prompt"],
            logs=row["logs"],
            files=files,
        )
    return Job(
        request_id=row["request_id"],
        endpoint_id=row["endpoint_id"],
        model=Model(row["model"]),
        owner=row["owner"],
        origin=row["origin"],
        created_at=row["created_at"],
        seq=row["seq"],
        priority=Priority(row["priority"]),
        needs=Need(row["needs"]),
        start_by=row["start_by"],
        no_retry=bool(row["no_retry"]),
        keep_payload=bool(row["keep_payload"]),
        file_seconds=row["file_seconds"],
        file_acl=row["file_acl"],
        webhook_url=row["webhook_url"],
        status=JobStatus(row["status"]),
        attempts=row["attempts"],
        runner_deaths=row["runner_deaths"],
        cancel_requested=bool(row["cancel_requested"]),
        started_at=row["started_at"],
        completed_at=row["completed_at"],
        expires_at=row["expires_at"],
        outcome=outcome,
    )


def file_of(row: sqlite3.Row) -> StoredFile:
    """Return the record of a stored file."""
    return StoredFile(**dict(row))
