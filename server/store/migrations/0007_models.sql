-- Which model a job is for, so that jobs are claimed by whoever has it loaded. Until now there was one.
ALTER TABLE jobs ADD COLUMN model TEXT NOT NULL DEFAULT 'dev';

DROP INDEX jobs_queued;
CREATE INDEX jobs_queued ON jobs (needs, model, priority, seq) WHERE status = 'IN_QUEUE';
DROP INDEX jobs_in_need;
CREATE INDEX jobs_in_need ON jobs (needs, model, owner, priority, seq)
WHERE status = 'IN_QUEUE' AND needs > 0;
