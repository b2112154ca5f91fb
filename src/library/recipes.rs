//! Recipes: making one known, letting it take over, and sweeping what the old one made.

use rusqlite::{Connection, OptionalExtension, params};

use super::commit_point;
use super::digest::{RECIPES, SPACES};
use super::ids::{RecipeId, SourceId};
use super::rows;
use super::types::{Recipe, RecipeKind, Space};
use super::writer::{Writer, now_us, to_json};
use crate::error::{Error, Result};

/// Rows deleted in one transaction when a retired recipe is swept.
const SWEEP_ROWS: usize = 10_000;

impl Writer {
    /// Makes a recipe known. The first of its kind is the current one at once; another is built
    /// beside it until [`Writer::activate_recipe`].
    pub fn add_recipe(&mut self, recipe: &Recipe) -> Result<()> {
        let description = to_json(&recipe.description)?;
        if let Some(tree) = recipe.tree
            && rows::sensible_tree(tree.branching, tree.depth).is_none()
        {
            return Err(Error::invalid_input("the codebook's leaves don't fit a visual word"));
        }
        self.record.write(|sql| {
            let space = recipe.space.as_ref().map(|space| add_space(sql, space)).transpose()?;
            let first = rows::current_recipe(sql, recipe.kind)?.is_none();
            let hash = recipe.id.to_string();
            let again = "UPDATE recipes SET state = 'building' \
                 WHERE hash = ?1 AND state IN ('retired', 'swept')";
            if sql.execute(again, [&hash])? > 0 {
                return RECIPES.seal(sql, "hash = ?1", [&hash]);
            }
            let known = "SELECT count(*) FROM recipes WHERE hash = ?1";
            if rows::one::<u64>(sql, known, [&hash])? > 0 {
                return Ok(());
            }
            sql.execute(
                &RECIPES.insert(),
                params![
                    hash,
                    recipe.kind.as_str(),
                    if first { "current" } else { "building" },
                    space,
                    recipe.tree.map(|tree| tree.branching),
                    recipe.tree.map(|tree| tree.depth),
                    description,
                    now_us()
                ],
            )?;
            Ok(())
        })?;
        commit_point::reached("recipe-added");
        Ok(())
    }

    /// The sources whose clips are complete and whose segments are not.
    pub fn left_to_understand(
        &self,
        clips: &RecipeId,
        segments: &RecipeId,
    ) -> Result<Vec<SourceId>> {
        self.record.read(|sql| {
            let find = "SELECT id FROM sources JOIN progress done ON done.source = sources.key \
                 AND done.recipe = ?1 AND done.state = 'complete' \
                 WHERE NOT EXISTS (SELECT 1 FROM progress read WHERE read.source = sources.key \
                 AND read.recipe = ?2 AND read.state = 'complete') ORDER BY sources.key";
            let (clips, segments) =
                (rows::recipe_row(sql, clips)?, rows::recipe_row(sql, segments)?);
            rows::all(sql, find, params![clips.key, segments.key], |row| rows::text(row, 0))
        })
    }

    /// The sources that the current recipe of the same kind has completed and `recipe` has not:
    /// while there are any, taking over would take them out of search.
    pub fn waiting_for(&self, recipe: &RecipeId) -> Result<Vec<SourceId>> {
        self.record.read(|sql| {
            let row = rows::recipe_row(sql, recipe)?;
            let Some(current) = rows::current_recipe(sql, row.recipe.kind)? else {
                return Ok(Vec::new());
            };
            let find = "SELECT id FROM sources JOIN progress old ON old.source = sources.key \
                 AND old.recipe = ?1 AND old.state = 'complete' \
                 WHERE NOT EXISTS (SELECT 1 FROM progress new WHERE new.source = sources.key \
                 AND new.recipe = ?2 AND new.state = 'complete') ORDER BY sources.key";
            rows::all(sql, find, params![current.key, row.key], |row| rows::text(row, 0))
        })
    }

    /// Lets a recipe's rows take the place of the current recipe's in one step; the old rows are
    /// then deleted little by little, and by the next writer where this one is interrupted.
    pub fn activate_recipe(&mut self, recipe: &RecipeId) -> Result<()> {
        self.record.write(|sql| {
            let row = rows::recipe_row(sql, recipe)?;
            if row.state == "current" {
                return Ok(());
            }
            let kind = row.recipe.kind;
            sql.execute(
                "UPDATE recipes SET state = 'retired' WHERE kind = ?1 AND state = 'current'",
                [kind.as_str()],
            )?;
            sql.execute("UPDATE recipes SET state = 'current' WHERE key = ?1", [row.key])?;
            RECIPES.seal(sql, "kind = ?1", [kind.as_str()])?;
            count_up(sql, kind)
        })?;
        commit_point::reached("recipe-activated");
        self.sweep_retired()
    }

    pub(super) fn sweep_retired(&mut self) -> Result<()> {
        let find = "SELECT key FROM recipes WHERE state = 'retired'";
        let retired: Vec<i64> =
            self.record.run(|sql| rows::all(sql, find, [], |row| row.get(0)))?;
        for recipe in retired {
            for table in ["clips", "segments", "gaps", "chunks", "progress"] {
                // Tables without rowids are small and go at once.
                let statement = match table {
                    "clips" | "segments" => format!(
                        "DELETE FROM {table} WHERE key IN \
                         (SELECT key FROM {table} WHERE recipe = ?1 LIMIT {SWEEP_ROWS})"
                    ),
                    _ => format!("DELETE FROM {table} WHERE recipe = ?1"),
                };
                while self.record.write(|sql| Ok(sql.execute(&statement, [recipe])?))? > 0 {
                    commit_point::reached("recipe-sweeping");
                }
            }
            let statement = format!(
                "DELETE FROM features WHERE rowid IN \
                 (SELECT rowid FROM features WHERE recipe = ?1 LIMIT {SWEEP_ROWS})"
            );
            while self.features.write(|sql| Ok(sql.execute(&statement, [recipe])?))? > 0 {
                commit_point::reached("recipe-sweeping");
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

/// Tells readers that rows have gone or changed their visibility.
pub(super) fn count_up(sql: &Connection, kind: RecipeKind) -> Result<()> {
    let name = match kind {
        RecipeKind::Clip => "clips_generation",
        RecipeKind::Segment => "segments_generation",
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
