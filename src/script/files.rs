//! Where scripts come from: a bundle, or the user's disk.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use crate::model::bundle::Bundle;

/// Sources by path, relative and with `/`.
pub trait Files {
    /// The source, or nothing.
    fn read(&self, path: &str) -> Option<String>;
}

impl Files for Arc<Bundle> {
    fn read(&self, path: &str) -> Option<String> {
        self.files.get(path).cloned()
    }
}

/// A folder on the user's disk; it remembers what was read, so that it can be brought along.
pub struct Folder {
    root: PathBuf,
    read: RefCell<BTreeMap<String, String>>,
}

impl Folder {
    /// The folder `root`.
    pub fn new(root: PathBuf) -> Self {
        Folder { root, read: RefCell::default() }
    }

    /// All that was read, by path.
    pub fn taken(&self) -> BTreeMap<String, String> {
        self.read.borrow().clone()
    }
}

impl Files for Folder {
    fn read(&self, path: &str) -> Option<String> {
        let source = std::fs::read_to_string(self.root.join(path)).ok()?;
        self.read.borrow_mut().insert(path.to_owned(), source.clone());
        Some(source)
    }
}
