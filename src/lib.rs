//! Neap: a scripting platform for container clusters. ARCHITECTURE.md draws the house.
#![warn(missing_docs)]

pub mod agent;
pub mod api;
pub mod cli;
pub mod client;
pub mod compose;
pub mod daemon;
pub mod demo;
pub mod engines;
pub mod model;
pub mod network;
pub mod registry;
pub mod runtime;
pub mod scheduler;
pub mod script;
pub mod sim;
pub mod store;
