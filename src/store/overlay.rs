//! What eventual sessions have written and the log has not applied yet: beside each slot's base,
//! under the same lock, so that a write moves from one to the other in one moment.
//!
//! An overlay's record *counts* if it is newer than the base's record of its key, or newer than the
//! floor if there is none. Everything that is applied to a key removes the overlay's record that it
//! supersedes, and none is accepted that is superseded already: but for a floor that rises past it,
//! a record in an overlay counts.
//!
//! Left out: bounds. Who accepts writes counts what it has not drained yet.

use std::collections::HashSet;
use std::sync::atomic::Ordering;

use super::record::Map;
use super::slot::slot_of;
use super::{Slot, Store};
use crate::types::{Command, Record, Version, Write};

/// One slot's part. Empty most of the time, so it is 8 bytes long then and holds no memory.
#[derive(Debug, Default)]
pub(super) struct Overlay(Option<Box<Map>>);

impl Overlay {
    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    pub fn get(&self, key: &[u8]) -> Option<&Record> {
        self.0.as_ref()?.get(key)
    }

    pub fn iter(&self) -> impl Iterator<Item = &Record> {
        self.0.iter().flat_map(|map| map.iter())
    }

    /// Puts a record in; the one of its key that it replaces.
    fn put(&mut self, record: Record) -> Option<Record> {
        self.0.get_or_insert_default().put(record)
    }

    /// Removes a key's record if it is not newer than `version`.
    pub fn forget(&mut self, key: &[u8], version: Version) -> Option<Record> {
        let map = self.0.as_mut()?;
        if map.get(key)?.version() > version {
            return None;
        }
        let forgotten = map.remove(key);
        self.free_if_empty();
        forgotten
    }

    /// Moves all records that do not count to `forgotten`.
    pub fn prune(&mut self, base: &Map, floor: Version, forgotten: &mut Vec<Record>) {
        if let Some(map) = &mut self.0 {
            forgotten.extend(map.extract_if(|record| {
                record.version() <= base.get(record.key()).map_or(floor, Record::version)
            }));
            self.free_if_empty();
        }
    }

    fn free_if_empty(&mut self) {
        self.0.take_if(|map| map.is_empty());
    }
}

impl Store {
    /// Puts stamped writes into the overlay, one after the other, each only if it is newer than
    /// what is known of its key: a copy of a write that the log has applied leaves nothing behind.
    /// Tells for each whether its key existed just before it, to an eventual reader.
    ///
    /// Each write is a moment of its own, also where several came from one command.
    pub fn accept(&self, writes: &[Write]) -> Vec<bool> {
        writes.iter().map(|write| self.accept_one(write)).collect()
    }

    fn accept_one(&self, write: &Write) -> bool {
        let record = write.record();
        let mut slot = self.slots[slot_of(&write.key)].write();
        let newest = slot.newest(&write.key, self.floor());
        let existed = newest.is_some_and(Record::has_value);
        if record.version() <= newest.map_or(self.floor(), Record::version) {
            return existed;
        }
        let replaced = slot.overlay.put(record);
        if replaced.is_none() {
            // Before the lock is given back: the number is never below what a reader can meet.
            self.overlaid.fetch_add(1, Ordering::Relaxed);
        }
        drop(slot);
        drop(replaced);
        existed
    }

    /// What must stand in front of encoded commands that go through the log, if they are to see
    /// what eventual reads see here: encoded merges, one for each key that they name and whose
    /// newest write the log has not applied yet. Empty if there is none, which is cheap to tell
    /// while the overlay is empty. Also the highest version among them.
    pub fn undrained(&self, commands: &[u8]) -> (Vec<u8>, Version) {
        let (mut merges, mut newest) = (Vec::new(), Version::default());
        if self.overlaid() == 0 {
            return (merges, newest);
        }
        let mut met = HashSet::new();
        // What cannot be decoded is found where it is applied.
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

    /// `count` records have left the overlays.
    pub(super) fn forgotten(&self, count: usize) {
        if count > 0 {
            self.overlaid.fetch_sub(count as u64, Ordering::Relaxed);
        }
    }

    /// How many keys more, or fewer, an eventual reader finds than a strong one: slot by slot.
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

/// Shows `see` every key that a command names.
fn for_each_key<'a>(command: &Command<'a>, mut see: impl FnMut(&'a [u8])) {
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
    use super::*;

    #[test]
    fn an_empty_overlay_is_a_pointer_and_an_emptied_one_holds_no_memory() {
        assert_eq!(size_of::<Overlay>(), 8);
        let mut overlay = Overlay::default();
        let record = Record::new(Version(5), b"k", None);
        assert_eq!(overlay.put(record.clone()), None);
        assert_eq!(overlay.forget(b"k", Version(4)), None);
        assert!(!overlay.is_empty());
        assert_eq!(overlay.forget(b"k", Version(5)), Some(record));
        assert!(overlay.is_empty());
    }
}
