-- name: insert_job
INSERT INTO jobs (
    request_id, endpoint_id, origin, input, status, attempts, runner_deaths, cancel_requested,
    created_at
) VALUES (
    :request_id, :endpoint_id, :origin, :input, :status, :attempts, :runner_deaths,
    :cancel_requested, :created_at
);

-- name: get_job
SELECT * FROM jobs WHERE request_id = :request_id;

-- name: oldest_queued
SELECT * FROM jobs WHERE status = 'IN_QUEUE' ORDER BY seq LIMIT 1;

-- name: all_in_progress
SELECT * FROM jobs WHERE status = 'IN_PROGRESS' ORDER BY seq;

-- name: count_ahead
-- How many queued jobs were accepted before this one.
SELECT count(*) FROM jobs
WHERE status = 'IN_QUEUE' AND seq < (SELECT seq FROM jobs WHERE request_id = :request_id);

-- name: count_by_status
SELECT 'IN_QUEUE', count(*) FROM jobs WHERE status = 'IN_QUEUE'
UNION ALL
SELECT 'IN_PROGRESS', count(*) FROM jobs WHERE status = 'IN_PROGRESS';

-- name: update_job
-- Writes everything that a transition may change.
UPDATE jobs SET
    status = :status, attempts = :attempts, runner_deaths = :runner_deaths,
    cancel_requested = :cancel_requested, started_at = :started_at, completed_at = :completed_at,
    expires_at = :expires_at, http_status = :http_status, result = :result,
    error_type = :error_type, inference_seconds = :inference_seconds, logs = :logs
WHERE request_id = :request_id;

-- name: insert_file
INSERT INTO files (name, request_id, content_type, size_bytes)
VALUES (:name, :request_id, :content_type, :size_bytes);

-- name: get_file
SELECT name, content_type, size_bytes FROM files WHERE name = :name;

-- name: files_of_job
SELECT name, content_type, size_bytes FROM files WHERE request_id = :request_id ORDER BY name;

-- name: all_file_names
SELECT name FROM files;

-- name: expired_jobs
SELECT request_id FROM jobs WHERE expires_at <= :now ORDER BY expires_at LIMIT :limit;

-- name: delete_files_of_job
DELETE FROM files WHERE request_id = :request_id;

-- name: delete_job
DELETE FROM jobs WHERE request_id = :request_id;
