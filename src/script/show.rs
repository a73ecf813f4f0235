//! Lua values as people read them: lists as tables, long ones cut with a count.

use mlua::{Table, Value};

use super::api::services;
use super::value::UNFOLD;
use crate::client::show;

/// Most rows of a list, and most entries of a table.
const MAX_ROWS: usize = 50;
/// Most columns of a list of tables.
const MAX_COLUMNS: usize = 9;
/// Widest cell.
const MAX_CELL: usize = 48;
/// Deepest nesting that is shown.
const MAX_DEPTH: usize = 5;
/// Most entries that are looked at of one table, and of one value, at all depths together.
const MAX_LOOKED: usize = 1000;
const MAX_ENTRIES: usize = 10_000;
/// Longest text that is shown whole, in characters.
const MAX_TEXT: usize = 20_000;

/// A value as the REPL prints it.
pub fn value(value: &Value) -> mlua::Result<String> {
    match value {
        Value::String(text) => Ok(cut(&text.to_string_lossy(), MAX_TEXT)),
        Value::Table(table) => match list(table) {
            Some(items) => rows(&items),
            None => whole(value, 0),
        },
        other => other.to_string(),
    }
}

/// A value as `print` shows it: texts as they are, tables with what is in them.
pub fn printed(value: &Value) -> mlua::Result<String> {
    match value {
        Value::Table(table) if !says_itself(table)? => whole(value, 0),
        other => other.to_string(),
    }
}

// Whether a table has a text of its own.
fn says_itself(table: &Table) -> mlua::Result<bool> {
    let Some(meta) = table.metatable() else { return Ok(false) };
    Ok(!meta.raw_get::<Value>("__tostring")?.is_nil())
}

fn whole(value: &Value, depth: usize) -> mlua::Result<String> {
    let mut left = MAX_ENTRIES;
    nested(value, depth, &mut left)
}

// The entries of a table that is a list of something.
fn list(table: &Table) -> Option<Vec<Value>> {
    let length = table.raw_len();
    if length == 0 {
        return None;
    }
    table.sequence_values::<Value>().collect::<mlua::Result<Vec<Value>>>().ok().filter(|items| items.len() == length)
}

fn rows(items: &[Value]) -> mlua::Result<String> {
    let shown = &items[..items.len().min(MAX_ROWS)];
    let mut text = if let Some(statuses) = services::statuses(shown) {
        show::services(&statuses, &[])
    } else if shown.iter().all(|item| item.as_table().is_some_and(|table| table.raw_len() == 0)) {
        table(shown)?
    } else {
        let lines: mlua::Result<Vec<String>> =
            shown.iter().enumerate().map(|(at, item)| Ok(format!("{:>3}  {}", at + 1, one_line(item)?))).collect();
        lines?.join("\n")
    };
    if items.len() > shown.len() {
        text.push_str(&format!("\n... and {} more, {} in all", items.len() - shown.len(), items.len()));
    }
    Ok(text)
}

fn table(items: &[Value]) -> mlua::Result<String> {
    let mut columns: Vec<String> = Vec::new();
    for item in items {
        let Some(table) = item.as_table() else { continue };
        for pair in table.pairs::<Value, Value>() {
            let (key, value) = pair?;
            let key = key.to_string()?;
            if !matches!(value, Value::Function(_)) && !columns.contains(&key) {
                columns.push(key);
            }
        }
    }
    // What things are called comes first, the rest by name.
    let rank =
        |name: &str| ["name", "id", "hostname", "key", "handler", "kind"].iter().position(|first| *first == name);
    columns.sort_by(|a, b| (rank(a).unwrap_or(99), a).cmp(&(rank(b).unwrap_or(99), b)));
    columns.truncate(MAX_COLUMNS);
    let mut rows: Vec<Vec<String>> = Vec::new();
    for item in items {
        let Some(table) = item.as_table() else { continue };
        let cells: mlua::Result<Vec<String>> = columns
            .iter()
            .map(|column| {
                let value: Value = table.raw_get(column.as_str())?;
                if value.is_nil() { Ok("-".into()) } else { one_line(&value) }
            })
            .collect();
        rows.push(cells?);
    }
    let head: Vec<String> = columns.iter().map(|column| column.to_uppercase()).collect();
    Ok(show::any(&head, rows))
}

fn one_line(value: &Value) -> mlua::Result<String> {
    let text = match value {
        Value::Table(table) => match whole(value, MAX_DEPTH - 2)? {
            text if text.chars().count() <= MAX_CELL && !text.contains('\n') => text,
            // What does not fit into a cell is called by its name, or counted.
            _ => match table.raw_get::<Value>("name")? {
                Value::String(name) => name.to_string_lossy(),
                _ => format!("{{ {} entries }}", table.pairs::<Value, Value>().count()),
            },
        },
        Value::String(text) => text.to_string_lossy(),
        other => other.to_string()?,
    };
    Ok(cut(&text.lines().collect::<Vec<_>>().join(" "), MAX_CELL))
}

// `left`: how many entries may still be looked at. Whatever a script gives, it costs no more than that.
fn nested(value: &Value, depth: usize, left: &mut usize) -> mlua::Result<String> {
    let table = match value {
        Value::Table(table) => table,
        Value::String(text) => return Ok(format!("{:?}", beginning(text, 2000))),
        other => return other.to_string(),
    };
    // What stands for others shows what it stands for.
    let unfold = table.metatable().and_then(|meta| meta.raw_get::<Option<mlua::Function>>(UNFOLD).ok().flatten());
    let table = match unfold {
        Some(unfold) => &unfold.call::<Table>(())?,
        None => table,
    };
    let length = table.raw_len();
    if depth >= MAX_DEPTH || *left == 0 {
        let looked = table.pairs::<Value, Value>().take(MAX_LOOKED + 1).count();
        *left = left.saturating_sub(looked);
        let (count, more) = match looked > MAX_LOOKED {
            true => (length.max(MAX_LOOKED), " or more"),
            false => (looked, ""),
        };
        return Ok(if count == 0 { "{}".into() } else { format!("{{ {count}{more} entries }}") });
    }
    let most = MAX_LOOKED.min(*left);
    let mut entries: Vec<(Value, Value)> = table.pairs::<Value, Value>().take(most).collect::<mlua::Result<_>>()?;
    *left -= entries.len();
    if entries.is_empty() {
        return Ok("{}".into());
    }
    // Where not all was looked at, what came first tells.
    let is_cut = entries.len() == most;
    let is_at = |(at, (key, _)): (usize, &(Value, Value))| match key {
        Value::Integer(number) => usize::try_from(*number) == Ok(at + 1),
        Value::Number(number) => *number == at as f64 + 1.0,
        _ => false,
    };
    let is_list = length >= entries.len() && entries.iter().enumerate().all(is_at);
    if !is_list {
        let name = |key: &Value| match key {
            Value::String(text) => beginning(text, 200),
            other => other.to_string().unwrap_or_default(),
        };
        entries.sort_by_cached_key(|(key, _)| name(key));
    }
    let (count, least) = match is_cut {
        true => (entries.len().max(length), "at least "),
        false => (entries.len(), ""),
    };
    let mut parts = Vec::new();
    for (key, value) in entries.into_iter().take(MAX_ROWS) {
        let value = nested(&value, depth + 1, left)?;
        parts.push(match &key {
            _ if is_list => value,
            Value::String(text) => match beginning(text, 200) {
                name if is_name(&name) => format!("{name} = {value}"),
                name => format!("[{name:?}] = {value}"),
            },
            key => format!("[{}] = {value}", nested(key, MAX_DEPTH, left)?),
        });
    }
    match count - parts.len() {
        0 if is_cut => parts.push("... and perhaps more".into()),
        0 => {}
        more => parts.push(format!("... and {least}{more} more")),
    }
    let line = format!("{{ {} }}", parts.join(", "));
    if line.len() <= 100 && !line.contains('\n') {
        return Ok(line);
    }
    let pad = "  ".repeat(depth + 1);
    let lines: Vec<String> = parts.iter().map(|part| format!("{pad}{part},")).collect();
    Ok(format!("{{\n{}\n{}}}", lines.join("\n"), "  ".repeat(depth)))
}

// The first characters of a text, of which no more is read.
fn beginning(text: &mlua::LuaString, most: usize) -> String {
    let bytes = text.as_bytes();
    cut(&String::from_utf8_lossy(&bytes[..bytes.len().min(most * 4 + 4)]), most)
}

fn is_name(text: &str) -> bool {
    !text.is_empty()
        && !text.starts_with(|c: char| c.is_ascii_digit())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

fn cut(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}
