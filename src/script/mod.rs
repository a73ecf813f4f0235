//! Floor 4, Lua: the only room that knows it. Hosted scripts run on threads of their own (`host`), a user's script in
//! the user's process (`run`); both in a sandboxed VM (`vm`).

pub mod api;
pub mod bring;
pub mod budget;
pub mod choose;
pub mod epoch;
mod failure;
pub mod files;
pub mod host;
pub mod hosted;
pub mod lane;
mod options;
mod places;
pub mod registration;
pub mod repl;
pub mod report;
pub mod require;
pub mod run;
mod shapes;
mod show;
pub mod sink;
pub mod stdlib;
pub mod types;
pub mod value;
pub mod vm;
pub mod vms;
