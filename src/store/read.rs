//! Commands that only look, on any thread.

use std::sync::Arc;

use super::slot::{LockOrder, SLOTS, slot_of};
use super::{Map, Store, glob};
use crate::types::{Command, Outcome, Value};

impl Store {
    /// The outcome of a command that reads. What it may see beside writes under way:
    ///
    /// | command | sees |
    /// |---|---|
    /// | `Get` `Length` | the key's latest value |
    /// | `GetMany` `Exists` | all keys at one moment |
    /// | `Count` | the store after the last applied entry; no lock, no walk |
    /// | `Keys` | each slot at a moment of its own: every key that is there the whole time, once |
    /// | `Scan` | the same over all its pages |
    ///
    /// Names come by slot, then by key. A page of `Scan` ends at the first border of slots where
    /// `count` keys or more have been looked at, whether or not they matched. A slot is never
    /// split: the page may be longer by nearly one slot. A cursor beyond the last slot finds
    /// nothing and is finished.
    ///
    /// # Panics
    /// On a command that writes: those go through the log.
    pub fn read(&self, command: &Command<'_>) -> Outcome {
        match command {
            Command::Get { key } => self.look_up(key, |value| match value {
                Some(value) => Outcome::Value(Arc::clone(value)),
                None => Outcome::Nil,
            }),
            Command::GetMany { keys } => {
                let mut values = Vec::with_capacity(keys.len());
                self.look_up_all(keys, |value| values.push(value.cloned()));
                Outcome::Values(values)
            }
            Command::Length { key } => {
                let len = self.look_up(key, |value| value.map_or(0, |value| value.len()));
                Outcome::Integer(len as i64)
            }
            Command::Exists { keys } => {
                let mut found = 0;
                self.look_up_all(keys, |value| found += i64::from(value.is_some()));
                Outcome::Integer(found)
            }
            Command::Count => Outcome::Integer(self.stats().keys.cast_signed()),
            Command::Keys { pattern } => {
                let mut names = Vec::new();
                for slot in 0..SLOTS {
                    push_matching(&self.slot(slot), Some(pattern), &mut names);
                }
                Outcome::Names(names)
            }
            Command::Scan { cursor, pattern, count } => self.scan(*cursor, *pattern, *count),
            Command::Set { .. }
            | Command::SetMany { .. }
            | Command::Append { .. }
            | Command::Increment { .. }
            | Command::Take { .. }
            | Command::Delete { .. }
            | Command::Clear => unreachable!("writes go through the log"),
        }
    }

    /// Shows `see` the value of `key`, under the slot's lock.
    pub(super) fn look_up<T>(&self, key: &[u8], see: impl FnOnce(Option<&Value>) -> T) -> T {
        see(self.slots[slot_of(key)].read().get(key))
    }

    /// Shows `see` the value of each key in turn, all of one moment.
    fn look_up_all(&self, keys: &[&[u8]], mut see: impl FnMut(Option<&Value>)) {
        if let [key] = keys {
            return self.look_up(key, see);
        }
        let order = LockOrder::of(keys.iter().copied());
        let slots: Vec<_> = order.slots.iter().map(|&slot| self.slots[slot].read()).collect();
        for (key, place) in keys.iter().zip(order.places) {
            see(slots[place].get(*key));
        }
    }

    /// A slot as it is now. Its lock is held for the copy of a pointer only, so that a long walk
    /// makes no writer wait; a writer that comes meanwhile copies the slot.
    pub(super) fn slot(&self, slot: usize) -> Arc<Map> {
        Arc::clone(&self.slots[slot].read())
    }

    fn scan(&self, cursor: u64, pattern: Option<&[u8]>, count: u64) -> Outcome {
        let mut slot = usize::try_from(cursor).map_or(SLOTS, |cursor| cursor.min(SLOTS));
        let mut names = Vec::new();
        let mut seen = 0;
        while slot < SLOTS && (seen == 0 || seen < count) {
            let map = self.slot(slot);
            seen += map.len() as u64;
            push_matching(&map, pattern, &mut names);
            slot += 1;
        }
        Outcome::Page(if slot < SLOTS { slot as u64 } else { 0 }, names)
    }
}

/// Appends the names in `map` that match, in ascending order.
fn push_matching(map: &Map, pattern: Option<&[u8]>, names: &mut Vec<Value>) {
    let from = names.len();
    let matching = map.keys().filter(|key| pattern.is_none_or(|glob| glob::matches(glob, key)));
    names.extend(matching.cloned());
    names[from..].sort_unstable();
}
