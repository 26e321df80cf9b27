-- What the safety check said of each image, as reason codes, for audits and receipts.
ALTER TABLE jobs ADD COLUMN verdicts TEXT;
