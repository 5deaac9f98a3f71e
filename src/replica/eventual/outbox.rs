//! The eventual writes that this node holds and that are not known to be in the log. Of each key it
//! holds the newest write, so a key that is written often takes the room of one write.
//!
//! Writes are numbered as they arrive. The ways into the log and to each peer keep a [`Cursor`],
//! the number up to which they have taken writes. The disk needs more: if a key is written again
//! and again, none of its writes would ever grow old enough to be written down. So a write that
//! replaces one that is not on the disk inherits its age.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

use foldhash::fast::FixedState;

use super::seq_queue::{KEEP, SeqQueue};
use crate::types::{Key, Version, Write};

/// An arrival number: all writes that arrived before it were taken.
pub type Cursor = u64;

/// The memory of a write beside its key and value, in bytes: its share of the tables and its
/// allocations.
const OVERHEAD: usize = 200;

/// The number of stale versions up to which the heap is not rebuilt.
const GONE_MIN: usize = 64;

/// A write in the outbox.
#[derive(Clone, Debug)]
struct HeldWrite {
    write: Write,
    /// The arrival of the oldest write to this key since the key was last written to the disk.
    age: u64,
}

/// The newest write of each key that is not known to be in the log.
#[derive(Clone, Debug)]
pub struct Outbox {
    /// The writes, by arrival.
    held: SeqQueue<HeldWrite>,
    /// The arrival of each key's write.
    arrivals: HashMap<Key, u64, FixedState>,
    /// The arrivals of the writes that are not on the disk, by age.
    unwritten: SeqQueue<u64>,
    /// The versions with their arrivals, lowest first. Some are stale: their writes have left.
    versions: BinaryHeap<Reverse<(Version, u64)>>,
    bytes: usize,
    next_arrival: u64,
}

impl Outbox {
    /// An empty outbox. `seed` keeps clients from choosing keys that collide in the table.
    pub fn new(seed: u64) -> Outbox {
        Outbox {
            held: SeqQueue::default(),
            arrivals: HashMap::with_hasher(FixedState::with_seed(seed)),
            unwritten: SeqQueue::default(),
            versions: BinaryHeap::new(),
            bytes: 0,
            next_arrival: 0,
        }
    }

    /// Adds a write. Returns false if a write to this key is held that is at least as new.
    pub fn insert(&mut self, write: &Write) -> bool {
        if self.get(&write.key).is_some_and(|held| held.write.version >= write.version) {
            return false;
        }
        let arrival = self.next_arrival;
        self.next_arrival += 1;
        // The old key goes first: it may share its memory with the old value, which would stay
        // alive.
        let replaced = self.remove(&write.key).map(|replaced| replaced.age);
        let aged = replaced.and_then(|age| Some((age, self.unwritten.get_mut(age)?)));
        let age = match aged {
            Some((age, unwritten)) => {
                *unwritten = arrival;
                age
            }
            None => {
                self.unwritten.push(arrival, arrival);
                arrival
            }
        };
        self.bytes += size(write);
        self.held.push(arrival, HeldWrite { write: write.clone(), age });
        self.arrivals.insert(write.key.clone(), arrival);
        self.versions.push(Reverse((write.version, arrival)));
        if self.versions.len() > 2 * self.held.len() + GONE_MIN {
            let version =
                |(arrival, held): (u64, &HeldWrite)| Reverse((held.write.version, arrival));
            self.versions = self.held.from(0).map(version).collect();
        }
        true
    }

    /// Removes writes that are committed, and older ones to their keys.
    pub fn settle(&mut self, writes: &[Write]) {
        for write in writes {
            if self.held.is_empty() {
                return;
            }
            if self.get(&write.key).is_some_and(|held| held.write.version <= write.version)
                && let Some(settled) = self.remove(&write.key)
            {
                self.unwritten.remove(settled.age);
            }
        }
    }

    /// The writes that arrived at or after `cursor`, in order of arrival, up to about `bytes_max`
    /// but at least one; moves the cursor behind them. Stops before a write that `may_leave`
    /// refuses.
    pub fn take(
        &self,
        cursor: &mut Cursor,
        bytes_max: usize,
        may_leave: impl Fn(Version) -> bool,
    ) -> Vec<Write> {
        let (mut writes, mut bytes) = (Vec::new(), 0);
        for (arrival, HeldWrite { write, .. }) in self.held.from(*cursor) {
            let size = size(write);
            let is_full = !writes.is_empty() && bytes + size > bytes_max;
            if is_full || !may_leave(write.version) {
                *cursor = arrival;
                return writes;
            }
            bytes += size;
            writes.push(write.clone());
        }
        *cursor = self.next_arrival;
        writes
    }

    /// The writes that are not on the disk and whose age lies before `end`. They count as written.
    pub fn take_unwritten(&mut self, end: Cursor) -> Vec<Write> {
        let mut due = Vec::new();
        while let Some(arrival) = self.unwritten.pop_below(end) {
            due.extend(self.held.get(arrival).map(|held| held.write.clone()));
        }
        due
    }

    /// All writes in the order of their arrival. They count as written.
    pub fn take_all(&mut self) -> Vec<Write> {
        self.unwritten = SeqQueue::default();
        self.held.from(0).map(|(_, held)| held.write.clone()).collect()
    }

    /// The number of writes held that are not on the disk.
    pub fn unwritten(&self) -> usize {
        self.unwritten.len()
    }

    /// True if a write held is on the disk.
    pub fn is_written(&self) -> bool {
        self.held.len() > self.unwritten.len()
    }

    /// True if a write arrived at or after `cursor`.
    pub fn has_news(&self, cursor: Cursor) -> bool {
        self.held.from(cursor).next().is_some()
    }

    /// The number of the next arrival.
    pub fn end(&self) -> Cursor {
        self.next_arrival
    }

    /// The number of the write that was held longest.
    pub fn first(&self) -> Option<Cursor> {
        self.held.first()
    }

    /// The lowest version held.
    pub fn oldest(&mut self) -> Option<Version> {
        let Outbox { versions, held, .. } = self;
        while let Some(Reverse((version, arrival))) = versions.peek() {
            if held.get(*arrival).is_some() {
                return Some(*version);
            }
            versions.pop();
        }
        None
    }

    /// The number of writes held.
    pub fn len(&self) -> usize {
        self.held.len()
    }

    /// True if no write is held.
    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// The size of all writes held, in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    fn get(&self, key: &Key) -> Option<&HeldWrite> {
        self.held.get(*self.arrivals.get(key)?)
    }

    /// Removes a key's write. Its age stays in `unwritten`.
    fn remove(&mut self, key: &Key) -> Option<HeldWrite> {
        let held = self.held.remove(self.arrivals.remove(key)?)?;
        self.bytes -= size(&held.write);
        if self.held.is_empty() {
            self.versions.clear();
            self.versions.shrink_to(KEEP);
            self.arrivals.shrink_to(KEEP);
        }
        Some(held)
    }
}

/// The size of writes in an outbox, in bytes.
pub fn size_of(writes: &[Write]) -> usize {
    writes.iter().map(size).sum()
}

fn size(write: &Write) -> usize {
    OVERHEAD + write.key.len() + write.value.as_ref().map_or(0, |value| value.len())
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
        let mut outbox = Outbox::new(1);
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
        let mut outbox = Outbox::new(1);
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
        let mut outbox = Outbox::new(1);
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
        let mut outbox = Outbox::new(1);
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
                let mut outbox = Outbox::new(1);
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
