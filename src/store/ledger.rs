//! The writer's account of the state: totals of all records, the version that the current batch
//! writes, and the tombstones by age, so that old ones are found without a search.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::record::{Map, Totals};
use crate::types::{Key, Record, Version};

/// The writer's account of the state, kept with every write.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    pub totals: Totals,
    /// The version of the current batch's writes.
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

    /// Begins a batch. Its writes are later than everything that the log has held.
    pub fn begin(&mut self, stamp: Version) {
        // A leader's clock may lag behind versions that an earlier leader wrote. The log's order
        // decides, so the version follows the latest one then.
        self.version = stamp.max(self.totals.latest.next_of_log());
        self.observe(self.version);
    }

    /// Notes that the log holds a write or a checkpoint of this version.
    pub fn observe(&mut self, version: Version) {
        self.totals.latest = self.totals.latest.max(version);
    }

    /// Makes the batch's next writes later than a write that the batch has merged.
    pub fn rise_above(&mut self, merged: Version) {
        if merged >= self.version {
            self.begin(Version::default());
        }
    }

    /// Adds a record that was written.
    pub fn add(&mut self, record: &Record) {
        self.totals.add(record);
        if !record.has_value() {
            self.tombstones.insert((record.version(), record.share_key()));
        }
    }

    /// Removes a record that was replaced or forgotten.
    pub fn remove(&mut self, record: &Record) {
        self.totals.remove(record);
        if !record.has_value() {
            self.tombstones.remove(&(record.version(), record.share_key()));
        }
    }

    /// Removes all records: the current batch has cleared the store.
    pub fn clear(&mut self) {
        self.tombstones.clear();
        self.totals.clear(self.version);
    }

    /// The key of the oldest tombstone, if the floor makes that tombstone superfluous.
    pub fn oldest_superfluous(&self) -> Option<Key> {
        let (version, key) = self.tombstones.first()?;
        // The floor refuses every write that this tombstone would refuse.
        (*version <= self.totals.floor).then(|| key.clone())
    }
}
