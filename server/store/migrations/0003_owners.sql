-- Every job and file belongs to a key. What was there before belongs to the box's own account.

ALTER TABLE jobs ADD COLUMN owner TEXT NOT NULL DEFAULT 'local';
ALTER TABLE jobs ADD COLUMN file_acl TEXT;  -- JSON in fal's form, NULL: whoever knows the name

CREATE TABLE owned_files (
    name         TEXT PRIMARY KEY,
    request_id   TEXT,           -- NULL: an upload
    owner        TEXT NOT NULL,
    acl          TEXT,           -- as file_acl
    content_type TEXT NOT NULL,
    size_bytes   INTEGER NOT NULL,
    expires_at   REAL            -- NULL: kept for good
) STRICT, WITHOUT ROWID;
INSERT INTO owned_files (name, request_id, owner, content_type, size_bytes, expires_at)
SELECT name, request_id, 'local', content_type, size_bytes, expires_at FROM files;
DROP TABLE files;
ALTER TABLE owned_files RENAME TO files;
CREATE INDEX files_of_job ON files (request_id) WHERE request_id IS NOT NULL;
CREATE INDEX files_expiry ON files (expires_at) WHERE expires_at IS NOT NULL;
CREATE INDEX uploads_of_owner ON files (owner, size_bytes) WHERE request_id IS NULL;

CREATE INDEX jobs_of_owner ON jobs (owner, completed_at, seq) WHERE completed_at IS NOT NULL;
