//! The state that a log's records add up to. [`LogReplay`] keeps the entries while a log is read;
//! [`LogOutline`] knows only where terms begin, which is all that a running log needs.

use crate::replica::{HardState, Recovered};
use crate::types::{Entry, Index, SnapshotMeta, Term, Version, Write};

use super::frame::LoggedRecord;

/// The state after the records read so far.
///
/// The oldest segments may have been dropped, so the first entry read may lie beyond the first
/// snapshot record read. [`LogReplay::finish`] settles that: segments are dropped only when a later
/// snapshot record covers all their entries, so the last snapshot record and the entries must meet.
#[derive(Debug, Default)]
pub(super) struct LogReplay {
    hard: HardState,
    snapshot: SnapshotMeta,
    entries: Vec<Entry>,
    held: Vec<Write>,
    clock: Version,
}

impl LogReplay {
    /// Applies the next record; fails if no log of this program can hold it there.
    pub(super) fn apply(&mut self, record: LoggedRecord) -> Result<(), String> {
        match record {
            LoggedRecord::Hard(hard) => self.hard = hard,
            LoggedRecord::Entry(entry) => return self.put_entry(entry),
            LoggedRecord::Snapshot { meta, keeps_log } => {
                return self.put_snapshot(meta, keeps_log);
            }
            LoggedRecord::Close => (),
            LoggedRecord::Stamped(writes) => self.held.extend_from_slice(&writes),
            LoggedRecord::Held(writes) => self.held = writes.to_vec(),
            LoggedRecord::Clock(clock) => self.clock = self.clock.max(clock),
        }
        Ok(())
    }

    fn put_entry(&mut self, entry: Entry) -> Result<(), String> {
        if entry.index <= self.snapshot.index {
            let snapshot = self.snapshot.index;
            return Err(format!("entry {} lies within snapshot {snapshot}", entry.index));
        }
        // The first entry may follow a gap, which a later snapshot record must cover: see `finish`.
        if let (Some(first), Some(last)) = (self.entries.first(), self.entries.last()) {
            // Subtracts rather than adds: the last index may be the largest number.
            if entry.index - 1 > last.index {
                return Err(format!("entry {} follows entry {}", entry.index, last.index));
            }
            // §5.3: an entry at an index that the log holds replaces it and all that follow it.
            let kept = entry.index.saturating_sub(first.index);
            self.entries.truncate(kept as usize);
        }
        self.entries.push(entry);
        Ok(())
    }

    fn put_snapshot(&mut self, meta: SnapshotMeta, keeps_log: bool) -> Result<(), String> {
        if meta.index < self.snapshot.index {
            let snapshot = self.snapshot.index;
            return Err(format!("snapshot {} follows snapshot {snapshot}", meta.index));
        }
        self.snapshot = meta;
        // §7: if the log holds the snapshot's last entry, the entries behind it stay; else the
        // snapshot replaces the whole log. The writer decided, because dropped segments may have
        // held that entry.
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
        let LogReplay { hard, snapshot, entries, held, clock } = self;
        match entries.first() {
            // Only entries that a snapshot record covers are dropped, so a gap is lost data.
            Some(first) if first.index != snapshot.index + 1 => Err(format!(
                "the log begins with entry {}, but the last snapshot is {}",
                first.index, snapshot.index
            )),
            _ => Ok(Recovered { hard, snapshot, entries, held, clock }),
        }
    }
}

/// The indexes and terms of a log's entries, without the entries.
#[derive(Clone, Debug, Default)]
pub(super) struct LogOutline {
    snapshot: SnapshotMeta,
    last: Index,
    /// First index and term of each run of entries with one term, ascending.
    runs: Vec<(Index, Term)>,
}

impl LogOutline {
    pub(super) fn of(recovered: &Recovered) -> LogOutline {
        let snapshot = recovered.snapshot;
        let mut outline = LogOutline { snapshot, last: snapshot.index, runs: Vec::new() };
        for entry in &recovered.entries {
            outline.put_entry(entry.index, entry.term);
        }
        outline
    }

    /// The latest snapshot record.
    pub(super) fn snapshot(&self) -> SnapshotMeta {
        self.snapshot
    }

    /// Adds an entry, after removing those at and after its index.
    ///
    /// # Panics
    /// If the entry does not continue the log: written, it would make the log unreadable.
    pub(super) fn put_entry(&mut self, index: Index, term: Term) {
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

    /// Sets the snapshot. True if the log held the snapshot's last entry, so that the entries
    /// behind it stay (§7).
    pub(super) fn put_snapshot(&mut self, meta: SnapshotMeta) -> bool {
        let keeps_log = meta == self.snapshot
            || meta.index > self.snapshot.index && self.term(meta.index) == Some(meta.term);
        self.snapshot = meta;
        if keeps_log && meta.index < self.last {
            // The run of the first entry behind the snapshot is the first to keep.
            let kept = self.runs.partition_point(|run| run.0 <= meta.index + 1);
            self.runs.drain(..kept.saturating_sub(1));
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

    fn entry(index: Index, term: Term) -> LoggedRecord {
        LoggedRecord::Entry(Entry { index, term, payload: Payload::Noop })
    }

    fn snapshot(index: Index, term: Term, keeps_log: bool) -> LoggedRecord {
        LoggedRecord::Snapshot { meta: SnapshotMeta { index, term }, keeps_log }
    }

    fn replay(
        records: impl IntoIterator<Item = LoggedRecord>,
    ) -> Result<Vec<(Index, Term)>, String> {
        let mut replay = LogReplay::default();
        for record in records {
            replay.apply(record)?;
        }
        Ok(replay.finish()?.entries.iter().map(|entry| (entry.index, entry.term)).collect())
    }

    #[test]
    fn an_entry_replaces_its_index_and_all_that_follows() {
        let log = [entry(1, 1), entry(2, 1), entry(3, 1), entry(2, 2)];
        assert_eq!(replay(log), Ok(vec![(1, 1), (2, 2)]));
    }

    #[test]
    fn a_gap_a_covered_entry_and_a_snapshot_that_goes_back_are_refused() {
        assert!(replay([entry(1, 1), entry(3, 1)]).is_err());
        assert!(replay([entry(2, 1)]).is_err());
        assert!(replay([snapshot(5, 1, false), entry(5, 1)]).is_err());
        assert!(replay([snapshot(5, 1, false), snapshot(4, 1, true)]).is_err());
    }

    #[test]
    fn the_largest_index_has_no_successor_and_can_be_replaced() {
        let last = entry(u64::MAX, 1);
        let log = [snapshot(u64::MAX - 1, 1, false), last];
        assert_eq!(replay(log.clone()), Ok(vec![(u64::MAX, 1)]));
        let replaced = log.into_iter().chain([entry(u64::MAX, 2)]);
        assert_eq!(replay(replaced), Ok(vec![(u64::MAX, 2)]));
    }

    #[test]
    fn a_log_whose_oldest_part_was_dropped_is_whole_if_a_later_snapshot_covers_the_gap() {
        let kept = [snapshot(2, 1, true), entry(7, 1), entry(8, 1), snapshot(6, 1, true)];
        assert_eq!(replay(kept.clone()), Ok(vec![(7, 1), (8, 1)]));
        assert!(replay(kept.into_iter().take(3)).is_err());
    }

    #[test]
    fn a_snapshot_keeps_the_log_only_if_the_log_holds_its_last_entry() {
        let mut outline = LogOutline::default();
        for (index, term) in [(1, 1), (2, 1), (3, 2), (4, 2), (5, 3)] {
            outline.put_entry(index, term);
        }
        let meta = |index, term| SnapshotMeta { index, term };
        assert!(outline.clone().put_snapshot(meta(5, 3)));
        assert!(outline.put_snapshot(meta(3, 2)));
        assert!(outline.put_snapshot(meta(3, 2)), "the same snapshot again changes nothing");
        assert!(outline.clone().put_snapshot(meta(4, 2)));
        assert!(outline.clone().put_snapshot(meta(5, 3)));
        assert!(!outline.clone().put_snapshot(meta(4, 1)), "another term");
        assert!(!outline.put_snapshot(meta(9, 3)), "beyond the end");
        outline.put_entry(10, 3);
        assert!(outline.put_snapshot(meta(10, 3)));
    }

    #[test]
    #[should_panic(expected = "does not continue")]
    fn an_entry_that_leaves_a_gap_is_a_mistake_of_the_caller() {
        LogOutline::default().put_entry(2, 1);
    }
}
