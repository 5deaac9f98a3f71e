//! The right to change a store's base, of which each store has one. It belongs to the thread that
//! applies the log, in order and without a gap. It knows the last applied index and term and the
//! applied requests.

use std::fmt;
use std::mem;
use std::sync::Arc;

use thiserror::Error;

use super::Store;
use super::apply::Merged;
use super::image::Image;
use super::ledger::Ledger;
use super::requests::{Admission, AppliedRequests};
use crate::codec::Malformed;
use crate::types::{Command, Entry, Index, Outcome, Payload, SnapshotMeta, Version, Write};

/// The right to change a store's base: one for each store.
pub struct Writer {
    store: Arc<Store>,
    requests: AppliedRequests,
    applied: SnapshotMeta,
    ledger: Ledger,
}

/// The result of an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Applied {
    /// The entry held no work: a leader's first.
    Nothing,
    /// A second copy of a request that was applied before. Nothing was done.
    Duplicate,
    /// A request of an earlier process of its node. Nothing was done.
    Stale,
    /// Done. One outcome for each command of the batch except `Merge`, if outcomes were wanted.
    Done(Vec<Outcome>),
    /// Versioned writes were merged. Those not counted here were older than their keys' records.
    Merged {
        /// The number of writes that were the newest of their keys.
        taken: u64,
        /// The number of writes that were too late: see [`Store::late`].
        late: u64,
    },
    /// The floor was raised, and tombstones up to it are forgotten.
    Checkpoint {
        /// The digest of the state after it: see [`Writer::digest`].
        digest: u64,
    },
}

/// Why an entry cannot be applied. Neither happens in sound operation. The store may have applied a
/// part of the entry, so the node has to stop.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum ApplyError {
    /// The entry is not the next one.
    #[error("entry {found} came where {expected} is next")]
    OutOfOrder {
        /// The index that is next.
        expected: Index,
        /// The index that came.
        found: Index,
    },
    /// A committed batch cannot be decoded.
    #[error("entry {index}: {malformed}")]
    Malformed {
        /// The entry.
        index: Index,
        /// The error of its decoding.
        malformed: Malformed,
    },
}

impl Writer {
    /// The writer of a new, empty store, which has applied nothing.
    pub fn new() -> Writer {
        Writer {
            store: Arc::new(Store::empty()),
            requests: AppliedRequests::default(),
            applied: SnapshotMeta::default(),
            ledger: Ledger::default(),
        }
    }

    /// The store, which any thread may read.
    pub fn store(&self) -> Arc<Store> {
        Arc::clone(&self.store)
    }

    /// The last applied index and its term.
    pub fn applied(&self) -> SnapshotMeta {
        self.applied
    }

    /// The applied requests.
    pub fn requests(&self) -> &AppliedRequests {
        &self.requests
    }

    /// The digest of the records, the floor and the latest version. Replicas that have applied the
    /// same entries have the same; it is kept with every write and costs nothing to ask for.
    pub fn digest(&self) -> u64 {
        self.ledger.totals.digest()
    }

    /// The latest version that the applied log has held. A write that a node stamps from now on
    /// needs a later one, or it may lose to a write that came before it.
    pub fn latest(&self) -> Version {
        self.ledger.totals.latest
    }

    /// Applies the next entry of the log. All commands of its batch run, in order, unless the
    /// request was applied before; a command that fails (INCR of a word) has no effect and stops
    /// nothing. Without `want_outcomes` its reads are skipped: only the node whose client waits
    /// needs them.
    pub fn apply(&mut self, entry: &Entry, want_outcomes: bool) -> Result<Applied, ApplyError> {
        // State Machine Safety (§5.4.3): every replica applies the same entry at each index.
        let expected = self.applied.index.saturating_add(1);
        if entry.index != expected {
            return Err(ApplyError::OutOfOrder { expected, found: entry.index });
        }
        let applied = match &entry.payload {
            Payload::Noop => Applied::Nothing,
            Payload::Batch { stamp, proposal } => {
                // The log may hold a proposal twice; only its first copy runs: see `requests.rs`.
                match self.requests.admit(proposal.id, proposal.floor) {
                    Admission::Duplicate => Applied::Duplicate,
                    Admission::Stale => Applied::Stale,
                    Admission::Fresh => self
                        .run(*stamp, &proposal.commands, want_outcomes)
                        .map(Applied::Done)
                        .map_err(|malformed| ApplyError::Malformed {
                            index: entry.index,
                            malformed,
                        })?,
                }
            }
            Payload::Merge(writes) => self.merge(writes),
            Payload::Checkpoint { floor } => self.checkpoint(*floor),
        };
        self.applied = SnapshotMeta { index: entry.index, term: entry.term };
        self.store.publish(&self.ledger.totals, entry.index);
        Ok(applied)
    }

    fn run(
        &mut self,
        stamp: Version,
        batch: &[u8],
        want_outcomes: bool,
    ) -> Result<Vec<Outcome>, Malformed> {
        let mut outcomes = Vec::new();
        self.ledger.begin(stamp);
        self.store.prefetch_commands(batch);
        for command in Command::decode_all(batch) {
            let command = command?;
            // A skipped read changes nothing, so replicas that skip it stay equal to those that do
            // not.
            let outcome = if command.is_write() {
                self.store.write(&command, &mut self.ledger)
            } else if want_outcomes {
                Some(self.store.read(&command))
            } else {
                None
            };
            outcomes.extend(outcome.filter(|_| want_outcomes));
        }
        Ok(outcomes)
    }

    fn merge(&mut self, writes: &[Write]) -> Applied {
        let (mut taken, mut late) = (0, 0);
        self.store.prefetch_writes(writes);
        for write in writes {
            match self.store.merge(write.record(), &mut self.ledger) {
                Merged::Taken => taken += 1,
                Merged::Older => {}
                Merged::Late => late += 1,
            }
        }
        Applied::Merged { taken, late }
    }

    /// Raises the floor and forgets the tombstones up to it.
    fn checkpoint(&mut self, floor: Version) -> Applied {
        let totals = &mut self.ledger.totals;
        totals.floor = totals.floor.max(floor);
        // Strong writes must stay above the floor too, so it counts as a version of the log.
        self.ledger.observe(floor);
        self.store.purge(&mut self.ledger);
        Applied::Checkpoint { digest: self.digest() }
    }

    /// The state as of the last applied entry, which later writes do not change. Copies one pointer
    /// a slot, and no thread waits longer than for one slot. While an earlier image still exists,
    /// the slots that were written since that image are copied.
    pub fn image(&self) -> Image {
        let mut freed = Vec::new();
        // Slot by slot, not under one lock: this is the only writer, so no base changes meanwhile.
        let slots = &self.store.slots;
        let slots = slots.iter().map(|slot| slot.write().base.share(&mut freed)).collect();
        let (requests, totals) = (self.requests.clone(), self.ledger.totals);
        Image { meta: self.applied, requests, slots, totals }
    }

    /// Replaces the whole state by `image`, which should be ahead of the applied index. Returns the
    /// old state, to be dropped: that takes half a second for each million keys, so another thread
    /// should do it. The overlay keeps the writes that the image does not supersede.
    ///
    /// A concurrent reader sees the old state or the new one, also with several keys; only KEYS and
    /// SCAN can see some slots old and some new. A reader that has seen the image's index in
    /// [`Store::applied`] reads the new state. The reverse can happen, new state while `applied` is
    /// still old, and is harmless to a reader that waits for an index.
    pub fn restore(&mut self, image: Image) -> impl Send + use<> {
        let Image { meta, requests, slots, totals } = image;
        let ledger = mem::replace(&mut self.ledger, Ledger::of(totals, &slots));
        let publish = || self.store.publish(&totals, meta.index);
        let slots = self.store.replace_all(slots, totals.floor, publish);
        self.applied = meta;
        (slots, ledger, mem::replace(&mut self.requests, requests))
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
