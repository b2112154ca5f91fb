-- A JPEG for each clip. In a table of its own, since a row with the features too would leave much of each page empty. Rows
-- carry a digest as in the record; their chunks say how many there are.
CREATE TABLE thumbnails (
    key INTEGER PRIMARY KEY,
    source INTEGER NOT NULL,
    recipe INTEGER NOT NULL,
    start_us INTEGER NOT NULL,
    jpeg BLOB NOT NULL,
    digest BLOB NOT NULL,
    UNIQUE (source, recipe, start_us)
) STRICT;
