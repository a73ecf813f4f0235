//! `fs`, `env`, `sh`, `args`: the user's own machine, for scripts that run in the user's process.

use std::path::{Path, PathBuf};

use mlua::{Lua, LuaString, Table, Value};
use serde::Deserialize;

use crate::model::units::Duration;
use crate::model::{Error, Kind, suggest};
use crate::script::value::{from_json, options, raise, to_json};

/// Sets the four namespaces. Relative paths are relative to `folder`, where the user is. In a simulation time stands
/// still while a command runs.
pub fn install(lua: &Lua, folder: &Path, args: &[String], stands_still: bool) -> mlua::Result<()> {
    files(lua, folder)?;
    environment(lua)?;
    shell(lua, folder, stands_still)?;
    arguments(lua, args)
}

fn files(lua: &Lua, folder: &Path) -> mlua::Result<()> {
    let fs = lua.create_table()?;
    let base = folder.to_owned();
    let at = move |path: &str| base.join(path);
    let failed = |path: &Path, doing: &str, error: &std::io::Error| {
        raise(Error::io(format!("file {}", path.display()), doing, error))
    };
    let resolve = at.clone();
    fs.set(
        "read",
        lua.create_function(move |lua, path: String| {
            let path = resolve(&path);
            let bytes = std::fs::read(&path).map_err(|error| failed(&path, "read it", &error))?;
            lua.create_string(bytes)
        })?,
    )?;
    let resolve = at.clone();
    fs.set(
        "write",
        lua.create_function(move |_, (path, text): (String, LuaString)| {
            let path = resolve(&path);
            std::fs::write(&path, text.as_bytes()).map_err(|error| failed(&path, "write it", &error))
        })?,
    )?;
    let resolve = at.clone();
    fs.set("exists", lua.create_function(move |_, path: String| Ok(resolve(&path).exists()))?)?;
    let resolve = at.clone();
    fs.set(
        "list",
        lua.create_function(move |_, path: Option<String>| {
            let path: PathBuf = resolve(path.as_deref().unwrap_or("."));
            let entries = std::fs::read_dir(&path).map_err(|error| failed(&path, "list it", &error))?;
            let mut names: Vec<String> =
                entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
            names.sort();
            Ok(names)
        })?,
    )?;
    let resolve = at.clone();
    fs.set(
        "mkdir",
        lua.create_function(move |_, path: String| {
            let path = resolve(&path);
            std::fs::create_dir_all(&path).map_err(|error| failed(&path, "make it", &error))
        })?,
    )?;
    fs.set(
        "remove",
        lua.create_function(move |_, (path, table): (String, Option<Table>)| {
            let Removal { recursive } = options("fs.remove", table)?;
            let path = at(&path);
            let is_folder = std::fs::symlink_metadata(&path).is_ok_and(|about| about.is_dir());
            match (is_folder, recursive) {
                (true, true) => std::fs::remove_dir_all(&path),
                (true, false) => std::fs::remove_dir(&path),
                (false, _) => std::fs::remove_file(&path),
            }
            .map_err(|error| failed(&path, "remove it", &error))
        })?,
    )?;
    fs.set_readonly(true);
    lua.globals().set("fs", fs)
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Removal {
    recursive: bool,
}

fn environment(lua: &Lua) -> mlua::Result<()> {
    let env = lua.create_table()?;
    // One value out: the variable, else the default.
    let get = lua.create_function(|lua, (name, default): (String, Value)| match std::env::var_os(&name) {
        Some(value) => Ok(Value::String(lua.create_string(std::os::unix::ffi::OsStrExt::as_bytes(value.as_os_str()))?)),
        None => Ok(default),
    })?;
    env.set("get", get)?;
    env.set(
        "require",
        lua.create_function(|_, name: String| {
            std::env::var(&name)
                .map_err(|_| raise(Error::new(Kind::Script, format!("environment variable {name}"), "is not set")))
        })?,
    )?;
    env.set_readonly(true);
    lua.globals().set("env", env)
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct ShellOptions {
    cwd: Option<String>,
    env: std::collections::BTreeMap<String, String>,
    stdin: Option<String>,
    timeout: Option<Duration>,
    check: Option<bool>,
}

// `sh("make image")` runs a shell line, `sh({ "git", "log" })` a command; both wait, and fail on a bad exit code.
fn shell(lua: &Lua, folder: &Path, stands_still: bool) -> mlua::Result<()> {
    let folder = folder.to_owned();
    let run = lua.create_async_function(move |lua, (command, table): (Value, Option<Table>)| {
        let folder = folder.clone();
        async move {
            let options: ShellOptions = options("sh", table)?;
            let words: Vec<String> = match &command {
                Value::String(line) => vec!["/bin/sh".into(), "-c".into(), line.to_str()?.to_owned()],
                Value::Table(list) => list.sequence_values::<String>().collect::<mlua::Result<_>>()?,
                _ => Vec::new(),
            };
            let subject = words.last().filter(|_| matches!(command, Value::String(_))).or(words.first());
            let Some(subject) = subject.map(|word| format!("command {word:?}")) else {
                return Err(raise(Error::new(Kind::Script, "sh", "expected a shell line or a list of words")));
            };
            let check = options.check != Some(false);
            let work = execute(subject.clone(), words, options, folder);
            let output = if stands_still { meanwhile(work) } else { work.await }.map_err(raise)?;
            let code = output.status.code().unwrap_or_else(|| {
                128 + std::os::unix::process::ExitStatusExt::signal(&output.status).unwrap_or_default()
            });
            if code != 0 && check {
                let errors = String::from_utf8_lossy(&output.stderr);
                let last: Vec<&str> = errors.trim_end().lines().rev().take(5).collect();
                let shown = last.into_iter().rev().collect::<Vec<_>>().join("\n");
                return Err(raise(
                    Error::new(Kind::Failed, subject, format!("exit code {code}"))
                        .cause(shown)
                        .help("pass { check = false } to look at the code yourself"),
                ));
            }
            let result = lua.create_table()?;
            result.set("code", code)?;
            result.set("stdout", lua.create_string(&output.stdout)?)?;
            result.set("stderr", lua.create_string(&output.stderr)?)?;
            Ok(result)
        }
    })?;
    lua.globals().set("sh", run)
}

async fn execute(
    subject: String,
    words: Vec<String>,
    options: ShellOptions,
    folder: PathBuf,
) -> crate::model::Result<std::process::Output> {
    let failed = |error: std::io::Error| Error::io(subject.clone(), "run it", &error);
    let (program, args) = words.split_first().ok_or_else(|| Error::invalid("sh", "no words"))?;
    let mut process = tokio::process::Command::new(program);
    process.args(args).envs(&options.env).kill_on_drop(true);
    process.current_dir(options.cwd.map_or(folder.clone(), |cwd| folder.join(cwd)));
    let stdin = if options.stdin.is_some() { std::process::Stdio::piped() } else { std::process::Stdio::null() };
    process.stdin(stdin).stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    let mut child = process.spawn().map_err(failed)?;
    let input = child.stdin.take();
    let feed = async move {
        if let (Some(mut pipe), Some(text)) = (input, options.stdin) {
            // A command that does not read its input to the end is no failure.
            let _ = tokio::io::AsyncWriteExt::write_all(&mut pipe, text.as_bytes()).await;
        }
    };
    let timeout = options.timeout.unwrap_or(Duration::from_secs(600));
    let both = async { tokio::join!(child.wait_with_output(), feed).0 };
    let output = tokio::time::timeout(timeout.std(), both).await;
    output.map_err(|_| Error::new(Kind::Timeout, subject.clone(), format!("no end within {timeout}")))?.map_err(failed)
}

// A command is of this world: in a simulation time stands still while it runs, by another thread's clock.
fn meanwhile<T: Send>(work: impl Future<Output = crate::model::Result<T>> + Send) -> crate::model::Result<T> {
    let run = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.map_err(|error| Error::io("sh", "wait for it", &error))?.block_on(work)
    };
    std::thread::scope(|scope| scope.spawn(run).join())
        .unwrap_or_else(|_| Err(Error::internal("sh", "broke while it waited")))
}

// `args[1]`, and `args.parse { tag = { required = true }, replicas = { default = 3 } }` for `--tag x --replicas=5`.
fn arguments(lua: &Lua, given: &[String]) -> mlua::Result<()> {
    let args = lua.create_sequence_from(given.iter().map(String::as_str))?;
    let given = given.to_vec();
    args.set(
        "parse",
        lua.create_function(move |lua, known: Table| {
            let serde_json::Value::Object(known) = to_json(&Value::Table(known)).map_err(raise)? else {
                return Err(raise(Error::new(Kind::Script, "args.parse", "expected a table of flags by name")));
            };
            let parsed = parse(&given, &known).map_err(raise)?;
            from_json(lua, &serde_json::Value::Object(parsed))
        })?,
    )?;
    lua.globals().set("args", args)
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Flag {
    required: bool,
    default: Option<serde_json::Value>,
    help: Option<String>,
}

fn parse(
    given: &[String],
    known: &serde_json::Map<String, serde_json::Value>,
) -> Result<serde_json::Map<String, serde_json::Value>, Error> {
    let usage = |message: String| Error::invalid("arguments", message).help(usage(known));
    let mut parsed = serde_json::Map::new();
    let mut rest = Vec::new();
    let mut words = given.iter();
    while let Some(word) = words.next() {
        let Some(flag) = word.strip_prefix("--") else {
            if !known.contains_key(REST) {
                return Err(usage(format!("{word:.60?} is no flag")));
            }
            rest.push(serde_json::Value::from(word.as_str()));
            continue;
        };
        if flag == "help" && !known.contains_key(flag) {
            return Err(usage("were asked for".into()));
        }
        let (name, inline) = flag.split_once('=').map_or((flag, None), |(name, value)| (name, Some(value.to_owned())));
        let key = name.replace('-', "_");
        let Some(spec) = known.get(&key).filter(|_| key != REST) else {
            let names = known.keys().map(String::as_str).filter(|name| *name != REST);
            return Err(usage(format!("unknown flag --{name:.60}{}", suggest::hint(&key, names))));
        };
        let boolean = spec.get("default").is_some_and(serde_json::Value::is_boolean);
        let value = match (inline, boolean) {
            (Some(value), _) => value,
            (None, true) => "true".to_owned(),
            (None, false) => words.next().cloned().ok_or_else(|| usage(format!("--{name} has no value")))?,
        };
        let value = match spec.get("default") {
            Some(serde_json::Value::Number(_)) => serde_json::Value::from(
                value.parse::<f64>().map_err(|_| usage(format!("--{name}: {value:?} is not a number")))?,
            ),
            Some(serde_json::Value::Bool(_)) => serde_json::Value::from(
                value.parse::<bool>().map_err(|_| usage(format!("--{name}: {value:?} is not true or false")))?,
            ),
            _ => serde_json::Value::from(value),
        };
        parsed.insert(key, value);
    }
    for (name, flag) in known {
        let flag: Flag = crate::model::strict::read(&format!("args.parse: {name}"), flag)?;
        if name == REST {
            if flag.required && rest.is_empty() {
                return Err(usage("words that are no flags are missing".into()));
            }
            let words = serde_json::Value::Array(std::mem::take(&mut rest));
            let default = flag.default.filter(|_| words.as_array().is_some_and(Vec::is_empty));
            parsed.insert(name.clone(), default.unwrap_or(words));
            continue;
        }
        if !parsed.contains_key(name) {
            match flag.default {
                Some(default) => {
                    parsed.insert(name.clone(), default);
                }
                None if flag.required => return Err(usage(format!("--{} is missing", name.replace('_', "-")))),
                None => {}
            }
        }
    }
    Ok(parsed)
}

/// What takes the words that are no flags, in what `args.parse` is given and in what it returns.
const REST: &str = "rest";

fn usage(known: &serde_json::Map<String, serde_json::Value>) -> String {
    let one = |(name, flag): (&String, &serde_json::Value)| {
        let help = flag.get("help").and_then(serde_json::Value::as_str);
        let default = flag.get("default").filter(|default| !default.is_boolean());
        let required = flag.get("required").and_then(serde_json::Value::as_bool) == Some(true);
        let more = [help.map(str::to_owned), default.map(|value| format!("default {value}"))];
        let more: Vec<String> = more.into_iter().flatten().chain(required.then(|| "required".into())).collect();
        let more = if more.is_empty() { String::new() } else { format!(" ({})", more.join("; ")) };
        match name.as_str() {
            REST => format!("words{more}"),
            name => format!("--{}{more}", name.replace('_', "-")),
        }
    };
    // Words come last.
    let (words, flags): (Vec<_>, Vec<_>) = known.iter().partition(|(name, _)| name.as_str() == REST);
    format!("arguments: {}", flags.into_iter().chain(words).map(one).collect::<Vec<_>>().join(", "))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    fn check(line: &str, expected: serde_json::Value) {
        let known = json!({
            "tag": { "required": true, "help": "which image" }, "replicas": { "default": 3 },
            "dry_run": { "default": false }, "rest": { "help": "services" },
        });
        let given: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        let parsed = super::parse(&given, known.as_object().unwrap());
        match expected {
            serde_json::Value::String(why) => {
                let error = parsed.unwrap_err().to_string();
                assert!(error.contains(&why), "{line}: {error}");
            }
            expected => assert_eq!(serde_json::Value::Object(parsed.unwrap()), expected, "{line}"),
        }
    }

    #[test]
    fn arguments_are_read_as_they_are_described() {
        check("--tag v1", json!({ "tag": "v1", "replicas": 3, "dry_run": false, "rest": [] }));
        check(
            "web --tag=v1 --replicas 5 --dry-run db",
            json!({ "tag": "v1", "replicas": 5.0, "dry_run": true, "rest": ["web", "db"] }),
        );
        check("", json!("--tag is missing"));
        check("--tga v1", json!("unknown flag --tga; did you mean \"tag\"?"));
        check("--rest v1", json!("unknown flag --rest"));
        check("--tag v1 --replicas five", json!("\"five\" is not a number"));
        let all = "--dry-run, --replicas (default 3), --tag (which image; required), words (services)";
        check("--help", json!(all));
        let none = serde_json::Map::new();
        let stray = super::parse(&["tag=3".to_owned()], &none).unwrap_err().to_string();
        assert!(stray.contains("\"tag=3\" is no flag"), "{stray}");
    }
}
