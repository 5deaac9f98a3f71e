//! What the records of a log add up to: [`Replay`] holds the entries themselves while a log is
//! read; [`Shape`] knows only where terms begin, which is all that a running log needs.

use crate::replica::{HardState, Recovered};
use crate::types::{Entry, Index, SnapshotMeta, Term, Version, Write};

use super::frame::Logged;

/// The state after the records read so far.
///
/// The oldest segments may have been dropped, so the first entry seen may lie beyond the first mark
/// seen. That is settled at the end: segments are dropped only when a later mark covers all their
/// entries, so the last mark and the entries must meet.
#[derive(Debug, Default)]
pub(super) struct Replay {
    hard: HardState,
    snapshot: SnapshotMeta,
    entries: Vec<Entry>,
    held: Vec<Write>,
    clock: Version,
}

impl Replay {
    /// Applies the next record; fails if no log of ours can hold it there.
    pub(super) fn apply(&mut self, logged: Logged) -> Result<(), String> {
        match logged {
            Logged::Hard(hard) => self.hard = hard,
            Logged::Entry(entry) => return self.entry(entry),
            Logged::Snapshot { meta, keeps_log } => return self.mark(meta, keeps_log),
            Logged::Close => (),
            Logged::Stamped(writes) => self.held.extend_from_slice(&writes),
            Logged::Held(writes) => self.held = writes.to_vec(),
            Logged::Clock(clock) => self.clock = self.clock.max(clock),
        }
        Ok(())
    }

    fn entry(&mut self, entry: Entry) -> Result<(), String> {
        if entry.index <= self.snapshot.index {
            let snapshot = self.snapshot.index;
            return Err(format!("entry {} lies within snapshot {snapshot}", entry.index));
        }
        if let (Some(first), Some(last)) = (self.entries.first(), self.entries.last()) {
            // No sum: the last index may be the last there is.
            if entry.index - 1 > last.index {
                return Err(format!("entry {} follows entry {}", entry.index, last.index));
            }
            let kept = entry.index.saturating_sub(first.index);
            self.entries.truncate(kept as usize);
        }
        self.entries.push(entry);
        Ok(())
    }

    fn mark(&mut self, meta: SnapshotMeta, keeps_log: bool) -> Result<(), String> {
        if meta.index < self.snapshot.index {
            let snapshot = self.snapshot.index;
            return Err(format!("snapshot mark {} follows mark {snapshot}", meta.index));
        }
        self.snapshot = meta;
        if keeps_log {
            let covered = self.entries.partition_point(|entry| entry.index <= meta.index);
            self.entries.drain(..covered);
        } else {
            self.entries.clear();
        }
        Ok(())
    }

    /// The whole log's state; fails if entries are missing.
    pub(super) fn finish(self) -> Result<Recovered, String> {
        let Replay { hard, snapshot, entries, held, clock } = self;
        match entries.first() {
            Some(first) if first.index != snapshot.index + 1 => Err(format!(
                "the log begins with entry {}, but the snapshot mark is {}",
                first.index, snapshot.index
            )),
            _ => Ok(Recovered { hard, snapshot, entries, held, clock }),
        }
    }
}

/// Which entries a log holds after its snapshot, without the entries.
#[derive(Clone, Debug, Default)]
pub(super) struct Shape {
    snapshot: SnapshotMeta,
    last: Index,
    /// First index and term of each run of entries with one term, ascending.
    runs: Vec<(Index, Term)>,
}

impl Shape {
    pub(super) fn of(recovered: &Recovered) -> Shape {
        let snapshot = recovered.snapshot;
        let mut shape = Shape { snapshot, last: snapshot.index, runs: Vec::new() };
        for entry in &recovered.entries {
            shape.entry(entry.index, entry.term);
        }
        shape
    }

    /// The latest mark.
    pub(super) fn snapshot(&self) -> SnapshotMeta {
        self.snapshot
    }

    /// Adds an entry, after removing those at and after its index.
    ///
    /// # Panics
    /// If the entry does not continue the log: written, it would make the log unreadable.
    pub(super) fn entry(&mut self, index: Index, term: Term) {
        assert!(
            index > self.snapshot.index && index <= self.last + 1,
            "entry {index} does not continue a log of {}..={}",
            self.snapshot.index + 1,
            self.last
        );
        while self.runs.last().is_some_and(|run| run.0 >= index) {
            self.runs.pop();
        }
        if self.runs.last().is_none_or(|run| run.1 != term) {
            self.runs.push((index, term));
        }
        self.last = index;
    }

    /// Sets the mark. True if the log held the snapshot's entry, so that what follows it stays.
    pub(super) fn mark(&mut self, meta: SnapshotMeta) -> bool {
        let keeps_log = meta == self.snapshot
            || meta.index > self.snapshot.index && self.term(meta.index) == Some(meta.term);
        self.snapshot = meta;
        if keeps_log && meta.index < self.last {
            // The run that holds the next entry is the first that is still needed.
            let needed = self.runs.partition_point(|run| run.0 <= meta.index + 1);
            self.runs.drain(..needed.saturating_sub(1));
        } else {
            self.runs.clear();
            self.last = meta.index;
        }
        keeps_log
    }

    fn term(&self, index: Index) -> Option<Term> {
        let run = self.runs.partition_point(|run| run.0 <= index).checked_sub(1)?;
        (index <= self.last).then(|| self.runs[run].1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Payload;

    fn entry(index: Index, term: Term) -> Logged {
        Logged::Entry(Entry { index, term, payload: Payload::Noop })
    }

    fn mark(index: Index, term: Term, keeps_log: bool) -> Logged {
        Logged::Snapshot { meta: SnapshotMeta { index, term }, keeps_log }
    }

    fn replay(records: impl IntoIterator<Item = Logged>) -> Result<Vec<(Index, Term)>, String> {
        let mut replay = Replay::default();
        for logged in records {
            replay.apply(logged)?;
        }
        Ok(replay.finish()?.entries.iter().map(|entry| (entry.index, entry.term)).collect())
    }

    #[test]
    fn an_entry_replaces_its_index_and_all_that_follows() {
        let log = [entry(1, 1), entry(2, 1), entry(3, 1), entry(2, 2)];
        assert_eq!(replay(log), Ok(vec![(1, 1), (2, 2)]));
    }

    #[test]
    fn a_gap_a_covered_entry_and_a_mark_that_goes_back_are_refused() {
        assert!(replay([entry(1, 1), entry(3, 1)]).is_err());
        assert!(replay([entry(2, 1)]).is_err());
        assert!(replay([mark(5, 1, false), entry(5, 1)]).is_err());
        assert!(replay([mark(5, 1, false), mark(4, 1, true)]).is_err());
    }

    #[test]
    fn the_last_index_there_is_has_no_successor_and_can_be_replaced() {
        let last = entry(u64::MAX, 1);
        let log = [mark(u64::MAX - 1, 1, false), last];
        assert_eq!(replay(log.clone()), Ok(vec![(u64::MAX, 1)]));
        let replaced = log.into_iter().chain([entry(u64::MAX, 2)]);
        assert_eq!(replay(replaced), Ok(vec![(u64::MAX, 2)]));
    }

    #[test]
    fn a_log_whose_oldest_part_was_dropped_is_whole_if_a_later_mark_covers_the_gap() {
        let kept = [mark(2, 1, true), entry(7, 1), entry(8, 1), mark(6, 1, true)];
        assert_eq!(replay(kept.clone()), Ok(vec![(7, 1), (8, 1)]));
        assert!(replay(kept.into_iter().take(3)).is_err());
    }

    #[test]
    fn a_mark_keeps_the_log_only_if_the_log_holds_its_entry() {
        let mut shape = Shape::default();
        for (index, term) in [(1, 1), (2, 1), (3, 2), (4, 2), (5, 3)] {
            shape.entry(index, term);
        }
        let meta = |index, term| SnapshotMeta { index, term };
        assert!(shape.clone().mark(meta(5, 3)));
        assert!(shape.mark(meta(3, 2)));
        assert!(shape.mark(meta(3, 2)), "the same mark again changes nothing");
        assert!(shape.clone().mark(meta(4, 2)));
        assert!(shape.clone().mark(meta(5, 3)));
        assert!(!shape.clone().mark(meta(4, 1)), "another term");
        assert!(!shape.mark(meta(9, 3)), "beyond the end");
        shape.entry(10, 3);
        assert!(shape.mark(meta(10, 3)));
    }

    #[test]
    #[should_panic(expected = "does not continue")]
    fn an_entry_that_leaves_a_gap_is_our_own_mistake() {
        Shape::default().entry(2, 1);
    }
}
