//! The Lua library that comes with Neap: scripts without any privilege that a user's script lacks.

use std::sync::{Arc, OnceLock};

use crate::model::bundle::{Bundle, is_entry};

include!(concat!(env!("OUT_DIR"), "/stdlib.rs"));

/// The name under which the library's bundle is known.
pub const OWNER: &str = "@neap";

/// The source of a library file, by its path without `@neap/`.
pub fn source(path: &str) -> Option<&'static str> {
    FILES.iter().find(|(name, _)| *name == path).map(|(_, source)| *source)
}

/// All of it as a bundle; everything outside `lib/` registers something.
pub fn bundle() -> Arc<Bundle> {
    static BUNDLE: OnceLock<Arc<Bundle>> = OnceLock::new();
    let build = || {
        let files = FILES.iter().map(|(name, source)| ((*name).to_owned(), (*source).to_owned())).collect();
        let entries = FILES.iter().map(|(name, _)| (*name).to_owned()).filter(|name| is_entry(name)).collect();
        Arc::new(Bundle { entries, files })
    };
    BUNDLE.get_or_init(build).clone()
}
