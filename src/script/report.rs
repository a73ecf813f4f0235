//! A script's failure as its author should see it: what happened, in which file and line, that line, and in which
//! call.

use mlua::Error as LuaError;

use crate::model::{Error, Kind};

/// Where in which file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The file.
    pub file: String,
    /// The line, counted from 1.
    pub line: u32,
}

/// Turns a Lua error into Neap's. `source` finds a file's text; `call` is what was being asked, as in
/// `score(node "eu-1", task "web.3")`.
pub fn explain(subject: &str, error: &LuaError, source: &dyn Fn(&str) -> Option<String>, call: Option<&str>) -> Error {
    let (kind, message, place, help) = take_apart(error);
    let mut text = crate::model::error::shorten(&message);
    if let Some(place) = &place {
        text.push_str(&format!("\n  --> {}:{}", place.file, place.line));
        let line = source(&place.file)
            .and_then(|text| text.lines().nth(place.line.saturating_sub(1) as usize).map(str::to_owned));
        if let Some(line) = line {
            let shown: String = line.trim_end().chars().take(160).collect();
            text.push_str(&format!("\n{:>3} | {shown}", place.line));
        }
    }
    if let Some(call) = call {
        text.push_str(&format!("\n   = in {call}"));
    }
    let mut report = Error::new(kind, subject, text);
    report.help = help;
    report
}

/// A Lua error's own words as Neap's error, without place and trace: what `pcall` gives.
pub fn parts(error: &LuaError) -> Error {
    match error {
        LuaError::CallbackError { cause, .. } | LuaError::WithContext { cause, .. } => parts(cause),
        LuaError::ExternalError(inner) => match inner.downcast_ref::<Error>() {
            Some(error) => error.clone(),
            None => Error::new(Kind::Script, "", inner.to_string()),
        },
        other => {
            let (kind, message, place, help) = take_apart(other);
            let at = place.map(|place| format!("{}:{}", place.file, place.line)).unwrap_or_default();
            let mut error = Error::new(kind, at, message);
            error.help = help;
            error
        }
    }
}

fn take_apart(error: &LuaError) -> (Kind, String, Option<Place>, Option<String>) {
    match error {
        LuaError::SyntaxError { message, .. } => {
            let (place, text) = split_place(message);
            (Kind::Script, format!("syntax: {text}"), place, None)
        }
        LuaError::RuntimeError(message) => {
            let head = message.split("\nstack traceback:").next().unwrap_or(message);
            let (place, text) = split_place(head);
            let text = match text.split_once(": 0x") {
                // Where it lies in memory tells nobody anything.
                Some((kind, rest)) if rest.chars().all(|c| c.is_ascii_hexdigit()) => {
                    format!("raised a {kind}, which nobody caught; raise a text: error \"why\"")
                }
                _ => text,
            };
            let place = place.or_else(|| first_place(message));
            (Kind::Script, text, place, None)
        }
        LuaError::MemoryError(_) => (Kind::Script, "needs more memory than it may have".into(), None, None),
        LuaError::CallbackError { traceback, cause } => {
            let (kind, message, place, help) = take_apart(cause);
            (kind, message, place.or_else(|| first_place(traceback)), help)
        }
        LuaError::ExternalError(inner) => match inner.downcast_ref::<Error>() {
            Some(error) => {
                let mut plain = error.clone();
                let help = plain.help.take();
                // Our own errors keep their kind, so that a script's caller can tell a missing service from a bug.
                (error.kind, plain.to_string(), None, help)
            }
            None => (Kind::Script, inner.to_string(), None, None),
        },
        LuaError::WithContext { context, cause } => {
            let (kind, message, place, help) = take_apart(cause);
            (kind, format!("{context}: {message}"), place, help)
        }
        LuaError::BadArgument { to, pos, name, cause } => {
            let (_, message, place, help) = take_apart(cause);
            let function = to.as_deref().map(|name| format!("{name}: ")).unwrap_or_default();
            // The first of a method is what stands before the colon.
            let argument = match name.as_deref() {
                Some("self") => return (Kind::Script, format!("{function}is called with a colon"), place, help),
                Some(name) => name.to_owned(),
                None => pos.to_string(),
            };
            (Kind::Script, format!("{function}argument {argument}: {message}"), place, help)
        }
        LuaError::FromLuaConversionError { from, to, message, .. } => {
            let detail = message.as_ref().filter(|text| !text.starts_with("expected"));
            let detail = detail.map(|text| format!(" ({text})")).unwrap_or_default();
            let got = if *from == "nil" { "nothing".to_owned() } else { format!("a {from}") };
            (Kind::Script, format!("expected {}, got {got}{detail}", plain(to)), None, None)
        }
        other => (Kind::Script, other.to_string(), None, None),
    }
}

// What Rust calls a type, in a script's words.
fn plain(to: &str) -> &str {
    match to {
        "String" | "LuaString" | "string" | "&str" => "a text",
        "u8" | "u16" | "u32" | "u64" | "usize" => "a whole number, 0 or more",
        "i8" | "i16" | "i32" | "i64" | "isize" => "a whole number",
        "f32" | "f64" | "number" => "a number",
        "bool" | "boolean" => "true or false",
        "Table" | "table" => "a table",
        "Function" | "function" => "a function",
        other => other,
    }
}

// `file.lua:12: text` -> the place and the text.
fn split_place(message: &str) -> (Option<Place>, String) {
    let first = message.lines().next().unwrap_or_default();
    if let Some(at) = first.find(".lua:") {
        let file = &first[..at + 4];
        let rest = &first[at + 5..];
        if let Some((line, text)) = rest.split_once(':')
            && let Ok(line) = line.parse()
            && !file.contains(' ')
        {
            let more = message.strip_prefix(first).unwrap_or_default();
            return (
                Some(Place { file: file.to_owned(), line }),
                format!("{}{more}", text.trim_start()).trim_end().to_owned(),
            );
        }
    }
    (None, message.trim_end().to_owned())
}

// The innermost line of a trace that is in a script.
fn first_place(trace: &str) -> Option<Place> {
    trace.lines().find_map(|line| {
        let line = line.trim();
        let at = line.find(".lua:")?;
        let file = line[..at + 4].trim_start_matches("[string \"").to_owned();
        let digits: String = line[at + 5..].chars().take_while(char::is_ascii_digit).collect();
        Some(Place { file, line: digits.parse().ok()? })
    })
}
