//! Certificates of routes: read where their routes say, and read again when they change there.

use std::collections::{BTreeMap, HashMap};
use std::time::SystemTime;

use super::{Parts, values};
use crate::model::{Error, Result};
use crate::network::table::Table;

/// Largest certificate or key, in bytes.
const MAX: u64 = 1 << 20;
/// What a secret is named by.
const SECRET: &str = "secret:";

/// Those that were read, by their place.
#[derive(Default)]
pub struct Certificates(HashMap<String, Read>);

struct Read {
    stamp: Stamp,
    text: String,
}

// Tells one state of a place from another.
#[derive(PartialEq)]
enum Stamp {
    File(u64, Option<SystemTime>),
    Secret(u64),
}

impl Certificates {
    /// Puts them into a table in place of their names. One that cannot be read is left out, unless it could before: that one goes on.
    /// What went wrong, by front.
    pub fn fill(&mut self, parts: &Parts, table: &mut Table) -> BTreeMap<String, String> {
        let mut failed = BTreeMap::new();
        let mut used = Vec::new();
        for (name, front) in &mut table.fronts {
            let had_some = !front.certificates.is_empty();
            front.certificates.retain_mut(|certificate| {
                used.extend([certificate.chain.clone(), certificate.key.clone()]);
                // Both or neither: a chain without its key is nothing.
                let read = self
                    .text(parts, &certificate.chain)
                    .and_then(|chain| Ok((chain, self.text(parts, &certificate.key)?)));
                let (text, why) = match read {
                    Ok((chain, key)) => (Some((chain, key)), None),
                    Err(error) => {
                        let before = |place: &String| self.0.get(place).map(|read| read.text.clone());
                        (before(&certificate.chain).zip(before(&certificate.key)), Some(error))
                    }
                };
                if let Some(why) = why {
                    failed.insert(name.clone(), why.to_string());
                }
                match text {
                    Some((chain, key)) => {
                        (certificate.chain, certificate.key) = (chain, key);
                        true
                    }
                    None => false,
                }
            });
            // What was to be told by TLS alone is not told in the clear.
            if had_some && front.certificates.is_empty() {
                front.routes.clear();
            }
        }
        table.fronts.retain(|_, front| !front.routes.is_empty());
        self.0.retain(|place, _| used.contains(place));
        failed
    }

    fn text(&mut self, parts: &Parts, place: &str) -> Result<String> {
        let stamp = stamp(parts, place)?;
        if let Some(known) = self.0.get(place).filter(|known| known.stamp == stamp) {
            return Ok(known.text.clone());
        }
        let text = match place.strip_prefix(SECRET) {
            Some(name) => {
                let value = values::secret(parts, name)?;
                String::from_utf8(value).map_err(|_| Error::invalid(format!("secret \"{name:.70}\""), "is no text"))?
            }
            None => std::fs::read_to_string(place).map_err(|error| Error::io(place, "read the certificate", &error))?,
        };
        self.0.insert(place.to_owned(), Read { stamp, text: text.clone() });
        Ok(text)
    }
}

fn stamp(parts: &Parts, place: &str) -> Result<Stamp> {
    if let Some(name) = place.strip_prefix(SECRET) {
        return values::secret_version(parts, name).map(Stamp::Secret);
    }
    let about = std::fs::metadata(place).map_err(|error| Error::io(place, "read the certificate", &error))?;
    if !about.is_file() || about.len() > MAX {
        return Err(Error::invalid(place, "is no file of at most 1 MiB"));
    }
    Ok(Stamp::File(about.len(), about.modified().ok()))
}
