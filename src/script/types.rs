//! Types of the Lua API, one text for editors, `help` and the reference: the `.d.luau` files beside the bindings.

use std::path::{Path, PathBuf};

use crate::model::{Error, Result};

include!(concat!(env!("OUT_DIR"), "/types.rs"));

/// All definitions in one text.
pub fn definitions() -> String {
    let mut text = String::from("-- Types of Neap's Lua API, for luau-lsp. Written by `neap script types`.\n");
    for (_, source) in FILES {
        text.push('\n');
        text.push_str(source.trim_end());
        text.push('\n');
    }
    text
}

/// Writes the definitions and a configuration for luau-lsp to `folder`.
pub fn write(folder: &Path) -> Result<Vec<PathBuf>> {
    let failed = |path: &Path, error: std::io::Error| Error::io(path.display().to_string(), "write it", &error);
    std::fs::create_dir_all(folder).map_err(|error| failed(folder, error))?;
    let settings = serde_json::json!({
        "luau-lsp.platform.type": "standard",
        "luau-lsp.types.definitionFiles": { "@neap": "neap.d.luau" },
        "luau-lsp.completion.imports.enabled": false,
    });
    let luaurc = serde_json::json!({ "languageMode": "strict", "aliases": {} });
    let pretty = |value: &serde_json::Value| format!("{value:#}\n");
    let files =
        [("neap.d.luau", definitions()), (".luaurc", pretty(&luaurc)), (".vscode/settings.json", pretty(&settings))];
    let mut written = Vec::new();
    for (name, text) in files {
        let path = folder.join(name);
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).map_err(|error| failed(parent, error))?;
        }
        // What is configured already stays.
        if name != "neap.d.luau" && path.exists() {
            continue;
        }
        std::fs::write(&path, text).map_err(|error| failed(&path, error))?;
        written.push(path);
    }
    Ok(written)
}

/// One thing that the definitions describe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Described {
    /// `services.get`, `Service:scale`, `policy`.
    pub name: String,
    /// What stands behind the name.
    pub signature: String,
    /// What it is for.
    pub text: String,
    /// The kinds of scripts that it works in.
    pub kinds: Vec<String>,
}

impl Described {
    /// Whether it can be called.
    pub fn is_function(&self) -> bool {
        self.signature.starts_with('(') && (self.signature.contains("->") || self.signature.contains("):"))
    }
}

/// All that the definitions describe, as they stand.
pub fn described() -> Vec<Described> {
    FILES.iter().flat_map(|(_, source)| describe(source)).collect()
}

fn describe(source: &str) -> Vec<Described> {
    let mut found = Vec::new();
    let mut text: Vec<&str> = Vec::new();
    let mut kinds: Vec<String> = Vec::new();
    // The namespace or type that the lines are in, and its kinds.
    let mut inside: Option<(String, bool, Vec<String>)> = None;
    for line in source.lines() {
        let bare = line.trim();
        if let Some(comment) = bare.strip_prefix("---") {
            match comment.trim().strip_prefix("@kinds ") {
                Some(list) => kinds = list.split_whitespace().map(str::to_owned).collect(),
                None => text.push(comment.trim()),
            }
            continue;
        }
        let mut add = |name: String, signature: &str, inherited: &[String]| {
            let kinds = if kinds.is_empty() { inherited.to_vec() } else { kinds.clone() };
            let signature = signature.trim().trim_end_matches(',').to_owned();
            found.push(Described { name, signature, text: text.join(" "), kinds });
        };
        if let Some(rest) = line.strip_prefix("declare function ") {
            let end = rest.find('(').unwrap_or(rest.len());
            add(rest[..end].to_owned(), &rest[end..], &[]);
        } else if let Some((name, _)) = line.strip_prefix("declare ").and_then(|rest| rest.split_once(':')) {
            add(name.to_owned(), "a table", &[]);
            inside = Some((name.to_owned(), false, kinds.clone()));
        } else if let Some((name, rest)) = line.strip_prefix("export type ").and_then(|rest| rest.split_once(" = ")) {
            add(name.to_owned(), if rest == "{" { "a type" } else { rest }, &[]);
            inside = (rest == "{").then(|| (name.to_owned(), true, kinds.clone()));
        } else if line.starts_with('}') {
            if let (None, Some(last)) = (inside.take(), found.last_mut()) {
                last.signature.push_str(&format!(" {bare}"));
            }
        } else if let (Some((owner, is_type, inherited)), Some((name, signature))) = (&inside, bare.split_once(": ")) {
            let is_method = *is_type && signature.starts_with("(self");
            let joined = format!("{owner}{}{name}", if is_method { ':' } else { '.' });
            add(joined, signature, inherited);
        } else if !bare.is_empty() {
            // The rest of a signature that goes over several lines.
            if let Some(last) = found.last_mut()
                && inside.is_none()
            {
                last.signature.push_str(&format!(" {}", bare.trim_end()));
            }
            continue;
        }
        text.clear();
        kinds.clear();
    }
    found
}

/// The reference page: everything that scripts can call, as it stands in the definitions.
pub fn reference() -> String {
    let mut page = String::from(
        "# The Lua API\n\nMade from the type definitions (`neap script types DIR` writes them for editors); `help()` in \
         the REPL shows the same. *Works in* names the kinds of scripts: `run`, `repl` and `test` in the user's own process, \
         the others hosted in the daemon.\n",
    );
    for found in described() {
        let (name, text) = (&found.name, &found.text);
        if !found.name.contains(['.', ':']) {
            page.push_str(&format!("\n## {name}\n\n{text}"));
            if !found.kinds.is_empty() {
                page.push_str(&format!(" *Works in {}.*", found.kinds.join(", ")));
            }
            page.push('\n');
            if found.signature != "a table" && found.signature != "a type" {
                page.push_str(&format!("\n```luau\n{name}{}\n```\n", signature(&found)));
            } else {
                page.push_str("\n| | |\n| --- | --- |\n");
            }
        } else {
            let code = format!("{name}{}", signature(&found)).replace('|', "\\|");
            page.push_str(&format!("| `{code}` | {} |\n", text.replace('|', "\\|")));
        }
    }
    page
}

/// Gives a VM its `help`.
pub fn install_help(lua: &mlua::Lua) -> mlua::Result<()> {
    let all = described();
    let help = lua.create_function(move |lua, what: mlua::Value| {
        let name = match &what {
            mlua::Value::Nil => None,
            mlua::Value::String(name) => Some(name.to_string_lossy()),
            other => Some(name_of(lua, other).unwrap_or_else(|| format!("a {}", other.type_name()))),
        };
        Ok(text_of(&all, name.as_deref()))
    })?;
    // Its answer is printed, not quoted.
    let print: mlua::Function = lua.globals().get("print")?;
    lua.globals().set(
        "help",
        lua.create_function(move |_, what: mlua::Value| {
            let text: mlua::Value = help.call(what)?;
            print.call::<()>(text)
        })?,
    )
}

// The name under which a value is known: looked for among the globals and one step below them.
fn name_of(lua: &mlua::Lua, wanted: &mlua::Value) -> Option<String> {
    if super::api::services::members(wanted).is_some() {
        return Some(
            if wanted.as_userdata()?.is::<super::api::services::Handle>() { "Service" } else { "Description" }.into(),
        );
    }
    let globals = lua.globals();
    let base = globals.metatable().and_then(|meta| meta.raw_get::<mlua::Table>("__index").ok());
    for table in [Some(globals), base].into_iter().flatten() {
        for (key, value) in table.pairs::<mlua::Value, mlua::Value>().flatten() {
            let Some(key) = key.as_string().map(|key| key.to_string_lossy()) else { continue };
            if value == *wanted {
                return Some(key);
            }
            let Some(inner) = value.as_table().filter(|_| key != "_G") else { continue };
            for (name, value) in inner.pairs::<mlua::Value, mlua::Value>().flatten() {
                if value == *wanted
                    && let Some(name) = name.as_string()
                {
                    return Some(format!("{key}.{}", name.to_string_lossy()));
                }
            }
        }
    }
    None
}

fn text_of(all: &[Described], name: Option<&str>) -> String {
    let Some(name) = name else {
        let line = |found: &Described| format!("  {:<10} {}", found.name, found.text);
        let is_top =
            |found: &&Described| !found.name.contains(['.', ':']) && found.name.starts_with(char::is_lowercase);
        let mut lines: Vec<String> = all.iter().filter(is_top).map(line).collect();
        lines.sort();
        return format!("{}\n\nhelp \"kv\" shows more; so does help(services.get).", lines.join("\n"));
    };
    let name = name.trim();
    let Some(found) = all.iter().find(|found| found.name == name || found.name.replace(':', ".") == name) else {
        let hint = crate::model::suggest::nearest(name, all.iter().map(|found| found.name.as_str()));
        let hint = hint.map(|near| format!("; did you mean \"{near}\"?")).unwrap_or_default();
        return format!("there is no help for {name}{hint}");
    };
    let mut lines = vec![format!("{}{}", found.name, signature(found)), found.text.clone()];
    if !found.kinds.is_empty() {
        lines.push(format!("works in: {}", found.kinds.join(", ")));
    }
    let below =
        all.iter().filter(|other| other.name.strip_prefix(name).is_some_and(|rest| rest.starts_with(['.', ':'])));
    lines.extend(below.map(|other| format!("  {}{}\n      {}", other.name, signature(other), other.text)));
    lines.join("\n")
}

fn signature(found: &Described) -> String {
    match found.signature.as_str() {
        text if text.starts_with('(') => text.to_owned(),
        text => format!(": {text}"),
    }
}
