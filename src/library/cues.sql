-- What subtitles say, and what was heard: `recipe` is that of listening, null for subtitles. `folded` is the
-- text as its words are looked for.
CREATE TABLE cues (
    key INTEGER PRIMARY KEY AUTOINCREMENT,
    source INTEGER NOT NULL REFERENCES sources,
    recipe INTEGER REFERENCES recipes,
    start_us INTEGER NOT NULL,
    end_us INTEGER NOT NULL,
    text TEXT NOT NULL,
    folded TEXT NOT NULL,
    kind TEXT NOT NULL,
    language TEXT,
    track TEXT NOT NULL,
    confidence REAL,
    words TEXT,
    speaker TEXT,
    digest BLOB NOT NULL
) STRICT;
CREATE INDEX cues_of_source ON cues (source, start_us);
CREATE INDEX cues_of_recipe ON cues (recipe, source) WHERE recipe IS NOT NULL;

-- The index keeps no text of its own. With secure-delete it drops entries at once; without, it
-- would keep deleted words until a merge. Marks are parts of words, as in Hindi and Thai.
CREATE VIRTUAL TABLE spoken USING fts5 (
    folded, content = 'cues', content_rowid = 'key',
    tokenize = "unicode61 remove_diacritics 2 categories 'L* M* N* Co'"
);
INSERT INTO spoken (spoken, rank) VALUES ('secure-delete', 1);
CREATE TRIGGER cue_added AFTER INSERT ON cues BEGIN
    INSERT INTO spoken (rowid, folded) VALUES (new.key, new.folded);
END;
CREATE TRIGGER cue_removed AFTER DELETE ON cues BEGIN
    INSERT INTO spoken (spoken, rowid, folded) VALUES ('delete', old.key, old.folded);
END;

