//! The right to write, of which there is one for a store. It belongs to the thread that applies the
//! log, in order and without a gap, and knows what must be known for that: the last index and term,
//! and which requests have been applied.

use std::fmt;
use std::mem;
use std::sync::Arc;

use thiserror::Error;

use super::image::Image;
use super::requests::{Admission, Requests};
use super::{Stats, Store};
use crate::codec::Malformed;
use crate::types::{Command, Entry, Index, Outcome, Payload, SnapshotMeta};

/// See the module.
pub struct Writer {
    store: Arc<Store>,
    requests: Requests,
    applied: SnapshotMeta,
    stats: Stats,
}

/// What an entry came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Applied {
    /// The entry held no work: a leader's first.
    Nothing,
    /// A second copy of a request that was applied before. Nothing was done.
    Duplicate,
    /// From a process of its node that a newer one has followed. Nothing was done.
    Stale,
    /// Done. One outcome for each command of the batch if they were wanted, else none.
    Done(Vec<Outcome>),
}

/// Why an entry cannot be applied. Neither happens in sound operation; the store may have taken
/// part of the entry, so there is no way on but to stop.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum ApplyError {
    /// Entries come in order.
    #[error("entry {found} came where {expected} is next")]
    OutOfOrder {
        /// The index that is next.
        expected: Index,
        /// The index that came.
        found: Index,
    },
    /// A committed batch that cannot be read.
    #[error("entry {index}: {malformed}")]
    Malformed {
        /// The entry.
        index: Index,
        /// What is wrong with it.
        malformed: Malformed,
    },
}

impl Writer {
    /// The writer of a new, empty store, which has applied nothing.
    pub fn new() -> Writer {
        Writer {
            store: Arc::new(Store::empty()),
            requests: Requests::default(),
            applied: SnapshotMeta::default(),
            stats: Stats::default(),
        }
    }

    /// The store, to be read by any thread.
    pub fn store(&self) -> Arc<Store> {
        Arc::clone(&self.store)
    }

    /// The last applied index and its term.
    pub fn applied(&self) -> SnapshotMeta {
        self.applied
    }

    /// Which requests have been applied.
    pub fn requests(&self) -> &Requests {
        &self.requests
    }

    /// Applies the next entry of the log. All commands of its batch run, in order, unless the
    /// request was applied before; a command that fails (INCR of a word) has no effect and stops
    /// nothing. Without `want_outcomes` its reads are skipped: only the node whose client waits
    /// needs them.
    pub fn apply(&mut self, entry: &Entry, want_outcomes: bool) -> Result<Applied, ApplyError> {
        let expected = self.applied.index.saturating_add(1);
        if entry.index != expected {
            return Err(ApplyError::OutOfOrder { expected, found: entry.index });
        }
        let applied = match &entry.payload {
            Payload::Noop => Applied::Nothing,
            Payload::Batch(proposal) => match self.requests.admit(proposal.id, proposal.floor) {
                Admission::Duplicate => Applied::Duplicate,
                Admission::Stale => Applied::Stale,
                Admission::Fresh => self
                    .run(&proposal.commands, want_outcomes)
                    .map(Applied::Done)
                    .map_err(|malformed| ApplyError::Malformed { index: entry.index, malformed })?,
            },
        };
        self.applied = SnapshotMeta { index: entry.index, term: entry.term };
        self.store.publish(self.stats, entry.index);
        Ok(applied)
    }

    fn run(&mut self, batch: &[u8], want_outcomes: bool) -> Result<Vec<Outcome>, Malformed> {
        let mut outcomes = Vec::new();
        for command in Command::decode_all(batch) {
            let command = command?;
            let outcome = if command.is_write() {
                self.store.write(&command, &mut self.stats)
            } else if want_outcomes {
                self.store.read(&command)
            } else {
                continue;
            };
            if want_outcomes {
                outcomes.push(outcome);
            }
        }
        Ok(outcomes)
    }

    /// The state as of the last applied entry, which later writes do not touch. Copies one pointer
    /// a slot; nobody waits.
    pub fn image(&self) -> Image {
        let slots = (0..self.store.slots.len()).map(|slot| self.store.slot(slot)).collect();
        Image { meta: self.applied, requests: self.requests.clone(), slots, stats: self.stats }
    }

    /// Replaces everything by `image`, which should be ahead of what was applied; returns what was
    /// there. Dropping that takes half a second for each million keys: best done on another thread.
    ///
    /// A reader beside it sees the old state or the new one, also with several keys; only KEYS and
    /// SCAN can see some slots old and some new. Whoever has seen the image's index in
    /// [`Store::applied`] reads the new state; the reverse, new state while `applied` is still
    /// the old one, harms nobody who waits for an index.
    pub fn restore(&mut self, image: Image) -> Image {
        let Image { meta, requests, slots, stats } = image;
        let slots = self.store.replace_all(slots, || self.store.publish(stats, meta.index));
        Image {
            meta: mem::replace(&mut self.applied, meta),
            requests: mem::replace(&mut self.requests, requests),
            slots,
            stats: mem::replace(&mut self.stats, stats),
        }
    }
}

impl Default for Writer {
    fn default() -> Writer {
        Writer::new()
    }
}

impl fmt::Debug for Writer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Writer").field("applied", &self.applied).finish_non_exhaustive()
    }
}
