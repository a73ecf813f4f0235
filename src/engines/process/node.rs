//! This host as a node.

use crate::model::node::{Node, Role};
use crate::model::units::{Bytes, Cpu};

/// What the kernel says of it.
pub fn local() -> Node {
    let hostname =
        nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok()).unwrap_or_else(|| "localhost".into());
    let mut node = Node::new(&hostname, &hostname);
    node.role = Role::Manager;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    node.cpu = Cpu(u32::try_from(cores).unwrap_or(1) * 1000);
    let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let total = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:")?.split_ascii_whitespace().next()?.parse::<u64>().ok());
    node.memory = Bytes(total.unwrap_or_default() * 1024);
    node
}
