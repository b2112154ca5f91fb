-- `source` and `recipe` are the keys of the record's tables; `library_id` ties the two files.
-- A table with rowids, since one without would spill rows over a quarter of a page.
CREATE TABLE features (
    source INTEGER NOT NULL,
    recipe INTEGER NOT NULL,
    start_us INTEGER NOT NULL,
    features BLOB NOT NULL,
    UNIQUE (source, recipe, start_us)
) STRICT;
