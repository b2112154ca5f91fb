
-- What the transformer made of a segment; the rows of a segment's recipe go with its segments.
CREATE TABLE readings (
    key INTEGER PRIMARY KEY AUTOINCREMENT,
    source INTEGER NOT NULL REFERENCES sources,
    recipe INTEGER NOT NULL REFERENCES recipes,
    start_us INTEGER NOT NULL,
    end_us INTEGER NOT NULL,
    caption TEXT,
    confidence REAL,
    alignment REAL,
    embedding BLOB,
    digest BLOB NOT NULL,
    UNIQUE (source, recipe, start_us)
) STRICT;

CREATE VIRTUAL TABLE written USING fts5 (
    caption, content = 'readings', content_rowid = 'key', tokenize = 'unicode61 remove_diacritics 2'
);
INSERT INTO written (written, rank) VALUES ('secure-delete', 1);
CREATE TRIGGER reading_added AFTER INSERT ON readings BEGIN
    INSERT INTO written (rowid, caption) VALUES (new.key, new.caption);
END;
CREATE TRIGGER reading_removed AFTER DELETE ON readings BEGIN
    INSERT INTO written (written, rowid, caption) VALUES ('delete', old.key, old.caption);
END;
