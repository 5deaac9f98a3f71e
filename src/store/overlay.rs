//! Eventual writes that the log has not applied yet, beside each slot's base and under the same
//! lock, so that a write moves from the overlay to the base in one moment.
//!
//! A record in the overlay *counts* if it is newer than the base's record of its key, or newer than
//! the floor if the base has none. Applying anything to a key removes the overlay's record that it
//! supersedes, and a superseded write is never put in. So every record in an overlay counts, except
//! while a floor has risen past it.
//!
//! Left out: bounds. The replica that stamps writes counts those that are not in the log yet.

use std::collections::HashSet;
use std::mem;
use std::sync::atomic::Ordering;

use super::base::Base;
use super::record::Map;
use super::slot::slot_of;
use super::{Slot, Store};
use crate::types::{Command, Record, Version, Write};

/// The overlay of one slot. Empty most of the time, or one record for the moment between an answer
/// and the log: neither takes memory of its own.
#[derive(Debug, Default)]
pub(super) enum Overlay {
    #[default]
    Empty,
    One(Record),
    /// There was more than one record; never an empty map.
    Many(Box<Map>),
}

impl Overlay {
    pub fn is_empty(&self) -> bool {
        matches!(self, Overlay::Empty)
    }

    pub fn get(&self, key: &[u8]) -> Option<&Record> {
        match self {
            Overlay::Empty => None,
            Overlay::One(record) => Some(record).filter(|record| record.key() == key),
            Overlay::Many(map) => map.get(key),
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = &Record> {
        let (one, many) = match self {
            Overlay::Empty => (None, None),
            Overlay::One(record) => (Some(record), None),
            Overlay::Many(map) => (None, Some(map)),
        };
        one.into_iter().chain(many.into_iter().flat_map(|map| map.iter()))
    }

    /// Puts a record in; returns the record of its key that it replaces.
    fn put(&mut self, record: Record) -> Option<Record> {
        match mem::take(self) {
            Overlay::Empty => *self = Overlay::One(record),
            Overlay::One(old) if old.key() == record.key() => {
                *self = Overlay::One(record);
                return Some(old);
            }
            Overlay::One(other) => {
                *self = Overlay::Many(Box::new([other, record].into_iter().collect()));
            }
            Overlay::Many(mut map) => {
                let replaced = map.put(record);
                *self = Overlay::Many(map);
                return replaced;
            }
        }
        None
    }

    /// Removes a key's record if it is not newer than `version`.
    pub fn forget(&mut self, key: &[u8], version: Version) -> Option<Record> {
        // Last writer wins: a newer record has yet to go through the log.
        if self.get(key)?.version() > version {
            return None;
        }
        if let Overlay::Many(map) = self {
            let forgotten = map.remove(key);
            self.free_if_empty();
            return forgotten;
        }
        match mem::take(self) {
            Overlay::One(record) => Some(record),
            _ => None,
        }
    }

    /// Moves all records that do not count to `forgotten`.
    pub fn prune(&mut self, base: &Base, floor: Version, forgotten: &mut Vec<Record>) {
        let is_superseded = |record: &Record| {
            record.version() <= base.get(record.key()).map_or(floor, Record::version)
        };
        match mem::take(self) {
            Overlay::Empty => {}
            Overlay::One(record) if is_superseded(&record) => forgotten.push(record),
            Overlay::One(record) => *self = Overlay::One(record),
            Overlay::Many(mut map) => {
                forgotten.extend(map.extract_if(is_superseded));
                *self = Overlay::Many(map);
                self.free_if_empty();
            }
        }
    }

    fn free_if_empty(&mut self) {
        if let Overlay::Many(map) = self
            && map.is_empty()
        {
            *self = Overlay::Empty;
        }
    }
}

impl Store {
    /// Puts stamped writes into the overlay, one after the other, each only if it is newer than its
    /// key's newest record: a copy of a write that the log has applied leaves nothing behind.
    /// Returns for each write whether its key existed just before it, as eventual readers see it.
    ///
    /// Each write is a moment of its own, also where several came from one command.
    pub fn put_overlay(&self, writes: &[Write]) -> Vec<bool> {
        self.prefetch_writes(writes);
        writes.iter().map(|write| self.put_overlay_one(write)).collect()
    }

    fn put_overlay_one(&self, write: &Write) -> bool {
        let record = write.record();
        let mut slot = self.slots[slot_of(&write.key)].write();
        let newest = slot.newest(&write.key, self.floor());
        let existed = newest.is_some_and(Record::has_value);
        // Last writer wins; for a key without a record the floor decides. An equal version is the
        // same write: it came before, or the log has applied it already.
        if record.version() <= newest.map_or(self.floor(), Record::version) {
            return existed;
        }
        let replaced = slot.overlay.put(record);
        if replaced.is_none() {
            // Counted before the lock is released: a reader that finds the record in its slot has
            // acquired that lock after this, so it never finds a count below what it can see.
            self.overlaid.fetch_add(1, Ordering::Relaxed);
        }
        drop(slot);
        drop(replaced);
        existed
    }

    /// Encoded merges to be put in front of encoded commands that go through the log, so that these
    /// commands see what eventual reads see on this node: one merge for each key that they name and
    /// whose newest write the log has not applied yet. Also the highest version among them. Cheap
    /// while the overlay is empty.
    pub fn undrained(&self, commands: &[u8]) -> (Vec<u8>, Version) {
        let (mut merges, mut newest) = (Vec::new(), Version::default());
        // A session's own writes are counted before their answer, so a session that looks for its
        // own writes never stops here by mistake.
        if self.overlaid() == 0 {
            return (merges, newest);
        }
        let mut met = HashSet::new();
        // A malformed command is reported where it is applied.
        for command in Command::decode_all(commands).map_while(Result::ok) {
            for_each_key(&command, |key| {
                if met.insert(key) {
                    newest = newest.max(self.push_undrained(key, &mut merges));
                }
            });
        }
        (merges, newest)
    }

    fn push_undrained(&self, key: &[u8], merges: &mut Vec<u8>) -> Version {
        let slot = self.slots[slot_of(key)].read();
        let Some(record) = slot.undrained(key, self.floor()).cloned() else {
            return Version::default();
        };
        drop(slot);
        let version = record.version();
        Command::Merge { version, key, value: record.value() }.encode(merges);
        version
    }

    /// Counts `count` records that have left the overlays.
    pub(super) fn count_forgotten(&self, count: usize) {
        if count > 0 {
            self.overlaid.fetch_sub(count as u64, Ordering::Relaxed);
        }
    }

    /// The number of keys that eventual readers find, minus that of strong readers: slot by slot.
    pub(super) fn keys_ahead(&self) -> i64 {
        if self.overlaid() == 0 {
            return 0;
        }
        let ahead = |slot: &Slot| -> i64 {
            let live = |record: Option<&Record>| i64::from(record.is_some_and(Record::has_value));
            let floor = self.floor();
            let difference = |key| live(slot.newest(key, floor)) - live(slot.base.get(key));
            slot.overlay.iter().map(|record| difference(record.key())).sum()
        };
        self.slots.iter().map(|slot| ahead(&slot.read())).sum()
    }
}

/// Calls `see` with every key that a command names.
pub(super) fn for_each_key<'a>(command: &Command<'a>, mut see: impl FnMut(&'a [u8])) {
    match command {
        Command::Get { key }
        | Command::Length { key }
        | Command::Set { key, .. }
        | Command::Append { key, .. }
        | Command::Increment { key, .. }
        | Command::Take { key }
        | Command::Merge { key, .. } => see(key),
        Command::GetMany { keys } | Command::Exists { keys } | Command::Delete { keys } => {
            keys.iter().for_each(|key| see(key));
        }
        Command::SetMany { pairs } => pairs.iter().for_each(|(key, _)| see(key)),
        Command::Count | Command::Keys { .. } | Command::Scan { .. } | Command::Clear => {}
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn record(key: &[u8], version: u64) -> Record {
        Record::new(Version(version), key, None)
    }

    fn held(overlay: &Overlay) -> Vec<(Vec<u8>, u64)> {
        let pairs = overlay.iter().map(|record| (record.key().to_vec(), record.version().0));
        let mut pairs: Vec<_> = pairs.collect();
        pairs.sort_unstable();
        pairs
    }

    #[test]
    fn an_overlay_takes_16_bytes_and_an_emptied_one_holds_no_memory() {
        assert_eq!(size_of::<Overlay>(), 16);
        let mut overlay = Overlay::default();
        assert_eq!(overlay.put(record(b"k", 5)), None);
        assert_eq!(overlay.put(record(b"k", 6)), Some(record(b"k", 5)));
        assert_eq!(overlay.forget(b"k", Version(5)), None);
        assert_eq!(overlay.forget(b"l", Version(9)), None);
        assert!(!overlay.is_empty());
        assert_eq!(overlay.forget(b"k", Version(6)), Some(record(b"k", 6)));
        assert!(overlay.is_empty() && held(&overlay).is_empty());
    }

    #[test]
    fn of_several_keys_each_has_its_newest_record() {
        let mut overlay = Overlay::default();
        assert_eq!([overlay.put(record(b"k", 5)), overlay.put(record(b"l", 7))], [None, None]);
        assert_eq!(overlay.put(record(b"l", 8)), Some(record(b"l", 7)));
        assert_eq!(held(&overlay), [(b"k".to_vec(), 5), (b"l".to_vec(), 8)]);
        assert_eq!(overlay.forget(b"k", Version(9)), Some(record(b"k", 5)));
        assert_eq!(overlay.get(b"l"), Some(&record(b"l", 8)));
        assert_eq!(overlay.forget(b"l", Version(8)), Some(record(b"l", 8)));
        assert!(overlay.is_empty());
    }

    #[test]
    fn what_the_base_or_the_floor_supersedes_is_pruned() {
        let base = Base::from(Arc::new(Map::from_iter([record(b"k", 5)])));
        for others in [0, 1, 3] {
            for (key, version, goes) in
                [(b"k", 5, true), (b"k", 6, false), (b"l", 3, true), (b"l", 4, false)]
            {
                let mut overlay = Overlay::default();
                overlay.put(record(key, version));
                for other in 0..others {
                    overlay.put(record(&[b'o', other], 9));
                }
                let mut forgotten = Vec::new();
                overlay.prune(&base, Version(3), &mut forgotten);
                assert_eq!(forgotten, if goes { vec![record(key, version)] } else { Vec::new() });
                assert_eq!(overlay.get(key).is_none(), goes);
                assert_eq!(held(&overlay).len(), usize::from(others) + usize::from(!goes));
                assert_eq!(overlay.is_empty(), goes && others == 0);
            }
        }
    }
}
