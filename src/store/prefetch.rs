//! One pass over many keys before each is read or written under its own lock. A look-up waits for
//! memory four times: for the slot, the table's tags, its pointer, and the record. A processor
//! cannot begin the next look-up across a lock. Between locks that are all held it can, so the
//! waits of several keys overlap. The pass has no other effect.

use std::hint::black_box;

use crate::store::overlay::for_each_key;
use crate::store::slot::slot_of;
use crate::store::{Slot, Store};
use crate::types::{Command, Write};

/// The number of keys that are looked up under one set of locks: more than a processor looks ahead.
const GROUP: usize = 16;

/// Fewer keys than this are not worth a pass.
const KEYS_MIN: usize = 4;

impl Store {
    /// Brings the records that these writes are about to replace into the cache.
    pub(super) fn prefetch_writes(&self, writes: &[Write]) {
        for group in writes.chunks(GROUP) {
            let mut places = [(0, &[][..]); GROUP];
            for (place, write) in places.iter_mut().zip(group) {
                *place = (slot_of(&write.key), &write.key);
            }
            self.prefetch(&mut places[..group.len()]);
        }
    }

    /// Brings the records that these encoded commands are about to touch into the cache.
    pub fn prefetch_commands(&self, commands: &[u8]) {
        let mut places = [(0, &[][..]); GROUP];
        let mut len = 0;
        for command in Command::decode_all(commands).map_while(Result::ok) {
            for_each_key(&command, |key| {
                places[len] = (slot_of(key), key);
                len += 1;
                if len == GROUP {
                    self.prefetch(&mut places);
                    len = 0;
                }
            });
        }
        self.prefetch(&mut places[..len]);
    }

    /// Looks keys up in their slots; `places` pairs each slot with a key in it.
    fn prefetch(&self, places: &mut [(usize, &[u8])]) {
        if places.len() < KEYS_MIN {
            return;
        }
        // Lock order: ascending and each slot once, as for every holder of several locks.
        places.sort_unstable_by_key(|(slot, _)| *slot);
        let mut slots = [const { None }; GROUP];
        let mut last = None;
        for (place, &mut (slot, _)) in slots.iter_mut().zip(places.iter_mut()) {
            if last.replace(slot) != Some(slot) {
                *place = Some(self.slots[slot].read());
            }
        }
        // A key that shares its slot with the key before it has no lock of its own here, and is
        // left out.
        let version = |(slot, (_, key)): (&Option<_>, &mut (usize, &[u8]))| {
            let slot: &Slot = slot.as_deref()?;
            Some(slot.base.get(key)?.version().0)
        };
        black_box(slots.iter().zip(places).filter_map(version).fold(0, u64::wrapping_add));
    }
}
