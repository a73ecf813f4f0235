//! Floor 0, facts: units, names, ids, descriptions, records, events and errors. Data and its grammar; no I/O.

pub mod bundle;
pub mod catalog;
pub mod check;
pub mod clock;
pub mod constraint;
pub mod container;
pub mod cron;
pub mod error;
pub mod event;
pub mod fault;
pub mod id;
pub mod internal;
pub mod mount;
pub mod name;
pub mod native;
pub mod node;
pub mod objects;
pub mod plan;
pub mod policy;
pub mod port;
pub mod query;
pub mod registry;
pub mod release;
pub mod right;
pub mod route;
pub mod rules;
pub mod service;
pub mod spellings;
pub mod stack;
pub mod stats;
pub mod strict;
pub mod suggest;
pub mod swarm;
pub mod task;
pub mod units;

pub use error::{Error, Kind, Result};
