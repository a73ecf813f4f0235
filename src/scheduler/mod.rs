//! Floor 3, decisions: the world as it is and as it should be in, changes out. No I/O, no clock of its own, no Lua:
//! the same inputs give the same changes.

pub mod backoff;
pub mod health;
pub mod observe;
pub mod place;
pub mod plan;
pub mod reconcile;
pub mod release;
pub mod routing;
pub mod slots;
pub mod world;
