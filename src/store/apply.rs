//! Commands and merged writes that change something: work × state → outcome, the same on every
//! replica.
//!
//! The caller is the only writer of the base, so what it reads there before it takes a write lock
//! still holds once it has it. That allows copying, joining and digesting values outside locks; old
//! values leave the lock alive and are freed behind it (giving back half a gigabyte takes a while).

use std::mem;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Store;
use super::ledger::Ledger;
use super::read::View;
use super::record::{Map, Record};
use super::slot::{LockOrder, Replaced, SLOTS, slot_of};
use crate::types::{Command, Failure, Key, Outcome, Value, Version, When, parse_integer};

/// The longest value, in bytes (Redis: `proto-max-bulk-len`).
const VALUE_LEN_MAX: usize = 512 << 20;

/// What became of a merged write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Merged {
    /// It is the newest of its key.
    Taken,
    /// The key's record is newer, or is this write.
    Older,
    /// Its key has no record, and it is not above the floor.
    Late,
}

impl Store {
    /// Performs a command that writes; its outcome if it has one. Only for the one writer.
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
                let record = Record { value: value.map(Value::from), version: *version };
                self.merge(*key, record, ledger);
                ledger.rise_above(*version);
                return None;
            }
            Command::Get { .. }
            | Command::GetMany { .. }
            | Command::Length { .. }
            | Command::Exists { .. }
            | Command::Count
            | Command::Keys { .. }
            | Command::Scan { .. } => unreachable!("reads take another way"),
        })
    }

    /// Puts `maps` in the place of all slots, where writes up to `floor` are superseded; what was
    /// there. Every lock is held before the first slot changes, until `publish` has run: to all
    /// readers but KEYS and SCAN it is one moment. A lock over the whole store would do too, but
    /// cost every reader something all the time.
    pub(super) fn replace_all(
        &self,
        maps: Vec<Arc<Map>>,
        floor: Version,
        publish: impl FnOnce(),
    ) -> Vec<Arc<Map>> {
        let mut forgotten = Vec::new();
        let mut slots: Vec<_> = self.slots.iter().map(|slot| slot.write()).collect();
        self.floor.store(floor.0, Ordering::Relaxed);
        let mut old = Vec::with_capacity(slots.len());
        for (slot, map) in slots.iter_mut().zip(maps) {
            let slot = &mut **slot;
            old.push(mem::replace(&mut slot.base, map));
            slot.overlay.prune(&slot.base, floor, &mut forgotten);
        }
        publish();
        drop(slots);
        self.forgotten(forgotten.len());
        old
    }

    /// Puts a write into the base if it is the newest of its key.
    pub(super) fn merge<K: AsRef<[u8]> + Into<Key> + Clone>(
        &self,
        key: K,
        record: Record,
        ledger: &mut Ledger,
    ) -> Merged {
        ledger.saw(record.version);
        let mut slot = self.slots[slot_of(key.as_ref())].write();
        let held = slot.base.get(key.as_ref()).map(|base| base.version);
        if record.version <= held.unwrap_or(ledger.totals.floor) {
            let settled = held.map_or(record.version, |held| held.max(record.version));
            let forgotten = slot.overlay.forget(key.as_ref(), settled);
            drop(slot);
            self.forgotten(usize::from(forgotten.is_some()));
            if held.is_some() {
                return Merged::Older;
            }
            self.late.fetch_add(1, Ordering::Relaxed);
            return Merged::Late;
        }
        let shared = record.value.is_none().then(|| slot.shared_key(key.as_ref()));
        let replaced = match &shared {
            Some(shared) => slot.put(Arc::clone(shared), record.clone()),
            None => slot.put(key.clone(), record.clone()),
        };
        drop(slot);
        self.settle(key.as_ref(), replaced, ledger);
        match shared {
            Some(shared) => ledger.bury(shared, &record),
            None => ledger.add(key.as_ref(), &record),
        }
        Merged::Taken
    }

    /// Forgets the tombstones that the floor has made superfluous.
    pub(super) fn purge(&self, ledger: &mut Ledger) {
        // First the floor, then the tombstones: there must be no moment at which a reader takes an
        // old write for a new one.
        self.floor.store(ledger.totals.floor.0, Ordering::Relaxed);
        while let Some(key) = ledger.superfluous() {
            let removed = self.slots[slot_of(&key)].write().remove(&key);
            let (_, tombstone) = removed.expect("every tombstone of the ledger is in its slot");
            ledger.remove(&key, &tombstone);
        }
    }

    fn set(&self, key: &[u8], value: &[u8], when: When, get: bool, ledger: &mut Ledger) -> Outcome {
        let allowed = when == When::Always || {
            let present = self.look_up(View::Base, key, |held| held.is_some());
            present == (when == When::Present)
        };
        let old = if allowed {
            self.put(key, value.into(), ledger)
        } else {
            self.look_up(View::Base, key, |held| held.cloned())
        };
        match (get, old) {
            (true, Some(old)) => Outcome::Value(old),
            (true, None) => Outcome::Nil,
            (false, _) if allowed => Outcome::Done,
            (false, _) => Outcome::Nil,
        }
    }

    fn set_many(&self, pairs: &[(&[u8], &[u8])], ledger: &mut Ledger) -> Outcome {
        let order = LockOrder::of(pairs.iter().map(|&(key, _)| key));
        let record = |value: &[u8]| Record { value: Some(value.into()), version: ledger.version };
        let records: Vec<_> = pairs.iter().map(|&(_, value)| record(value)).collect();
        for (&(key, _), record) in pairs.iter().zip(&records) {
            ledger.add(key, record);
        }
        let mut replaced = Vec::with_capacity(pairs.len());
        let mut slots: Vec<_> = order.slots.iter().map(|&slot| self.slots[slot].write()).collect();
        for ((&(key, _), record), place) in pairs.iter().zip(records).zip(order.places) {
            replaced.push(slots[place].put(key, record));
        }
        drop(slots);
        for (&(key, _), replaced) in pairs.iter().zip(replaced) {
            self.settle(key, replaced, ledger);
        }
        Outcome::Done
    }

    fn append(&self, key: &[u8], tail: &[u8], ledger: &mut Ledger) -> Outcome {
        let old = self.look_up(View::Base, key, |value| value.cloned());
        let head = old.as_deref().unwrap_or_default();
        let Some(len) = joined_len(head.len(), tail.len()) else {
            return Outcome::Failed(Failure::TooLong);
        };
        self.put(key, [head, tail].concat().into(), ledger);
        Outcome::Integer(len as i64)
    }

    fn increment(&self, key: &[u8], by: i64, ledger: &mut Ledger) -> Outcome {
        let number = |value: Option<&Value>| value.map_or(Some(0), |value| parse_integer(value));
        let Some(number) = self.look_up(View::Base, key, number) else {
            return Outcome::Failed(Failure::NotAnInteger);
        };
        let Some(sum) = number.checked_add(by) else {
            return Outcome::Failed(Failure::Overflow);
        };
        self.put(key, sum.to_string().as_bytes().into(), ledger);
        Outcome::Integer(sum)
    }

    fn take(&self, key: &[u8], ledger: &mut Ledger) -> Outcome {
        match self.look_up(View::Base, key, |value| value.cloned()) {
            Some(value) => {
                self.delete(&[key], ledger);
                Outcome::Value(value)
            }
            None => Outcome::Nil,
        }
    }

    /// Leaves a tombstone for every key, also for one that is not there: an eventual write that is
    /// older than the deletion may be on its way.
    fn delete(&self, keys: &[&[u8]], ledger: &mut Ledger) -> Outcome {
        let tombstone = Record { value: None, version: ledger.version };
        let order = LockOrder::of(keys.iter().copied());
        let mut buried = Vec::with_capacity(keys.len());
        let mut slots: Vec<_> = order.slots.iter().map(|&slot| self.slots[slot].write()).collect();
        for (key, place) in keys.iter().zip(order.places) {
            let key = slots[place].shared_key(key);
            buried.push((Arc::clone(&key), slots[place].put(key, tombstone.clone())));
        }
        drop(slots);
        let mut existed = 0;
        for (key, replaced) in buried {
            existed += i64::from(self.settle(&key, replaced, ledger).is_some());
            ledger.bury(key, &tombstone);
        }
        Outcome::Integer(existed)
    }

    /// Sets a key; the value that it had.
    fn put(&self, key: &[u8], value: Value, ledger: &mut Ledger) -> Option<Value> {
        let record = Record { value: Some(value), version: ledger.version };
        ledger.add(key, &record);
        let replaced = self.slots[slot_of(key)].write().put(key, record);
        self.settle(key, replaced, ledger)
    }

    /// Takes what a write has pushed out off the books; the value that the key had.
    fn settle(&self, key: &[u8], replaced: Replaced, ledger: &mut Ledger) -> Option<Value> {
        self.forgotten(usize::from(replaced.overlay.is_some()));
        let old = replaced.base?;
        ledger.remove(key, &old);
        old.value
    }
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
