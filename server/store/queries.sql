-- name: insert_job
INSERT INTO jobs (
    request_id, endpoint_id, model, owner, origin, created_at, priority, needs, start_by, no_retry,
    keep_payload, file_seconds, file_acl, webhook_url, status, attempts, runner_deaths, cancel_requested
) VALUES (
    :request_id, :endpoint_id, :model, :owner, :origin, :created_at, :priority, :needs, :start_by,
    :no_retry, :keep_payload, :file_seconds, :file_acl, :webhook_url, :status, :attempts, :runner_deaths,
    :cancel_requested
);

-- name: insert_input
INSERT INTO inputs (request_id, body) VALUES (:request_id, :input);

-- name: get_input
SELECT body FROM inputs WHERE request_id = :request_id;

-- name: get_job
SELECT * FROM jobs WHERE request_id = :request_id;

-- name: next_queued
-- Of each of the models the first that needs nothing, and those whose needs are met: a step in the
-- index for each model, and one for each of the few prepared ones, however many wait.
SELECT jobs.* FROM (
    SELECT (
        SELECT seq FROM jobs
        WHERE status = 'IN_QUEUE' AND needs = 0 AND model = wanted.value
        ORDER BY priority, seq LIMIT 1
    ) AS seq FROM json_each(:models) AS wanted
    UNION ALL
    SELECT seq FROM jobs
    WHERE request_id IN (SELECT value FROM json_each(:prepared)) AND status = 'IN_QUEUE'
        AND model IN (SELECT value FROM json_each(:models))
) AS first JOIN jobs ON jobs.seq = first.seq
ORDER BY jobs.priority, jobs.seq LIMIT :limit;

-- name: next_in_need
-- What to prepare next: urgent before old, and owners in turns, so that nobody's backlog can hide
-- another's: jumps from one owner to the next in the index instead of reading every row.
WITH RECURSIVE owners (owner) AS (
    SELECT min(owner) FROM jobs
    WHERE status = 'IN_QUEUE' AND model = :model AND needs > 0 AND needs = :needs
    UNION ALL
    SELECT (
        SELECT min(jobs.owner) FROM jobs
        WHERE status = 'IN_QUEUE' AND model = :model AND needs > 0 AND needs = :needs
            AND jobs.owner > owners.owner
    ) FROM owners WHERE owners.owner IS NOT NULL
),
first AS (
    SELECT jobs.seq, row_number() OVER (
        PARTITION BY jobs.owner, jobs.priority ORDER BY jobs.seq
    ) AS turn
    FROM owners JOIN jobs ON jobs.seq IN (
        SELECT seq FROM jobs
        WHERE status = 'IN_QUEUE' AND model = :model AND needs > 0 AND needs = :needs
            AND owner = owners.owner
        ORDER BY priority, seq LIMIT :limit
    )
)
SELECT jobs.* FROM first JOIN jobs ON jobs.seq = first.seq
ORDER BY jobs.priority, first.turn, jobs.seq LIMIT :limit;

-- name: all_queued
SELECT priority, seq, endpoint_id, owner FROM jobs WHERE status = 'IN_QUEUE' ORDER BY priority, seq;

-- name: all_in_progress
SELECT * FROM jobs WHERE status = 'IN_PROGRESS' ORDER BY seq;

-- name: oldest_queued_at
SELECT created_at FROM jobs
WHERE status = 'IN_QUEUE' AND model = :model AND needs = :needs AND priority = :priority
ORDER BY seq LIMIT 1;

-- name: queued_of_model
SELECT request_id FROM jobs
WHERE status = 'IN_QUEUE' AND needs IN (SELECT value FROM json_each(:needs)) AND model = :model
LIMIT :limit;

-- name: missed_starts
SELECT request_id FROM jobs
WHERE status = 'IN_QUEUE' AND start_by IS NOT NULL AND start_by <= :now
ORDER BY start_by LIMIT :limit;

-- name: next_start_by
SELECT min(start_by) FROM jobs WHERE status = 'IN_QUEUE' AND start_by IS NOT NULL;

-- name: latest_moment
-- The newest time that any change of a job has stored.
SELECT max(created_at, ifnull(started_at, 0), ifnull(completed_at, 0)) FROM jobs
ORDER BY seq DESC LIMIT 1;

-- name: update_job
-- Writes everything that a transition may change.
UPDATE jobs SET
    status = :status, attempts = :attempts, runner_deaths = :runner_deaths,
    cancel_requested = :cancel_requested, started_at = :started_at, completed_at = :completed_at,
    expires_at = :expires_at, http_status = :http_status, result = :result,
    error_type = :error_type, inference_seconds = :inference_seconds,
    applied = :applied, verdicts = :verdicts, prompt = :prompt,
    logs = :logs
WHERE request_id = :request_id;

-- name: insert_webhook
INSERT INTO webhooks (request_id, url, body, attempts, next_attempt_at, state)
VALUES (:request_id, :url, :body, 0, :now, 'pending');

-- name: insert_file
INSERT INTO files (name, request_id, owner, acl, content_type, size_bytes, expires_at)
VALUES (:name, :request_id, :owner, :acl, :content_type, :size_bytes, :expires_at);

-- name: get_file
SELECT name, owner, acl, content_type, size_bytes, expires_at FROM files WHERE name = :name;

-- name: files_of_job
SELECT name, owner, acl, content_type, size_bytes, expires_at FROM files
WHERE request_id = :request_id ORDER BY name;

-- name: all_uploads
SELECT owner, size_bytes FROM files WHERE request_id IS NULL;

-- name: all_file_names
SELECT name FROM files;

-- name: expired_jobs
-- A result whose webhook is still under way is kept until that is settled.
SELECT request_id FROM jobs
WHERE expires_at <= :now AND NOT EXISTS (
    SELECT 1 FROM webhooks WHERE webhooks.request_id = jobs.request_id AND state = 'pending'
)
ORDER BY expires_at LIMIT :limit;

-- name: delete_job
DELETE FROM jobs WHERE request_id = :request_id;

-- name: expired_files
SELECT name, owner, size_bytes, request_id IS NULL AS is_upload FROM files
WHERE expires_at <= :now ORDER BY expires_at LIMIT :limit;

-- name: delete_file
DELETE FROM files WHERE name = :name;
