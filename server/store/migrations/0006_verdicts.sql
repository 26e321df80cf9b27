-- For audits and receipts: what the safety check said of each image, as reason codes, and the prompt
-- that they were made from, which an expansion may have written.
ALTER TABLE jobs ADD COLUMN verdicts TEXT;
ALTER TABLE jobs ADD COLUMN prompt TEXT;
