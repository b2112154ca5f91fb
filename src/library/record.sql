-- Counts up whenever rows of clips or segments go or change their visibility, so that a reader
-- that holds vectors in memory knows when appending the new rows is not enough.
INSERT OR IGNORE INTO meta VALUES ('clips_generation', 0), ('segments_generation', 0);

-- Each `digest` is over the row's other columns but `key`; `features_digest` is over the clip's features.
CREATE TABLE spaces (
    key INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    tower TEXT NOT NULL,
    dimension INTEGER NOT NULL,
    languages TEXT NOT NULL,
    digest BLOB NOT NULL
) STRICT;

CREATE TABLE recipes (
    key INTEGER PRIMARY KEY AUTOINCREMENT,
    hash TEXT NOT NULL UNIQUE,
    kind TEXT NOT NULL,
    state TEXT NOT NULL,
    space INTEGER REFERENCES spaces,
    branching INTEGER,
    depth INTEGER,
    description TEXT NOT NULL,
    added_us INTEGER NOT NULL,
    digest BLOB NOT NULL
) STRICT;
CREATE UNIQUE INDEX one_current_recipe ON recipes (kind) WHERE state = 'current';

CREATE TABLE sources (
    key INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    fingerprint TEXT NOT NULL UNIQUE,
    name TEXT NOT NULL,
    origin TEXT NOT NULL,
    duration_us INTEGER,
    media TEXT NOT NULL,
    wall_start_us INTEGER,
    wall_origin TEXT,
    state TEXT NOT NULL,
    error TEXT,
    added_us INTEGER NOT NULL,
    grown_from TEXT,
    cues INTEGER NOT NULL,
    digest BLOB NOT NULL
) STRICT;

-- What is known of all bytes behind a fingerprint, which is a hash of parts of them unless these
-- parts are those of another source too.
CREATE TABLE contents (
    fingerprint TEXT PRIMARY KEY,
    parts TEXT NOT NULL,
    whole TEXT NOT NULL,
    digest BLOB NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX contents_by_parts ON contents (parts);

CREATE TABLE locations (
    kind TEXT NOT NULL,
    place BLOB NOT NULL,
    source INTEGER NOT NULL REFERENCES sources,
    size_bytes INTEGER,
    modified_us INTEGER,
    device INTEGER,
    inode INTEGER,
    seen_us INTEGER NOT NULL,
    digest BLOB NOT NULL,
    PRIMARY KEY (kind, place)
) STRICT, WITHOUT ROWID;
CREATE INDEX locations_of_source ON locations (source);

CREATE TABLE tags (
    source INTEGER NOT NULL REFERENCES sources,
    name TEXT NOT NULL,
    value TEXT NOT NULL,
    digest BLOB NOT NULL,
    PRIMARY KEY (source, name)
) STRICT, WITHOUT ROWID;

CREATE TABLE progress (
    source INTEGER NOT NULL REFERENCES sources,
    recipe INTEGER NOT NULL REFERENCES recipes,
    state TEXT NOT NULL,
    error TEXT,
    rows INTEGER NOT NULL,
    digest BLOB NOT NULL,
    PRIMARY KEY (source, recipe)
) STRICT, WITHOUT ROWID;

CREATE TABLE clips (
    key INTEGER PRIMARY KEY AUTOINCREMENT,
    source INTEGER NOT NULL REFERENCES sources,
    recipe INTEGER NOT NULL REFERENCES recipes,
    start_us INTEGER NOT NULL,
    end_us INTEGER NOT NULL,
    raw_pts INTEGER NOT NULL,
    frames INTEGER NOT NULL,
    shot_start_us INTEGER,
    words BLOB NOT NULL,
    embedding BLOB,
    features_digest BLOB NOT NULL,
    digest BLOB NOT NULL,
    UNIQUE (source, recipe, start_us)
) STRICT;

CREATE TABLE gaps (
    source INTEGER NOT NULL REFERENCES sources,
    recipe INTEGER NOT NULL REFERENCES recipes,
    chunk INTEGER NOT NULL,
    place INTEGER NOT NULL,
    start_us INTEGER NOT NULL,
    end_us INTEGER NOT NULL,
    track TEXT NOT NULL,
    reason TEXT NOT NULL,
    digest BLOB NOT NULL,
    PRIMARY KEY (source, recipe, chunk, place)
) STRICT, WITHOUT ROWID;

CREATE TABLE segments (
    key INTEGER PRIMARY KEY AUTOINCREMENT,
    source INTEGER NOT NULL REFERENCES sources,
    recipe INTEGER NOT NULL REFERENCES recipes,
    start_us INTEGER NOT NULL,
    end_us INTEGER NOT NULL,
    text TEXT NOT NULL,
    language TEXT,
    embedding BLOB,
    digest BLOB NOT NULL,
    UNIQUE (source, recipe, start_us)
) STRICT;

CREATE TABLE runs (
    key INTEGER PRIMARY KEY AUTOINCREMENT,
    ended_us INTEGER NOT NULL,
    report TEXT NOT NULL,
    digest BLOB NOT NULL
) STRICT;

-- Sources that are being forgotten: their rows here are gone, their features and the logs may not be.
CREATE TABLE forgotten (source INTEGER PRIMARY KEY) STRICT;
