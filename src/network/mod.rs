//! Floor 2, world: what carries traffic. Now the balancer; later the catalogue's servers.

pub mod balancer;
pub mod probe;
pub mod table;
