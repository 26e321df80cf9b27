-- Jobs, in the order of their acceptance, and the files that belong to them.

CREATE TABLE jobs (
    seq               INTEGER PRIMARY KEY AUTOINCREMENT,  -- order of acceptance
    request_id        TEXT NOT NULL UNIQUE,
    endpoint_id       TEXT NOT NULL,
    origin          TEXT NOT NULL,
    input             TEXT NOT NULL,
    status            TEXT NOT NULL CHECK (status IN ('IN_QUEUE', 'IN_PROGRESS', 'COMPLETED')),
    attempts          INTEGER NOT NULL,
    runner_deaths     INTEGER NOT NULL,
    cancel_requested  INTEGER NOT NULL,
    created_at        REAL NOT NULL,  -- wall-clock seconds since 1970, as all times here
    started_at        REAL,
    completed_at      REAL,
    expires_at        REAL,
    http_status       INTEGER,        -- this and the rest: the outcome, NULL until COMPLETED
    result            TEXT,
    error_type        TEXT,
    inference_seconds REAL,
    logs              TEXT,
    CHECK ((status = 'COMPLETED') = (http_status IS NOT NULL))
) STRICT;

CREATE INDEX jobs_queued ON jobs (seq) WHERE status = 'IN_QUEUE';
CREATE INDEX jobs_running ON jobs (seq) WHERE status = 'IN_PROGRESS';
CREATE INDEX jobs_expiry ON jobs (expires_at) WHERE expires_at IS NOT NULL;

CREATE TABLE files (
    name         TEXT PRIMARY KEY,
    request_id   TEXT NOT NULL REFERENCES jobs (request_id),
    content_type TEXT NOT NULL,
    size_bytes   INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE INDEX files_of_job ON files (request_id);
