//! Floor 3, decisions: the world as it is and as it should be in, changes out. No I/O, no clock of its own, no Lua:
//! the same inputs give the same changes.

pub mod backoff;
pub mod board;
pub mod class;
pub mod court;
pub mod cron;
pub mod group;
pub mod health;
pub mod ledger;
pub mod lookup;
pub mod observe;
pub mod place;
pub mod plan;
pub mod reads;
pub mod rebalance;
pub mod reconcile;
pub mod release;
pub mod routing;
pub mod slots;
pub mod tree;
pub mod view;
pub mod world;
