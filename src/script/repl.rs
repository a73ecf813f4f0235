//! One session of the REPL: evaluates, shows, completes. Who reads the lines is somebody else's business.

use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use mlua::{Lua, MultiValue, Table, Value};

use super::api::services;
use super::run::{self, Disk, Script};
use super::{report, show, types};
use crate::client::{Cluster, NameKind};
use crate::model::{Error, Kind, Result};

/// What the lines are called in reports.
const CHUNK: &str = "=repl.lua";
/// Most names that are offered.
const MAX_NAMES: usize = 100;

const KEYWORDS: [&str; 22] = [
    "and", "break", "continue", "do", "else", "elseif", "end", "false", "for", "function", "if", "in", "local", "nil",
    "not", "or", "repeat", "return", "then", "true", "until", "while",
];

/// A session.
pub struct Session {
    lua: Lua,
    // All that there was before the first line; what the user sets stands in front of it.
    base: Table,
    cluster: Arc<dyn Cluster>,
    interrupted: Arc<AtomicBool>,
}

/// Looks whether a text is a whole statement yet.
pub struct Checker(Lua);

impl Checker {
    /// With a VM of its own, for another thread.
    pub fn new() -> Self {
        Checker(Lua::new())
    }

    /// Whether more lines have to follow.
    pub fn wants_more(&self, code: &str) -> bool {
        let is_incomplete = |text: &str| {
            match self.0.load(text).into_function() {
                Err(mlua::Error::SyntaxError { incomplete_input: true, .. }) => true,
                // A long text or comment that is not closed yet is not told apart from a broken one.
                Err(mlua::Error::SyntaxError { message, .. }) => {
                    text.contains("[[")
                        && ["Malformed string", "Unfinished comment"].iter().any(|why| message.contains(why))
                }
                _ => false,
            }
        };
        let expression = format!("return {code}");
        let whole = self.0.load(expression.as_str()).into_function().is_ok();
        !whole && (is_incomplete(code) || is_incomplete(&expression))
    }
}

impl Default for Checker {
    fn default() -> Self {
        Self::new()
    }
}

impl Session {
    /// A session in the user's own process. `interrupted` ends an evaluation.
    pub fn new(context: services::Context, cwd: PathBuf, interrupted: Arc<AtomicBool>) -> Result<Self> {
        let broken = |error: mlua::Error| Error::internal("REPL", "cannot make a VM").cause(error);
        let cluster = context.cluster.clone();
        let script = Script { path: cwd.join("repl.lua"), args: Vec::new(), cwd: cwd.clone() };
        let (lua, base) =
            run::prepare_with(&script, &context, Rc::new(Disk(cwd)), interrupted.clone(), types::install_help)
                .map_err(broken)?;
        Ok(Session { lua, base, cluster, interrupted })
    }

    /// Evaluates a line or several: what it gives, as text; nothing where it gives nothing.
    pub async fn eval(&self, code: &str) -> Result<Option<String>> {
        self.interrupted.store(false, Ordering::Relaxed);
        let code = if code.trim() == "help" { "help()".to_owned() } else { widened(code) };
        let expression = self.lua.load(format!("return {code}")).set_name(CHUNK).into_function();
        let function = match expression {
            Ok(function) => Ok(function),
            Err(_) => self.lua.load(code.as_str()).set_name(CHUNK).into_function(),
        };
        let result = match function {
            Ok(function) => function.call_async::<MultiValue>(()).await,
            Err(error) => Err(error),
        };
        let shown = result.and_then(|values| {
            let texts: mlua::Result<Vec<String>> = values.iter().map(show::value).collect();
            Ok(texts?.join("\n"))
        });
        match shown {
            Ok(text) if text.is_empty() => Ok(None),
            Ok(text) => Ok(Some(text)),
            Err(_) if self.interrupted.load(Ordering::Relaxed) => {
                Err(Error::new(Kind::Failed, "evaluation", "was interrupted"))
            }
            Err(error) => {
                let source = |name: &str| (name == "repl.lua").then(|| code.clone());
                let mut report = report::explain("", &error, &source, None);
                // A line of one's own needs no place to be found.
                if code.lines().count() <= 1
                    && let Some((message, _)) = report.message.split_once("\n  --> repl.lua:1")
                {
                    report.message = message.to_owned();
                }
                Err(report)
            }
        }
    }

    /// What could stand at the end of `line`: where it begins, and the ways to go on.
    pub async fn complete(&self, line: &str) -> (usize, Vec<String>) {
        if let Some((kind, start)) = object(line) {
            let found = self.cluster.names(kind, &line[start..], MAX_NAMES).await.unwrap_or_default();
            return (start, found);
        }
        let start = line
            .char_indices()
            .rev()
            .take_while(|(_, c)| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | ':'))
            .last()
            .map_or(line.len(), |(at, _)| at);
        let path = &line[start..];
        let cut = path.rfind(['.', ':']).map_or(0, |at| at + 1);
        let (owner, wanted) = (&path[..cut.saturating_sub(1)], &path[cut..]);
        let mut names = match (cut, owner.is_empty()) {
            (0, _) => self.names(),
            // What a call gives is not known before it is made, but for this one.
            (_, true) if is_service(&line[..start]) => services::SERVICE.map(str::to_owned).to_vec(),
            _ => self.members(owner),
        };
        names.retain(|name| name.starts_with(wanted));
        names.sort();
        names.dedup();
        names.truncate(MAX_NAMES);
        (start + cut, names)
    }

    fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = KEYWORDS.iter().map(|word| (*word).to_owned()).collect();
        names.extend(keys(&self.base));
        names.extend(keys(&self.lua.globals()));
        names
    }

    // Looks only at what is there already: completing calls nothing of the user's.
    fn members(&self, path: &str) -> Vec<String> {
        let mut parts = path.split(['.', ':']);
        let Some(first) = parts.next() else { return Vec::new() };
        let own = self.lua.globals().raw_get::<Value>(first).unwrap_or(Value::Nil);
        let mut value = if own.is_nil() { self.base.raw_get(first).unwrap_or(Value::Nil) } else { own };
        for part in parts {
            value = match &value {
                Value::Table(table) => table.raw_get(part).unwrap_or(Value::Nil),
                _ => Value::Nil,
            };
        }
        match &value {
            Value::Table(table) => keys(table),
            other => services::members(other).unwrap_or_default().iter().map(|name| (*name).to_owned()).collect(),
        }
    }
}

/// The arguments of the function whose name the line ends with.
pub fn hint(line: &str) -> Option<String> {
    static ALL: std::sync::OnceLock<Vec<types::Described>> = std::sync::OnceLock::new();
    let all = ALL.get_or_init(types::described);
    let start = line.rfind(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '_' | '.'))).map_or(0, |at| at + 1);
    let name = &line[start..];
    let found = all.iter().find(|found| found.name == name && found.is_function())?;
    Some(format!(" {}", found.signature))
}

/// A line of Lua with colours for a terminal: words of the language, texts, numbers, comments.
pub fn colour(line: &str) -> String {
    let mut out = String::with_capacity(line.len() * 2);
    let mut rest = line;
    while let Some(first) = rest.chars().next() {
        let (length, style) = if rest.starts_with("--") {
            (rest.find('\n').unwrap_or(rest.len()), "2")
        } else if matches!(first, '"' | '\'' | '`') {
            (text_length(rest, first), "32")
        } else if first.is_ascii_digit() {
            let end = rest.find(|c: char| !(c.is_ascii_alphanumeric() || c == '.')).unwrap_or(rest.len());
            (end, "36")
        } else if first.is_ascii_alphabetic() || first == '_' {
            let end = rest.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).unwrap_or(rest.len());
            (end, if KEYWORDS.contains(&&rest[..end]) { "35" } else { "" })
        } else {
            (first.len_utf8(), "")
        };
        let (piece, left) = rest.split_at(length);
        match style {
            "" => out.push_str(piece),
            style => out.push_str(&format!("\x1b[{style}m{piece}\x1b[0m")),
        }
        rest = left;
    }
    out
}

// Up to the closing quote, or to the end.
fn text_length(text: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        if c == quote && !escaped {
            return at + c.len_utf8();
        }
        escaped = c == '\\' && !escaped;
    }
    text.len()
}

fn keys(table: &Table) -> Vec<String> {
    let pairs = table.pairs::<Value, Value>().flatten();
    pairs.filter_map(|(key, _)| key.as_string().map(|name| name.to_string_lossy())).collect()
}

// Whether the cursor stands in the name of an object, as in `services.get "we`: which kind, and where the name begins.
fn object(line: &str) -> Option<(NameKind, usize)> {
    let quote = line.rfind(['"', '\''])?;
    let before = line[..quote].trim_end().trim_end_matches('(').trim_end();
    // An even number of quotes before it: this one begins a text.
    if !line[..quote].matches(['"', '\'']).count().is_multiple_of(2) {
        return None;
    }
    let known = [
        ("services.get", NameKind::Service),
        ("nodes.get", NameKind::Node),
        ("routes.get", NameKind::Route),
        ("routes.remove", NameKind::Route),
        ("route", NameKind::Route),
        ("crons.get", NameKind::Cron),
        ("scripts.get", NameKind::Script),
        ("scripts.rollback", NameKind::Script),
        ("scripts.remove", NameKind::Script),
        ("kv.get", NameKind::Kv),
        ("kv.set", NameKind::Kv),
        ("kv.remove", NameKind::Kv),
        ("kv.list", NameKind::Kv),
        ("kv.ref", NameKind::Kv),
        ("secrets.set", NameKind::Secret),
        ("secrets.remove", NameKind::Secret),
        ("configs.set", NameKind::Config),
        ("configs.get", NameKind::Config),
        ("configs.remove", NameKind::Config),
        ("service", NameKind::Service),
    ];
    let kind = known.into_iter().find(|(call, _)| {
        before.strip_suffix(call).is_some_and(|rest| !rest.ends_with(|c: char| c.is_ascii_alphanumeric() || c == '_'))
    });
    Some((kind?.1, quote + 1))
}

// Whether a text ends with the call for one service.
fn is_service(text: &str) -> bool {
    let text = text.trim_end().trim_end_matches(')');
    let Some(inner) = text.strip_suffix(['"', '\'']) else { return false };
    let Some(quote) = inner.rfind(['"', '\'']) else { return false };
    inner[..quote].trim_end().trim_end_matches('(').trim_end().ends_with("services.get")
}

// A local of one line would be gone by the next: at the beginning of a line it is the session's.
fn widened(code: &str) -> String {
    let trimmed = code.trim_start();
    let Some(rest) = trimmed.strip_prefix("local ") else { return code.to_owned() };
    let rest = rest.trim_start();
    if rest.starts_with("function ") {
        return rest.to_owned();
    }
    let end = rest.find(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '_' | ',' | ' '))).unwrap_or(rest.len());
    match rest[end..].chars().next() {
        Some('=') => rest.to_owned(),
        None if !rest.trim().is_empty() => format!("{} = nil", rest.trim()),
        _ => code.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locals_last() {
        for (code, expected) in [
            ("local x = 1", "x = 1"),
            ("local a, b = f()", "a, b = f()"),
            ("local function f() end", "function f() end"),
            ("local x", "x = nil"),
            ("local x: number = 1", "local x: number = 1"),
            ("x = 1", "x = 1"),
        ] {
            assert_eq!(widened(code), expected);
        }
    }

    #[test]
    fn objects_are_seen_in_their_names() {
        let kind = |line: &str| object(line).map(|(kind, start)| (kind.as_str(), line[start..].to_owned()));
        assert_eq!(kind("services.get \"we"), Some(("service", "we".into())));
        assert_eq!(kind("print(kv.get('shop/"), Some(("kv", "shop/".into())));
        assert_eq!(kind("services.get \"web\":sc"), None);
        assert_eq!(kind("myservices.get \"we"), None);
        assert_eq!(kind("print \"we"), None);
    }

    #[test]
    fn more_is_wanted_until_a_statement_is_whole() {
        let checker = Checker::new();
        assert!(checker.wants_more("for i = 1, 3 do"));
        assert!(checker.wants_more("service \"web\" {"));
        assert!(checker.wants_more("x = [["));
        assert!(checker.wants_more("1 +"));
        assert!(!checker.wants_more("for i = 1, 3 do print(i) end"));
        assert!(!checker.wants_more("services.list()"));
        assert!(!checker.wants_more("x = = 1"));
    }
}
