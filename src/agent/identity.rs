//! Who an agent is: what it was given when it joined, kept in its data folder.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::authority::Issued;
use crate::model::{Error, Kind, Result};

/// The file in the data folder.
const FILE: &str = "agent.json";

/// All that an agent has to know to find its cluster and to be known there.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Identity {
    /// The cluster's name.
    pub cluster: String,
    /// Its node.
    pub node: String,
    /// The authority's certificate, in PEM.
    pub authority: String,
    /// Its own, in PEM.
    pub certificate: String,
    /// The key of that, in PEM.
    pub key: String,
    /// When the certificate was given, in milliseconds since 1970-01-01 UTC.
    pub certified_at: u64,
    /// Where daemons were reached last, the one that led first.
    pub daemons: Vec<String>,
    /// The highest number of a lead that was heard of.
    pub term: u64,
}

impl Identity {
    /// Certificate and key.
    pub fn issued(&self) -> Issued {
        Issued { certificate: self.certificate.clone(), key: self.key.clone() }
    }

    /// Whether its certificate has come.
    pub fn is_whole(&self) -> bool {
        !self.certificate.is_empty()
    }

    /// The one in `folder`, if a host has joined with it.
    pub fn load(folder: &Path) -> Result<Option<Self>> {
        let path = folder.join(FILE);
        let subject = path.display().to_string();
        let text = match std::fs::read(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(|error| Error::io(subject.clone(), "read it", &error))?,
        };
        serde_json::from_slice(&text).map(Some).map_err(|error| {
            Error::new(Kind::Corrupt, subject, "is damaged").cause(error).help("remove it, and let this host join anew")
        })
    }

    /// Writes it, whole or not at all, readable by its owner only.
    pub fn save(&self, folder: &Path) -> Result<()> {
        use std::os::unix::fs::DirBuilderExt;
        let path = folder.join(FILE);
        let failed = |error: std::io::Error| Error::io(path.display().to_string(), "write it", &error);
        let text = serde_json::to_vec_pretty(self).map_err(|error| Error::internal(FILE, error.to_string()))?;
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(failed)?;
        crate::store::file::replace(&path, &text, 0o600).map_err(failed)
    }

    /// Forgets it: the host has left.
    pub fn remove(folder: &Path) -> Result<()> {
        let path = folder.join(FILE);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(Error::io(path.display().to_string(), "remove it", &error))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kept_and_forgotten() {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("data");
        assert!(Identity::load(&data).unwrap().is_none());
        let identity = Identity {
            cluster: "shop".into(),
            node: "n".into(),
            authority: "a".into(),
            certificate: "c".into(),
            key: "k".into(),
            certified_at: 1,
            daemons: vec!["10.0.0.1:8377".into()],
            term: 3,
        };
        identity.save(&data).unwrap();
        assert_eq!(Identity::load(&data).unwrap().unwrap().daemons, identity.daemons);
        let mode = std::os::unix::fs::MetadataExt::mode(&std::fs::metadata(data.join(FILE)).unwrap());
        assert_eq!(mode & 0o777, 0o600);
        std::fs::write(data.join(FILE), "{").unwrap();
        assert_eq!(Identity::load(&data).unwrap_err().kind, Kind::Corrupt);
        Identity::remove(&data).unwrap();
        Identity::remove(&data).unwrap();
        assert!(Identity::load(&data).unwrap().is_none());
    }
}
