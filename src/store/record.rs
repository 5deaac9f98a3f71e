//! The table of a slot's records, the totals of all records, and the digest by which two stores are
//! compared.
//!
//! # Digest
//! A record's digest is an XXH3 of its value, seeded by an XXH3 of its key, seeded by its version;
//! a tombstone's seed is the complement of a value's, so that an empty value is not a tombstone.
//! The digests of all records are added up, wrapping: the sum does not depend on their order, and a
//! write changes it by the new record's digest minus the old one's. It finds faults; an attacker
//! can bring about any sum.

use std::borrow::Borrow;
use std::collections::HashSet;
use std::hash::{Hash, Hasher};
use std::hint::black_box;

use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use super::Stats;
use crate::types::{Record, Version};

/// The records of one slot, by their keys: a table of pointers, so that it is cheap to copy and its
/// empty places cost little.
#[derive(Clone, Debug, Default)]
pub(super) struct Map(HashSet<ByKey, foldhash::fast::RandomState>);

/// A record that stands for its key.
#[derive(Clone, Debug)]
struct ByKey(Record);

/// The totals of all records of a state, and its floor and latest version. Kept with every write;
/// the same on all replicas at the same index.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Totals {
    pub stats: Stats,
    /// The wrapping sum of the records' digests.
    sum: u64,
    /// The version of every key that has no record.
    pub floor: Version,
    /// The latest version of any record or floor so far.
    pub latest: Version,
}

impl Borrow<[u8]> for ByKey {
    fn borrow(&self) -> &[u8] {
        self.0.key()
    }
}

impl Hash for ByKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.key().hash(state);
    }
}

impl PartialEq for ByKey {
    fn eq(&self, other: &ByKey) -> bool {
        self.0.key() == other.0.key()
    }
}

impl Eq for ByKey {}

impl Map {
    pub fn get(&self, key: &[u8]) -> Option<&Record> {
        self.0.get(key).map(|ByKey(record)| record)
    }

    pub fn contains(&self, key: &[u8]) -> bool {
        self.0.contains(key)
    }

    /// Puts a record in; returns the record of its key that it replaces.
    pub fn put(&mut self, record: Record) -> Option<Record> {
        self.0.replace(ByKey(record)).map(|ByKey(old)| old)
    }

    pub fn remove(&mut self, key: &[u8]) -> Option<Record> {
        self.0.take(key).map(|ByKey(record)| record)
    }

    /// Removes the records for which `is_removed` is true.
    pub fn extract_if(
        &mut self,
        is_removed: impl Fn(&Record) -> bool,
    ) -> impl Iterator<Item = Record> {
        self.0.extract_if(move |ByKey(record)| is_removed(record)).map(|ByKey(record)| record)
    }

    pub fn iter(&self) -> impl Iterator<Item = &Record> {
        self.0.iter().map(|ByKey(record)| record)
    }

    /// Reads every record once, to bring it into the cache. Work that compares or changes records
    /// waits for memory one record after the other; in this loop the waits overlap.
    pub fn prefetch(&self) {
        let versions = self.iter().map(|record| record.version().0);
        black_box(versions.fold(0, u64::wrapping_add));
    }

    pub fn into_records(self) -> impl Iterator<Item = Record> {
        self.0.into_iter().map(|ByKey(record)| record)
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn capacity(&self) -> usize {
        self.0.capacity()
    }

    pub fn shrink_to(&mut self, capacity: usize) {
        self.0.shrink_to(capacity);
    }
}

impl FromIterator<Record> for Map {
    fn from_iter<I: IntoIterator<Item = Record>>(records: I) -> Map {
        Map(records.into_iter().map(ByKey).collect())
    }
}

/// The digest of a record.
fn digest(record: &Record) -> u64 {
    let seed = xxh3_64_with_seed(record.key(), record.version().0);
    match record.value() {
        Some(value) => xxh3_64_with_seed(value, seed),
        None => xxh3_64_with_seed(&[], !seed),
    }
}

/// The bytes of a record's key and value.
fn len(record: &Record) -> u64 {
    (record.key().len() + record.value().unwrap_or_default().len()) as u64
}

impl Totals {
    pub fn add(&mut self, record: &Record) {
        self.sum = self.sum.wrapping_add(digest(record));
        if record.has_value() {
            self.stats.keys += 1;
            self.stats.bytes += len(record);
        } else {
            self.stats.tombstones += 1;
        }
    }

    pub fn remove(&mut self, record: &Record) {
        self.sum = self.sum.wrapping_sub(digest(record));
        if record.has_value() {
            self.stats.keys -= 1;
            self.stats.bytes -= len(record);
        } else {
            self.stats.tombstones -= 1;
        }
    }

    /// Removes all records; writes to their keys up to `floor` are too late from now on.
    pub fn clear(&mut self, floor: Version) {
        *self = Totals { floor, latest: self.latest, ..Totals::default() };
    }

    /// The digest of the state: of its records, floor and latest version.
    pub fn digest(&self) -> u64 {
        let mut bytes = [0; 24];
        let numbers = [self.sum, self.floor.0, self.latest.0];
        for (place, number) in bytes.chunks_exact_mut(8).zip(numbers) {
            place.copy_from_slice(&number.to_le_bytes());
        }
        xxh3_64(&bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_digest_tells_every_part_of_a_record() {
        let digest = |key: &[u8], value: Option<&[u8]>, version| {
            digest(&Record::new(Version(version), key, value))
        };
        let digests = [
            digest(b"k", Some(b"v"), 1),
            digest(b"k", Some(b"v"), 2),
            digest(b"k", Some(b"w"), 1),
            digest(b"l", Some(b"v"), 1),
            digest(b"k", Some(b""), 1),
            digest(b"k", None, 1),
            digest(b"k", None, 2),
            digest(b"kv", Some(b""), 1),
            digest(b"", Some(b"kv"), 1),
        ];
        for (number, digest) in digests.iter().enumerate() {
            assert!(!digests[..number].contains(digest), "{number}");
        }
    }

    #[test]
    fn the_digest_is_part_of_the_image_format_and_never_changes() {
        let version = Version(3);
        let mut totals = Totals { floor: Version(1), latest: version, ..Totals::default() };
        totals.add(&Record::new(version, b"key", Some(b"value")));
        totals.add(&Record::new(version, b"gone", None));
        assert_eq!(totals.digest(), 2_747_946_094_165_587_377);
    }
}
