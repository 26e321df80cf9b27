-- name: due
-- The oldest due webhooks of each receiver, a few of each, so that no receiver's backlog can hide
-- another's: jumps from one receiver to the next in the index instead of reading every row.
WITH RECURSIVE receivers (origin) AS (
    SELECT min(origin) FROM webhooks WHERE state = 'pending'
    UNION ALL
    SELECT (
        SELECT min(webhooks.origin) FROM webhooks
        WHERE state = 'pending' AND webhooks.origin > receivers.origin
    ) FROM receivers WHERE receivers.origin IS NOT NULL
)
SELECT webhooks.request_id, webhooks.url
FROM receivers JOIN webhooks ON webhooks.request_id IN (
    SELECT request_id FROM webhooks
    WHERE state = 'pending' AND origin = receivers.origin AND next_attempt_at <= :now
    ORDER BY next_attempt_at LIMIT :limit
)
ORDER BY webhooks.next_attempt_at;

-- name: next_due
SELECT min(next_attempt_at) FROM webhooks WHERE state = 'pending' AND next_attempt_at > :now;

-- name: letter
SELECT request_id, owner, url, body, webhooks.attempts
FROM webhooks JOIN jobs USING (request_id)
WHERE request_id = :request_id AND state = 'pending' AND next_attempt_at <= :now;

-- name: mark_delivered
UPDATE webhooks SET state = 'delivered', attempts = attempts + 1, last_error = NULL
WHERE request_id = :request_id AND state = 'pending';

-- name: mark_failed
UPDATE webhooks SET
    state = iif(:next_attempt_at IS NULL, 'abandoned', 'pending'), attempts = attempts + 1,
    next_attempt_at = coalesce(:next_attempt_at, next_attempt_at), last_error = :error
WHERE request_id = :request_id AND state = 'pending';

-- name: counts
SELECT state, count(*) FROM webhooks GROUP BY state;
