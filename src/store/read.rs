//! Commands that only read, on any thread.

use std::sync::Arc;

use parking_lot::RwLock;

use super::record::Map;
use super::slot::{LockOrder, SLOTS, Slot, slot_of};
use super::{Store, glob};
use crate::types::{Command, Outcome, Record, Value, Version};

/// The records that a read sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ReadView {
    /// The records that the log has applied.
    Base,
    /// For each key the newer of the log's record and the overlay's.
    Newest,
}

impl ReadView {
    /// The record of a key in a slot whose lock is held, if it has a value.
    fn live<'s>(self, slot: &'s Slot, key: &[u8], floor: Version) -> Option<&'s Record> {
        let record = match self {
            ReadView::Base => slot.base.get(key),
            ReadView::Newest => slot.newest(key, floor),
        };
        record.filter(|record| record.has_value())
    }
}

/// The records of a slot at one moment, for a walk over their names.
struct SlotNames {
    base: Arc<Map>,
    /// Records that replace those of the same keys in `base`.
    over: Map,
}

impl SlotNames {
    /// The number of records, tombstones and replaced ones among them.
    fn len(&self) -> u64 {
        (self.base.len() + self.over.len()) as u64
    }

    /// Appends the names that match, in ascending order.
    fn push_matching(&self, pattern: Option<&[u8]>, names: &mut Vec<Value>) {
        let from = names.len();
        let base = self.base.iter().filter(|record| !self.over.contains(record.key()));
        let live = base.chain(self.over.iter()).filter(|record| record.has_value());
        let matches = |name| pattern.is_none_or(|glob| glob::matches(glob, name));
        names.extend(live.filter(|record| matches(record.key())).map(Record::share_key));
        names[from..].sort_unstable();
    }
}

impl Store {
    /// The outcome of a command that reads the records that the log has applied. With writes under
    /// way at the same time it sees:
    ///
    /// | command | sees |
    /// |---|---|
    /// | `Get` `Length` | the key's latest value |
    /// | `GetMany` `Exists` | all keys at one moment |
    /// | `Count` | the store after the last applied entry; no lock, no walk |
    /// | `Keys` | each slot at a moment of its own: every key that is there the whole time, once |
    /// | `Scan` | the same over all its pages |
    ///
    /// Names come by slot, then by key. A page of `Scan` ends at the first boundary of slots where
    /// `count` records or more have been visited, matching or not, tombstones among them. A slot is
    /// never split, so the page may be longer by nearly one slot. A cursor beyond the last slot
    /// finds nothing and ends the scan.
    ///
    /// # Panics
    /// On a command that writes: those go through the log.
    pub fn read(&self, command: &Command<'_>) -> Outcome {
        self.view(ReadView::Base, command)
    }

    /// The outcome of the same commands for an eventual session, which sees of each key the newer
    /// of the log's record and this node's overlay's. The table of [`Store::read`] applies, except
    /// that `Count` walks the slots while the overlay holds records.
    ///
    /// # Panics
    /// On a command that writes.
    pub fn read_newest(&self, command: &Command<'_>) -> Outcome {
        self.view(ReadView::Newest, command)
    }

    /// The record that an eventual read of a key finds, a tombstone too.
    pub fn newest(&self, key: &[u8]) -> Option<Record> {
        self.slots[slot_of(key)].read().newest(key, self.floor()).cloned()
    }

    /// Every record that the log has applied, tombstones among them, slot by slot. For a view of
    /// small stores.
    pub fn base_records(&self) -> Vec<Record> {
        let records = |slot: &RwLock<Slot>| slot.read().base.iter().cloned().collect::<Vec<_>>();
        self.slots.iter().flat_map(records).collect()
    }

    /// Every record of the overlays, slot by slot. For a view of small stores.
    pub fn overlay_records(&self) -> Vec<Record> {
        let records = |slot: &RwLock<Slot>| slot.read().overlay.iter().cloned().collect::<Vec<_>>();
        self.slots.iter().flat_map(records).collect()
    }

    fn view(&self, view: ReadView, command: &Command<'_>) -> Outcome {
        match command {
            Command::Get { key } => self
                .look_up(view, key, |held| held.and_then(Record::share_value))
                .map_or(Outcome::Nil, Outcome::Value),
            Command::GetMany { keys } => {
                let mut values = Vec::with_capacity(keys.len());
                self.look_up_all(view, keys, |held| {
                    values.push(held.and_then(Record::share_value))
                });
                Outcome::Values(values)
            }
            Command::Length { key } => {
                let len = self
                    .look_up(view, key, |held| held.and_then(Record::value).map_or(0, <[u8]>::len));
                Outcome::Integer(len as i64)
            }
            Command::Exists { keys } => {
                let mut found = 0;
                self.look_up_all(view, keys, |held| found += i64::from(held.is_some()));
                Outcome::Integer(found)
            }
            Command::Count => {
                let ahead = if view == ReadView::Newest { self.keys_ahead() } else { 0 };
                // The two numbers may be of two moments, so their sum may fall below zero.
                Outcome::Integer((self.stats().keys.cast_signed() + ahead).max(0))
            }
            Command::Keys { pattern } => {
                let mut names = Vec::new();
                for slot in 0..SLOTS {
                    self.names(view, slot).push_matching(Some(pattern), &mut names);
                }
                Outcome::Names(names)
            }
            Command::Scan { cursor, pattern, count } => self.scan(view, *cursor, *pattern, *count),
            Command::Merge { .. }
            | Command::Set { .. }
            | Command::SetMany { .. }
            | Command::Append { .. }
            | Command::Increment { .. }
            | Command::Take { .. }
            | Command::Delete { .. }
            | Command::Clear => unreachable!("writes go through the log"),
        }
    }

    /// Calls `see` with the record of `key`, if it has a value, under the slot's lock.
    pub(super) fn look_up<T>(
        &self,
        view: ReadView,
        key: &[u8],
        see: impl FnOnce(Option<&Record>) -> T,
    ) -> T {
        let slot = self.slots[slot_of(key)].read();
        see(view.live(&slot, key, self.floor()))
    }

    /// Calls `see` with the record of each key in turn, if it has a value, all of one moment.
    fn look_up_all(&self, view: ReadView, keys: &[&[u8]], mut see: impl FnMut(Option<&Record>)) {
        if let [key] = keys {
            return self.look_up(view, key, see);
        }
        let order = LockOrder::of(keys.iter().copied());
        // All locks are held before the first record is read: no write of several keys is seen
        // half.
        let slots: Vec<_> = order.slots.iter().map(|&slot| self.slots[slot].read()).collect();
        let floor = self.floor();
        for (key, place) in keys.iter().zip(order.places) {
            see(view.live(&slots[place], key, floor));
        }
    }

    /// The records of a slot now. The lock is held only while some pointers are copied, so that a
    /// long walk makes no writer wait.
    fn names(&self, view: ReadView, slot: usize) -> SlotNames {
        let slot = self.slots[slot].read();
        let (base, delta) = slot.base.parts();
        let mut over: Map = delta.cloned().collect();
        if view == ReadView::Newest {
            let floor = self.floor();
            let overlaid = slot.overlay.iter();
            let counting = overlaid.filter_map(|record| slot.undrained(record.key(), floor));
            counting.for_each(|record| drop(over.put(record.clone())));
        }
        SlotNames { base, over }
    }

    fn scan(&self, view: ReadView, cursor: u64, pattern: Option<&[u8]>, count: u64) -> Outcome {
        let mut slot = usize::try_from(cursor).map_or(SLOTS, |cursor| cursor.min(SLOTS));
        let mut names = Vec::new();
        let mut seen = 0;
        // Empty slots cost little, so a page goes on until it has seen a record: a client that
        // scans a small store does not make thousands of calls.
        while slot < SLOTS && (seen == 0 || seen < count) {
            let found = self.names(view, slot);
            seen += found.len();
            found.push_matching(pattern, &mut names);
            slot += 1;
        }
        Outcome::Page(if slot < SLOTS { slot as u64 } else { 0 }, names)
    }
}
