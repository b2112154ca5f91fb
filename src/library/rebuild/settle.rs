//! A salvaged record made whole: what names nothing goes, counts and states say what is there, and
//! what was lost is read again by the next `index`.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};

use rusqlite::types::Null;
use rusqlite::{Connection, OptionalExtension, Transaction, params};

use super::ToRead;
use super::holes::{Chunk, fill_holes};
use super::left::{has_features, thumbnails_left};
use crate::error::Result;
use crate::library::digest::{
    CHUNKS, CLIPS, CUES, LOCATIONS, PROGRESS, READINGS, RECIPES, SEGMENTS, SOURCES, SPACES,
};
use crate::library::ids::{RecipeId, SourceId};
use crate::library::rows;
use crate::library::schema::Database;
use crate::library::types::{Origin, RecipeKind, State, WallOrigin};
use crate::media::CueKind;
use crate::time::wall_us;

/// Tables whose rows belong to a source, and to a recipe where the second is true.
const OF_SOURCE: &[(&str, bool)] = &[
    ("locations", false),
    ("tags", false),
    ("progress", true),
    ("chunks", true),
    ("clips", true),
    ("gaps", true),
    ("cues", true),
    ("segments", true),
    ("readings", true),
    ("watches", false),
    ("kept", false),
];

/// What else is found as a text beside a number: kinds of recipes, counters, settings of the index
/// of words.
const NO_FINGERPRINTS: &[&str] = &[
    "clip",
    "segment",
    "speech",
    "clips_generation",
    "segments_generation",
    "secure-delete",
    "version",
];

/// Takes out sources and recipes that are not readable and gives those whose key has changed the one
/// that rows refer to, by what the indexes say; then takes out the rows that name nothing. Returns
/// how many went.
pub(super) fn repair_keys(
    sql: &Transaction<'_>,
    known: &HashMap<String, BTreeSet<i64>>,
) -> Result<u64> {
    let mut dropped = mend_doubtful(sql)?;
    for (table, name, refer) in [("sources", "id", "source"), ("recipes", "hash", "recipe")] {
        for (key, name) in keys_and_names(sql, table, name)? {
            let is_readable = match table {
                "sources" => is_readable_source(sql, key)?,
                _ => is_readable_recipe(sql, key)?,
            };
            if !is_readable {
                let delete = format!("DELETE FROM {table} WHERE key = ?1");
                dropped += sql.execute(&delete, [key])? as u64;
                continue;
            }
            if refers(sql, refer, key)? {
                continue;
            }
            for &other in known.get(&name).into_iter().flatten().filter(|other| **other != key) {
                let taken = format!("SELECT count(*) FROM {table} WHERE key = ?1");
                if rows::one::<u64>(sql, &taken, [other])? == 0 && refers(sql, refer, other)? {
                    let change = format!("UPDATE {table} SET key = ?2 WHERE key = ?1");
                    sql.execute(&change, params![key, other])?;
                    break;
                }
            }
        }
    }
    name_again(sql, known)?;
    for (table, by_recipe) in OF_SOURCE {
        let delete = format!("DELETE FROM {table} WHERE source NOT IN (SELECT key FROM sources)");
        dropped += sql.execute(&delete, [])? as u64;
        if *by_recipe {
            let delete = format!(
                "DELETE FROM {table} WHERE recipe IS NOT NULL \
                     AND recipe NOT IN (SELECT key FROM recipes)"
            );
            dropped += sql.execute(&delete, [])? as u64;
        }
    }
    one_current_recipe(sql)?;
    mend_spaces(sql)?;
    for table in [SPACES, RECIPES, SOURCES, LOCATIONS, CUES] {
        table.seal(sql, &format!("digest <> {}", table.digest()), [])?;
    }
    Ok(dropped)
}

/// Makes cues and places that were kept as they read such that they can be read. Returns how many
/// could not, and went.
fn mend_doubtful(sql: &Transaction<'_>) -> Result<u64> {
    let mut dropped = 0;
    // What is derived of a text, and what heard it: nothing, where it is no speech.
    sql.execute("UPDATE cues SET folded = folded(text) WHERE folded <> folded(text)", [])?;
    sql.execute(
        "UPDATE cues SET recipe = NULL WHERE kind <> ?1 AND recipe IS NOT NULL \
         AND recipe NOT IN (SELECT key FROM recipes WHERE kind = 'speech')",
        [CueKind::Speech.as_str()],
    )?;
    let find = format!("SELECT {} FROM cues WHERE key = ?1", rows::CUE);
    let is_readable = |key: i64| -> Result<bool> {
        Ok(sql.prepare_cached(&find)?.query_row([key], rows::cue).is_ok())
    };
    let keys: Vec<i64> = rows::all(sql, "SELECT key FROM cues", [], |row| row.get(0))?;
    for key in keys {
        if is_readable(key)? {
            continue;
        }
        let kinds = [CueKind::Subtitle, CueKind::Speech, CueKind::Screen].map(CueKind::as_str);
        sql.execute(
            "UPDATE cues SET words = NULL, \
             kind = CASE WHEN kind IN (?2, ?3, ?4) THEN kind ELSE ?2 END WHERE key = ?1",
            params![key, kinds[0], kinds[1], kinds[2]],
        )?;
        if !is_readable(key)? {
            dropped += sql.execute("DELETE FROM cues WHERE key = ?1", [key])? as u64;
        }
    }
    let find = format!("SELECT {} FROM locations", rows::LOCATION);
    let mut odd: Vec<(String, Vec<u8>)> = Vec::new();
    {
        let mut find = sql.prepare(&find)?;
        let mut places = find.query([])?;
        while let Some(row) = places.next()? {
            if rows::location(row).is_err() {
                odd.push((row.get(0)?, row.get(1)?));
            }
        }
    }
    for place in odd {
        let delete = "DELETE FROM locations WHERE kind = ?1 AND place = ?2";
        dropped += sql.execute(delete, place)? as u64;
    }
    let set = "UPDATE spaces SET languages = '[]' WHERE NOT json_valid(languages) \
         OR json_type(languages) <> 'array'";
    sql.execute(set, [])?;
    Ok(dropped)
}

/// Gives rows that name a source or recipe whose own row is lost one again, by what the indexes of
/// ids, fingerprints and hashes know.
fn name_again(sql: &Transaction<'_>, known: &HashMap<String, BTreeSet<i64>>) -> Result<()> {
    let taken = |table: &str, name: &str, value: &str| -> Result<bool> {
        let find = format!("SELECT EXISTS (SELECT 1 FROM {table} WHERE {name} = ?1)");
        rows::one(sql, &find, [value])
    };
    for source in missing(sql, "sources", "source")? {
        let names: Vec<&String> = of_key(known, source);
        let id = names.iter().find(|name| name.parse::<SourceId>().is_ok());
        let mut prints = Vec::new();
        for name in names.iter().filter(|name| name.parse::<SourceId>().is_err()) {
            let is_other = NO_FINGERPRINTS.contains(&name.as_str())
                || taken("recipes", "hash", name)?
                || taken("spaces", "id", name)?
                || taken("sources", "fingerprint", name)?;
            prints.extend((!is_other).then_some(*name));
        }
        let (Some(id), [print]) = (id, &prints[..]) else { continue };
        if taken("sources", "id", id)? {
            continue;
        }
        let place = "SELECT place FROM locations WHERE source = ?1 LIMIT 1";
        let place: Option<Vec<u8>> = sql.query_row(place, [source], |row| row.get(0)).optional()?;
        let place = place.unwrap_or_default();
        let place = String::from_utf8_lossy(&place);
        let name = place.rsplit('/').next().filter(|name| !name.is_empty()).unwrap_or(id);
        // As whoever watches one names it.
        let is_live = print.starts_with("live:");
        let origin = if is_live { Origin::Live } else { Origin::File };
        let row = params![
            source,
            id,
            print,
            name,
            origin.as_str(),
            Null,
            "null",
            is_live.then_some(0),
            is_live.then_some(WallOrigin::Arrival.as_str()),
            State::New.as_str(),
            Null,
            wall_us(),
            Null,
            0
        ];
        sql.execute(&SOURCES.insert_with_key(), row)?;
    }
    for recipe in missing(sql, "recipes", "recipe")? {
        let kind = if refers_in(sql, "segments", "recipe", recipe)? {
            RecipeKind::Segment
        } else if refers_in(sql, "cues", "recipe", recipe)? {
            RecipeKind::Speech
        } else {
            RecipeKind::Clip
        };
        let mut hashes = Vec::new();
        for name in of_key(known, recipe) {
            let is_other = name.parse::<RecipeId>().is_err()
                || taken("recipes", "hash", name)?
                || taken("sources", "fingerprint", name)?;
            hashes.extend((!is_other).then_some(name));
        }
        let [hash] = &hashes[..] else { continue };
        let space = "SELECT max(key) FROM spaces";
        let space: Option<i64> = rows::one(sql, space, [])?;
        let (state, now) = ("building", wall_us());
        let row = params![recipe, hash, kind.as_str(), state, space, Null, Null, "null", now];
        sql.execute(&RECIPES.insert_with_key(), row)?;
    }
    Ok(())
}

fn of_key(known: &HashMap<String, BTreeSet<i64>>, key: i64) -> Vec<&String> {
    known.iter().filter(|(_, keys)| keys.contains(&key)).map(|(name, _)| name).collect()
}

/// The keys of this table that rows refer to and that are not there.
fn missing(sql: &Connection, table: &str, column: &str) -> Result<BTreeSet<i64>> {
    let mut keys = BTreeSet::new();
    for (of, by_recipe) in OF_SOURCE {
        if column == "source" || *by_recipe {
            let find = format!(
                "SELECT DISTINCT {column} FROM {of} WHERE {column} IS NOT NULL \
                 AND {column} NOT IN (SELECT key FROM {table})"
            );
            keys.extend(rows::all(sql, &find, [], |row| row.get::<_, i64>(0))?);
        }
    }
    Ok(keys)
}

/// Makes the dimensions of spaces those that their embeddings have; a recipe without a space has no
/// embeddings.
fn mend_spaces(sql: &Transaction<'_>) -> Result<()> {
    sql.execute("UPDATE recipes SET space = NULL WHERE space NOT IN (SELECT key FROM spaces)", [])?;
    for (table, of) in [("clips", CLIPS), ("segments", SEGMENTS), ("readings", READINGS)] {
        let lengths = format!(
            "SELECT space, length(embedding) / 2, count(*) FROM {table} \
             JOIN recipes ON recipes.key = recipe WHERE embedding IS NOT NULL \
             AND space IS NOT NULL GROUP BY 1, 2 ORDER BY 3"
        );
        let lengths: Vec<(i64, i64)> =
            rows::all(sql, &lengths, [], |row| Ok((row.get(0)?, row.get(1)?)))?;
        // The most frequent one is the last.
        for (space, dimension) in lengths {
            let set = "UPDATE spaces SET dimension = ?2 WHERE key = ?1";
            sql.execute(set, params![space, dimension])?;
        }
        let without = format!(
            "UPDATE {table} SET embedding = NULL WHERE embedding IS NOT NULL \
             AND recipe IN (SELECT key FROM recipes WHERE space IS NULL)"
        );
        if sql.execute(&without, [])? > 0 {
            // The next `index` makes them anew.
            let again = match table {
                "clips" => "UPDATE chunks SET partial = 1",
                _ => "DELETE FROM progress",
            };
            let lost = "recipe IN (SELECT key FROM recipes WHERE space IS NULL)";
            sql.execute(&format!("{again} WHERE {lost}"), [])?;
            of.seal(sql, &format!("digest <> {}", of.digest()), [])?;
        }
    }
    Ok(())
}

fn keys_and_names(sql: &Connection, table: &str, name: &str) -> Result<Vec<(i64, String)>> {
    let find = format!("SELECT key, {name} FROM {table} ORDER BY key");
    rows::all(sql, &find, [], |row| Ok((row.get(0)?, row.get(1)?)))
}

fn is_readable_source(sql: &Connection, key: i64) -> Result<bool> {
    // A doubtful value of a closed set is no reason to lose the source.
    let set = "UPDATE sources SET origin = ?2 WHERE key = ?1 AND origin NOT IN (?2, ?3, ?4)";
    let [file, url, live] = [Origin::File, Origin::Url, Origin::Live].map(Origin::as_str);
    sql.execute(set, params![key, file, url, live])?;
    let set = "UPDATE sources SET state = ?2 WHERE key = ?1 AND state NOT IN (?2, ?3, ?4)";
    let [new, complete, failed] = [State::New, State::Complete, State::Failed].map(State::as_str);
    sql.execute(set, params![key, new, complete, failed])?;
    let set = "UPDATE sources SET media = 'null' WHERE key = ?1 AND NOT json_valid(media)";
    sql.execute(set, [key])?;
    let set = "UPDATE sources SET wall_start_us = NULL, wall_origin = NULL WHERE key = ?1 \
         AND wall_origin NOT IN ('sender_report', 'arrival', 'file')";
    sql.execute(set, [key])?;
    let find = format!("SELECT {} FROM sources WHERE key = ?1", rows::SOURCE);
    Ok(sql.query_row(&find, [key], rows::source).is_ok())
}

fn is_readable_recipe(sql: &Connection, key: i64) -> Result<bool> {
    let set = "UPDATE recipes SET state = 'building' WHERE key = ?1 \
         AND state NOT IN ('current', 'building', 'retired', 'swept')";
    sql.execute(set, [key])?;
    let set = "UPDATE recipes SET description = 'null' \
         WHERE key = ?1 AND NOT json_valid(description)";
    sql.execute(set, [key])?;
    rows::is_readable_recipe(sql, key)
}

/// Whether any row refers to this source or recipe.
fn refers(sql: &Connection, column: &str, key: i64) -> Result<bool> {
    for (table, by_recipe) in OF_SOURCE {
        if (column == "source" || *by_recipe) && refers_in(sql, table, column, key)? {
            return Ok(true);
        }
    }
    Ok(false)
}

fn refers_in(sql: &Connection, table: &str, column: &str, key: i64) -> Result<bool> {
    let find = format!("SELECT EXISTS (SELECT 1 FROM {table} WHERE {column} = ?1)");
    rows::one(sql, &find, [key])
}

/// Lets the recipe that made the most be the current one of its kind where none is.
fn one_current_recipe(sql: &Connection) -> Result<()> {
    for (kind, table) in [
        (RecipeKind::Clip, "clips"),
        (RecipeKind::Segment, "segments"),
        (RecipeKind::Speech, "cues"),
    ] {
        let current = "SELECT count(*) FROM recipes WHERE kind = ?1 AND state = 'current'";
        if rows::one::<u64>(sql, current, [kind.as_str()])? == 0 {
            let set = format!(
                "UPDATE recipes SET state = 'current' WHERE key = (SELECT key FROM recipes \
                 WHERE kind = ?1 ORDER BY (SELECT count(*) FROM {table} WHERE recipe = recipes.key) DESC, \
                 key LIMIT 1)"
            );
            sql.execute(&set, [kind.as_str()])?;
        }
    }
    Ok(())
}

/// Makes counts and states say what is there. Returns the sources that must be read again.
pub(super) fn settle(record: &mut Database, features: &Database) -> Result<Vec<ToRead>> {
    record.write(|sql| {
        let mut lost: BTreeMap<i64, ToRead> = BTreeMap::new();
        chunks_for_clips(sql)?;
        chunks_for_cues(sql)?;
        sql.execute(
            "DELETE FROM gaps AS g WHERE NOT EXISTS (SELECT 1 FROM chunks WHERE \
             source = g.source AND recipe = g.recipe AND number = g.chunk)",
            [],
        )?;
        sql.execute(
            "DELETE FROM readings AS r WHERE NOT EXISTS (SELECT 1 FROM segments WHERE \
             source = r.source AND recipe = r.recipe AND start_us = r.start_us)",
            [],
        )?;
        count_chunks(sql, features, &mut lost)?;
        count_cues(sql, &mut lost)?;
        settle_progress(sql, &lost)?;
        for table in [CHUNKS, PROGRESS, SOURCES] {
            table.seal(sql, "true", [])?;
        }
        Ok(lost.into_values().collect())
    })
}

/// A partial chunk for the clips whose chunk is lost.
fn chunks_for_clips(sql: &Transaction<'_>) -> Result<()> {
    let alone = "SELECT source, recipe, start_us FROM clips k WHERE NOT EXISTS (SELECT 1 \
         FROM chunks WHERE source = k.source AND recipe = k.recipe AND start_us <= k.start_us \
         AND end_us > k.start_us) ORDER BY source, recipe, start_us";
    let alone: Vec<(i64, i64, i64)> =
        rows::all(sql, alone, [], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
    for (source, recipe, start_us) in alone {
        let length = "SELECT max(end_us - start_us) FROM chunks WHERE recipe = ?1";
        let length: Option<i64> = rows::one(sql, length, [recipe])?;
        let (number, from_us, to_us) = match length.filter(|length| *length > 0) {
            Some(length) => {
                let number = start_us.div_euclid(length);
                (number, number * length, (number + 1) * length)
            }
            // No chunk of this recipe is left, so nothing says how long they are.
            None => {
                let end = "SELECT max(end_us) FROM clips WHERE source = ?1 AND recipe = ?2";
                (0, 0, rows::one(sql, end, params![source, recipe])?)
            }
        };
        let row = params![source, recipe, number, from_us, to_us, 0, 0, 0, true];
        sql.prepare_cached(&CHUNKS.insert_with_key())?.execute(row)?;
    }
    Ok(())
}

/// A partial chunk for what was heard in a chunk that is lost: from the one before to the one after.
fn chunks_for_cues(sql: &Transaction<'_>) -> Result<()> {
    let alone = "SELECT key, source, recipe, start_us FROM cues c WHERE recipe IS NOT NULL \
         AND NOT EXISTS (SELECT 1 FROM chunks WHERE source = c.source AND recipe = c.recipe \
         AND start_us <= c.start_us AND end_us > c.start_us) ORDER BY source, recipe, start_us";
    let alone: Vec<[i64; 4]> =
        rows::all(sql, alone, [], |row| Ok([row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?]))?;
    for [key, source, recipe, at] in alone {
        let of = params![source, recipe, at];
        let held = "SELECT EXISTS (SELECT 1 FROM chunks WHERE source = ?1 AND recipe = ?2 \
             AND start_us <= ?3 AND end_us > ?3)";
        if rows::one(sql, held, of)? {
            // By the one that the cue before it got.
            continue;
        }
        let before = "SELECT number + 1, end_us FROM chunks WHERE source = ?1 AND recipe = ?2 \
             AND end_us <= ?3 ORDER BY end_us DESC LIMIT 1";
        let before = sql.query_row(before, of, |row| Ok((row.get(0)?, row.get(1)?))).optional()?;
        let (number, start_us): (i64, i64) = before.unwrap_or((0, at.min(0)));
        let after = "SELECT min(start_us) FROM chunks WHERE source = ?1 AND recipe = ?2 \
             AND start_us > ?3";
        let after: Option<i64> = rows::one(sql, after, of)?;
        let last = "SELECT max(start_us) + 1 FROM cues WHERE source = ?1 AND recipe = ?2";
        let last: i64 = rows::one(sql, last, params![source, recipe])?;
        let end_us = after.unwrap_or(last);
        let row = params![source, recipe, number, start_us, end_us, 0, 0, 0, true];
        if sql.prepare_cached(&CHUNKS.insert_with_key())?.execute(row)? == 0 {
            // Damage in the numbers too; it is heard again.
            sql.execute("DELETE FROM cues WHERE key = ?1", [key])?;
        }
    }
    Ok(())
}

/// Counts what is left of each chunk; one of which something is lost becomes partial. Of a live source it
/// can't be had again: what is lost is a gap then, a clip has no thumbnail any more, and only a chunk whose
/// features are lost is partial.
fn count_chunks(
    sql: &Transaction<'_>,
    features: &Database,
    lost: &mut BTreeMap<i64, ToRead>,
) -> Result<()> {
    let find = "SELECT source, recipe, number, clips, gaps, partial, \
         (SELECT count(*) FROM clips WHERE source = c.source AND recipe = c.recipe \
         AND start_us >= c.start_us AND start_us < c.end_us), \
         (SELECT count(*) FROM gaps WHERE source = c.source AND recipe = c.recipe \
         AND chunk = c.number), start_us, end_us, \
         EXISTS (SELECT 1 FROM sources WHERE key = c.source AND origin = 'live'), \
         EXISTS (SELECT 1 FROM recipes WHERE key = c.recipe AND kind = 'clip'), thumbnails \
         FROM chunks c ORDER BY source, recipe, number";
    let chunks: Vec<[i64; 13]> = rows::all(sql, find, [], |row| {
        let mut values = [0; 13];
        for (column, value) in values.iter_mut().enumerate() {
            *value = row.get(column)?;
        }
        Ok(values)
    })?;
    for [
        source,
        recipe,
        number,
        clips,
        gaps,
        partial,
        clips_left,
        gaps_left,
        start_us,
        end_us,
        is_live,
        is_picture,
        thumbnails,
    ] in chunks
    {
        let has_features = has_features(sql, features, source, recipe, start_us, end_us)?;
        let thumbnails_left = thumbnails_left(sql, features, [source, recipe, start_us, end_us])?;
        let has_rows =
            partial == 0 && (clips, gaps, thumbnails) == (clips_left, gaps_left, thumbnails_left);
        if has_features && has_rows {
            continue;
        }
        let mut gaps = gaps_left;
        // Nobody knows whether somebody spoke where no cue is left.
        if is_live != 0 && is_picture != 0 {
            let chunk = Chunk { source, recipe, number, span: [start_us, end_us] };
            gaps += fill_holes(sql, &chunk)?;
        }
        sql.execute(
            "UPDATE chunks SET clips = ?4, gaps = ?5, partial = ?6, thumbnails = ?7 \
             WHERE source = ?1 AND recipe = ?2 AND number = ?3",
            params![
                source,
                recipe,
                number,
                clips_left,
                gaps,
                is_live == 0 || !has_features,
                thumbnails_left
            ],
        )?;
        let of = entry(sql, lost, source)?;
        of.chunks += 1;
        of.clips += clips.saturating_sub(clips_left).max(0) as u64;
    }
    Ok(())
}

fn entry<'a>(
    sql: &Connection,
    lost: &'a mut BTreeMap<i64, ToRead>,
    source: i64,
) -> Result<&'a mut ToRead> {
    match lost.entry(source) {
        Entry::Occupied(there) => Ok(there.into_mut()),
        Entry::Vacant(place) => {
            let find = "SELECT id, name, origin = 'live' FROM sources WHERE key = ?1";
            let to_read = sql.query_row(find, [source], |row| {
                let (source, name, is_live) = (rows::text(row, 0)?, row.get(1)?, row.get(2)?);
                Ok(ToRead { source, name, is_live, chunks: 0, clips: 0, cues: 0 })
            })?;
            Ok(place.insert(to_read))
        }
    }
}

/// Counts the cues of each source, and notes those of which some are lost.
fn count_cues(sql: &Transaction<'_>, lost: &mut BTreeMap<i64, ToRead>) -> Result<()> {
    let find = "SELECT key, cues, (SELECT count(*) FROM cues WHERE source = s.key) FROM sources s";
    let counts: Vec<(i64, i64, i64)> =
        rows::all(sql, find, [], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
    for (source, cues, left) in counts {
        if cues != left {
            sql.execute("UPDATE sources SET cues = ?2 WHERE key = ?1", params![source, left])?;
            // Nobody knows where they were heard, so all of it is heard again.
            sql.execute(
                "UPDATE chunks SET partial = 1 WHERE source = ?1 \
                 AND recipe IN (SELECT key FROM recipes WHERE kind = 'speech')",
                [source],
            )?;
            entry(sql, lost, source)?.cues += cues.saturating_sub(left).max(0) as u64;
        }
    }
    Ok(())
}

/// What was lost of is not complete any more.
fn settle_progress(sql: &Transaction<'_>, lost: &BTreeMap<i64, ToRead>) -> Result<()> {
    for source in lost.keys() {
        sql.execute("DELETE FROM progress WHERE source = ?1", [source])?;
    }
    sql.execute(
        "DELETE FROM progress AS p WHERE state = 'complete' AND (rows <> CASE \
         (SELECT kind FROM recipes WHERE key = p.recipe) WHEN 'clip' \
         THEN (SELECT count(*) FROM chunks WHERE source = p.source AND recipe = p.recipe) \
         WHEN 'speech' \
         THEN (SELECT count(*) FROM chunks WHERE source = p.source AND recipe = p.recipe) \
         + (SELECT count(*) FROM cues WHERE source = p.source AND recipe = p.recipe) \
         ELSE (SELECT count(*) FROM segments WHERE source = p.source AND recipe = p.recipe) \
         + (SELECT count(*) FROM readings WHERE source = p.source AND recipe = p.recipe) END \
         OR (SELECT max(number) + 1 <> count(*) OR max(partial) > 0 FROM chunks \
         WHERE source = p.source AND recipe = p.recipe))",
        [],
    )?;
    sql.execute(
        "UPDATE sources AS s SET state = 'new', error = NULL WHERE state = 'complete' AND NOT \
         EXISTS (SELECT 1 FROM progress WHERE source = s.key AND state = 'complete')",
        [],
    )?;
    Ok(())
}
