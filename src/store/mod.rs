//! The state machine: the data that the replicated log adds up to.
//!
//! # Many readers, one writer
//! The key space is cut into 16384 [`slot`]s. A slot is its *base*, the records that the log has
//! applied, and its *overlay*, both behind one read-write lock. Any thread may read through
//! [`Store`]. Only the owner of the [`Writer`] changes a base. There is one writer for a store, and
//! its methods take `&mut self`, so two replicas that apply the same entries hold the same data.
//!
//! # Versions
//! Every record of the base has a version, and a deletion leaves a record too: a tombstone. A batch
//! always takes effect: its writes are later than all writes that the log has held before, merged
//! ones included. A merged write counts only if it is later than its key's record, or, if there is
//! none, later than the *floor*. Merges therefore have the same result in any order and any number
//! of times. A checkpoint raises the floor and forgets the tombstones up to it; FLUSHALL raises the
//! floor to its own version. Writes that the floor refuses are counted: see [`Store::late`].
//!
//! # The overlay
//! It holds the writes of eventual sessions on this node that the log has not applied yet. Any
//! thread adds to it ([`Store::put_overlay`]), and only eventual reads see it. Applying a write to
//! a key removes the overlay's record that it supersedes in the same moment, so to
//! [`Store::read_newest`] a write does not vanish on its way from the overlay to the base. The
//! overlay is local to the node: it is in no image and no digest.
//!
//! # Visibility
//! - One key: always a whole value, the latest that was written.
//! - Several keys in one command: one moment of the store. A reader takes the locks of all slots
//!   concerned before it reads the first, a writer before it changes the first. An MSET is seen
//!   whole or not at all.
//! - KEYS and SCAN go slot by slot, so they show each slot at a moment of its own; so does an
//!   eventual DBSIZE while the overlay holds records.
//! - A batch is not one moment: its commands become visible one by one, but no other batch's
//!   commands come between them.
//! - [`Store::applied`]: a reader that has seen an index there sees all effects of the log up to
//!   it. The writer stores the index last (release); the reader loads it first (acquire).
//! - [`Store::put_overlay`]: each write is a moment of its own. A session that has put a write in
//!   sees it, or a later one, in every newest read from then on.
//!
//! # Locks
//! A thread that holds several locks takes them in ascending order of slots and each one once, so
//! no cycle of waiting can form. Work that can be done before or after a lock is not done under it:
//! no computing, no long copies, no freeing.
//!
//! # Images
//! A snapshot must show one index while writes go on. [`Writer::image`] copies 16384 pointers, one
//! to each slot's map. From then on writes gather in a delta beside a slot's map, until the image
//! has released the map (`base.rs`). No thread is paused, no map is copied except to forget a
//! tombstone, and only new writes take memory.
//!
//! # Determinism
//! Outcomes depend on the log alone. Maps are seeded at random against chosen keys, so their order
//! is not part of any outcome: KEYS, SCAN and images sort each slot by key. Two replicas at the
//! same index write byte for byte the same [`Image`] and have the same [`Writer::digest`]. The
//! digest is kept with every write, so a fault that changes a record is found without a walk.
//!
//! # Memory
//! A key, its value and its version are one allocation, a [`Record`], copied once out of the log's
//! buffer, which could otherwise not be freed; a merged write has that form already and is not
//! copied again. A map is a table of pointers to records. In a slot a look-up waits for memory
//! three times: for the table's tags, for its pointer, and for the record. Records are counted,
//! which costs a key 8 bytes; in return, values leave the store without a copy, and copying a slot,
//! KEYS and SCAN allocate nothing per key. A value that has left the store keeps its record alive,
//! and a name keeps its value too.
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
pub use requests::{Admission, AppliedRequests};
pub use writer::{Applied, ApplyError, Writer};

/// The stored data, for reading. [`Writer::store`] returns it.
pub struct Store {
    /// [`SLOTS`] of them.
    slots: Box<[RwLock<Slot>]>,
    applied: AtomicU64,
    keys: AtomicU64,
    bytes: AtomicU64,
    tombstones: AtomicU64,
    /// Writes up to this version to a key without a record are too late. Stored before the slots
    /// change, or under their locks; a decision reads it under a slot's lock, whose acquisition
    /// makes the store visible. All accesses may therefore be relaxed.
    floor: AtomicU64,
    /// Records in all overlays; for a moment more, because a record is counted before it can be
    /// seen and discounted after it is gone.
    overlaid: AtomicU64,
    late: AtomicU64,
}

/// The size of a store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Keys (Redis: DBSIZE).
    pub keys: u64,
    /// Bytes of all keys and values, without the memory around them.
    pub bytes: u64,
    /// Deletions that are remembered against older writes. They are not keys.
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
        // Pairs with the release in `publish`: all slots up to this index are visible.
        self.applied.load(Ordering::Acquire)
    }

    /// The size as of the last applied entry. Takes no lock.
    pub fn stats(&self) -> Stats {
        Stats {
            keys: self.keys.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
            tombstones: self.tombstones.load(Ordering::Relaxed),
        }
    }

    /// The number of writes refused since the process started because their keys had no record and
    /// the floor had passed their versions. A second copy of a write whose tombstone is forgotten
    /// counts too.
    pub fn late(&self) -> u64 {
        self.late.load(Ordering::Relaxed)
    }

    /// The number of keys with a write in the overlay, which the log has not applied yet.
    pub fn overlaid(&self) -> u64 {
        self.overlaid.load(Ordering::Relaxed)
    }

    /// The version of every key without a record: writes up to it are too late.
    pub fn floor(&self) -> Version {
        Version(self.floor.load(Ordering::Relaxed))
    }

    /// The version of a key, as of the last applied entry: that of its record, or the floor.
    pub fn version(&self, key: &[u8]) -> Version {
        let slot = self.slots[slot::slot_of(key)].read();
        slot.base.get(key).map_or(self.floor(), Record::version)
    }

    /// Publishes the totals and the index of an entry or an image, after its slots have changed.
    fn publish(&self, totals: &Totals, applied: Index) {
        self.keys.store(totals.stats.keys, Ordering::Relaxed);
        self.bytes.store(totals.stats.bytes, Ordering::Relaxed);
        self.tombstones.store(totals.stats.tombstones, Ordering::Relaxed);
        // Last, and a release: pairs with the acquire in `applied`. A reader that sees this index
        // sees the totals above and the slots of every entry up to it.
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
