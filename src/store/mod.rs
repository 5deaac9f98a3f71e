//! The state machine: what the replicated log adds up to.
//!
//! # Many readers, one writer
//! The key space is cut into 16384 [`slot`]s. A slot is its *base*, what the log has applied, and
//! its *overlay*, both behind one read-write lock. Any thread may read through [`Store`]. Only the
//! owner of the [`Writer`] changes a base, and there is one writer for a store, which is what
//! `&mut` is for: two replicas that apply the same entries hold the same data.
//!
//! # Versions
//! Every record of the base has a version, and a deletion leaves a record too: a tombstone. A
//! batch always takes effect; what it writes is later than all that the log has held before it,
//! what it merges included. A merged write counts only if it is later than its key's record, or, if
//! there is none, later than the *floor*: so the order in which merges come, and how often, is all
//! the same. A mark raises the floor and forgets the tombstones up to it; FLUSHALL raises it to its
//! own version. Writes that the floor refuses are counted: see [`Store::late`].
//!
//! # The overlay
//! It holds what eventual sessions wrote here and the log has not applied yet. Any thread adds to
//! it ([`Store::accept`]), only eventual reads look at it, and whatever is applied to a key removes
//! what it supersedes there, in the same moment: to [`Store::read_newest`] a write does not vanish
//! on its way from one to the other. The overlay is this node's affair. It is in no image and no
//! digest.
//!
//! # What a reader sees
//! - One key: always a whole value, the latest that was written.
//! - Several keys in one command: one moment of the store. A reader takes the locks of all slots
//!   concerned before it looks at the first, a writer before it changes the first. An MSET is seen
//!   whole or not at all.
//! - KEYS and SCAN go slot by slot, so they show each slot at a moment of its own; so does an
//!   eventual DBSIZE while there is anything in the overlay.
//! - A batch is not one moment: its commands become visible one by one, though no other batch's
//!   commands come between them.
//! - [`Store::applied`]: once a reader has seen an index there, it sees all that the log did up to
//!   it. The index is stored last (release) and loaded first (acquire).
//! - [`Store::accept`]: each write is a moment of its own. Who has put a write in sees it, or a
//!   later one, in every newest read from then on.
//!
//! # Locks
//! Locks are taken in ascending order of slots and each one once, so no circle of waiting can
//! close. Nothing is computed, copied at length or freed under a lock that could be done before or
//! after.
//!
//! # Images
//! A snapshot must show one index while writes go on. [`Writer::image`] copies 16384 pointers, one
//! to each slot's map; from then on, what is written gathers beside a slot's map, until the image
//! has let go of it. Nobody is paused, no map is copied (but to forget a tombstone), and only what
//! is written takes memory.
//!
//! # Determinism
//! Outcomes depend on the log alone. Maps are seeded at random against chosen keys, so their order
//! is not part of any outcome: KEYS, SCAN and images sort each slot by key. Two replicas at the
//! same index write byte for byte the same [`Image`] and have the same [`Writer::digest`], which is
//! kept up with every write: a fault that changes a record is found without a walk.
//!
//! # Memory
//! A key, its value and its version are one allocation, a [`Record`], copied once out of the log's
//! buffer, which could otherwise not be freed; a merged write has that form already and is not
//! copied again. A map is a table of pointers to records. So a look-up waits for memory three
//! times, whatever is asked for: for the table's tags, its pointer, and the record. Records are
//! counted, which costs a key 8 bytes; in return, values leave the store without a copy, and
//! copying a slot, KEYS and SCAN allocate nothing per key. What they hand out keeps its record
//! alive, a name its value too.
//!
//! Measured with keys of 16 bytes and values of 64, in bytes of resident memory a key: 149 with a
//! million keys, 143 to 145 with 1.5 to 10 million (Redis 7.0: 176, and 173 to 184). 80 of them are
//! the key and the value, 32 stand before them, 16 are the allocator's, and the table takes 10 to
//! 21 as it fills up. A tombstone costs as much as an empty value, and its place in the order of
//! age. An overlay that is empty or holds one record takes no memory beside its slot's 16 bytes.
//!
//! Left out: expiry, types other than strings, an index over key names (KEYS visits every key; so
//! does SCAN within one slot, which matters where one hash tag holds very many).

mod apply;
mod base;
pub mod glob;
mod image;
mod ledger;
mod overlay;
mod prefetch;
mod read;
mod record;
mod requests;
pub mod slot;
#[cfg(test)]
mod tests;
mod writer;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::RwLock;

use crate::types::{Index, Record, Version};
use overlay::Overlay;
use record::{Map, Totals};
use slot::{SLOTS, Slot};

pub use image::{Image, ImageError};
pub use requests::{Admission, Requests};
pub use writer::{Applied, ApplyError, Writer};

/// The stored data, for reading. Comes from [`Writer::store`].
pub struct Store {
    /// [`SLOTS`] of them.
    slots: Box<[RwLock<Slot>]>,
    applied: AtomicU64,
    keys: AtomicU64,
    bytes: AtomicU64,
    tombstones: AtomicU64,
    /// Writes up to this version to a key without a record count for nothing. Changes before the
    /// slots do, or under their locks; read under a slot's lock where it decides.
    floor: AtomicU64,
    /// Records in all overlays, or for a moment more: counted before they can be seen.
    overlaid: AtomicU64,
    late: AtomicU64,
}

/// How much a store holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Keys (Redis: DBSIZE).
    pub keys: u64,
    /// Bytes of all keys and values themselves, without what it takes to hold them.
    pub bytes: u64,
    /// Deletions that are remembered against older writes; no keys.
    pub tombstones: u64,
}

impl Store {
    fn empty() -> Store {
        let empty = Arc::<Map>::default();
        let slot = || Slot { base: Arc::clone(&empty).into(), overlay: Overlay::default() };
        Store {
            slots: (0..SLOTS).map(|_| RwLock::new(slot())).collect(),
            applied: AtomicU64::new(0),
            keys: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            tombstones: AtomicU64::new(0),
            floor: AtomicU64::new(0),
            overlaid: AtomicU64::new(0),
            late: AtomicU64::new(0),
        }
    }

    /// The last index whose effects every read that starts from now on will see.
    pub fn applied(&self) -> Index {
        self.applied.load(Ordering::Acquire)
    }

    /// How much it holds, as of the last applied entry. Takes no lock.
    pub fn stats(&self) -> Stats {
        Stats {
            keys: self.keys.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
            tombstones: self.tombstones.load(Ordering::Relaxed),
        }
    }

    /// Writes that were refused since the process started, because their keys had no record and
    /// the floor had passed their versions. A second copy of a write whose tombstone is forgotten
    /// is one of them.
    pub fn late(&self) -> u64 {
        self.late.load(Ordering::Relaxed)
    }

    /// Records in the overlay: keys with a write that the log has not applied yet.
    pub fn overlaid(&self) -> u64 {
        self.overlaid.load(Ordering::Relaxed)
    }

    /// The version of every key without a record: older writes to it come too late.
    pub fn floor(&self) -> Version {
        Version(self.floor.load(Ordering::Relaxed))
    }

    /// The version of a key, as of the last applied entry: that of its record, or the floor.
    pub fn version(&self, key: &[u8]) -> Version {
        let slot = self.slots[slot::slot_of(key)].read();
        slot.base.get(key).map_or(self.floor(), Record::version)
    }

    /// The writer's last word on an entry or an image. The order matters: see [`Store::applied`].
    fn publish(&self, totals: &Totals, applied: Index) {
        self.keys.store(totals.stats.keys, Ordering::Relaxed);
        self.bytes.store(totals.stats.bytes, Ordering::Relaxed);
        self.tombstones.store(totals.stats.tombstones, Ordering::Relaxed);
        self.applied.store(applied, Ordering::Release);
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store")
            .field("applied", &self.applied())
            .field("stats", &self.stats())
            .finish_non_exhaustive()
    }
}
