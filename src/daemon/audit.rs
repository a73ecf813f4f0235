//! The audit log: a line of JSON for each change that was asked for, allowed or not.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::json;

use crate::model::clock::Clock;
use crate::model::right::{Audit, Principal};
use crate::model::{Error, Result};

/// Size at which the log is put aside; the one before it is kept as `audit.log.1`.
const MAX_SIZE: u64 = 16 << 20;

/// `audit.log` in the data folder.
pub struct AuditFile {
    path: PathBuf,
    file: Mutex<File>,
    clock: Arc<dyn Clock>,
}

fn append(path: &Path) -> std::io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    std::fs::OpenOptions::new().create(true).append(true).mode(0o600).open(path)
}

impl AuditFile {
    /// Opens or creates it.
    pub fn open(folder: &Path, clock: Arc<dyn Clock>) -> Result<Self> {
        let path = folder.join("audit.log");
        let file = append(&path).map_err(|error| Error::io(path.display().to_string(), "open it", &error))?;
        Ok(AuditFile { path, file: Mutex::new(file), clock })
    }
}

impl Audit for AuditFile {
    fn record(&self, principal: &Principal, action: &str, subject: &str, outcome: &Result<()>) {
        let at = jiff::Timestamp::from_millisecond(self.clock.wall().0.cast_signed())
            .map(|at| at.to_string())
            .unwrap_or_default();
        let outcome =
            outcome.as_ref().map_or_else(|error| format!("refused: {}", error.message), |()| "done".to_owned());
        let line = json!({ "at": at, "principal": principal.name, "role": principal.role, "action": action, "subject": subject, "outcome": outcome });
        tracing::info!(target: "audit", principal = principal.name, action, subject, outcome);
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        if file.metadata().is_ok_and(|meta| meta.len() > MAX_SIZE) {
            let _ = std::fs::rename(&self.path, self.path.with_extension("log.1"));
            if let Ok(fresh) = append(&self.path) {
                *file = fresh;
            }
        }
        // A change is not undone because it could not be noted; the failure is said.
        if let Err(error) = writeln!(file, "{line}") {
            tracing::error!(%error, "the audit log cannot be written");
        }
    }
}
