//! Commands and merged writes that change the base: work × state → outcome, the same on every
//! replica.
//!
//! The caller is the only writer of the base, so a value that it reads there before it takes a
//! write lock is still the same under the lock. Values are therefore copied, joined and digested
//! outside locks. Old values leave the lock alive and are freed behind it: to free half a gigabyte
//! takes a while.

use std::mem;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Store;
use super::base::Base;
use super::ledger::Ledger;
use super::read::ReadView;
use super::record::Map;
use super::slot::{LockOrder, Replaced, SLOTS, slot_of};
use crate::types::{Command, Failure, Outcome, Record, Version, When, parse_integer};

/// The longest value, in bytes (Redis: `proto-max-bulk-len`).
const VALUE_LEN_MAX: usize = 512 << 20;

/// The result of a merged write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Merged {
    /// The write is now its key's record.
    Taken,
    /// The key's record is newer, or is this write.
    Older,
    /// The key has no record, and the write is not above the floor.
    Late,
}

impl Store {
    /// Performs a command that writes; returns its outcome, if it has one. Only for the one writer.
    ///
    /// # Panics
    /// On a command that only reads: see [`Store::read`].
    pub(super) fn write(&self, command: &Command<'_>, ledger: &mut Ledger) -> Option<Outcome> {
        Some(match command {
            Command::Set { key, value, when, get } => self.set(key, value, *when, *get, ledger),
            Command::SetMany { pairs } => self.set_many(pairs, ledger),
            Command::Append { key, value } => self.append(key, value, ledger),
            Command::Increment { key, by } => self.increment(key, *by, ledger),
            Command::Take { key } => self.take(key, ledger),
            Command::Delete { keys } => self.delete(keys, ledger),
            Command::Clear => {
                let empty = Arc::new(Map::default());
                drop(self.replace_all(vec![empty; SLOTS], ledger.version, || {}));
                ledger.clear();
                Outcome::Done
            }
            Command::Merge { version, key, value } => {
                self.merge(Record::new(*version, key, *value), ledger);
                ledger.rise_above(*version);
                return None;
            }
            Command::Get { .. }
            | Command::GetMany { .. }
            | Command::Length { .. }
            | Command::Exists { .. }
            | Command::Count
            | Command::Keys { .. }
            | Command::Scan { .. } => unreachable!("reads go through `Store::read`"),
        })
    }

    /// Replaces the bases of all slots by `maps` and supersedes all writes up to `floor`; returns
    /// the old bases. To all readers but KEYS and SCAN it is one moment: every lock is held from
    /// before the first slot changes until `publish` has run. A lock over the whole store would do
    /// as well, but every reader would pay for it all the time.
    pub(super) fn replace_all(
        &self,
        maps: Vec<Arc<Map>>,
        floor: Version,
        publish: impl FnOnce(),
    ) -> Vec<Base> {
        let mut forgotten = Vec::new();
        // Lock order: ascending.
        let mut slots: Vec<_> = self.slots.iter().map(|slot| slot.write()).collect();
        // Relaxed: floors that decide are read under a slot's lock, which is acquired after these
        // locks are released.
        self.floor.store(floor.0, Ordering::Relaxed);
        let mut old = Vec::with_capacity(slots.len());
        for (slot, map) in slots.iter_mut().zip(maps) {
            let slot = &mut **slot;
            old.push(mem::replace(&mut slot.base, map.into()));
            slot.overlay.prune(&slot.base, floor, &mut forgotten);
        }
        publish();
        drop(slots);
        self.count_forgotten(forgotten.len());
        old
    }

    /// Puts a write into the base if it is the newest of its key.
    pub(super) fn merge(&self, record: Record, ledger: &mut Ledger) -> Merged {
        let (key, version) = (record.key(), record.version());
        ledger.observe(version);
        let mut slot = self.slots[slot_of(key)].write();
        let held = slot.base.get(key).map(Record::version);
        // Last writer wins: an older write, or a second copy of this one, changes nothing.
        if version <= held.unwrap_or(ledger.totals.floor) {
            // The log has now ordered this write, so the overlay need not keep it or older ones.
            let settled = held.map_or(version, |held| held.max(version));
            let forgotten = slot.overlay.forget(key, settled);
            drop(slot);
            self.count_forgotten(usize::from(forgotten.is_some()));
            if held.is_some() {
                return Merged::Older;
            }
            // No record and not above the floor: the key's tombstone may be forgotten, so the write
            // may be older than a deletion. Relaxed: a counter that no other memory depends on.
            self.late.fetch_add(1, Ordering::Relaxed);
            return Merged::Late;
        }
        let replaced = slot.put(record.clone());
        drop(slot);
        self.settle(replaced, ledger);
        ledger.add(&record);
        Merged::Taken
    }

    /// Forgets the tombstones that the floor has made superfluous.
    pub(super) fn purge(&self, ledger: &mut Ledger) {
        // The floor rises before the first tombstone goes: at no moment may a reader take an
        // overlay's write, older than the deletion, for the newest. Relaxed: the removal's write
        // lock is released after this store, so a reader that misses the tombstone under that lock
        // sees the new floor.
        self.floor.store(ledger.totals.floor.0, Ordering::Relaxed);
        while let Some(key) = ledger.oldest_superfluous() {
            let mut freed = Vec::new();
            let removed = self.slots[slot_of(&key)].write().base.remove(&key, &mut freed);
            ledger.remove(&removed.expect("every tombstone of the ledger is in its slot"));
        }
    }

    fn set(&self, key: &[u8], value: &[u8], when: When, get: bool, ledger: &mut Ledger) -> Outcome {
        let is_allowed = when == When::Always || {
            let present = self.look_up(ReadView::Base, key, |held| held.is_some());
            present == (when == When::Present)
        };
        let old = if is_allowed {
            self.put(Record::new(ledger.version, key, Some(value)), ledger)
        } else {
            self.look_up(ReadView::Base, key, |held| held.cloned())
        };
        match get {
            // SET … GET returns the old value, also when NX or XX kept it from being set.
            true => value_of(old),
            false if is_allowed => Outcome::Done,
            false => Outcome::Nil,
        }
    }

    fn set_many(&self, pairs: &[(&[u8], &[u8])], ledger: &mut Ledger) -> Outcome {
        let order = LockOrder::of(pairs.iter().map(|&(key, _)| key));
        let record = |&(key, value)| Record::new(ledger.version, key, Some(value));
        self.put_all(pairs.iter().map(record).collect(), order, ledger);
        Outcome::Done
    }

    fn append(&self, key: &[u8], tail: &[u8], ledger: &mut Ledger) -> Outcome {
        let old = self.look_up(ReadView::Base, key, |held| held.cloned());
        let head = old.as_ref().and_then(Record::value).unwrap_or_default();
        let Some(len) = joined_len(head.len(), tail.len()) else {
            return Outcome::Failed(Failure::TooLong);
        };
        self.put(Record::joined(ledger.version, key, head, tail), ledger);
        Outcome::Integer(len as i64)
    }

    fn increment(&self, key: &[u8], by: i64, ledger: &mut Ledger) -> Outcome {
        let number =
            |held: Option<&Record>| held.and_then(Record::value).map_or(Some(0), parse_integer);
        let Some(number) = self.look_up(ReadView::Base, key, number) else {
            return Outcome::Failed(Failure::NotAnInteger);
        };
        let Some(sum) = number.checked_add(by) else {
            return Outcome::Failed(Failure::Overflow);
        };
        self.put(Record::new(ledger.version, key, Some(sum.to_string().as_bytes())), ledger);
        Outcome::Integer(sum)
    }

    fn take(&self, key: &[u8], ledger: &mut Ledger) -> Outcome {
        let held = self.look_up(ReadView::Base, key, |held| held.cloned());
        if held.is_some() {
            self.delete(&[key], ledger);
        }
        value_of(held)
    }

    /// Leaves a tombstone for every key, also for a missing one: an eventual write that is older
    /// than the deletion may still be on its way to the log.
    fn delete(&self, keys: &[&[u8]], ledger: &mut Ledger) -> Outcome {
        let order = LockOrder::of(keys.iter().copied());
        let tombstone = |key: &&[u8]| Record::new(ledger.version, key, None);
        let existed = self.put_all(keys.iter().map(tombstone).collect(), order, ledger);
        Outcome::Integer(existed)
    }

    /// Puts records in one moment; returns how many of their keys had values.
    fn put_all(&self, records: Vec<Record>, order: LockOrder, ledger: &mut Ledger) -> i64 {
        let mut replaced = Vec::with_capacity(records.len());
        // One moment for every reader (MSET, DEL): all locks are held before the first slot
        // changes.
        let mut slots: Vec<_> = order.slots.iter().map(|&slot| self.slots[slot].write()).collect();
        for (record, &place) in records.iter().zip(&order.places) {
            replaced.push(slots[place].put(record.clone()));
        }
        drop(slots);
        let mut existed = 0;
        // In the order of the writes: of a key that is named twice, the first record is added
        // before the second one replaces it.
        for (record, replaced) in records.iter().zip(replaced) {
            existed += i64::from(self.settle(replaced, ledger).is_some());
            ledger.add(record);
        }
        existed
    }

    /// Puts a record; returns the key's old record if that had a value.
    fn put(&self, record: Record, ledger: &mut Ledger) -> Option<Record> {
        ledger.add(&record);
        let replaced = self.slots[slot_of(record.key())].write().put(record);
        self.settle(replaced, ledger)
    }

    /// Removes the records that a write has replaced from the totals; returns the key's old record
    /// if that had a value.
    fn settle(&self, replaced: Replaced, ledger: &mut Ledger) -> Option<Record> {
        let Replaced { base, overlay, freed } = replaced;
        drop(freed);
        self.count_forgotten(usize::from(overlay.is_some()));
        let old = base?;
        ledger.remove(&old);
        Some(old).filter(Record::has_value)
    }
}

/// A value as an outcome, if there is one.
fn value_of(record: Option<Record>) -> Outcome {
    record.as_ref().and_then(Record::share_value).map_or(Outcome::Nil, Outcome::Value)
}

/// The length of two joined values, if it is allowed.
fn joined_len(head_len: usize, tail_len: usize) -> Option<usize> {
    head_len.checked_add(tail_len).filter(|&len| len <= VALUE_LEN_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_shortest_notation_is_an_integer() {
        for (text, number) in [
            ("0", 0),
            ("-1", -1),
            ("10", 10),
            ("9223372036854775807", i64::MAX),
            ("-9223372036854775808", i64::MIN),
        ] {
            assert_eq!(parse_integer(text.as_bytes()), Some(number));
        }
        for text in [
            "",
            "-",
            "-0",
            "+1",
            "01",
            "-01",
            "00",
            " 1",
            "1 ",
            "1.0",
            "0x1",
            "1e3",
            "--1",
            "9223372036854775808",
            "-9223372036854775809",
            "99999999999999999999",
            "1\0",
        ] {
            assert_eq!(parse_integer(text.as_bytes()), None, "{text}");
        }
        assert_eq!(parse_integer(b"\xff"), None);
    }

    #[test]
    fn a_value_may_be_exactly_512_mebibytes_long() {
        assert_eq!(joined_len(VALUE_LEN_MAX - 1, 1), Some(VALUE_LEN_MAX));
        assert_eq!(joined_len(VALUE_LEN_MAX, 1), None);
        assert_eq!(joined_len(usize::MAX, 1), None);
    }
}
