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
