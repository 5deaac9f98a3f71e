//! Commands that change something: command × state → outcome, the same on every replica.
//!
//! The caller is the only writer, so what it reads before it takes a write lock still holds once it
//! has it. That allows copying and joining values outside locks; old values leave the lock alive
//! and are freed behind it (giving back half a gigabyte takes a while).

use std::mem;
use std::sync::Arc;

use super::slot::{LockOrder, SLOTS, slot_of};
use super::{Key, Map, Stats, Store};
use crate::types::{Command, Failure, Outcome, Value, When, parse_integer};

/// The longest value, in bytes (Redis: `proto-max-bulk-len`).
const VALUE_LEN_MAX: usize = 512 << 20;

/// A map with room for fewer keys than this is not worth shrinking.
const SHRINK_CAPACITY_MIN: usize = 64;

impl Store {
    /// Performs a command that writes, and keeps `stats`. Only for the one writer.
    ///
    /// # Panics
    /// On a command that only reads: see [`Store::read`].
    pub(super) fn write(&self, command: &Command<'_>, stats: &mut Stats) -> Outcome {
        match command {
            Command::Set { key, value, when, get } => self.set(key, value, *when, *get, stats),
            Command::SetMany { pairs } => self.set_many(pairs, stats),
            Command::Append { key, value } => self.append(key, value, stats),
            Command::Increment { key, by } => self.increment(key, *by, stats),
            Command::Take { key } => match self.remove(key, stats) {
                Some((_, value)) => Outcome::Value(value),
                None => Outcome::Nil,
            },
            Command::Delete { keys } => self.delete(keys, stats),
            Command::Clear => {
                let empty = Arc::new(Map::default());
                drop(self.replace_all(vec![empty; SLOTS], || {}));
                *stats = Stats::default();
                Outcome::Done
            }
            Command::Get { .. }
            | Command::GetMany { .. }
            | Command::Length { .. }
            | Command::Exists { .. }
            | Command::Count
            | Command::Keys { .. }
            | Command::Scan { .. } => unreachable!("reads take another way"),
        }
    }

    /// Puts `maps` in the place of all slots; what was there. Every lock is held before the first
    /// slot changes, until `publish` has run: to all readers but KEYS and SCAN it is one moment. A
    /// lock over the whole store would do too, but cost every reader something all the time.
    pub(super) fn replace_all(&self, maps: Vec<Arc<Map>>, publish: impl FnOnce()) -> Vec<Arc<Map>> {
        let mut slots: Vec<_> = self.slots.iter().map(|slot| slot.write()).collect();
        let pairs = slots.iter_mut().zip(maps);
        let old = pairs.map(|(slot, map)| mem::replace(&mut **slot, map)).collect();
        publish();
        old
    }

    fn set(&self, key: &[u8], value: &[u8], when: When, get: bool, stats: &mut Stats) -> Outcome {
        let value = Value::from(value);
        let mut slot = self.slots[slot_of(key)].write();
        let allowed = match when {
            When::Always => true,
            When::Absent => !slot.contains_key(key),
            When::Present => slot.contains_key(key),
        };
        let old = if allowed {
            put(Arc::make_mut(&mut slot), key, value, stats)
        } else {
            slot.get(key).cloned()
        };
        drop(slot);
        match (get, old) {
            (true, Some(old)) => Outcome::Value(old),
            (true, None) => Outcome::Nil,
            (false, _) if allowed => Outcome::Done,
            (false, _) => Outcome::Nil,
        }
    }

    fn set_many(&self, pairs: &[(&[u8], &[u8])], stats: &mut Stats) -> Outcome {
        let order = LockOrder::of(pairs.iter().map(|&(key, _)| key));
        let values: Vec<Value> = pairs.iter().map(|&(_, value)| value.into()).collect();
        let mut old = Vec::with_capacity(pairs.len());
        let mut slots: Vec<_> = order.slots.iter().map(|&slot| self.slots[slot].write()).collect();
        for ((&(key, _), value), place) in pairs.iter().zip(values).zip(order.places) {
            old.push(put(Arc::make_mut(&mut slots[place]), key, value, stats));
        }
        drop(slots);
        drop(old);
        Outcome::Done
    }

    fn append(&self, key: &[u8], tail: &[u8], stats: &mut Stats) -> Outcome {
        let old = self.look_up(key, |value| value.cloned());
        let head = old.as_deref().unwrap_or_default();
        let Some(len) = joined_len(head.len(), tail.len()) else {
            return Outcome::Failed(Failure::TooLong);
        };
        let joined = Value::from([head, tail].concat());
        let replaced = {
            let mut slot = self.slots[slot_of(key)].write();
            put(Arc::make_mut(&mut slot), key, joined, stats)
        };
        drop(replaced);
        Outcome::Integer(len as i64)
    }

    fn increment(&self, key: &[u8], by: i64, stats: &mut Stats) -> Outcome {
        let mut slot = self.slots[slot_of(key)].write();
        let map = Arc::make_mut(&mut slot);
        let held = map.get_mut(key);
        let Some(number) = held.as_ref().map_or(Some(0), |value| parse_integer(value)) else {
            return Outcome::Failed(Failure::NotAnInteger);
        };
        let Some(sum) = number.checked_add(by) else {
            return Outcome::Failed(Failure::Overflow);
        };
        let text = Value::from(sum.to_string().as_bytes());
        match held {
            Some(value) => {
                stats.replace(value, &text);
                *value = text;
            }
            None => {
                stats.add(key, &text);
                map.insert(key.into(), text);
            }
        }
        Outcome::Integer(sum)
    }

    fn delete(&self, keys: &[&[u8]], stats: &mut Stats) -> Outcome {
        if let [key] = keys {
            return Outcome::Integer(i64::from(self.remove(key, stats).is_some()));
        }
        let order = LockOrder::of(keys.iter().copied());
        let mut old = Vec::new();
        let mut slots: Vec<_> = order.slots.iter().map(|&slot| self.slots[slot].write()).collect();
        for (key, place) in keys.iter().zip(order.places) {
            old.extend(take(&mut slots[place], key, stats));
        }
        drop(slots);
        Outcome::Integer(old.len() as i64)
    }

    fn remove(&self, key: &[u8], stats: &mut Stats) -> Option<(Key, Value)> {
        take(&mut self.slots[slot_of(key)].write(), key, stats)
    }
}

/// Sets `key`; what it replaces.
fn put(map: &mut Map, key: &[u8], value: Value, stats: &mut Stats) -> Option<Value> {
    if let Some(held) = map.get_mut(key) {
        stats.replace(held, &value);
        return Some(mem::replace(held, value));
    }
    stats.add(key, &value);
    map.insert(key.into(), value)
}

/// Removes `key`. A slot that an image shares is not copied in vain if the key is not there.
fn take(slot: &mut Arc<Map>, key: &[u8], stats: &mut Stats) -> Option<(Key, Value)> {
    if !slot.contains_key(key) {
        return None;
    }
    let map = Arc::make_mut(slot);
    let (key, value) = map.remove_entry(key)?;
    stats.remove(&key, &value);
    // A map does not give memory back by itself. An eighth full, shrunk to half full: at least an
    // eighth of the room must be filled or emptied before the next such move.
    if map.capacity() > SHRINK_CAPACITY_MIN && map.len() < map.capacity() / 8 {
        map.shrink_to(map.len() * 2);
    }
    Some((key, value))
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

    #[test]
    fn a_map_that_empties_gives_its_memory_back() {
        let (mut slot, mut stats) = (Arc::new(Map::default()), Stats::default());
        for i in 0..10_000_u32 {
            put(Arc::make_mut(&mut slot), &i.to_le_bytes(), Value::default(), &mut stats);
        }
        for i in 0..10_000_u32 {
            assert!(take(&mut slot, &i.to_le_bytes(), &mut stats).is_some());
        }
        assert!(slot.capacity() <= SHRINK_CAPACITY_MIN);
        assert_eq!(stats, Stats::default());
    }
}
