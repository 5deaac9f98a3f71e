//! A look at many keys at once, before each is read or written under its own lock. A look-up waits
//! for memory four times, and a processor cannot begin the next one across a lock; between locks
//! that are all held it can, so that several keys' memory is on its way at a time. Nothing else
//! comes of it.

use std::hint::black_box;

use crate::store::overlay::for_each_key;
use crate::store::slot::slot_of;
use crate::store::{Slot, Store};
use crate::types::{Command, Write};

/// How many keys are looked at under one set of locks: more than a processor looks ahead.
const GROUP: usize = 16;

/// Fewer keys than this are not worth it.
const KEYS_MIN: usize = 4;

impl Store {
    /// Brings closer to the processor what these writes are going to touch.
    pub(super) fn warm_writes(&self, writes: &[Write]) {
        for group in writes.chunks(GROUP) {
            let mut places = [(0, &[][..]); GROUP];
            for (place, write) in places.iter_mut().zip(group) {
                *place = (slot_of(&write.key), &write.key);
            }
            self.prefetch(&mut places[..group.len()]);
        }
    }

    /// The same for encoded commands, which are about to run.
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

    /// Slots and keys in them.
    fn prefetch(&self, places: &mut [(usize, &[u8])]) {
        if places.len() < KEYS_MIN {
            return;
        }
        // Ascending and each once, as all who hold several locks take them.
        places.sort_unstable_by_key(|(slot, _)| *slot);
        let mut slots = [const { None }; GROUP];
        let mut last = None;
        for (place, &mut (slot, _)) in slots.iter_mut().zip(places.iter_mut()) {
            if last.replace(slot) != Some(slot) {
                *place = Some(self.slots[slot].read());
            }
        }
        let version = |(slot, (_, key)): (&Option<_>, &mut (usize, &[u8]))| {
            let slot: &Slot = slot.as_deref()?;
            Some(slot.base.get(key)?.version().0)
        };
        black_box(slots.iter().zip(places).filter_map(version).fold(0, u64::wrapping_add));
    }
}
