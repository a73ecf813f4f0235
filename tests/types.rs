//! One text for types, help and reference: it has to say everything that there is, and nothing that there is not.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use neap::script::types::{described, reference};

#[path = "support/mod.rs"]
mod support;

use support::Daemon;

const KINDS: [&str; 8] = ["run", "repl", "test", "policy", "rollout", "check", "cron", "on"];

/// What Luau itself brings: described by Luau.
const LUAU: [&str; 31] = [
    "_G",
    "_VERSION",
    "assert",
    "bit32",
    "buffer",
    "coroutine",
    "error",
    "getmetatable",
    "ipairs",
    "math",
    "next",
    "pairs",
    "pcall",
    "rawequal",
    "rawget",
    "rawlen",
    "rawset",
    "select",
    "setmetatable",
    "string",
    "table",
    "tonumber",
    "tostring",
    "type",
    "typeof",
    "unpack",
    "utf8",
    "vector",
    "xpcall",
    "integer",
    "class",
];

fn all_text(folder: &str, into: &mut String) {
    for entry in std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(folder)).unwrap().flatten() {
        let path = entry.path();
        let relative = path.strip_prefix(env!("CARGO_MANIFEST_DIR")).unwrap().to_string_lossy().into_owned();
        if path.is_dir() {
            all_text(&relative, into);
        } else if !relative.ends_with("types.rs") {
            into.push_str(&std::fs::read_to_string(&path).unwrap_or_default());
        }
    }
}

#[test]
fn every_function_has_a_type_a_text_its_kinds_and_a_test() {
    let mut tests = String::new();
    for folder in ["tests", "scripts", "stdlib"] {
        all_text(folder, &mut tests);
    }
    let mut wrong = Vec::new();
    for found in described() {
        if found.text.is_empty() {
            wrong.push(format!("{}: no text", found.name));
        }
        if let Some(unknown) = found.kinds.iter().find(|kind| !KINDS.contains(&kind.as_str())) {
            wrong.push(format!("{}: unknown kind {unknown}", found.name));
        }
        if !found.is_function() {
            continue;
        }
        if found.kinds.is_empty() && !found.name.starts_with("Description") {
            wrong.push(format!("{}: no kinds", found.name));
        }
        let called = match found.name.split_once(':') {
            Some((_, method)) => format!(":{method}"),
            None => found.name.clone(),
        };
        if !tests.contains(&called) {
            wrong.push(format!("{}: no test and no example calls it", found.name));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn what_is_there_is_described_and_what_is_described_is_there() {
    let daemon = Daemon::start();
    let described = described();
    let mut fields: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for found in described.iter().filter(|found| found.name.contains('.') && found.name.starts_with(char::is_lowercase))
    {
        let (owner, field) = found.name.split_once('.').unwrap();
        fields.entry(owner.to_owned()).or_default().insert(field.to_owned());
    }
    for (owner, described) in &fields {
        let out = daemon.ok(&["repl", "--eval", &format!("for name in pairs({owner}) do print(name) end")]);
        let there: BTreeSet<String> = out.lines().map(str::to_owned).collect();
        // `args` holds the arguments themselves as well.
        let there: BTreeSet<String> = there.into_iter().filter(|name| owner != "args" || name == "parse").collect();
        assert_eq!(there, *described, "fields of {owner}");
    }
    let top: BTreeSet<String> = described
        .iter()
        .filter(|found| !found.name.contains(['.', ':']) && found.name.starts_with(char::is_lowercase))
        .map(|found| found.name.clone())
        .collect();
    for name in &top {
        let out = daemon.ok(&["repl", "--eval", &format!("print(type({name}))")]);
        assert!(["table", "function"].contains(&out.trim()), "{name} is a {out}");
    }
    let shown = daemon.ok(&["repl", "--eval", "help()"]);
    for name in &top {
        assert!(shown.lines().any(|line| line.trim().starts_with(name.as_str())), "help() does not show {name}");
    }
    for name in LUAU {
        assert!(!top.contains(name), "{name} is Luau's own");
    }
}

#[test]
fn the_reference_is_current() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/reference/lua.md");
    let wanted = reference();
    if std::env::var_os("NEAP_WRITE_DOCS").is_some() {
        std::fs::write(&path, &wanted).unwrap();
    }
    let there = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(there == wanted, "docs/reference/lua.md is out of date: NEAP_WRITE_DOCS=1 cargo test --test types");
}

#[test]
fn editors_get_definitions_and_what_is_configured_stays() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join(".luaurc"), "mine").unwrap();
    let out = std::process::Command::new(support::NEAP).args(["script", "types"]).arg(folder.path()).output().unwrap();
    assert!(out.status.success());
    let read = |name: &str| std::fs::read_to_string(folder.path().join(name)).unwrap();
    assert!(read("neap.d.luau").contains("declare function policy(name: string)"));
    assert_eq!(read(".luaurc"), "mine");
    let settings: serde_json::Value = serde_json::from_str(&read(".vscode/settings.json")).unwrap();
    assert_eq!(settings["luau-lsp.types.definitionFiles"]["@neap"], "neap.d.luau");
}
