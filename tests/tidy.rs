//! Holds the house in order: which room may know which, how long a file may be, what no file may hold.

use std::path::{Path, PathBuf};

/// Rooms by floor, ground floor first. A file sees its own room and those on lower floors.
const FLOORS: [&[&str]; 8] = [
    &["model"],
    &["store"],
    &["engines", "network", "registry"],
    &["scheduler", "client", "compose"],
    &["script"],
    &["runtime"],
    &["agent", "api", "daemon", "demo", "sim"],
    &["cli"],
];

/// Rooms that may know a neighbour on their own floor, and why.
const NEIGHBOURS: [(&str, &str); 4] = [
    // Other registries are asked with the one way to make an HTTP client.
    ("registry", "network"),
    // A check in a replica's own network is asked where its engine is.
    ("engines", "network"),
    // The assembly room puts the parts together, the API and the agent among them.
    ("daemon", "api"),
    ("daemon", "agent"),
];

const MAX_LINES: usize = 500;

fn sources(folder: &str) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut open = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join(folder)];
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(&folder).unwrap().flatten() {
            let path = entry.path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs" || extension == "lua") {
                let text = std::fs::read_to_string(&path).unwrap();
                found.push((path, text));
            }
        }
    }
    assert!(!found.is_empty(), "no sources in {folder}");
    found
}

fn floor(room: &str) -> Option<usize> {
    FLOORS.iter().position(|rooms| rooms.contains(&room))
}

fn room(path: &Path) -> Option<String> {
    let inner = path.strip_prefix(Path::new(env!("CARGO_MANIFEST_DIR")).join("src")).ok()?;
    let first = inner.components().next()?.as_os_str().to_str()?;
    (inner.components().count() > 1).then(|| first.to_owned())
}

/// Every room that `text` names after `crate::`, also inside `use crate::{a, b}`.
fn named_rooms(text: &str) -> Vec<String> {
    let mut rooms = Vec::new();
    for part in text.split("crate::").skip(1) {
        if let Some(list) = part.strip_prefix('{') {
            let mut depth = 1;
            let mut word = String::new();
            for c in list.chars() {
                match c {
                    '{' => depth += 1,
                    '}' => depth -= 1,
                    _ => {}
                }
                if depth == 1 && (c.is_alphanumeric() || c == '_') {
                    word.push(c);
                } else if depth == 1 || depth == 0 {
                    if !word.is_empty() && (c == ':' || c == ',' || c == '}' || c == ';') {
                        rooms.push(std::mem::take(&mut word));
                    }
                    word.clear();
                }
                if depth == 0 {
                    break;
                }
            }
        } else {
            rooms.push(part.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect());
        }
    }
    rooms
}

#[test]
fn rooms_see_lower_floors_only() {
    let mut wrong = Vec::new();
    for (path, text) in sources("src") {
        let Some(own) = room(&path) else { continue };
        let Some(level) = floor(&own) else {
            wrong.push(format!("{}: the room \"{own}\" is on no floor", path.display()));
            continue;
        };
        for other in named_rooms(&text) {
            let allowed = other == own
                || floor(&other).is_some_and(|floor| floor < level)
                || NEIGHBOURS.contains(&(own.as_str(), other.as_str()));
            if floor(&other).is_some() && !allowed {
                wrong.push(format!("{}: {own} (floor {level}) names {other}", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn files_stay_short() {
    let long: Vec<String> = ["src", "tests", "stdlib", "scripts"]
        .into_iter()
        .flat_map(sources)
        .filter(|(_, text)| text.lines().count() > MAX_LINES)
        .map(|(path, text)| format!("{}: {} lines", path.display(), text.lines().count()))
        .collect();
    assert!(long.is_empty(), "{}", long.join("\n"));
}

#[test]
fn only_the_script_room_knows_lua() {
    let wrong: Vec<String> = sources("src")
        .into_iter()
        .filter(|(path, text)| room(path).is_none_or(|room| room != "script") && text.contains("mlua"))
        .map(|(path, _)| path.display().to_string())
        .collect();
    assert!(wrong.is_empty(), "mlua outside script/: {wrong:?}");
}

#[test]
fn decisions_take_no_time_of_their_own() {
    let forbidden = ["SystemTime", "Instant::now", "thread_rng", "RandomState", "HashMap", "HashSet", "tokio::"];
    let mut wrong = Vec::new();
    for (path, text) in sources("src") {
        // The one place that knows hash maps lets nobody go through them.
        if room(&path).as_deref() != Some("scheduler") || path.ends_with("lookup.rs") {
            continue;
        }
        for word in forbidden.iter().filter(|word| text.contains(**word)) {
            wrong.push(format!("{}: {word}", path.display()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_ground_floor_does_nothing() {
    let wrong: Vec<String> = sources("src")
        .into_iter()
        .filter(|(path, text)| {
            room(path).as_deref() == Some("model") && (text.contains("tokio") || text.contains("std::fs"))
        })
        .map(|(path, _)| path.display().to_string())
        .collect();
    assert!(wrong.is_empty(), "I/O in model/: {wrong:?}");
}

#[test]
fn nothing_is_left_unfinished() {
    let marks = [concat!("to", "do!("), concat!("unimpl", "emented!("), concat!("FIX", "ME"), concat!("#[ig", "nore")];
    let mut wrong = Vec::new();
    for (path, text) in ["src", "tests", "stdlib", "scripts"].into_iter().flat_map(sources) {
        for mark in marks.iter().filter(|mark| text.contains(**mark)) {
            wrong.push(format!("{}: {mark}", path.display()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
