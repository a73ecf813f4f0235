//! A tournament: the best of many that change one at a time. A change costs the logarithm of their number.

/// Marks an empty place.
pub const NONE: u32 = u32::MAX;

/// Entrants by number; which of two is better is asked of the caller.
#[derive(Debug, Default)]
pub struct Tree {
    // A heap-shaped array: node n has children 2n and 2n+1, leaves are the second half.
    winners: Vec<u32>,
    leaves: usize,
}

impl Tree {
    /// Empty, with room for `capacity` entrants.
    pub fn with_capacity(capacity: usize) -> Self {
        let leaves = capacity.next_power_of_two().max(1);
        Tree { winners: vec![NONE; 2 * leaves], leaves }
    }

    /// The best of all.
    pub fn best(&self) -> Option<u32> {
        self.winners.get(1).copied().filter(|best| *best != NONE)
    }

    /// Enters all of `entrants` at once.
    pub fn fill(&mut self, entrants: impl Iterator<Item = u32>, better: impl Fn(u32, u32) -> bool) {
        for entrant in entrants {
            self.make_room(entrant);
            let leaf = self.leaves + entrant as usize;
            self.winners[leaf] = entrant;
        }
        self.play_all(&better);
    }

    /// `entrant` is new, has become better or worse, or (`present` false) is out.
    pub fn update(&mut self, entrant: u32, present: bool, better: impl Fn(u32, u32) -> bool) {
        if self.make_room(entrant) {
            self.play_all(&better);
        }
        let mut at = self.leaves + entrant as usize;
        self.winners[at] = if present { entrant } else { NONE };
        while at > 1 {
            at /= 2;
            self.winners[at] = winner(self.winners[2 * at], self.winners[2 * at + 1], &better);
        }
    }

    fn make_room(&mut self, entrant: u32) -> bool {
        if (entrant as usize) < self.leaves {
            return false;
        }
        let leaves = (entrant as usize + 1).next_power_of_two();
        let mut winners = vec![NONE; 2 * leaves];
        winners[leaves..leaves + self.leaves].copy_from_slice(&self.winners[self.leaves..]);
        *self = Tree { winners, leaves };
        true
    }

    fn play_all(&mut self, better: &impl Fn(u32, u32) -> bool) {
        for at in (1..self.leaves).rev() {
            self.winners[at] = winner(self.winners[2 * at], self.winners[2 * at + 1], better);
        }
    }
}

fn winner(a: u32, b: u32, better: &impl Fn(u32, u32) -> bool) -> u32 {
    match (a, b) {
        (NONE, other) | (other, NONE) => other,
        (a, b) if better(b, a) => b,
        (a, _) => a,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn finds_the_best_after_any_changes(changes in prop::collection::vec((0_u32..70, prop::option::of(0_i32..50)), 1..200)) {
            let mut scores = vec![None; 70];
            let mut tree = Tree::with_capacity(2);
            for (entrant, score) in changes {
                scores[entrant as usize] = score;
                tree.update(entrant, score.is_some(), |a, b| {
                    (scores[a as usize], std::cmp::Reverse(a)) > (scores[b as usize], std::cmp::Reverse(b))
                });
                let expected = (0..70_u32)
                    .filter(|n| scores[*n as usize].is_some())
                    .max_by_key(|n| (scores[*n as usize], std::cmp::Reverse(*n)));
                prop_assert_eq!(tree.best(), expected);
            }
        }
    }
}
