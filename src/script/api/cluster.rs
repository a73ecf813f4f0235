//! The cluster's own namespaces, the same wherever they work: in `neap run`, in the REPL, in cron scripts and handlers.

use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;

use mlua::Lua;

use super::{Phase, nodes, services};
use crate::client::Cluster;

/// What `install` sets.
pub const NAMES: [&str; 3] = ["service", "services", "nodes"];

/// Sets them in a hosted VM. Nothing is shown to anybody there, and nothing is brought along.
pub fn install(lua: &Lua, cluster: &Arc<dyn Cluster>, _phase: &Phase) -> mlua::Result<()> {
    let context = services::Context { cluster: cluster.clone(), reporter: Rc::new(|_, _| {}), folder: PathBuf::new() };
    services::install(lua, &context)?;
    nodes::install(lua, cluster)
}
