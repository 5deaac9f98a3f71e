//! A node's disk and its store, as values: what a crash leaves, and what has been applied.

use std::collections::{BTreeMap, BTreeSet};

use nodesync::replica::{HardState, Record, Recovered};
use nodesync::types::{Entry, Index, NodeId, Payload, RequestId, SnapshotMeta};

/// What survives a crash.
#[derive(Clone, Debug, Default)]
pub struct Disk {
    pub incarnation: u64,
    pub hard: HardState,
    pub snapshot: SnapshotMeta,
    pub entries: Vec<Entry>,
    pub images: BTreeMap<SnapshotMeta, Store>,
}

impl Disk {
    /// Carries out what [`Record`] says.
    pub fn write(&mut self, record: Record) {
        match record {
            Record::Hard(hard) => self.hard = hard,
            Record::Entry(entry) => {
                self.entries.retain(|kept| kept.index < entry.index);
                let last = self.entries.last().map_or(self.snapshot.index, |kept| kept.index);
                assert_eq!(entry.index, last + 1, "a gap in the log on disk");
                self.entries.push(entry);
            }
            Record::Snapshot(meta) => {
                assert!(self.images.contains_key(&meta), "no image of {meta:?}");
                let agrees = |e: &Entry| e.index == meta.index && e.term == meta.term;
                if !self.entries.iter().any(agrees) {
                    self.entries.clear();
                }
                self.entries.retain(|entry| entry.index > meta.index);
                self.snapshot = meta;
            }
        }
    }

    pub fn recovered(&self) -> Recovered {
        Recovered {
            hard: self.hard.clone(),
            snapshot: self.snapshot,
            entries: self.entries.clone(),
        }
    }
}

/// A state machine of `key=value` lines that drops what it has seen before.
#[derive(Clone, Debug, Default)]
pub struct Store {
    pub applied: Index,
    pub data: BTreeMap<String, String>,
    seen: BTreeMap<NodeId, Seen>,
}

#[derive(Clone, Debug, Default)]
struct Seen {
    boot: u64,
    floor: u64,
    seqs: BTreeSet<u64>,
}

/// What an entry came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Applied {
    Noop,
    Done(RequestId),
    Copy(RequestId),
}

impl Store {
    pub fn apply(&mut self, entry: &Entry) -> Applied {
        assert_eq!(entry.index, self.applied + 1, "applied out of order");
        self.applied = entry.index;
        let Payload::Batch(proposal) = &entry.payload else { return Applied::Noop };
        let id = proposal.id;
        let seen = self.seen.entry(id.node).or_default();
        if id.boot > seen.boot {
            *seen = Seen { boot: id.boot, ..Seen::default() };
        }
        if id.boot < seen.boot || id.seq < seen.floor || !seen.seqs.insert(id.seq) {
            return Applied::Copy(id);
        }
        seen.floor = seen.floor.max(proposal.floor);
        let floor = seen.floor;
        seen.seqs.retain(|seq| *seq >= floor);
        let text = String::from_utf8_lossy(&proposal.commands);
        let (key, value) = text.split_once('=').expect("scripts propose key=value");
        self.data.insert(key.to_owned(), value.to_owned());
        Applied::Done(id)
    }
}
