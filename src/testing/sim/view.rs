//! What a sequence of records means, in the plainest terms: the model that the log on disk is held
//! against. What each record says is written in the documentation of [`WalRecord`]; this is that in
//! code.

use std::collections::VecDeque;
use std::fmt;

use crate::replica::{HardState, Recovered, WalRecord};
use crate::types::{Entry, Index, SnapshotMeta, Term, Version, Write};

/// What a sequence of records adds up to.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct View {
    pub hard: HardState,
    pub snapshot: SnapshotMeta,
    /// Without a gap after the snapshot.
    entries: VecDeque<Entry>,
    /// Eventual writes.
    pub held: Vec<Write>,
    clock: Version,
}

impl View {
    pub fn new(recovered: &Recovered) -> View {
        View {
            hard: recovered.hard.clone(),
            snapshot: recovered.snapshot,
            entries: recovered.entries.clone().into(),
            held: recovered.held.clone(),
            clock: recovered.clock,
        }
    }

    pub fn last_index(&self) -> Index {
        self.snapshot.index + self.entries.len() as Index
    }

    pub fn term_at(&self, index: Index) -> Option<Term> {
        if index == self.snapshot.index {
            return Some(self.snapshot.term);
        }
        let offset = index.checked_sub(self.snapshot.index + 1)?;
        self.entries.get(usize::try_from(offset).ok()?).map(|entry| entry.term)
    }

    /// True if it stands for the committed entry `(index, term)`.
    pub fn holds(&self, index: Index, term: Term) -> bool {
        index <= self.snapshot.index || self.term_at(index) == Some(term)
    }

    /// Takes one record in. `Err` if it makes no sense after those before it.
    pub fn apply(&mut self, record: &WalRecord) -> Result<(), String> {
        match record {
            WalRecord::Hard(hard) => self.hard = hard.clone(),
            WalRecord::Entry(entry) => {
                let (index, last) = (entry.index, self.last_index());
                if index <= self.snapshot.index || index > last + 1 {
                    let snapshot = self.snapshot.index;
                    return Err(format!("entry {index} after snapshot {snapshot}, last {last}"));
                }
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

impl fmt::Display for View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let View { hard, snapshot, held, clock, .. } = self;
        let (last, held) = (self.last_index(), held.len());
        let term = self.term_at(last);
        write!(f, "{hard:?}, {snapshot:?}, entries to {last} ({term:?}), {held} held, {clock:?}")
    }
}

impl fmt::Debug for View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}
