//! Holds the house in order: the layers and owners that `ARCHITECTURE.md` states, names, sizes, and
//! what has no place in a file that is published.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

const MOST_LINES: usize = 800;

/// Names that say nothing of what is inside.
const EMPTY_NAMES: &[&str] =
    &["common", "data", "helper", "helpers", "manager", "misc", "process", "util", "utils"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every file under `folder`, in order.
pub fn files_under(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

/// Every file under `folder`, by path from the root, in order; none where there is no such folder.
fn files(folder: &str) -> Vec<PathBuf> {
    let folder = root().join(folder);
    let found = if folder.exists() { files_under(&folder) } else { Vec::new() };
    found.iter().map(|path| path.strip_prefix(root()).unwrap().to_owned()).collect()
}

/// What is published as text: the folders of the project and the files beside them.
fn texts() -> Vec<(PathBuf, String)> {
    let folders = [
        ".cargo",
        ".ci",
        "assets",
        "benches",
        "docs",
        "models",
        "pipelines",
        "samples",
        "src",
        "tests",
        "training",
    ];
    let beside = fs::read_dir(root())
        .unwrap()
        .map(|entry| PathBuf::from(entry.unwrap().file_name()))
        .filter(|name| root().join(name).is_file() && name != Path::new("Cargo.lock"))
        // A file in a worktree.
        .filter(|name| name != Path::new(".git"));
    folders
        .iter()
        .flat_map(|folder| files(folder))
        .chain(beside)
        .filter_map(|path| Some((path.clone(), fs::read_to_string(root().join(path)).ok()?)))
        .collect()
}

fn architecture() -> String {
    fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap()
}

/// The rows of the table under `heading`: its cells, trimmed.
fn table(text: &str, heading: &str) -> Vec<Vec<String>> {
    let (_, section) = text
        .split_once(&format!("\n## {heading}\n"))
        .unwrap_or_else(|| panic!("ARCHITECTURE.md has no section {heading:?}"));
    let section = section.split("\n## ").next().unwrap();
    let rows: Vec<Vec<String>> = section
        .lines()
        .filter(|line| line.starts_with('|'))
        .skip(2)
        .map(|line| line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect())
        .collect();
    assert!(!rows.is_empty(), "{heading:?} has no table");
    rows
}

/// The names in backquotes.
fn quoted(cell: &str) -> Vec<&str> {
    cell.split('`').skip(1).step_by(2).collect()
}

/// `src/graph/run.rs` and `src/graph.rs` belong to `graph`; `src/lib.rs` to none.
fn room(path: &Path) -> Option<String> {
    let inside = path.strip_prefix("src").ok()?;
    let first = Path::new(inside.components().next()?.as_os_str());
    let name = first.file_stem()?.to_str()?;
    (!["lib", "main"].contains(&name)).then(|| name.to_owned())
}

/// The code of a file without its comment lines.
fn code(path: &Path) -> String {
    fs::read_to_string(root().join(path))
        .unwrap()
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .collect::<Vec<_>>()
        .join("\n")
}

fn is_of_a_name(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// The rooms that `code` names by `crate::room` or `crate::{room, …}`.
fn rooms_named(code: &str) -> BTreeSet<String> {
    let mut named = BTreeSet::new();
    for (at, path) in code.match_indices("crate::") {
        let rest = &code[at + path.len()..];
        if code[..at].ends_with(is_of_a_name) {
            continue;
        }
        let Some(group) = rest.strip_prefix('{') else {
            named.insert(rest.chars().take_while(|&c| is_of_a_name(c)).collect());
            continue;
        };
        let mut depth = 1;
        let mut name = String::new();
        let mut is_first_name = true;
        for c in group.chars() {
            match c {
                '{' => depth += 1,
                '}' => depth -= 1,
                c if depth == 1 && is_of_a_name(c) && is_first_name => name.push(c),
                ':' if depth == 1 => is_first_name = false,
                ',' if depth == 1 => {
                    named.insert(std::mem::take(&mut name));
                    is_first_name = true;
                }
                _ => {}
            }
            if depth == 0 {
                break;
            }
        }
        named.insert(name);
    }
    named.remove("");
    named
}

/// Whether `code` uses the crate `name`.
fn uses_crate(code: &str, name: &str) -> bool {
    code.match_indices(name).any(|(at, _)| {
        let before = &code[..at];
        let after = &code[at + name.len()..];
        let is_whole = !before.ends_with(is_of_a_name) && !after.starts_with(is_of_a_name);
        let is_path = after.starts_with("::") && !before.ends_with("::");
        is_whole && (is_path || before.ends_with("use "))
    })
}

#[test]
fn a_module_uses_those_of_lower_layers_only() {
    let text = architecture();
    let mut layers: BTreeMap<String, (usize, usize)> = BTreeMap::new();
    for (row, cells) in table(&text, "Rooms").iter().enumerate() {
        let layer = cells[0].parse().expect("a layer is a number");
        for name in quoted(&cells[1]) {
            assert!(layers.insert(name.to_owned(), (layer, row)).is_none(), "{name} stands twice");
        }
    }
    let paths: Vec<PathBuf> = files("src");
    let rooms: BTreeSet<String> = paths.iter().filter_map(|path| room(path)).collect();
    assert_eq!(
        rooms,
        layers.keys().cloned().collect(),
        "the modules in src and those in ARCHITECTURE.md differ"
    );

    let mut wrong = Vec::new();
    for path in &paths {
        let Some(user) = room(path) else { continue };
        let code = code(path);
        let (layer, row) = layers[&user];
        for used in rooms_named(&code) {
            let Some(&(used_layer, used_row)) = layers.get(&used) else {
                wrong.push(format!("{}: crate::{used} is no room", path.display()));
                continue;
            };
            if used_layer >= layer && used_row != row {
                wrong.push(format!(
                    "{}: {user} (layer {layer}) uses {used} (layer {used_layer})",
                    path.display()
                ));
            }
        }
        let is_root_of_room = path.ends_with("mod.rs") && path.components().count() == 3
            || path.components().count() == 2;
        if is_root_of_room && code.lines().any(|line| line.starts_with("use super::")) {
            wrong.push(format!("{}: name other rooms by crate::", path.display()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_foreign_crate_is_named_by_its_owners_only() {
    let text = architecture();
    let mut wrong = Vec::new();
    for cells in table(&text, "One owner each") {
        let owners = quoted(&cells[1]);
        for name in quoted(&cells[0]) {
            let name = name.replace('-', "_");
            let users: Vec<PathBuf> =
                files("src").into_iter().filter(|path| uses_crate(&code(path), &name)).collect();
            assert!(!users.is_empty(), "nothing uses {name}; take it out of ARCHITECTURE.md");
            wrong.extend(
                users
                    .iter()
                    .filter(|path| !room(path).is_some_and(|room| owners.contains(&room.as_str())))
                    .map(|path| format!("{}: {name} belongs to {owners:?}", path.display())),
            );
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn imports_are_found_in_every_form() {
    let named = rooms_named(
        "use crate::error::Error;\nuse crate::{media::{self, Clip}, time::Span, graph};\n\
         fn f() -> crate::model::Session { subcrate::x() }",
    );
    assert_eq!(
        named.iter().map(String::as_str).collect::<Vec<_>>(),
        ["error", "graph", "media", "model", "time"]
    );
    assert!(uses_crate("use ort::Session;", "ort"));
    assert!(uses_crate("let x = ort::init();", "ort"));
    assert!(!uses_crate("crate::report::ort::x(); sort::y(); use crate::ort;", "ort"));
}

#[test]
fn files_are_small_enough_to_read_in_one_sitting() {
    let long: Vec<String> = texts()
        .iter()
        .filter(|(path, _)| path.extension().is_some_and(|extension| extension == "rs"))
        .map(|(path, text)| (path, text.lines().count()))
        .filter(|(_, lines)| *lines > MOST_LINES)
        .map(|(path, lines)| format!("{}: {lines} lines, at most {MOST_LINES}", path.display()))
        .collect();
    assert!(long.is_empty(), "{}", long.join("\n"));
}

#[test]
fn names_say_what_is_inside() {
    for path in files("src").iter().chain(&files("tests")) {
        for part in path.components() {
            let name = Path::new(part.as_os_str()).file_stem().unwrap().to_str().unwrap();
            assert!(!EMPTY_NAMES.contains(&name), "{}: {name} says nothing", path.display());
        }
    }
}

#[test]
fn nothing_published_names_one_machine_or_registry() {
    // Put together here, so that this file is clean too.
    let unwanted = [
        ["/wo", "rk/"],
        ["/ro", "ot/"],
        ["py", "pi.org"],
        ["python", "hosted.org"],
        ["cra", "tes.io"],
        ["hugging", "face.co"],
        ["anaconda", ".org"],
        ["npm", "js.com"],
    ]
    .map(|halves| halves.concat());
    let mut wrong = Vec::new();
    for (path, text) in texts() {
        for (number, line) in text.lines().enumerate() {
            for unwanted in unwanted.iter().filter(|unwanted| line.contains(*unwanted)) {
                wrong.push(format!("{}:{}: {unwanted}", path.display(), number + 1));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn links_between_documents_lead_somewhere() {
    let mut wrong = Vec::new();
    for (path, text) in texts() {
        if path.extension().is_none_or(|extension| extension != "md") {
            continue;
        }
        for (_, rest) in text.match_indices("](").map(|(at, _)| text.split_at(at + 2)) {
            let target = rest.split([')', '#', ' ']).next().unwrap();
            let is_elsewhere = target.contains("://") || target.is_empty();
            if !is_elsewhere && !root().join(&path).parent().unwrap().join(target).exists() {
                wrong.push(format!("{}: {target} is not there", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
