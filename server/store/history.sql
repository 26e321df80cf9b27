-- name: completed
-- One owner's completed jobs, newest first, below the place where the page before ended.
SELECT request_id, endpoint_id, created_at, started_at, completed_at, seq, http_status,
    iif(:with_payloads, (SELECT body FROM inputs WHERE inputs.request_id = jobs.request_id), NULL)
        AS input,
    iif(:with_payloads, result, NULL) AS result
FROM jobs
WHERE owner = :owner
    AND (completed_at, seq) < (:before, :before_seq)
    AND completed_at >= :start AND completed_at < :end
    AND endpoint_id IN (SELECT value FROM json_each(:endpoint_ids))
    AND http_status BETWEEN :lowest AND :highest
    AND (:request_id IS NULL OR request_id = :request_id)
ORDER BY completed_at DESC, seq DESC LIMIT :limit;
