//! Spare segments: files of the standard length that a new segment can be renamed from, so that
//! nobody waits while 16 MiB are written. They come from segments that are no longer needed, whose
//! old bytes need not be zeroed because no old frame is valid under a new number, and from a
//! [`SpareJob`] that another thread runs.

use std::io;
use std::sync::Arc;

use parking_lot::Mutex;

use super::disk::Disk;
use super::segment::{self, Named};

/// How many spares are kept at most.
const SPARES_MAX: usize = 2;
/// What the length of an oversized segment is rounded up to.
const BLOCK_BYTES: u64 = 4096;

/// The spares of one log.
pub(super) struct Spares<D> {
    disk: Arc<D>,
    /// The length of a spare, in bytes.
    len: u64,
    shelf: Arc<Mutex<Shelf>>,
}

#[derive(Debug)]
struct Shelf {
    /// The names of finished spares.
    ready: Vec<String>,
    /// The number of the next one to be made.
    next: u64,
    /// A job is under way.
    making: bool,
}

impl<D: Disk> Spares<D> {
    /// Takes stock; removes what is unfinished, of another length, or one too many.
    pub(super) fn open(disk: Arc<D>, len: u64) -> io::Result<Spares<D>> {
        let (mut ready, mut next) = (Vec::new(), 1);
        for (name, file_len) in disk.list()? {
            let number = match Named::of(&name) {
                Named::Spare(number) | Named::Unfinished(number) => number,
                Named::Segment(_) | Named::Other => continue,
            };
            next = next.max(number + 1);
            let usable = Named::of(&name) == Named::Spare(number) && file_len == len;
            if usable && ready.len() < SPARES_MAX {
                ready.push(name);
            } else {
                disk.remove(&name)?;
            }
        }
        let shelf = Arc::new(Mutex::new(Shelf { ready, next, making: false }));
        Ok(Spares { disk, len, shelf })
    }

    /// A file of zeros or old frames with room for `len` bytes, to be renamed to a segment: a
    /// spare, or if there is none that is large enough, a new file. Returns its name and length. On
    /// an error nothing has changed.
    pub(super) fn take_or_make(&self, len: u64) -> io::Result<(String, u64)> {
        let mut shelf = self.shelf.lock();
        if len <= self.len
            && let Some(spare) = shelf.ready.pop()
        {
            return Ok((spare, self.len));
        }
        let name = segment::unfinished_name(shelf.number());
        drop(shelf);
        let len = if len <= self.len { self.len } else { len.next_multiple_of(BLOCK_BYTES) };
        self.disk.create(&name, len)?;
        Ok((name, len))
    }

    /// Keeps the file `name` of `len` bytes as a spare, or removes it.
    pub(super) fn recycle(&self, name: &str, len: u64) -> io::Result<()> {
        let mut shelf = self.shelf.lock();
        if len != self.len || shelf.ready.len() >= SPARES_MAX {
            drop(shelf);
            return self.disk.remove(name);
        }
        let spare = segment::spare_name(shelf.number());
        drop(shelf);
        self.disk.rename(name, &spare)?;
        self.shelf.lock().ready.push(spare);
        Ok(())
    }

    /// True if there is a spare.
    pub(super) fn is_ready(&self) -> bool {
        !self.shelf.lock().ready.is_empty()
    }

    /// A job if there is no spare and none is being made.
    pub(super) fn wanted(&self) -> Option<SpareJob<D>> {
        let mut shelf = self.shelf.lock();
        if shelf.making || !shelf.ready.is_empty() {
            return None;
        }
        shelf.making = true;
        let number = shelf.number();
        let (disk, shelf) = (Arc::clone(&self.disk), Arc::clone(&self.shelf));
        Some(SpareJob { disk, shelf, number, len: self.len })
    }
}

impl Shelf {
    fn number(&mut self) -> u64 {
        let number = self.next;
        self.next += 1;
        number
    }
}

/// Makes one spare segment; any thread may run it while the log is in use.
#[derive(Debug)]
#[must_use = "the log waits for the job to be run or dropped before it asks again"]
pub struct SpareJob<D> {
    disk: Arc<D>,
    shelf: Arc<Mutex<Shelf>>,
    number: u64,
    len: u64,
}

impl<D: Disk> SpareJob<D> {
    /// Writes a segment of zeros, syncs it and puts it at the log's disposal.
    ///
    /// # Errors
    /// The disk's; no reason to stop: the log makes its next segment itself when it needs it.
    pub fn run(self) -> io::Result<()> {
        let unfinished = segment::unfinished_name(self.number);
        let spare = segment::spare_name(self.number);
        self.disk.create(&unfinished, self.len)?;
        self.disk.rename(&unfinished, &spare)?;
        self.shelf.lock().ready.push(spare);
        Ok(())
    }
}

impl<D> Drop for SpareJob<D> {
    fn drop(&mut self) {
        self.shelf.lock().making = false;
    }
}
