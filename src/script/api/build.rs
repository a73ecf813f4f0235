//! `registry.build`: an image from files and texts of a script.

use std::path::Path;
use std::sync::Arc;

use glob::Pattern;
use mlua::{Lua, Table, Value};
use serde::Deserialize;

use crate::client::Cluster;
use crate::client::images::ImageSettings;
use crate::client::images::build::{Content, Recipe, Source, build};
use crate::model::{Error, strict, suggest};
use crate::script::value::{from_record, raise, to_json};

const WHAT: &str = "registry.build";
/// What else a recipe has than how the image is run.
const OWN: [&str; 5] = ["image", "from", "platform", "timestamp", "exclude"];
/// What is said of something to copy.
const FIELDS: [&str; 6] = ["path", "text", "tar", "mode", "owner", "exclude"];

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Named {
    image: String,
    from: Option<String>,
    platform: Option<String>,
    #[serde(default)]
    timestamp: u64,
    #[serde(default)]
    exclude: Vec<String>,
}

/// Sets it; files are below `folder`, where there is one.
pub fn install(lua: &Lua, registry: &Table, cluster: &Arc<dyn Cluster>, folder: &Path) -> mlua::Result<()> {
    let (shared, folder) = (cluster.clone(), folder.to_owned());
    registry.set(
        "build",
        lua.create_async_function(move |lua, table: Table| {
            let (cluster, folder) = (shared.clone(), folder.clone());
            async move {
                let recipe = recipe(&table, &folder)?;
                let built = build(&*cluster, recipe, |_| {}).await.map_err(raise)?;
                from_record(&lua, &built)
            }
        })?,
    )
}

fn wrong(message: impl Into<String>) -> mlua::Error {
    raise(Error::invalid(WHAT, message))
}

fn recipe(table: &Table, folder: &Path) -> mlua::Result<Recipe> {
    let (mut named, mut settings) = (serde_json::Map::new(), serde_json::Map::new());
    let mut copy = Value::Nil;
    for pair in table.pairs::<Value, Value>() {
        let (key, value) = pair?;
        let key = match &key {
            Value::String(key) => key.to_str()?.to_owned(),
            other => return Err(wrong(format!("expected fields by name, got a {}", other.type_name()))),
        };
        match key.as_str() {
            "copy" => copy = value,
            _ => {
                let part = if OWN.contains(&key.as_str()) { &mut named } else { &mut settings };
                part.insert(key, to_json(&value).map_err(raise)?);
            }
        }
    }
    let named: Named = strict::read(WHAT, &named.into()).map_err(raise)?;
    let settings: ImageSettings = strict::read(WHAT, &settings.into()).map_err(raise)?;
    let exclude = patterns(&named.exclude)?;
    let layers = match copy {
        Value::Nil => Vec::new(),
        Value::Table(copy) if copy.raw_len() > 0 => copy
            .sequence_values::<Table>()
            .map(|layer| layer.and_then(|layer| sources(&layer, folder, &exclude)))
            .collect::<mlua::Result<_>>()?,
        Value::Table(copy) => vec![sources(&copy, folder, &exclude)?],
        other => return Err(wrong(format!("copy: expected what goes where, got a {}", other.type_name()))),
    };
    let Named { image, from, platform, timestamp, .. } = named;
    Ok(Recipe { image, from, platform, layers, settings, created: timestamp })
}

fn patterns(texts: &[String]) -> mlua::Result<Vec<Pattern>> {
    let read = |text: &String| {
        Pattern::new(text).map_err(|error| wrong(format!("exclude: {text:.80?} is no pattern: {error}")))
    };
    texts.iter().map(read).collect()
}

// One layer: by where things go, in order of that.
fn sources(layer: &Table, folder: &Path, exclude: &[Pattern]) -> mlua::Result<Vec<Source>> {
    let mut all = Vec::new();
    for pair in layer.pairs::<Value, Value>() {
        let (to, what) = pair?;
        let to = match &to {
            Value::String(to) => to.to_str()?.to_owned(),
            other => return Err(wrong(format!("copy: expected where things go, got a {}", other.type_name()))),
        };
        all.push(source(to, &what, folder, exclude)?);
    }
    all.sort_by(|a, b| a.to.cmp(&b.to));
    Ok(all)
}

fn source(to: String, what: &Value, folder: &Path, exclude: &[Pattern]) -> mlua::Result<Source> {
    let at = |message: String| wrong(format!("copy[{to:?}]: {message}"));
    let on_disk = |path: String| match folder.as_os_str().is_empty() {
        true => Err(at("there are no files here, only { text = ... }: `neap run` builds from files".into())),
        false => Ok(folder.join(path)),
    };
    let (content, mode, owner, mut own) = match what {
        Value::String(path) => (Content::Disk(on_disk(path.to_str()?.to_owned())?), None, (0, 0), Vec::new()),
        Value::Table(table) => {
            for pair in table.pairs::<String, Value>() {
                let (key, _) = pair?;
                if !FIELDS.contains(&key.as_str()) {
                    let hint = suggest::hint(&key, FIELDS);
                    return Err(at(format!("unknown field \"{key:.60}\"{hint}")));
                }
            }
            let texts: Option<mlua::LuaString> = table.get("text")?;
            let (path, tar): (Option<String>, Option<String>) = (table.get("path")?, table.get("tar")?);
            let content = match (texts, path, tar) {
                (Some(text), None, None) => Content::Bytes(text.as_bytes().to_vec()),
                (None, Some(path), None) => Content::Disk(on_disk(path)?),
                (None, None, Some(tar)) => Content::Tar(on_disk(tar)?),
                _ => return Err(at("has one of path, text and tar".into())),
            };
            let mode = table.get::<Option<String>>("mode")?.map(|text| read_mode(&text)).transpose().map_err(at)?;
            let owner = table.get::<Option<String>>("owner")?.map(|text| read_owner(&text)).transpose().map_err(at)?;
            let exclude: Vec<String> = table.get::<Option<Vec<String>>>("exclude")?.unwrap_or_default();
            (content, mode, owner.unwrap_or_default(), patterns(&exclude)?)
        }
        other => return Err(at(format!("expected a path or a table, got a {}", other.type_name()))),
    };
    own.extend_from_slice(exclude);
    Ok(Source { to, content, mode, owner, exclude: own })
}

/// A mode as people write it: `0755`.
pub fn read_mode(text: &str) -> Result<u32, String> {
    let mode = u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o7777);
    mode.ok_or_else(|| format!("mode {text:.20?} is none, such as \"0755\""))
}

/// User and group by number: `1000`, `1000:1000`.
pub fn read_owner(text: &str) -> Result<(u64, u64), String> {
    let (user, group) = text.split_once(':').unwrap_or((text, text));
    let read = |text: &str| text.parse::<u32>().ok().map(u64::from);
    read(user).zip(read(group)).ok_or_else(|| format!("owner {text:.40?} is none by number, such as \"1000:1000\""))
}
