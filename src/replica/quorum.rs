//! Majorities. Commits, reads, votes and check-quorum all rest on these few lines. Two majorities
//! of the same members share a member (Raft §5.2, §5.4.3); no other property is needed.

/// The size of a majority of `members`.
pub fn majority(members: usize) -> usize {
    members / 2 + 1
}

/// The highest position that a majority has reached; `positions` holds one for each member. The
/// default for no members.
pub fn reached_by_majority<T: Ord + Copy + Default>(positions: &mut [T]) -> T {
    positions.sort_unstable_by(|a, b| b.cmp(a));
    positions.get(majority(positions.len()) - 1).copied().unwrap_or_default()
}

/// The state of an election.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VoteResult {
    /// A majority has granted its vote.
    Won,
    /// Too many have refused: no majority can grant any more.
    Lost,
    /// Still undecided.
    Pending,
}

/// Counts the votes of `members`, of which `granted` and `refused` have answered.
pub fn count_votes(members: usize, granted: usize, refused: usize) -> VoteResult {
    if granted >= majority(members) {
        VoteResult::Won
    } else if members - refused.min(members) < majority(members) {
        VoteResult::Lost
    } else {
        VoteResult::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn majorities_of_small_clusters() {
        let expected = [(1, 1), (2, 2), (3, 2), (4, 3), (5, 3), (6, 4), (7, 4)];
        for (members, wanted) in expected {
            assert_eq!(majority(members), wanted);
        }
    }

    proptest! {
        #[test]
        fn the_reached_position_is_the_highest_that_a_majority_has(
            positions in prop::collection::vec(0u64..20, 1..8)
        ) {
            let reached = reached_by_majority(&mut positions.clone());
            let at = |p: u64| positions.iter().filter(|&&x| x >= p).count();
            prop_assert!(at(reached) >= majority(positions.len()));
            prop_assert!(at(reached + 1) < majority(positions.len()));
        }

        #[test]
        fn an_election_is_lost_exactly_when_the_remaining_votes_cannot_win_it(
            members in 1usize..8, granted in 0usize..8, refused in 0usize..8
        ) {
            prop_assume!(granted + refused <= members);
            let result = count_votes(members, granted, refused);
            prop_assert_eq!(result == VoteResult::Won, granted >= majority(members));
            let best = members - refused;
            prop_assert_eq!(result == VoteResult::Lost, best < majority(members));
        }
    }
}
