//! The model of a log: the meaning of a sequence of records, in the plainest terms. The real log is
//! compared with it. The documentation of [`WalRecord`] gives each record's meaning in words.

use std::collections::VecDeque;
use std::fmt;

use crate::replica::{HardState, Recovered, WalRecord};
use crate::types::{Entry, Index, SnapshotMeta, Term, Version, Write};

/// The sum of a sequence of records.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct LogModel {
    pub hard: HardState,
    pub snapshot: SnapshotMeta,
    /// The entries that follow the snapshot, without a gap.
    entries: VecDeque<Entry>,
    /// Eventual writes that have not drained.
    pub held: Vec<Write>,
    clock: Version,
}

impl LogModel {
    /// The sum that a start has recovered from its disk.
    pub fn new(recovered: &Recovered) -> LogModel {
        LogModel {
            hard: recovered.hard.clone(),
            snapshot: recovered.snapshot,
            entries: recovered.entries.clone().into(),
            held: recovered.held.clone(),
            clock: recovered.clock,
        }
    }

    /// The index of the last entry, or of the snapshot if no entry follows it.
    pub fn last_index(&self) -> Index {
        self.snapshot.index + self.entries.len() as Index
    }

    /// The term of an entry, or of the last one in the snapshot.
    pub fn term_at(&self, index: Index) -> Option<Term> {
        if index == self.snapshot.index {
            return Some(self.snapshot.term);
        }
        let offset = index.checked_sub(self.snapshot.index + 1)?;
        self.entries.get(usize::try_from(offset).ok()?).map(|entry| entry.term)
    }

    /// True if the committed entry `(index, term)` is in the log or in the snapshot.
    pub fn holds(&self, index: Index, term: Term) -> bool {
        index <= self.snapshot.index || self.term_at(index) == Some(term)
    }

    /// Adds a record.
    ///
    /// # Errors
    /// The record contradicts those before it.
    pub fn apply(&mut self, record: &WalRecord) -> Result<(), String> {
        match record {
            WalRecord::Hard(hard) => self.hard = hard.clone(),
            WalRecord::Entry(entry) => {
                let (index, last) = (entry.index, self.last_index());
                if index <= self.snapshot.index || index > last + 1 {
                    let snapshot = self.snapshot.index;
                    return Err(format!("entry {index} after snapshot {snapshot}, last {last}"));
                }
                // §5.3: an entry at an old index replaces it and everything behind it.
                self.entries.truncate((index - self.snapshot.index - 1) as usize);
                self.entries.push_back(entry.clone());
            }
            WalRecord::Stamped(writes) => self.held.extend(writes.iter().cloned()),
            WalRecord::Held(writes) => self.held = writes.to_vec(),
            WalRecord::Clock(version) => self.clock = self.clock.max(*version),
            WalRecord::Snapshot(meta) => {
                if meta.index < self.snapshot.index {
                    return Err(format!("{meta:?} after {:?}", self.snapshot));
                }
                // §7: keep the entries behind the snapshot if the log agrees with it.
                if self.term_at(meta.index) == Some(meta.term) {
                    self.entries.drain(..(meta.index - self.snapshot.index) as usize);
                } else {
                    self.entries.clear();
                }
                self.snapshot = *meta;
            }
        }
        Ok(())
    }
}

impl fmt::Display for LogModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let LogModel { hard, snapshot, held, clock, .. } = self;
        let (last, held) = (self.last_index(), held.len());
        let term = self.term_at(last);
        write!(f, "{hard:?}, {snapshot:?}, entries to {last} ({term:?}), {held} held, {clock:?}")
    }
}

impl fmt::Debug for LogModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}
