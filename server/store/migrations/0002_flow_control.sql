-- What a caller may ask of the queue, files with a life of their own, and the webhook outbox.

ALTER TABLE jobs ADD COLUMN priority INTEGER NOT NULL DEFAULT 0;
ALTER TABLE jobs ADD COLUMN start_by REAL;
ALTER TABLE jobs ADD COLUMN no_retry INTEGER NOT NULL DEFAULT 0;
ALTER TABLE jobs ADD COLUMN keep_payload INTEGER NOT NULL DEFAULT 1;
ALTER TABLE jobs ADD COLUMN file_seconds REAL;
ALTER TABLE jobs ADD COLUMN webhook_url TEXT;

DROP INDEX jobs_queued;
CREATE INDEX jobs_queued ON jobs (priority, seq) WHERE status = 'IN_QUEUE';
CREATE INDEX jobs_start_by ON jobs (start_by) WHERE status = 'IN_QUEUE' AND start_by IS NOT NULL;

-- A file may outlive the record of its request, so it no longer references it.
CREATE TABLE stored_files (
    name         TEXT PRIMARY KEY,
    request_id   TEXT NOT NULL,
    content_type TEXT NOT NULL,
    size_bytes   INTEGER NOT NULL,
    expires_at   REAL  -- NULL: kept for good
) STRICT, WITHOUT ROWID;
INSERT INTO stored_files (name, request_id, content_type, size_bytes, expires_at)
SELECT files.name, files.request_id, files.content_type, files.size_bytes, jobs.expires_at
FROM files JOIN jobs USING (request_id);
DROP TABLE files;
ALTER TABLE stored_files RENAME TO files;
CREATE INDEX files_of_job ON files (request_id);
CREATE INDEX files_expiry ON files (expires_at) WHERE expires_at IS NOT NULL;

CREATE TABLE webhooks (
    request_id      TEXT PRIMARY KEY REFERENCES jobs (request_id) ON DELETE CASCADE,
    url             TEXT NOT NULL,
    body            TEXT NOT NULL,  -- signed and sent as it stands, at every attempt
    attempts        INTEGER NOT NULL,
    next_attempt_at REAL NOT NULL,
    state           TEXT NOT NULL CHECK (state IN ('pending', 'delivered', 'abandoned')),
    last_error      TEXT,
    -- The receiver: the URL up to its path. The shortest URL that has a host is 8 characters long.
    origin          TEXT GENERATED ALWAYS AS (
        lower(substr(
            url, 1, instr(substr(replace(replace(url, '?', '/'), '#', '/'), 9) || '/', '/') + 7
        ))
    ) VIRTUAL
) STRICT;

CREATE INDEX webhooks_due ON webhooks (next_attempt_at) WHERE state = 'pending';
CREATE INDEX webhooks_of_receiver ON webhooks (origin, next_attempt_at) WHERE state = 'pending';
