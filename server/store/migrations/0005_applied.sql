-- How the images were really made, for the header x-flux2-settings of every answer.
ALTER TABLE jobs ADD COLUMN applied TEXT;
