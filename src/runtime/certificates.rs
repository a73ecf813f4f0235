//! Certificates of routes: read where their routes say, and read again when they change there.

use std::collections::{BTreeMap, HashMap};
use std::time::SystemTime;

use super::{Parts, values};
use crate::model::clock::Timestamp;
use crate::model::units::Duration;
use crate::model::{Error, Result};
use crate::network::balancer::certified;
use crate::network::table::{Certificate, Table};
use crate::script::lane::Threads;

/// Largest certificate or key, in bytes.
const MAX: u64 = 1 << 20;
/// How often it is looked whether one has changed.
const LOOK: Duration = Duration::from_millis(1000);
/// What a secret is named by.
const SECRET: &str = "secret:";

/// Those that were read, by where chain and key are.
#[derive(Default)]
pub struct Certificates(HashMap<(String, String), Pair>);

#[derive(Default)]
struct Pair {
    looked_at: Timestamp,
    stamps: Option<(Stamp, Stamp)>,
    // The last that could be used, and what is wrong with what is there now.
    good: Option<(String, String)>,
    wrong: Option<String>,
}

// Tells one state of a place from another.
#[derive(PartialEq)]
enum Stamp {
    File(u64, Option<SystemTime>),
    Secret(u64),
}

impl Certificates {
    /// Puts them into a table in place of their names. For one that cannot be used, the one before goes on; where there is none here, the
    /// balancers may have it still. What is wrong, by route.
    pub fn fill(&mut self, parts: &Parts, table: &mut Table) -> BTreeMap<String, String> {
        let mut wrong = BTreeMap::new();
        // A simulation has no files, and nobody who could look at a certificate.
        if parts.host.threads() == Threads::This {
            table.fronts.values_mut().for_each(|front| front.certificates.clear());
            return wrong;
        }
        let now = parts.clock.now();
        let mut used = Vec::new();
        for front in table.fronts.values_mut() {
            for named in std::mem::take(&mut front.certificates) {
                let place = (named.chain, named.key);
                let pair = self.0.entry(place.clone()).or_default();
                if pair.stamps.is_none() && pair.wrong.is_none() || now >= pair.looked_at.after(LOOK) {
                    pair.looked_at = now;
                    pair.look(parts, &place);
                }
                if let Some(why) = &pair.wrong {
                    let concerned = front.routes.iter().filter(|route| {
                        route.spec.tls.as_ref().is_some_and(|tls| (&tls.certificate, &tls.key) == (&place.0, &place.1))
                    });
                    wrong.extend(concerned.map(|route| (route.name.clone(), why.clone())));
                }
                match &pair.good {
                    Some((chain, key)) => {
                        let (chain, key) = (chain.clone(), key.clone());
                        front.certificates.push(Certificate { hosts: named.hosts, chain, key });
                    }
                    None => front.unread.extend(named.hosts),
                }
                used.push(place);
            }
        }
        self.0.retain(|place, _| used.contains(place));
        wrong
    }
}

impl Pair {
    fn look(&mut self, parts: &Parts, (chain, key): &(String, String)) {
        let found = stamp(parts, chain).and_then(|chain| Ok((chain, stamp(parts, key)?)));
        let stamps = match found {
            Ok(stamps) => stamps,
            Err(error) => {
                (self.stamps, self.wrong) = (None, Some(error.to_string()));
                return;
            }
        };
        if self.stamps.as_ref() == Some(&stamps) {
            return;
        }
        let read = text(parts, chain).and_then(|chain| Ok((chain, text(parts, key)?)));
        let read = read.map_err(|error| error.to_string());
        match read.and_then(|(chain, key)| certified(&chain, &key).map(|_| (chain, key))) {
            Ok(good) => (self.good, self.wrong) = (Some(good), None),
            Err(why) => self.wrong = Some(format!("{chain}: {why}")),
        }
        self.stamps = Some(stamps);
    }
}

fn text(parts: &Parts, place: &str) -> Result<String> {
    match place.strip_prefix(SECRET) {
        Some(name) => {
            let value = values::secret(parts, name)?;
            String::from_utf8(value).map_err(|_| Error::invalid(format!("secret \"{name:.70}\""), "is no text"))
        }
        None => std::fs::read_to_string(place).map_err(|error| Error::io(place, "read the certificate", &error)),
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
