//! Majorities. Everything that "a quorum agrees on" is decided by these few lines: commits, reads,
//! votes, whether a leader still leads.

/// How many of `members` are a majority.
pub fn majority(members: usize) -> usize {
    members / 2 + 1
}

/// The highest position that a majority has reached, where `positions` holds one for each member.
/// 0 for no members.
pub fn reached_by_majority<T: Ord + Copy + Default>(positions: &mut [T]) -> T {
    positions.sort_unstable_by(|a, b| b.cmp(a));
    positions.get(majority(positions.len()) - 1).copied().unwrap_or_default()
}

/// The state of a ballot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ballot {
    /// A majority said yes.
    Won,
    /// So many said no that no majority can say yes any more.
    Lost,
    /// Neither yet.
    Open,
}

/// Counts a ballot among `members` of which `yes` and `no` have answered.
pub fn count(members: usize, yes: usize, no: usize) -> Ballot {
    if yes >= majority(members) {
        Ballot::Won
    } else if members - no.min(members) < majority(members) {
        Ballot::Lost
    } else {
        Ballot::Open
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
        fn a_ballot_is_lost_exactly_when_the_rest_cannot_win_it(
            members in 1usize..8, yes in 0usize..8, no in 0usize..8
        ) {
            prop_assume!(yes + no <= members);
            let verdict = count(members, yes, no);
            prop_assert_eq!(verdict == Ballot::Won, yes >= majority(members));
            let best = members - no;
            prop_assert_eq!(verdict == Ballot::Lost, best < majority(members));
        }
    }
}
