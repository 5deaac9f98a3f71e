//! A node's directory: the log as an ordered list of batches with a durable mark, and images.
//!
//! What a batch means is written in the documentation of [`Record`]; [`View`] is that in code. A
//! crash keeps any prefix of the batches that were written but not synced, and never a part of one:
//! the real log cuts a torn batch (how, is the business of `wal` and its own tests).

use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

use crate::replica::{Envelope, HardState, JobNo, Record, Recovered};
use crate::rng::Rng;
use crate::types::{Entry, Index, SnapshotMeta, Term, Version, Write};

/// What a sequence of records adds up to.
#[derive(Clone, Debug, Default)]
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
    pub fn apply(&mut self, record: &Record) -> Result<(), String> {
        match record {
            Record::Hard(hard) => self.hard = hard.clone(),
            Record::Entry(entry) => {
                let (index, last) = (entry.index, self.last_index());
                if index <= self.snapshot.index || index > last + 1 {
                    let snapshot = self.snapshot.index;
                    return Err(format!("entry {index} after snapshot {snapshot}, last {last}"));
                }
                self.entries.truncate((index - self.snapshot.index - 1) as usize);
                self.entries.push_back(entry.clone());
            }
            Record::Accepted(writes) => self.held.extend(writes.iter().cloned()),
            Record::Held(writes) => self.held = writes.to_vec(),
            Record::Clock(version) => self.clock = self.clock.max(*version),
            Record::Snapshot(meta) => {
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

/// An image of the store, with the digest of the history behind it.
#[derive(Debug)]
pub struct Saved {
    pub meta: SnapshotMeta,
    pub bytes: Vec<u8>,
    pub digest: u64,
}

/// What one step of a replica asked to be made durable.
#[derive(Debug)]
pub struct Batch {
    pub job: JobNo,
    pub records: Vec<Record>,
    pub after: Vec<Envelope>,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Disk {
    /// What all synced batches add up to.
    pub synced: View,
    /// The state before the last synced batch: for a disk that lies.
    before: View,
    /// Written, being synced.
    writing: Vec<Batch>,
    /// Not written yet.
    queue: VecDeque<Batch>,
    images: BTreeMap<SnapshotMeta, Rc<Saved>>,
}

impl Disk {
    /// Takes a batch in, behind all others.
    pub fn push(&mut self, batch: Batch) {
        self.queue.push_back(batch);
    }

    /// Writes all that waits and begins to sync it. False if there is nothing to do, or a sync is
    /// under way.
    pub fn begin_sync(&mut self) -> bool {
        let idle = self.writing.is_empty() && !self.queue.is_empty();
        if idle {
            self.writing.extend(self.queue.drain(..));
        }
        idle
    }

    /// The sync has returned: the batches that are durable now.
    pub fn end_sync(&mut self) -> Result<Vec<Batch>, String> {
        let batches = std::mem::take(&mut self.writing);
        self.before = self.synced.clone();
        for batch in &batches {
            self.keep(batch)?;
        }
        let snapshot = self.synced.snapshot;
        self.images.retain(|meta, _| *meta >= snapshot);
        Ok(batches)
    }

    fn keep(&mut self, batch: &Batch) -> Result<(), String> {
        for record in &batch.records {
            self.synced.apply(record)?;
        }
        Ok(())
    }

    /// Power is lost. What was being synced may be there in part.
    pub fn crash(&mut self, rng: &mut Rng) -> Result<(), String> {
        self.queue.clear();
        let batches = std::mem::take(&mut self.writing);
        let kept = rng.below(batches.len() as u64 + 1) as usize;
        batches[..kept].iter().try_for_each(|batch| self.keep(batch))
    }

    /// Everything is written and synced, as at a clean stop.
    pub fn close(&mut self) -> Result<(), String> {
        self.writing.extend(self.queue.drain(..));
        self.end_sync().map(drop)
    }

    /// The disk forgets the last batch that it said was durable.
    pub fn lie(&mut self) {
        self.synced = self.before.clone();
    }

    /// An image becomes durable.
    pub fn put_image(&mut self, image: Rc<Saved>) {
        self.images.insert(image.meta, image);
    }

    /// The image of this snapshot, if it is here.
    pub fn image(&self, meta: SnapshotMeta) -> Option<Rc<Saved>> {
        self.images.get(&meta).cloned()
    }

    /// What a start finds.
    pub fn recover(&self) -> Recovered {
        Recovered {
            hard: self.synced.hard.clone(),
            snapshot: self.synced.snapshot,
            entries: self.synced.entries.iter().cloned().collect(),
            held: self.synced.held.clone(),
            clock: self.synced.clock,
        }
    }
}
