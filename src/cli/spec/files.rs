//! The flags of what replicas read as files: secrets and configs.

use serde_json::{Map, Value, json};

use super::table;
use crate::model::{Error, Result};

/// Flags under Docker's names.
#[derive(clap::Args, Default)]
pub struct FileArgs {
    /// Give replicas a secret as a file: NAME, or source=NAME,target=FILE,uid=0,gid=0,mode=0444
    #[arg(long, visible_alias = "secret-add", value_name = "SECRET")]
    secret: Vec<String>,
    /// Take a secret away, by its file's name or its own (update)
    #[arg(long, value_name = "FILE")]
    secret_rm: Vec<String>,
    /// Give replicas a config as a file: NAME, or source=NAME,target=/PATH,uid=0,gid=0,mode=0444
    #[arg(long, visible_alias = "config-add", value_name = "CONFIG")]
    config: Vec<String>,
    /// Take a config away, by its file's path or its own name (update)
    #[arg(long, value_name = "PATH")]
    config_rm: Vec<String>,
}

impl FileArgs {
    /// Puts them into a description.
    pub fn describe(&self, spec: &mut Map<String, Value>) -> Result<()> {
        for target in &self.secret_rm {
            remove_file(table(spec, "secrets"), target);
        }
        for text in &self.secret {
            let (target, secret) = file("--secret", text)?;
            // As with Docker, which has them all there.
            let target = target.strip_prefix("/run/secrets/").unwrap_or(&target).to_owned();
            table(spec, "secrets").insert(target, secret);
        }
        for target in &self.config_rm {
            remove_file(table(spec, "configs"), target);
        }
        for text in &self.config {
            let (target, config) = file("--config", text)?;
            table(spec, "configs").insert(target, config);
        }
        Ok(())
    }
}

// By the file that replicas see, or, as with Docker, by the name of what is in it.
fn remove_file(files: &mut Map<String, Value>, name: &str) {
    if files.remove(name).is_none() {
        files.retain(|_, used| used != name && used["name"] != name);
    }
}

// `NAME`, or `source=NAME,target=/PATH,uid=0,gid=0,mode=0444`; the file, and what is in it.
fn file(flag: &str, text: &str) -> Result<(String, Value)> {
    let wrong = |why: String| Error::invalid(format!("{flag} {text:.80?}"), why);
    let (mut source, mut target, mut owner) = (None, None, Map::new());
    if text.contains('=') {
        for field in crate::model::spellings::comma_separated(text).map_err(wrong)? {
            match field.split_once('=') {
                Some(("source" | "src", value)) => source = Some(value.to_owned()),
                Some(("target" | "dst" | "destination", value)) => target = Some(value.to_owned()),
                Some((key @ ("uid" | "gid"), value)) => {
                    let number = value.parse::<u32>().map_err(|_| wrong(format!("{key} {value:.20?} is no number")))?;
                    owner.insert(key.to_owned(), json!(number));
                }
                Some(("mode", value)) => {
                    owner.insert("mode".to_owned(), json!(value));
                }
                _ => {
                    return Err(wrong(format!("has an unknown field {field:.40?}"))
                        .help("write source=NAME,target=FILE,uid=0,gid=0,mode=0444"));
                }
            }
        }
    } else {
        source = Some(text.to_owned());
    }
    let source = source.ok_or_else(|| wrong("has no source".into()))?;
    let target = target.unwrap_or_else(|| source.rsplit('/').next().unwrap_or_default().to_owned());
    if owner.is_empty() {
        return Ok((target, json!(source)));
    }
    owner.insert("name".to_owned(), json!(source));
    Ok((target, Value::Object(owner)))
}
