//! What the store holds for a key, what all records add up to, and the digest by which two stores
//! are compared.
//!
//! # Digest
//! A record's digest is an XXH3 of its value, seeded by an XXH3 of its key, seeded by its version;
//! a tombstone's seed is the complement of a value's, so that an empty value is not a tombstone.
//! The digests of all records are added up, wrapping: the sum does not depend on their order, and a
//! write changes it by the new record's digest minus the old one's. It finds faults, not attackers,
//! who can make a sum come out as they like.

use std::collections::HashMap;

use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use super::Stats;
use crate::types::{Key, Value, Version};

/// The records of one slot.
pub(super) type Map = HashMap<Key, Record, foldhash::fast::RandomState>;

/// What is known of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Record {
    /// Its value; `None` is a tombstone, which remembers a deletion against older writes.
    pub value: Option<Value>,
    /// When it was written.
    pub version: Version,
}

/// What the records of a state add up to, and what is the state's beside them. Kept while they
/// change; the same on all replicas at the same index.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Totals {
    pub stats: Stats,
    /// The wrapping sum of the records' digests.
    sum: u64,
    /// The version of every key that has no record.
    pub floor: Version,
    /// No record and no floor has a later version.
    pub latest: Version,
}

impl Record {
    /// The digest of the record of `key`.
    pub fn digest(&self, key: &[u8]) -> u64 {
        let seed = xxh3_64_with_seed(key, self.version.0);
        match &self.value {
            Some(value) => xxh3_64_with_seed(value, seed),
            None => xxh3_64_with_seed(&[], !seed),
        }
    }
}

impl Totals {
    pub fn add(&mut self, key: &[u8], record: &Record) {
        self.sum = self.sum.wrapping_add(record.digest(key));
        match &record.value {
            Some(value) => {
                self.stats.keys += 1;
                self.stats.bytes += (key.len() + value.len()) as u64;
            }
            None => self.stats.tombstones += 1,
        }
    }

    pub fn remove(&mut self, key: &[u8], record: &Record) {
        self.sum = self.sum.wrapping_sub(record.digest(key));
        match &record.value {
            Some(value) => {
                self.stats.keys -= 1;
                self.stats.bytes -= (key.len() + value.len()) as u64;
            }
            None => self.stats.tombstones -= 1,
        }
    }

    /// All records are gone, and older writes to their keys come too late.
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
        let record = |value: Option<&[u8]>, version| Record {
            value: value.map(Value::from),
            version: Version(version),
        };
        let digests = [
            record(Some(b"v"), 1).digest(b"k"),
            record(Some(b"v"), 2).digest(b"k"),
            record(Some(b"w"), 1).digest(b"k"),
            record(Some(b"v"), 1).digest(b"l"),
            record(Some(b""), 1).digest(b"k"),
            record(None, 1).digest(b"k"),
            record(None, 2).digest(b"k"),
            record(Some(b""), 1).digest(b"kv"),
            record(Some(b"kv"), 1).digest(b""),
        ];
        for (number, digest) in digests.iter().enumerate() {
            assert!(!digests[..number].contains(digest), "{number}");
        }
    }

    #[test]
    fn the_digest_is_part_of_the_image_format_and_never_changes() {
        let version = Version(3);
        let mut totals = Totals { floor: Version(1), latest: version, ..Totals::default() };
        totals.add(b"key", &Record { value: Some((*b"value").into()), version });
        totals.add(b"gone", &Record { value: None, version });
        assert_eq!(totals.digest(), 2_747_946_094_165_587_377);
    }
}
