//! Hosted scripts that are brought along by a deploy: found by pattern, checked before they are sent.

use std::path::Path;
use std::rc::Rc;

use super::files::Folder;
use super::host;
use crate::model::bundle::{Bundle, TESTS};
use crate::model::{Error, Kind, Result};

/// The scripts below `folder` that match the patterns, with all that they require.
pub fn bring(folder: &Path, patterns: &[String]) -> Result<Bundle> {
    let mut entries = Vec::new();
    for pattern in patterns {
        entries.extend(matching(folder, pattern)?);
    }
    entries.sort();
    entries.dedup();
    let files = Rc::new(Folder::new(folder.to_owned()));
    let inspected = host::inspect_files(files.clone(), &entries, "", "")?;
    if inspected.registrations.is_empty() {
        return Err(Error::new(Kind::Script, format!("scripts {}", patterns.join(" ")), "register nothing")
            .help("a hosted script says policy, check, rollout, cron or on, with a name and a table"));
    }
    // What was read is what is needed: the entries, and what they require.
    let bundle = Bundle { entries, files: files.taken() };
    bundle.validate()?;
    Ok(bundle)
}

fn matching(folder: &Path, pattern: &str) -> Result<Vec<String>> {
    let subject = format!("scripts {pattern:.80?}");
    if pattern.starts_with('/') || pattern.split('/').any(|part| part == "..") {
        return Err(Error::new(Kind::Script, subject, format!("is not a pattern below {}", folder.display())));
    }
    let invalid = |error: &dyn std::fmt::Display| Error::new(Kind::Script, subject.clone(), error.to_string());
    let mut entries = Vec::new();
    let (mut tests, mut folder_itself) = (false, false);
    for path in glob::glob(&folder.join(pattern).to_string_lossy()).map_err(|error| invalid(&error))? {
        let path = path.map_err(|error| invalid(&error))?;
        // Tests lie beside what they test, and stay with the user.
        if path.to_string_lossy().ends_with(TESTS) {
            tests = true;
            continue;
        }
        if path.is_dir() {
            folder_itself = true;
            continue;
        }
        if let Ok(inner) = path.strip_prefix(folder) {
            entries.push(inner.to_string_lossy().into_owned());
        }
    }
    if entries.is_empty() {
        let error = Error::new(Kind::NotFound, subject, format!("matches no script in {}", folder.display()));
        return Err(match (tests, folder_itself) {
            (true, _) => error.help(format!("files that end with {TESTS} are left out: neap test runs them")),
            (_, true) => error.help(format!("that is a folder; write \"{}/*.lua\"", pattern.trim_end_matches('/'))),
            _ => error,
        });
    }
    Ok(entries)
}
