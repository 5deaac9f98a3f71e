//! What the writer keeps beside the records: their totals, the version of what is being written,
//! and the tombstones by age, so that the old ones can be forgotten without a search.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::record::{Map, Totals};
use crate::types::{Key, Record, Version};

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    pub totals: Totals,
    /// The version of what the current batch writes.
    pub version: Version,
    tombstones: BTreeSet<(Version, Key)>,
}

impl Ledger {
    /// The ledger of restored records. Walks the slots if there are tombstones among them.
    pub fn of(totals: Totals, slots: &[Arc<Map>]) -> Ledger {
        let mut tombstones = BTreeSet::new();
        if totals.stats.tombstones > 0 {
            let records = slots.iter().flat_map(|slot| slot.iter());
            let dead = records.filter(|record| !record.has_value());
            tombstones.extend(dead.map(|record| (record.version(), record.share_key())));
        }
        Ledger { totals, version: Version::default(), tombstones }
    }

    /// A batch begins. What it writes is later than all that the log has held.
    pub fn begin(&mut self, stamp: Version) {
        self.version = stamp.max(self.totals.latest.next_of_log());
        self.saw(self.version);
    }

    /// The log holds a write or a mark of this version.
    pub fn saw(&mut self, version: Version) {
        self.totals.latest = self.totals.latest.max(version);
    }

    /// What the batch writes from here on is later than a write that it has merged.
    pub fn rise_above(&mut self, merged: Version) {
        if merged >= self.version {
            self.begin(Version::default());
        }
    }

    /// A record was written.
    pub fn add(&mut self, record: &Record) {
        self.totals.add(record);
        if !record.has_value() {
            self.tombstones.insert((record.version(), record.share_key()));
        }
    }

    /// A record was replaced, or forgotten.
    pub fn remove(&mut self, record: &Record) {
        self.totals.remove(record);
        if !record.has_value() {
            self.tombstones.remove(&(record.version(), record.share_key()));
        }
    }

    /// The whole store was deleted by the current batch.
    pub fn clear(&mut self) {
        self.tombstones.clear();
        self.totals.clear(self.version);
    }

    /// The oldest tombstone that the floor makes superfluous. It stays until it is removed.
    pub fn superfluous(&self) -> Option<Key> {
        let (version, key) = self.tombstones.first()?;
        (*version <= self.totals.floor).then(|| key.clone())
    }
}
