//! `${VARIABLE}` in values, by the rules of the Compose specification.

use std::collections::BTreeMap;

use super::yaml::{At, Node, Value, is_null};
use crate::model::{Error, Result};

/// Longest text that comes of one, and of all of a file.
const MAX_TEXT: usize = 1 << 20;
const MAX_ALL: usize = 16 << 20;

/// What filling in goes on with.
#[derive(Default)]
pub struct Filled {
    /// The variables that are not set, each with where it is used.
    pub missing: Vec<(String, At)>,
    // Bytes that were filled in.
    bytes: usize,
}

impl Filled {
    fn count(&mut self, bytes: usize) -> std::result::Result<(), String> {
        self.bytes += bytes;
        if self.bytes > MAX_ALL { Err(format!("grows beyond {MAX_ALL} bytes, all variables together")) } else { Ok(()) }
    }
}

/// Fills in all values of a tree; keys stay.
pub fn tree(node: &mut Node, variables: &BTreeMap<String, String>, filled: &mut Filled) -> Result<()> {
    match &mut node.value {
        Value::Text(text, plain) => {
            if text.contains('$') {
                let at = node.at.clone();
                let missing = &mut filled.missing;
                *text = fill_in(text, variables, &mut |name| missing.push((name.to_owned(), at.clone())))
                    .and_then(|text| filled.count(text.len()).map(|()| text))
                    .map_err(|why| Error::invalid(at.to_string(), why))?;
                // A variable that is empty is an empty text, not the absence of one.
                *plain &= !is_null(text);
            }
        }
        Value::List(list) => {
            for node in list {
                tree(node, variables, filled)?;
            }
        }
        Value::Map(map) => {
            for (_, _, node) in map {
                tree(node, variables, filled)?;
            }
        }
    }
    Ok(())
}

/// `$NAME`, `${NAME}`, `${NAME:-default}`, `${NAME-default}`, `${NAME:?error}`, `${NAME?error}`, `${NAME:+other}`,
/// `${NAME+other}`, and `$$` for a dollar sign.
pub fn fill_in(
    text: &str,
    variables: &BTreeMap<String, String>,
    missing: &mut dyn FnMut(&str),
) -> std::result::Result<String, String> {
    fill(text, variables, missing, 0)
}

fn fill(
    text: &str,
    variables: &BTreeMap<String, String>,
    missing: &mut dyn FnMut(&str),
    depth: usize,
) -> std::result::Result<String, String> {
    if depth > 16 {
        return Err("nests variables too deep".into());
    }
    let (mut out, mut rest) = (String::new(), text);
    while let Some(dollar) = rest.find('$') {
        out.push_str(&rest[..dollar]);
        rest = &rest[dollar + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some(after) = rest.strip_prefix('{') {
            let end = closing(after).ok_or_else(|| format!("has \"${{\" without \"}}\" in {text:.80?}"))?;
            out.push_str(&braced(&after[..end], variables, missing, depth)?);
            rest = &after[end + 1..];
        } else {
            let end = rest.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).unwrap_or(rest.len());
            if end == 0 || rest.starts_with(|c: char| c.is_ascii_digit()) {
                return Err(format!(
                    "has a \"$\" that begins no variable in {text:.80?}; write \"$$\" for the sign itself"
                ));
            }
            out.push_str(&value(&rest[..end], variables, missing));
            rest = &rest[end..];
        }
        if out.len() > MAX_TEXT {
            return Err(format!("grows beyond {MAX_TEXT} bytes"));
        }
    }
    out.push_str(rest);
    Ok(out)
}

fn value(name: &str, variables: &BTreeMap<String, String>, missing: &mut dyn FnMut(&str)) -> String {
    variables.get(name).cloned().unwrap_or_else(|| {
        missing(name);
        String::new()
    })
}

// Where the brace is closed, with others inside.
fn closing(text: &str) -> Option<usize> {
    let mut depth = 0;
    let bytes = text.as_bytes();
    for (at, byte) in bytes.iter().enumerate() {
        match byte {
            b'{' if at > 0 && bytes[at - 1] == b'$' => depth += 1,
            b'}' if depth == 0 => return Some(at),
            b'}' => depth -= 1,
            _ => {}
        }
    }
    None
}

fn braced(
    inner: &str,
    variables: &BTreeMap<String, String>,
    missing: &mut dyn FnMut(&str),
    depth: usize,
) -> std::result::Result<String, String> {
    let end = inner.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).unwrap_or(inner.len());
    let (name, rest) = inner.split_at(end);
    if name.is_empty() || name.starts_with(|c: char| c.is_ascii_digit()) {
        return Err(format!("has {:.80?}, which names no variable", format!("${{{inner}}}")));
    }
    let set = variables.get(name);
    let filled = set.filter(|value| !value.is_empty());
    let mut other = |text: &str| fill(text, variables, missing, depth + 1);
    let (operator, text) = match rest.strip_prefix(':') {
        Some(rest) if !rest.is_empty() => (format!(":{}", rest.chars().take(1).collect::<String>()), rest.get(1..)),
        _ if rest.is_empty() => (String::new(), Some("")),
        _ => (rest.chars().take(1).collect(), rest.get(1..)),
    };
    let text = text.unwrap_or_default();
    match operator.as_str() {
        "" => Ok(value(name, variables, missing)),
        ":-" => filled.map_or_else(|| other(text), |value| Ok(value.clone())),
        "-" => set.map_or_else(|| other(text), |value| Ok(value.clone())),
        ":+" => filled.map_or(Ok(String::new()), |_| other(text)),
        "+" => set.map_or(Ok(String::new()), |_| other(text)),
        ":?" | "?" => match if operator == "?" { set } else { filled } {
            Some(value) => Ok(value.clone()),
            None => {
                let why = other(text)?;
                let why = if why.is_empty() { String::new() } else { format!(": {why}") };
                Err(format!("needs the variable {name}, which is not set{why}"))
            }
        },
        _ => Err(format!("has {:.80?}, which is no form of a variable", format!("${{{inner}}}"))),
    }
}

/// The variables of a file such as `.env`: `KEY=value` lines, quoted values, comments. Those of `known` may be used in it.
/// A key alone has no value of its own.
pub fn env_file(name: &str, text: &str, known: &BTreeMap<String, String>) -> Result<Vec<(String, Option<String>)>> {
    let mut variables: BTreeMap<String, String> = known.clone();
    let (mut found, mut all) = (Vec::new(), Filled::default());
    let mut lines = text.lines().enumerate();
    while let Some((number, line)) = lines.next() {
        let wrong = |why: String| Error::invalid(format!("{name}:{}", number + 1), why);
        let line = line.trim_start();
        let line = line.strip_prefix("export ").unwrap_or(line);
        if line.trim().is_empty() || line.starts_with('#') {
            continue;
        }
        let Some((key, value)) = line.split_once(['=', ':']) else {
            found.push((line.trim().to_owned(), None));
            continue;
        };
        let key = key.trim();
        if key.is_empty() || key.contains(char::is_whitespace) {
            return Err(wrong(format!("{key:.60?} is no variable's name")));
        }
        let value = value.trim_start();
        let value = match value.chars().next() {
            Some(quote @ ('"' | '\'')) => {
                // A quoted value may go on over several lines.
                let mut whole = value[1..].to_owned();
                let end = loop {
                    match closing_quote(&whole, quote) {
                        Some(end) => break end,
                        None => match lines.next() {
                            Some((_, more)) => {
                                whole.push('\n');
                                whole.push_str(more);
                            }
                            None => return Err(wrong(format!("{key} has a quote that is not closed"))),
                        },
                    }
                };
                whole.truncate(end);
                if quote == '\'' {
                    whole.replace("\\'", "'")
                } else {
                    fill_in(&unescaped(&whole), &variables, &mut |_| {}).map_err(|why| wrong(format!("{key} {why}")))?
                }
            }
            _ => {
                let end = value.find(" #").unwrap_or(value.len());
                let value = value[..end].trim_end();
                fill_in(value, &variables, &mut |_| {}).map_err(|why| wrong(format!("{key} {why}")))?
            }
        };
        all.count(value.len()).map_err(&wrong)?;
        variables.insert(key.to_owned(), value.clone());
        found.push((key.to_owned(), Some(value)));
    }
    Ok(found)
}

fn closing_quote(text: &str, quote: char) -> Option<usize> {
    let mut escaped = false;
    for (at, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            c if c == quote => return Some(at),
            _ => {}
        }
    }
    None
}

fn unescaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match (c, if c == '\\' { chars.next() } else { None }) {
            ('\\', Some('n')) => out.push('\n'),
            ('\\', Some('r')) => out.push('\r'),
            ('\\', Some('t')) => out.push('\t'),
            // A dollar sign that is meant.
            ('\\', Some('$')) => out.push_str("$$"),
            ('\\', Some(other)) => out.push(other),
            (c, _) => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variables() -> BTreeMap<String, String> {
        [("A", "1"), ("EMPTY", ""), ("TAG", "v2")].map(|(key, value)| (key.to_owned(), value.to_owned())).into()
    }

    fn check(text: &str, expected: &str) {
        let got = fill_in(text, &variables(), &mut |_| {}).unwrap_or_else(|why| why);
        assert_eq!(got, expected, "for {text:?}");
    }

    #[test]
    fn forms() {
        check("img:$TAG-x", "img:v2-x");
        check("${A}${NONE}.", "1.");
        check("${NONE:-d} ${EMPTY:-d} ${EMPTY-d} ${A:-d}", "d d  1");
        check("${NONE:-${TAG}}", "v2");
        check("${NONE:-a:b/c}", "a:b/c");
        check("${A:+yes} ${NONE:+yes} ${EMPTY+yes}", "yes  yes");
        check("$$A costs 5$$", "$A costs 5$");
        check("${NONE:?set it}", "needs the variable NONE, which is not set: set it");
        check("${NONE", "has \"${\" without \"}\" in \"${NONE\"");
        check("a$ b", "has a \"$\" that begins no variable in \"a$ b\"; write \"$$\" for the sign itself");
        check("${1}", "has \"${1}\", which names no variable");
        check("${A!}", "has \"${A!}\", which is no form of a variable");
        check("${A:é}", "has \"${A:é}\", which is no form of a variable");
        check("${A:", "has \"${\" without \"}\" in \"${A:\"");
        check("{{.Node.Hostname}}", "{{.Node.Hostname}}");
    }

    #[test]
    fn env_files() {
        let quoted = env_file(".env", "A='Let\\'s go'\nURL: http://x/?a=b\n", &variables()).unwrap();
        assert_eq!(quoted[0].1.as_deref(), Some("Let's go"));
        assert_eq!((quoted[1].0.as_str(), quoted[1].1.as_deref()), ("URL", Some("http://x/?a=b")));
        let text = "# c\nB=2 # c\nexport C='$A'\nD=\"a\\n$A\"\nE=${B}x\nF\nG=\"two\nlines\"\n";
        let got = env_file(".env", text, &variables()).unwrap();
        let expected = [
            ("B", Some("2")),
            ("C", Some("$A")),
            ("D", Some("a\n1")),
            ("E", Some("2x")),
            ("F", None),
            ("G", Some("two\nlines")),
        ];
        let expected = expected.map(|(key, value)| (key.to_owned(), value.map(str::to_owned)));
        assert_eq!(got, expected);
        let error = env_file(".env", "A=1\nB='x\n", &variables()).unwrap_err();
        assert_eq!((error.subject.as_str(), error.message.as_str()), (".env:2", "B has a quote that is not closed"));
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_filled_in_or_an_error(text in "[A${}:?+\\- é]{0,40}") {
            let _ = fill_in(&text, &variables(), &mut |_| {});
        }
    }
}
