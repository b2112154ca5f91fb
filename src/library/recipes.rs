//! Recipes: making one known, letting it take over, and sweeping what the old one made.

use rusqlite::{Connection, OptionalExtension, params};

use super::commit_point;
use super::digest::{RECIPES, SOURCES, SPACES};
use super::ids::{RecipeId, SourceId};
use super::insert;
use super::rows::{self, RecipeRow};
use super::schema::OF_CLIPS;
use super::types::{Recipe, RecipeKind, Space};
use super::writer::{Writer, to_json};
use crate::error::{Error, Result};
use crate::time::wall_us;

/// Rows deleted in one transaction when a retired recipe is swept.
const SWEEP_ROWS: usize = 10_000;

/// Sources whose cues are deleted in one transaction; a film has some thousand.
const SWEEP_SOURCES: usize = 16;

impl Writer {
    /// Makes a recipe known. The first of its kind is the current one at once; another is built
    /// beside it until [`Writer::take_over`]. A row that says something else under this hash, since
    /// a rebuild could not read it and knew its hash alone, is put right.
    pub fn add_recipe(&mut self, recipe: &Recipe) -> Result<()> {
        let description = to_json(&recipe.description)?;
        if let Some(tree) = recipe.tree
            && rows::sensible_tree(tree.branching, tree.depth).is_none()
        {
            return Err(Error::invalid_input("the codebook's leaves don't fit a visual word"));
        }
        self.record.write(|sql| {
            let space = recipe.space.as_ref().map(|space| add_space(sql, space)).transpose()?;
            let hash = recipe.id.to_string();
            let kind = recipe.kind.as_str();
            let first = rows::current_recipe(sql, recipe.kind)?.is_none();
            let fresh = if first { "current" } else { "building" };
            let known = sql
                .query_row("SELECT kind, state FROM recipes WHERE hash = ?1", [&hash], |row| {
                    Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?))
                })
                .optional()?;
            let state = match &known {
                Some((known, state)) if known == kind && state == "current" => "current",
                Some((known, _)) if known == kind => "building",
                _ => fresh,
            };
            let (branching, depth) = recipe.tree.map(|tree| (tree.branching, tree.depth)).unzip();
            if known.is_none() {
                let row =
                    params![hash, kind, state, space, branching, depth, description, wall_us()];
                sql.execute(&RECIPES.insert(), row)?;
                return Ok(());
            }
            let set = "UPDATE recipes SET (kind, state, space, branching, depth, description) \
                 = (?2, ?3, ?4, ?5, ?6, ?7) WHERE hash = ?1 \
                 AND (kind, state, space, branching, depth, description) \
                 IS NOT (?2, ?3, ?4, ?5, ?6, ?7)";
            let row = params![hash, kind, state, space, branching, depth, description];
            if sql.execute(set, row)? > 0 {
                RECIPES.seal(sql, "hash = ?1", [&hash])?;
                if state == "current" {
                    count_up(sql, recipe.kind)?;
                }
            }
            Ok(())
        })?;
        commit_point::reached("recipe-added");
        Ok(())
    }

    /// The sources to understand: those whose clips are complete and whose segments are not, and
    /// those that were cut off, of which another recipe has made segments and this one none.
    pub fn left_to_understand(
        &self,
        clips: &RecipeId,
        segments: &RecipeId,
    ) -> Result<Vec<SourceId>> {
        self.record.read(|sql| {
            let find = "SELECT id FROM sources WHERE NOT EXISTS (SELECT 1 FROM progress \
                 WHERE source = sources.key AND recipe = ?2 AND state = 'complete') \
                 AND (EXISTS (SELECT 1 FROM progress WHERE source = sources.key \
                 AND recipe = ?1 AND state = 'complete') \
                 OR (EXISTS (SELECT 1 FROM chunks WHERE source = sources.key AND recipe = ?1) \
                 AND EXISTS (SELECT 1 FROM segments WHERE source = sources.key AND recipe <> ?2) \
                 AND NOT EXISTS (SELECT 1 FROM segments \
                 WHERE source = sources.key AND recipe = ?2))) ORDER BY key";
            let (clips, segments) =
                (rows::recipe_row(sql, clips)?, rows::recipe_row(sql, segments)?);
            rows::all(sql, find, params![clips.key, segments.key], |row| rows::text(row, 0))
        })
    }

    /// The sources that would lose something in search if `recipe` took over now: those that the
    /// current recipe of its kind has completed and it has not, and those that the current one
    /// has read in part and it has not tried to the end.
    pub fn waiting_for(&self, recipe: &RecipeId) -> Result<Vec<SourceId>> {
        self.record.read(|sql| {
            let row = rows::recipe_row(sql, recipe)?;
            let waiting = waiting(sql, row.recipe.kind, row.key)?;
            Ok(waiting.into_iter().map(|source| source.id).collect())
        })
    }

    /// What the two recipes of a pipeline would have to wait for if they were to take over now, whether
    /// the library knows them or not.
    pub fn would_wait(&self, clips: &RecipeId, segments: &RecipeId) -> Result<Vec<Waiting>> {
        self.record
            .read(|sql| waiting_for_both(sql, known_key(sql, clips)?, known_key(sql, segments)?))
    }

    /// As [`Writer::would_wait`], for what listens.
    pub fn words_would_wait(&self, speech: &RecipeId) -> Result<Vec<Waiting>> {
        self.record.read(|sql| waiting(sql, RecipeKind::Speech, known_key(sql, speech)?))
    }

    /// Lets the two recipes of a pipeline take the places of the current ones in one step, unless
    /// sources wait for that; those are returned. What the old recipes made is then deleted
    /// little by little, and by the next writer where this one is interrupted.
    pub fn take_over(&mut self, clips: &RecipeId, segments: &RecipeId) -> Result<Vec<Waiting>> {
        let (left, changed) = self.record.write(|sql| {
            let rows = [rows::recipe_row(sql, clips)?, rows::recipe_row(sql, segments)?];
            let left = waiting_for_both(sql, rows[0].key, rows[1].key)?;
            let changed = left.is_empty() && activate(sql, &rows)?;
            Ok((left, changed))
        })?;
        if changed {
            commit_point::reached("recipe-activated");
        }
        self.sweep_retired()?;
        Ok(left)
    }

    /// Lets recipes take over whatever waits for them: what only the old ones have made is lost.
    /// False, and nothing is done, where they have completed no source at all, unless it is `before` they make
    /// anything.
    pub fn take_over_at_once(
        &mut self,
        clips: &RecipeId,
        segments: &RecipeId,
        before: bool,
    ) -> Result<bool> {
        let changed = self.record.write(|sql| {
            let rows = [rows::recipe_row(sql, clips)?, rows::recipe_row(sql, segments)?];
            let may =
                before || has_completed(sql, rows[0].key)? && has_completed(sql, rows[1].key)?;
            if !may || !activate(sql, &rows)? {
                return Ok(false);
            }
            // What is left behind is to be read as if it were new.
            let left = "state = 'complete' AND NOT EXISTS (SELECT 1 FROM progress \
                 WHERE source = sources.key AND recipe = ?1 AND state = 'complete')";
            let find = format!("SELECT key FROM sources WHERE {left}");
            let keys: Vec<i64> = rows::all(sql, &find, [rows[0].key], |row| row.get(0))?;
            for key in keys {
                sql.execute("UPDATE sources SET state = 'new' WHERE key = ?1", [key])?;
                SOURCES.seal(sql, "key = ?1", [key])?;
            }
            Ok(true)
        })?;
        if changed {
            commit_point::reached("recipe-activated");
        }
        self.sweep_retired()?;
        Ok(changed)
    }

    /// Whether a recipe is the current one of its kind, or is built beside it.
    pub(super) fn uses_recipe(&self, id: &RecipeId) -> Result<bool> {
        let find = "SELECT EXISTS (SELECT 1 FROM recipes \
             WHERE hash = ?1 AND state IN ('current', 'building'))";
        self.record.read(|sql| rows::one(sql, find, [id.to_string()]))
    }

    /// Notes that a recipe was known elsewhere before it was known here.
    pub(super) fn date_recipe(&mut self, id: &RecipeId, added_us: i64) -> Result<()> {
        let hash = id.to_string();
        self.record.write(|sql| {
            let set = "UPDATE recipes SET added_us = ?2 WHERE hash = ?1 AND added_us > ?2";
            if sql.execute(set, params![hash, added_us])? == 0 {
                return Ok(());
            }
            RECIPES.seal(sql, "hash = ?1", [&hash])
        })
    }

    /// After sources have gone: lets the newest recipes that waited for nothing else take over.
    pub(super) fn settle_recipes(&mut self) -> Result<()> {
        let ready = self.record.read(|sql| {
            let all = rows::recipes(sql)?;
            for segments in all.iter().rev() {
                let is_built = segments.state == "building"
                    && segments.recipe.kind == RecipeKind::Segment
                    && has_completed(sql, segments.key)?;
                // A recipe of segments names that of the clips that they are made of.
                let of = segments.recipe.description.get("clips").and_then(|hash| hash.as_str());
                let clips = all.iter().find(|row| Some(row.recipe.id.to_string().as_str()) == of);
                let Some(clips) = clips.filter(|_| is_built) else { continue };
                // One that a merge brought may be older than what is searched.
                let newer = "SELECT added_us > coalesce((SELECT max(added_us) FROM recipes \
                     WHERE kind = 'segment' AND state = 'current'), -1) FROM recipes WHERE key = ?1";
                if !rows::one::<bool>(sql, newer, [segments.key])? {
                    continue;
                }
                if matches!(clips.state.as_str(), "current" | "building")
                    && waiting_for_both(sql, clips.key, segments.key)?.is_empty()
                {
                    return Ok(Some((clips.recipe.id.clone(), segments.recipe.id.clone())));
                }
            }
            Ok(None)
        })?;
        if let Some((clips, segments)) = ready {
            self.take_over(&clips, &segments)?;
        }
        let newest = "SELECT hash FROM recipes WHERE kind = 'speech' AND state = 'building' \
             AND EXISTS (SELECT 1 FROM progress WHERE recipe = recipes.key AND state = 'complete') \
             AND added_us > (SELECT max(added_us) FROM recipes \
             WHERE kind = 'speech' AND state = 'current') ORDER BY key DESC LIMIT 1";
        let newest: Option<RecipeId> = self
            .record
            .read(|sql| Ok(sql.query_row(newest, [], |row| rows::text(row, 0)).optional()?))?;
        if let Some(speech) = newest {
            self.take_over_speech(&speech, false)?;
        }
        Ok(())
    }

    pub(super) fn sweep_retired(&mut self) -> Result<()> {
        let find = "SELECT key FROM recipes WHERE state = 'retired'";
        let retired: Vec<i64> =
            self.record.run(|sql| rows::all(sql, find, [], |row| row.get(0)))?;
        for recipe in retired {
            self.sweep_cues(recipe)?;
            for table in ["clips", "segments", "readings", "gaps", "chunks", "progress"] {
                // Tables without rowids are small and go at once.
                let statement = match table {
                    "clips" | "segments" | "readings" => format!(
                        "DELETE FROM {table} WHERE key IN \
                         (SELECT key FROM {table} WHERE recipe = ?1 LIMIT {SWEEP_ROWS})"
                    ),
                    _ => format!("DELETE FROM {table} WHERE recipe = ?1"),
                };
                while self.record.write(|sql| Ok(sql.execute(&statement, [recipe])?))? > 0 {
                    commit_point::reached("recipe-sweeping");
                }
            }
            for table in OF_CLIPS {
                let statement = format!(
                    "DELETE FROM {table} WHERE rowid IN \
                     (SELECT rowid FROM {table} WHERE recipe = ?1 LIMIT {SWEEP_ROWS})"
                );
                while self.features.write(|sql| Ok(sql.execute(&statement, [recipe])?))? > 0 {
                    commit_point::reached("recipe-sweeping");
                }
            }
            self.record.write(|sql| {
                sql.execute("UPDATE recipes SET state = 'swept' WHERE key = ?1", [recipe])?;
                RECIPES.seal(sql, "key = ?1", [recipe])
            })?;
            commit_point::reached("recipe-swept");
        }
        Ok(())
    }
}

impl Writer {
    /// Deletes what a retired recipe has heard.
    fn sweep_cues(&mut self, recipe: i64) -> Result<()> {
        let find = "SELECT DISTINCT source FROM cues WHERE recipe = ?1";
        let sources: Vec<i64> =
            self.record.read(|sql| rows::all(sql, find, [recipe], |row| row.get(0)))?;
        for some in sources.chunks(SWEEP_SOURCES) {
            self.record.write(|sql| {
                for source in some {
                    let delete = "DELETE FROM cues WHERE source = ?1 AND recipe = ?2";
                    sql.execute(delete, [source, &recipe])?;
                    insert::count_cues(sql, *source)?;
                }
                Ok(())
            })?;
            commit_point::reached("recipe-sweeping");
        }
        Ok(())
    }
}

/// A source that keeps another recipe from taking over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    pub id: SourceId,
    pub name: String,
    /// Every place that it was seen at holds something else now, so nobody can read it again.
    pub is_gone: bool,
}

/// The key of a recipe; 0, which none has, where the library does not know it.
fn known_key(sql: &Connection, id: &RecipeId) -> Result<i64> {
    let find = "SELECT coalesce((SELECT key FROM recipes WHERE hash = ?1), 0)";
    rows::one(sql, find, [id.to_string()])
}

fn waiting_for_both(sql: &Connection, clips: i64, segments: i64) -> Result<Vec<Waiting>> {
    let mut left = waiting(sql, RecipeKind::Clip, clips)?;
    for source in waiting(sql, RecipeKind::Segment, segments)? {
        if !left.contains(&source) {
            left.push(source);
        }
    }
    Ok(left)
}

/// What keeps the recipe with this key from taking over.
pub(super) fn waiting(sql: &Connection, kind: RecipeKind, recipe: i64) -> Result<Vec<Waiting>> {
    let current = match rows::current_recipe(sql, kind)? {
        Some(current) if current.key != recipe => current.key,
        _ => return Ok(Vec::new()),
    };
    // What a recipe leaves of a source that it has read in part.
    let (part, tried) = match kind {
        RecipeKind::Clip | RecipeKind::Speech => ("chunks", "SELECT 1 WHERE 0"),
        RecipeKind::Segment => {
            ("segments", "SELECT 1 FROM segments WHERE source = sources.key AND recipe = ?2")
        }
    };
    let find = format!(
        "SELECT id, name, origin <> 'live' AND NOT EXISTS \
         (SELECT 1 FROM locations WHERE source = sources.key) \
         FROM sources LEFT JOIN progress old ON old.source = sources.key AND old.recipe = ?1 \
         LEFT JOIN progress new ON new.source = sources.key AND new.recipe = ?2 \
         WHERE CASE WHEN old.state = 'complete' THEN new.state IS NOT 'complete' \
         ELSE new.state IS NULL \
         AND EXISTS (SELECT 1 FROM {part} WHERE source = sources.key AND recipe = ?1) \
         AND NOT EXISTS ({tried}) END ORDER BY sources.key"
    );
    rows::all(sql, &find, params![current, recipe], |row| {
        Ok(Waiting { id: rows::text(row, 0)?, name: row.get(1)?, is_gone: row.get(2)? })
    })
}

pub(super) fn has_completed(sql: &Connection, recipe: i64) -> Result<bool> {
    let find = "SELECT EXISTS (SELECT 1 FROM progress WHERE recipe = ?1 AND state = 'complete')";
    rows::one(sql, find, [recipe])
}

/// Makes recipes, at most one of a kind, the current ones; the old ones are left to be swept. Says
/// whether that changed anything.
pub(super) fn activate(sql: &Connection, recipes: &[RecipeRow]) -> Result<bool> {
    let mut changed = false;
    for row in recipes.iter().filter(|row| row.state != "current") {
        let kind = row.recipe.kind;
        sql.execute(
            "UPDATE recipes SET state = 'retired' WHERE kind = ?1 AND state = 'current'",
            [kind.as_str()],
        )?;
        sql.execute("UPDATE recipes SET state = 'current' WHERE key = ?1", [row.key])?;
        RECIPES.seal(sql, "kind = ?1", [kind.as_str()])?;
        count_up(sql, kind)?;
        changed = true;
    }
    Ok(changed)
}

/// Tells readers that rows have gone or changed their visibility.
pub(super) fn count_up(sql: &Connection, kind: RecipeKind) -> Result<()> {
    let name = match kind {
        RecipeKind::Clip => "clips_generation",
        RecipeKind::Segment => "segments_generation",
        // Nobody holds cues in memory.
        RecipeKind::Speech => return Ok(()),
    };
    sql.execute("UPDATE meta SET value = value + 1 WHERE name = ?1", [name])?;
    Ok(())
}

fn add_space(sql: &Connection, space: &Space) -> Result<i64> {
    if space.dimension == 0 || space.dimension >= rows::MOST_DIMENSIONS {
        return Err(Error::invalid_input(format!("a space of {} dimensions", space.dimension)));
    }
    let find = "SELECT key, dimension FROM spaces WHERE id = ?1";
    let known = sql
        .query_row(find, [&space.id], |row| Ok((row.get(0)?, row.get::<_, i64>(1)?)))
        .optional()?;
    match known {
        Some((key, dimension)) if dimension == space.dimension as i64 => Ok(key),
        Some((_, dimension)) => Err(Error::invalid_input(format!(
            "the library's space {} has {dimension} dimensions, not {}",
            space.id, space.dimension
        ))),
        None => {
            sql.execute(
                &SPACES.insert(),
                params![space.id, space.tower, space.dimension, to_json(&space.languages)?],
            )?;
            Ok(sql.last_insert_rowid())
        }
    }
}
