//! Spare segments: files of the standard length that become a new segment by a rename, so that no
//! commit waits while 16 MiB are written. A spare is a dropped segment, whose old bytes need not be
//! zeroed because no old frame is valid under a new number, or the work of a [`SpareJob`], which
//! another thread runs.

use std::io;
use std::sync::Arc;

use parking_lot::Mutex;

use super::disk::Disk;
use super::segment::{self, FileKind};

/// The number of spares that are kept at most.
const SPARES_MAX: usize = 2;
/// The length of an oversized segment is a multiple of this.
const BLOCK_BYTES: u64 = 4096;

/// The spares of one log.
pub(super) struct Spares<D> {
    disk: Arc<D>,
    /// The length of a spare, in bytes.
    len: u64,
    inventory: Arc<Mutex<Inventory>>,
}

#[derive(Debug)]
struct Inventory {
    /// The names of finished spares.
    ready: Vec<String>,
    /// The number of the next spare.
    next: u64,
    /// True while a job is under way.
    has_job: bool,
}

impl<D: Disk> Spares<D> {
    /// Finds the spares on the disk; removes those that are unfinished, of another length, or too
    /// many.
    pub(super) fn open(disk: Arc<D>, len: u64) -> io::Result<Spares<D>> {
        let (mut ready, mut next) = (Vec::new(), 1);
        for (name, file_len) in disk.list()? {
            let number = match FileKind::of(&name) {
                FileKind::Spare(number) | FileKind::Unfinished(number) => number,
                FileKind::Segment(_) | FileKind::Other => continue,
            };
            next = next.max(number + 1);
            let usable = FileKind::of(&name) == FileKind::Spare(number) && file_len == len;
            // An unfinished spare may lack zeros or a durable length: it is never used.
            if usable && ready.len() < SPARES_MAX {
                ready.push(name);
            } else {
                disk.remove(&name)?;
            }
        }
        let inventory = Arc::new(Mutex::new(Inventory { ready, next, has_job: false }));
        Ok(Spares { disk, len, inventory })
    }

    /// A file of zeros or old frames with room for `len` bytes, to be renamed to a segment: a
    /// spare, or a new file if no spare is large enough. Returns its name and length. On an error
    /// nothing has changed.
    pub(super) fn take_or_make(&self, len: u64) -> io::Result<(String, u64)> {
        let mut inventory = self.inventory.lock();
        if len <= self.len
            && let Some(spare) = inventory.ready.pop()
        {
            return Ok((spare, self.len));
        }
        let name = segment::unfinished_name(inventory.number());
        // The lock is not held across I/O: another thread may finish a spare meanwhile.
        drop(inventory);
        let len = if len <= self.len { self.len } else { len.next_multiple_of(BLOCK_BYTES) };
        self.disk.create(&name, len)?;
        Ok((name, len))
    }

    /// Keeps the file `name` of `len` bytes as a spare, or removes it.
    pub(super) fn recycle(&self, name: &str, len: u64) -> io::Result<()> {
        let mut inventory = self.inventory.lock();
        // An oversized segment would keep its room for good: only standard lengths are recycled.
        if len != self.len || inventory.ready.len() >= SPARES_MAX {
            drop(inventory);
            return self.disk.remove(name);
        }
        let spare = segment::spare_name(inventory.number());
        drop(inventory);
        self.disk.rename(name, &spare)?;
        self.inventory.lock().ready.push(spare);
        Ok(())
    }

    /// True if there is a spare.
    pub(super) fn is_ready(&self) -> bool {
        !self.inventory.lock().ready.is_empty()
    }

    /// A job if there is no spare and none is being made.
    pub(super) fn wanted(&self) -> Option<SpareJob<D>> {
        let mut inventory = self.inventory.lock();
        if inventory.has_job || !inventory.ready.is_empty() {
            return None;
        }
        inventory.has_job = true;
        let number = inventory.number();
        let (disk, inventory) = (Arc::clone(&self.disk), Arc::clone(&self.inventory));
        Some(SpareJob { disk, inventory, number, len: self.len })
    }
}

impl Inventory {
    fn number(&mut self) -> u64 {
        let number = self.next;
        self.next += 1;
        number
    }
}

/// Makes one spare segment; any thread may run it while the log is in use.
#[derive(Debug)]
#[must_use = "until the job is run or dropped the log hands out no other"]
pub struct SpareJob<D> {
    disk: Arc<D>,
    inventory: Arc<Mutex<Inventory>>,
    number: u64,
    len: u64,
}

impl<D: Disk> SpareJob<D> {
    /// Writes a segment of zeros, syncs it and adds it to the log's spares.
    ///
    /// # Errors
    /// The disk's. They are no reason to stop: the log makes its next segment itself when it needs
    /// one.
    pub fn run(self) -> io::Result<()> {
        let unfinished = segment::unfinished_name(self.number);
        let spare = segment::spare_name(self.number);
        // Under its final name only when it is whole and durable: see `Spares::open`.
        self.disk.create(&unfinished, self.len)?;
        self.disk.rename(&unfinished, &spare)?;
        self.inventory.lock().ready.push(spare);
        Ok(())
    }
}

impl<D> Drop for SpareJob<D> {
    fn drop(&mut self) {
        self.inventory.lock().has_job = false;
    }
}
