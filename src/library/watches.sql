
-- How a live source is, or was when it was watched last, by each run: `status` is what `cinelex index --json`
-- tells of the stream. `ended_us` is null while the run goes on.
CREATE TABLE watches (
    source INTEGER NOT NULL REFERENCES sources,
    started_us INTEGER NOT NULL,
    told_us INTEGER NOT NULL,
    ended_us INTEGER,
    status TEXT NOT NULL,
    digest BLOB NOT NULL,
    PRIMARY KEY (source, started_us)
) STRICT, WITHOUT ROWID;

-- What of a live source was deleted since no more was to be kept: from the first that there was to the first
-- that there is.
CREATE TABLE kept (
    source INTEGER NOT NULL REFERENCES sources,
    first_us INTEGER NOT NULL,
    from_us INTEGER NOT NULL,
    why TEXT NOT NULL,
    digest BLOB NOT NULL,
    PRIMARY KEY (source)
) STRICT, WITHOUT ROWID;
