//! The eventual writes that this node holds and that are not known to be in the log: of each key
//! the newest one. However often a key is written, it takes the room of one write.
//!
//! Writes are numbered as they arrive. Whoever takes them somewhere (into the log, to a peer) keeps
//! a [`Cursor`], the number up to which it has done so. For the disk that would not do: of a key
//! that is written again and again, no write would ever grow old enough to be worth writing down.
//! So a write that takes the place of one that is not on the disk takes over its age.

use std::collections::{BTreeMap, BTreeSet};

use crate::types::{Key, Value, Version, Write};

/// Every write that arrived before it has been taken along.
pub type Cursor = u64;

/// What a write costs beside its key and value, in bytes: its share of the trees and its
/// allocations.
const OVERHEAD: usize = 200;

#[derive(Clone, Debug)]
struct Item {
    version: Version,
    value: Option<Value>,
    arrival: u64,
    /// The arrival of the oldest write to this key since one was written to the disk.
    unwritten_since: u64,
}

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct Outbox {
    items: BTreeMap<Key, Item>,
    arrivals: BTreeMap<u64, Key>,
    /// By version and arrival.
    versions: BTreeSet<(Version, u64)>,
    /// By age, those that are not on the disk.
    unwritten: BTreeMap<u64, Key>,
    bytes: usize,
    next_arrival: u64,
}

impl Outbox {
    /// Takes a write in. False if one to this key is held that is at least as new.
    pub fn insert(&mut self, write: &Write) -> bool {
        if self.items.get(&write.key).is_some_and(|held| held.version >= write.version) {
            return false;
        }
        let arrival = self.next_arrival;
        self.next_arrival += 1;
        let since = self.remove(&write.key).map(|held| held.unwritten_since);
        // The new write's key in the place of the old one's, which may hold the old value.
        let aged = since.and_then(|since| Some((since, self.unwritten.get_mut(&since)?)));
        let unwritten_since = match aged {
            Some((since, key)) => {
                key.clone_from(&write.key);
                since
            }
            None => {
                self.unwritten.insert(arrival, write.key.clone());
                arrival
            }
        };
        self.bytes += size(&write.key, write.value.as_ref());
        self.arrivals.insert(arrival, write.key.clone());
        self.versions.insert((write.version, arrival));
        let (version, value) = (write.version, write.value.clone());
        let item = Item { version, value, arrival, unwritten_since };
        self.items.insert(write.key.clone(), item);
        true
    }

    /// These writes are in the log for good: neither they nor older ones to their keys are needed.
    pub fn settle(&mut self, writes: &[Write]) {
        for write in writes {
            if self.items.is_empty() {
                return;
            }
            let held = self.items.get(&write.key);
            if held.is_some_and(|held| held.version <= write.version)
                && let Some(settled) = self.remove(&write.key)
            {
                self.unwritten.remove(&settled.unwritten_since);
            }
        }
    }

    /// The writes that arrived at or after `cursor`, in that order, up to about `bytes_max` but at
    /// least one; moves the cursor behind them. Stops before one that `may_leave` says no to.
    pub fn take(
        &self,
        cursor: &mut Cursor,
        bytes_max: usize,
        may_leave: impl Fn(Version) -> bool,
    ) -> Vec<Write> {
        let (mut writes, mut bytes) = (Vec::new(), 0);
        for (&arrival, key) in self.arrivals.range(*cursor..) {
            let Some(item) = self.items.get(key) else { continue };
            let size = size(key, item.value.as_ref());
            let is_full = !writes.is_empty() && bytes + size > bytes_max;
            if is_full || !may_leave(item.version) {
                *cursor = arrival;
                return writes;
            }
            bytes += size;
            let (key, value) = (key.clone(), item.value.clone());
            writes.push(Write { version: item.version, key, value });
        }
        *cursor = self.next_arrival;
        writes
    }

    /// The writes that are not on the disk and as old as those that arrived before `end`, to be
    /// written there now.
    pub fn take_unwritten(&mut self, end: Cursor) -> Vec<Write> {
        let later = self.unwritten.split_off(&end);
        let due = std::mem::replace(&mut self.unwritten, later);
        due.values().filter_map(|key| self.get(key)).collect()
    }

    /// All writes in the order in which they arrived, to be written to the disk now.
    pub fn take_all(&mut self) -> Vec<Write> {
        self.unwritten.clear();
        self.arrivals.values().filter_map(|key| self.get(key)).collect()
    }

    /// How many of the writes held are not on the disk.
    pub fn unwritten(&self) -> usize {
        self.unwritten.len()
    }

    /// True if a write that is held is on the disk.
    pub fn is_written(&self) -> bool {
        self.items.len() > self.unwritten.len()
    }

    /// True if a write arrived at or after `cursor`.
    pub fn has_news(&self, cursor: Cursor) -> bool {
        self.arrivals.range(cursor..).next().is_some()
    }

    /// The number that the next write to arrive will have.
    pub fn end(&self) -> Cursor {
        self.next_arrival
    }

    /// The number of the write that has been here longest.
    pub fn first(&self) -> Option<Cursor> {
        self.arrivals.first_key_value().map(|(arrival, _)| *arrival)
    }

    /// The lowest version that is held.
    pub fn oldest(&self) -> Option<Version> {
        self.versions.first().map(|(version, _)| *version)
    }

    /// How many writes are held.
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// True if none is.
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// The room that they take, in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    fn get(&self, key: &Key) -> Option<Write> {
        let Item { version, value, .. } = self.items.get(key)?;
        Some(Write { version: *version, key: key.clone(), value: value.clone() })
    }

    /// Removes all that is known of a key but its age.
    fn remove(&mut self, key: &Key) -> Option<Item> {
        let item = self.items.remove(key)?;
        self.bytes -= size(key, item.value.as_ref());
        self.arrivals.remove(&item.arrival);
        self.versions.remove(&(item.version, item.arrival));
        Some(item)
    }
}

/// The room that writes take in an outbox, in bytes.
pub fn size_of(writes: &[Write]) -> usize {
    writes.iter().map(|write| size(&write.key, write.value.as_ref())).sum()
}

fn size(key: &Key, value: Option<&Value>) -> usize {
    OVERHEAD + key.len() + value.map_or(0, |value| value.len())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn write(key: u8, version: u64) -> Write {
        let value = (!version.is_multiple_of(3)).then(|| [version as u8].as_slice().into());
        Write { version: Version(version), key: [key].as_slice().into(), value }
    }

    fn held(outbox: &Outbox) -> Vec<(u8, u64)> {
        let writes = outbox.take(&mut 0, usize::MAX, |_| true);
        writes.iter().map(|write| (write.key[0], write.version.0)).collect()
    }

    #[test]
    fn of_each_key_the_newest_write_is_held_where_it_arrived() {
        let mut outbox = Outbox::default();
        assert!(outbox.insert(&write(1, 10)));
        assert!(outbox.insert(&write(2, 11)));
        assert!(outbox.insert(&write(1, 12)));
        assert!(!outbox.insert(&write(1, 12)));
        assert!(!outbox.insert(&write(2, 5)));
        assert_eq!(held(&outbox), [(2, 11), (1, 12)]);
        assert_eq!(outbox.oldest(), Some(Version(11)));
    }

    #[test]
    fn a_write_takes_over_the_age_of_one_that_is_not_on_the_disk() {
        let mut outbox = Outbox::default();
        outbox.insert(&write(1, 1));
        let end = outbox.end();
        outbox.insert(&write(1, 2));
        outbox.insert(&write(2, 4));
        assert_eq!(outbox.take_unwritten(end), [write(1, 2)]);
        assert!(outbox.is_written());
        outbox.insert(&write(1, 5));
        assert!(outbox.take_unwritten(end).is_empty() && !outbox.is_written());
        assert_eq!(outbox.take_unwritten(outbox.end()), [write(2, 4), write(1, 5)]);
        outbox.insert(&write(1, 7));
        outbox.settle(&[write(1, 7)]);
        assert_eq!(outbox.take_all(), [write(2, 4)]);
        outbox.settle(&[write(2, 4)]);
        assert!(!outbox.is_written() && outbox.unwritten.is_empty());
    }

    #[test]
    fn settling_removes_what_is_not_newer() {
        let mut outbox = Outbox::default();
        for version in 1..=3 {
            outbox.insert(&write(version, version.into()));
        }
        outbox.settle(&[write(1, 1), write(2, 9), write(3, 2), write(4, 4)]);
        assert_eq!(held(&outbox), [(3, 3)]);
        outbox.settle(&[write(3, 3)]);
        assert!(outbox.is_empty());
        assert_eq!((outbox.bytes(), outbox.oldest()), (0, None));
    }

    #[test]
    fn cursors_take_everything_once_by_the_bytes_and_stop_where_they_must() {
        let mut outbox = Outbox::default();
        for key in 1..=4 {
            outbox.insert(&write(key, key.into()));
        }
        let mut cursor = 0;
        assert_eq!(outbox.take(&mut cursor, 2 * (OVERHEAD + 2), |_| true).len(), 2);
        assert!(outbox.take(&mut cursor, 1, |version| version < Version(3)).is_empty());
        assert_eq!(outbox.take(&mut cursor, 1, |_| true).len(), 1);
        assert!(outbox.has_news(cursor));
        assert_eq!(outbox.take(&mut cursor, 1000, |_| true).len(), 1);
        assert!(!outbox.has_news(cursor));
        outbox.insert(&write(1, 9));
        assert_eq!(outbox.take(&mut cursor, 1000, |_| true), [write(1, 9)]);
    }

    proptest! {
        #[test]
        fn the_order_and_number_of_arrivals_do_not_matter(
            writes in prop::collection::vec((0..4_u8, 1..40_u64), 1..30), seed in any::<u64>(),
        ) {
            let mut shuffled = writes.clone();
            let mut rng = crate::rng::Rng::new(seed);
            for at in 0..writes.len() {
                shuffled.swap(at, rng.below(writes.len() as u64) as usize);
                shuffled.push(writes[rng.below(writes.len() as u64) as usize]);
            }
            let newest = |writes: &[(u8, u64)]| {
                let mut outbox = Outbox::default();
                for &(key, version) in writes {
                    outbox.insert(&write(key, version));
                }
                let mut held = held(&outbox);
                held.sort_unstable();
                (held, outbox.bytes(), outbox.oldest())
            };
            prop_assert_eq!(newest(&writes), newest(&shuffled));
        }
    }
}
