-- An input may be tens of megabytes. In a row of its own it is written once and read once, while
-- the job's row is read by every poll and written by every change.

CREATE TABLE inputs (
    request_id TEXT PRIMARY KEY REFERENCES jobs (request_id) ON DELETE CASCADE,
    body       TEXT NOT NULL
) STRICT;
INSERT INTO inputs (request_id, body) SELECT request_id, input FROM jobs;
ALTER TABLE jobs DROP COLUMN input;

-- 0: nothing, 1: images that are here, 2: images from elsewhere. Until now only one endpoint had any.
ALTER TABLE jobs ADD COLUMN needs INTEGER NOT NULL DEFAULT 0;
UPDATE jobs SET needs = 2 WHERE endpoint_id = 'fal-ai/flux-2/flash/edit';

DROP INDEX jobs_queued;
CREATE INDEX jobs_queued ON jobs (needs, priority, seq) WHERE status = 'IN_QUEUE';
CREATE INDEX jobs_in_need ON jobs (needs, owner, priority, seq)
WHERE status = 'IN_QUEUE' AND needs > 0;
