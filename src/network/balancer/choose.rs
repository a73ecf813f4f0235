//! Which backend a new connection goes to.

use std::collections::HashMap;

use crate::model::id::TaskId;
use crate::model::port::Balance;
use crate::network::table::Backend;

/// The state of choosing for one listener.
#[derive(Debug, Default)]
pub struct Chooser {
    current: HashMap<TaskId, i64>,
}

impl Chooser {
    /// Forgets backends that are gone.
    pub fn retain(&mut self, backends: &[Backend]) {
        self.current.retain(|id, _| backends.iter().any(|backend| backend.id == *id));
    }

    /// A backend's index, none of `tried`; `open` tells open connections by task.
    pub fn choose(
        &mut self,
        balance: Balance,
        backends: &[Backend],
        tried: &[TaskId],
        open: &HashMap<TaskId, u32>,
    ) -> Option<usize> {
        let may = |backend: &&Backend| backend.weight > 0 && !tried.contains(&backend.id);
        let load = |backend: &Backend| {
            f64::from(open.get(&backend.id).copied().unwrap_or_default()) / f64::from(backend.weight)
        };
        // Those that have as few share in turn: else the first one would get all, on every host, while little goes on.
        let least = match balance {
            Balance::RoundRobin => f64::INFINITY,
            Balance::LeastConnections => backends.iter().filter(may).map(load).fold(f64::INFINITY, f64::min),
        };
        let takes = |backend: &&Backend| may(backend) && load(backend) <= least;
        // Smooth weighted round robin (nginx, 2012): each gains its weight, the richest serves and pays the sum.
        let total: i64 = backends.iter().filter(takes).map(|backend| i64::from(backend.weight)).sum();
        let mut best: Option<(usize, i64)> = None;
        for (index, backend) in backends.iter().enumerate().filter(|(_, backend)| takes(backend)) {
            let current = self.current.entry(backend.id).or_default();
            *current += i64::from(backend.weight);
            if best.is_none_or(|(_, richest)| *current > richest) {
                best = Some((index, *current));
            }
        }
        let (index, _) = best?;
        if let Some(current) = self.current.get_mut(&backends[index].id) {
            *current -= total;
        }
        Some(index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backends(weights: &[u32]) -> Vec<Backend> {
        weights
            .iter()
            .enumerate()
            .map(|(n, weight)| Backend { id: TaskId::numbered(n as u128), address: String::new(), weight: *weight })
            .collect()
    }

    #[test]
    fn shares_follow_weights() {
        let backends = backends(&[500, 0, 9500]);
        let mut chooser = Chooser::default();
        let mut counts = [0; 3];
        for _ in 0..1000 {
            counts[chooser.choose(Balance::RoundRobin, &backends, &[], &HashMap::new()).unwrap()] += 1;
        }
        assert_eq!(counts, [50, 0, 950]);
    }

    #[test]
    fn fewest_connections_and_not_tried() {
        let backends = backends(&[100, 100, 100]);
        let open = HashMap::from([(TaskId::numbered(0), 3), (TaskId::numbered(1), 1), (TaskId::numbered(2), 2)]);
        let mut chooser = Chooser::default();
        assert_eq!(chooser.choose(Balance::LeastConnections, &backends, &[], &open), Some(1));
        assert_eq!(chooser.choose(Balance::LeastConnections, &backends, &[TaskId::numbered(1)], &open), Some(2));
        let all: Vec<TaskId> = backends.iter().map(|backend| backend.id).collect();
        assert_eq!(chooser.choose(Balance::RoundRobin, &backends, &all, &open), None);
    }
}
