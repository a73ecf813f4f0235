//! Floor 6, assembly: who acts for the cluster on each host. A daemon does so for its own; every other host has an agent
//! (`neap agent`). Agents connect to the daemon that leads and are asked by it: balancer, commands, images; they tell what
//! their containers do.

pub mod authority;
pub mod call;
pub mod door;
pub mod fleet;
pub mod hub;
pub mod identity;
pub mod join;
pub mod link;
pub mod protocol;
pub mod run;
pub mod tls;
pub mod up;
pub mod work;
