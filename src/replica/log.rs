//! The replicated log in memory: the latest snapshot, and the entries after a base at or before it.
//! The segments on disk belong to `wal`.
//!
//! Rules: indexes have no gap; terms never fall; entries at or before the snapshot are committed
//! and never truncated. Some entries before the snapshot stay in memory, so that a peer a little
//! behind gets them instead of the whole image.

use std::collections::VecDeque;

use crate::types::{Entry, Index, SnapshotMeta, Term};

/// The entries after a base, and the latest snapshot.
#[derive(Clone, Debug, Default)]
pub struct Log {
    /// The position of the entry before the first one in memory.
    base: SnapshotMeta,
    entries: VecDeque<Entry>,
    snapshot: SnapshotMeta,
}

impl Log {
    /// A recovered log: `entries` follow `snapshot` without a gap.
    pub fn new(snapshot: SnapshotMeta, entries: Vec<Entry>) -> Log {
        let log = Log { base: snapshot, entries: entries.into(), snapshot };
        debug_assert!(log.entries.iter().zip(snapshot.index + 1..).all(|(e, i)| e.index == i));
        log
    }

    /// The latest snapshot: its image is durable on this node.
    pub fn snapshot(&self) -> SnapshotMeta {
        self.snapshot
    }

    /// The index before the first entry kept in memory.
    pub fn base_index(&self) -> Index {
        self.base.index
    }

    /// The last index; the base's if there are no entries.
    pub fn last_index(&self) -> Index {
        self.base.index + self.entries.len() as Index
    }

    /// The term at the last index.
    pub fn last_term(&self) -> Term {
        self.entries.back().map_or(self.base.term, |entry| entry.term)
    }

    /// The term at `index`, if that is the base or an entry in memory.
    pub fn term_at(&self, index: Index) -> Option<Term> {
        if index == self.base.index {
            return Some(self.base.term);
        }
        self.get(index).map(|entry| entry.term)
    }

    /// The entry at `index`, if it is in memory.
    pub fn get(&self, index: Index) -> Option<&Entry> {
        let offset = index.checked_sub(self.base.index + 1)?;
        self.entries.get(usize::try_from(offset).ok()?)
    }

    /// The entries from `first` to `last`, both included. All of them must be in memory.
    pub fn range(&self, first: Index, last: Index) -> impl Iterator<Item = &Entry> {
        debug_assert!(first > self.base.index && last <= self.last_index());
        let start = (first - self.base.index - 1) as usize;
        let end = (last - self.base.index) as usize;
        self.entries.range(start..end.max(start))
    }

    /// Appends an entry.
    pub fn push(&mut self, entry: Entry) {
        debug_assert_eq!(entry.index, self.last_index() + 1);
        debug_assert!(entry.term >= self.last_term());
        self.entries.push_back(entry);
    }

    /// Removes the entries from `first` on. The caller has checked that they are not committed.
    pub fn truncate(&mut self, first: Index) {
        debug_assert!(first > self.snapshot.index);
        self.entries.truncate((first - self.base.index - 1) as usize);
    }

    /// Makes `meta` the latest snapshot and drops the entries up to `keep_after`, which lies at or
    /// before it.
    pub fn compact(&mut self, meta: SnapshotMeta, keep_after: Index) {
        debug_assert!(self.term_at(meta.index) == Some(meta.term) && keep_after <= meta.index);
        self.snapshot = meta;
        while self.base.index < keep_after {
            let Some(entry) = self.entries.pop_front() else { break };
            self.base = SnapshotMeta { index: entry.index, term: entry.term };
        }
    }

    /// Replaces the log up to a leader's snapshot. Returns true if the entries after it stayed.
    pub fn restore(&mut self, meta: SnapshotMeta) -> bool {
        // Raft §7: entries after the snapshot stay only if the log holds the snapshot's last entry.
        if self.term_at(meta.index) == Some(meta.term) {
            self.compact(meta, meta.index);
            return true;
        }
        *self = Log::new(meta, Vec::new());
        false
    }

    /// True if a log that ends with `last_term` and `last_index` is at least as complete as this
    /// one: the later last term wins, then the longer log (Raft §5.4.1).
    pub fn is_covered_by(&self, last_index: Index, last_term: Term) -> bool {
        (last_term, last_index) >= (self.last_term(), self.last_index())
    }

    /// The last position at or before `prev_index` with a term of at most `prev_term`. No later
    /// position can agree with a log that holds `prev_term` at `prev_index`.
    pub fn hint(&self, prev_index: Index, prev_term: Term) -> (Index, Term) {
        // Terms never fall along the log, so a binary search finds the position.
        let older = self.entries.partition_point(|entry| entry.term <= prev_term) as Index;
        let index = (self.base.index + older).min(prev_index).max(self.base.index);
        (index, self.term_at(index).unwrap_or(self.base.term))
    }

    /// The last index at or before `index` with a term of at most `term`: the leader's half of the
    /// search for agreement.
    pub fn last_with_term_at_most(&self, index: Index, term: Term) -> Index {
        self.hint(index, term).0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Payload;
    use proptest::prelude::*;

    fn log(terms: &[Term]) -> Log {
        let entry =
            |(index, term): (Index, &Term)| Entry { index, term: *term, payload: Payload::Noop };
        Log::new(SnapshotMeta::default(), (1..).zip(terms).map(entry).collect())
    }

    /// Terms that never fall, made from steps; `odd` keeps the leader's apart from the follower's.
    fn terms(prefix: &[Term], steps: &[Term], odd: Term) -> Vec<Term> {
        let mut terms = prefix.to_vec();
        let mut term = prefix.last().copied().unwrap_or(0) + 2;
        term += term % 2 + odd;
        for step in steps {
            term += 2 * step;
            terms.push(term);
        }
        terms
    }

    proptest! {
        /// The two halves of the search find exactly the point where the logs part, with at most
        /// one refusal for each term of either log.
        #[test]
        fn hints_lead_to_the_point_where_two_logs_part(
            prefix in prop::collection::vec(0u64..2, 0..8),
            ours in prop::collection::vec(0u64..2, 0..8),
            theirs in prop::collection::vec(0u64..2, 0..8),
        ) {
            let prefix = terms(&[], &prefix, 0);
            let (ours, theirs) = (terms(&prefix, &ours, 0), terms(&prefix, &theirs, 1));
            let (leader, follower) = (log(&ours), log(&theirs));
            let mut distinct = [ours, theirs].concat();
            distinct.sort_unstable();
            distinct.dedup();
            let mut prev = leader.last_index();
            for questions in 1.. {
                let term = leader.term_at(prev).unwrap();
                if follower.term_at(prev) == Some(term) {
                    break;
                }
                prop_assert!(questions <= distinct.len());
                let (index, term) = follower.hint(prev, term);
                let next = leader.last_with_term_at_most(index, term).min(index);
                prop_assert!(next < prev);
                prev = next;
            }
            let shorter = prefix.len().min(follower.last_index() as usize);
            prop_assert_eq!(prev as usize, shorter.min(leader.last_index() as usize));
        }

        /// Compaction changes no entry that stays.
        #[test]
        fn compaction_changes_no_entry_that_stays(
            steps in prop::collection::vec(0u64..3, 1..20), at in 1usize..20, keep in 0usize..20
        ) {
            let full = log(&terms(&[], &steps, 0));
            let index = at.min(steps.len()) as Index;
            let after = (keep as Index).min(index);
            let meta = SnapshotMeta { index, term: full.term_at(index).unwrap() };
            let mut compacted = full.clone();
            compacted.compact(meta, after);
            prop_assert_eq!(compacted.snapshot(), meta);
            prop_assert_eq!(compacted.last_index(), full.last_index());
            for index in 0..=full.last_index() + 1 {
                let kept = index >= after;
                prop_assert_eq!(compacted.term_at(index), full.term_at(index).filter(|_| kept));
            }
        }
    }
}
