-- What of a source is done. `thumbnails` says how many of its clips have one in the other file; those from
-- before schema 6 have none.
CREATE TABLE chunks (
    source INTEGER NOT NULL REFERENCES sources,
    recipe INTEGER NOT NULL REFERENCES recipes,
    number INTEGER NOT NULL,
    start_us INTEGER NOT NULL,
    end_us INTEGER NOT NULL,
    clips INTEGER NOT NULL,
    gaps INTEGER NOT NULL,
    thumbnails INTEGER NOT NULL,
    partial INTEGER NOT NULL,
    digest BLOB NOT NULL,
    PRIMARY KEY (source, recipe, number)
) STRICT, WITHOUT ROWID;
