//! A node's disk, as a value: the state that survives a crash.

use std::collections::BTreeMap;

use nodesync::replica::{HardState, Recovered, WalRecord};
use nodesync::store::Image;
use nodesync::types::{Entry, SnapshotMeta, Version, Write};

/// The durable state of a node.
#[derive(Clone, Debug, Default)]
pub struct Disk {
    pub incarnation: u64,
    pub hard: HardState,
    pub snapshot: SnapshotMeta,
    pub entries: Vec<Entry>,
    pub held: Vec<Write>,
    pub clock: Version,
    pub images: BTreeMap<SnapshotMeta, Image>,
}

impl Disk {
    /// Writes a record, as [`WalRecord`] describes.
    pub fn write(&mut self, record: WalRecord) {
        match record {
            WalRecord::Hard(hard) => self.hard = hard,
            WalRecord::Entry(entry) => {
                self.entries.retain(|kept| kept.index < entry.index);
                let last = self.entries.last().map_or(self.snapshot.index, |kept| kept.index);
                assert_eq!(entry.index, last + 1, "a gap in the log on disk");
                self.entries.push(entry);
            }
            WalRecord::Snapshot(meta) => {
                assert!(self.images.contains_key(&meta), "no image of {meta:?}");
                let agrees = |e: &Entry| e.index == meta.index && e.term == meta.term;
                if !self.entries.iter().any(agrees) {
                    self.entries.clear();
                }
                self.entries.retain(|entry| entry.index > meta.index);
                self.snapshot = meta;
            }
            WalRecord::Stamped(writes) => self.held.extend_from_slice(&writes),
            WalRecord::Held(writes) => self.held = writes.to_vec(),
            WalRecord::Clock(clock) => self.clock = clock,
        }
    }

    pub fn recovered(&self) -> Recovered {
        Recovered {
            hard: self.hard.clone(),
            snapshot: self.snapshot,
            entries: self.entries.clone(),
            held: self.held.clone(),
            clock: self.clock,
        }
    }
}
