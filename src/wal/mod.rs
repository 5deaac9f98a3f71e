//! The write-ahead log: the records of a replica, durable before any message tells of them. In the
//! same directory, on the same [`Disk`], lie the images that let the log be cut ([`Images`]) and
//! the file that says which node owns the directory ([`DataDir`]).
//!
//! # Use
//! [`Wal::append`] encodes records into memory. [`Wal::commit`] writes everything appended since
//! the last commit, the *batch*, and returns when the batch would survive a power cut. One sync
//! therefore pays for all records that have gathered. [`Wal::open`] replays the records and returns
//! the state that they add up to.
//!
//! # Files
//! ```text
//! wal-0000000000000007.log     a sealed segment
//! wal-0000000000000008.log     the segment being written
//! spare-0000000000000003.log   a spare: the next segment, already zeroed
//! spare-0000000000000004.tmp   a spare under construction; removed at the next start
//! ```
//! A segment is a file of fixed length (16 MiB unless set otherwise), filled with zeros before its
//! first use, so that a sync writes data and no metadata: 0.2 ms where appending to a growing file
//! takes 0.35 ms. A batch lies in one segment. A batch that does not fit into the rest of the
//! current segment begins the next one; a batch larger than a segment gets a segment of its own
//! length. `frame.rs` and `segment.rs` have the byte tables.
//!
//! # Rules
//! - A frame's checksum covers its content and its place. A frame's batch number proves that all
//!   earlier batches were synced. `recover.rs` derives from this which unreadable bytes are a torn
//!   tail, to be cut, and which are damage, to be refused.
//! - A batch is all or nothing: recovery never returns a part of one.
//! - The log shrinks only by dropping its oldest segment. A segment goes when a durable snapshot
//!   record covers its highest entry index, and a later durable `Held` record has replaced its
//!   eventual writes (`retention.rs`). Each segment begins with the hard state, the snapshot record
//!   and the clock, so these never hold back an older segment. Eventual writes are not repeated: a
//!   node that holds some for long appends a `Held` now and then, or its log grows.
//! - A dropped segment becomes a spare. Its old frames are invalid in its new life, because the
//!   checksum includes the segment's number.
//! - After a failed write or sync the state of the file is unknown, so the log refuses all further
//!   work; a failed sync is never retried. A full disk is the exception: it shows while a segment
//!   is being made, before anything depends on that segment, and `commit` may be called again.
//!   (This holds on a file system that writes in place. One that copies on write reserves no room.)
//! - At most one write is in flight, from one thread.
//!
//! # Left out
//! Compression; several logs in one file (the format has room: each record carries its group);
//! repair of a damaged log: a node with a corrupt log must start with an empty directory and learn
//! from its peers.

mod data_dir;
mod disk;
mod error;
mod frame;
mod history;
mod identity;
mod images;
mod recover;
mod retention;
mod segment;
mod spare;
#[cfg(test)]
mod tests;

pub use data_dir::{DataDir, DataDirError};
pub use disk::{Disk, FileDisk};
pub use error::WalError;
pub use identity::Identity;
pub use images::{ImageReader, ImageWriter, Images, IncomingImage, OutgoingImage, is_full};
pub use spare::SpareJob;

use std::collections::VecDeque;
use std::io;
use std::mem;
use std::sync::Arc;

use crate::replica::{HardState, Recovered, WalRecord};
use crate::types::{GroupId, SnapshotMeta, Version};

use frame::Place;
use history::LogOutline;
use retention::{Contents, Segment};
use segment::Header;
use spare::Spares;

/// The settings of a log.
#[derive(Clone, Copy, Debug)]
pub struct WalOptions {
    /// The length of a segment, in bytes.
    pub segment_bytes: u64,
    /// Tells this log from the logs of all other directories: the incarnation of its [`DataDir`].
    pub log_id: u64,
    /// The group whose records these are.
    pub group: GroupId,
}

impl WalOptions {
    /// The usual segment length: 16 MiB.
    pub const SEGMENT_BYTES: u64 = 16 << 20;

    /// The usual options for the log `log_id` of the one group there is.
    pub fn new(log_id: u64) -> WalOptions {
        WalOptions { segment_bytes: WalOptions::SEGMENT_BYTES, log_id, group: GroupId::default() }
    }
}

/// The log of one node.
pub struct Wal<D: Disk> {
    disk: Arc<D>,
    options: WalOptions,
    spares: Spares<D>,
    /// All segments in order; the last one is being written.
    segments: VecDeque<Segment>,
    /// `None` before the first commit to a new log.
    current: Option<Current<D::File>>,
    next_batch: u64,
    durable: Durable,
    batch: PendingBatch,
    /// True after a failed write or sync.
    failed: bool,
}

/// The segment being written.
struct Current<F> {
    file: F,
    /// The offset of the next batch, in bytes.
    end: u64,
}

/// The state as of the last commit, which the next segment repeats at its beginning.
struct Durable {
    hard: HardState,
    snapshot: SnapshotMeta,
    clock: Version,
}

/// Records appended since the last commit.
struct PendingBatch {
    frames: Vec<u8>,
    /// The latest hard state in the batch.
    hard: Option<HardState>,
    /// The log's entries after the batch.
    outline: LogOutline,
    /// The clock after the batch.
    clock: Version,
    /// The batch's effect on the retention of segments.
    contents: Contents,
}

impl<D: Disk> Wal<D> {
    /// Reads the log on `disk`, or begins one, and returns the state that its records add up to.
    /// All of that state is durable.
    ///
    /// # Errors
    /// [`WalError::Corrupt`], [`WalError::NewerFormat`], [`WalError::OlderFormat`],
    /// [`WalError::Io`].
    pub fn open(disk: Arc<D>, options: WalOptions) -> Result<(Wal<D>, Recovered), WalError> {
        let found = recover::recover(&*disk, &options)?;
        let spares = Spares::open(Arc::clone(&disk), options.segment_bytes)?;
        let current = match (found.segments.back(), found.end) {
            (Some(last), Some(end)) => {
                let file = disk.open(&segment::name(last.number))?;
                Some(Current { file, end })
            }
            _ => None,
        };
        let recovered = found.recovered;
        let Recovered { hard, snapshot, clock, .. } = &recovered;
        let durable = Durable { hard: hard.clone(), snapshot: *snapshot, clock: *clock };
        let batch = PendingBatch {
            frames: Vec::new(),
            hard: None,
            outline: LogOutline::of(&recovered),
            clock: *clock,
            contents: Contents::default(),
        };
        let wal = Wal {
            disk,
            options,
            spares,
            segments: found.segments,
            current,
            next_batch: found.next_batch,
            durable,
            batch,
            failed: false,
        };
        Ok((wal, recovered))
    }

    /// Adds records to the batch; they are in memory only until [`Wal::commit`].
    ///
    /// # Panics
    /// If an entry does not continue the log: a mistake of the caller that would make the log
    /// unreadable.
    pub fn append(&mut self, records: &[WalRecord]) {
        let group = self.options.group;
        let batch = &mut self.batch;
        for record in records {
            match record {
                WalRecord::Hard(hard) => {
                    batch.hard = Some(hard.clone());
                    frame::put_hard(&mut batch.frames, group, hard);
                }
                WalRecord::Entry(entry) => {
                    batch.outline.put_entry(entry.index, entry.term);
                    batch.contents.entry(entry.index);
                    frame::put_entry(&mut batch.frames, group, entry);
                }
                WalRecord::Snapshot(meta) if meta.index >= batch.outline.snapshot().index => {
                    let keeps_log = batch.outline.put_snapshot(*meta);
                    frame::put_snapshot(&mut batch.frames, group, *meta, keeps_log);
                }
                // An older snapshot covers nothing that the known one does not; replay would refuse
                // a snapshot record that goes back.
                WalRecord::Snapshot(_) => (),
                WalRecord::Stamped(writes) => {
                    batch.contents.stamped(writes);
                    frame::put_stamped(&mut batch.frames, group, writes);
                }
                WalRecord::Held(writes) => {
                    batch.contents.held(writes);
                    frame::put_held(&mut batch.frames, group, writes);
                }
                WalRecord::Clock(clock) if *clock > batch.clock => {
                    batch.clock = *clock;
                    frame::put_clock(&mut batch.frames, group, *clock);
                }
                // The clock is a maximum: an older one changes nothing.
                WalRecord::Clock(_) => (),
            }
        }
    }

    /// True if nothing was ever committed here: there is no segment.
    pub fn is_new(&self) -> bool {
        self.segments.is_empty()
    }

    /// Bytes that wait for [`Wal::commit`].
    pub fn pending_bytes(&self) -> usize {
        self.batch.frames.len()
    }

    /// Writes the batch and returns when it is durable: one write (two at the beginning of a
    /// segment) and one sync.
    ///
    /// # Errors
    /// [`WalError::Full`]: nothing is lost, call again. [`WalError::Io`]: the log is unusable until
    /// it is opened again, and every further call fails.
    pub fn commit(&mut self) -> Result<(), WalError> {
        self.commit_leaving(frame::CLOSE_LEN)
    }

    /// Commits the batch and leaves at least `room` bytes free in its segment.
    fn commit_leaving(&mut self, room: usize) -> Result<(), WalError> {
        // A failed fsync marks the pages clean on Linux: a second one would report success for
        // bytes that never reached the disk.
        if self.failed {
            return Err(io::Error::other("it has failed before; restart the node").into());
        }
        if self.batch.frames.is_empty() {
            return Ok(());
        }
        let committed = self.commit_batch(room);
        self.failed = matches!(committed, Err(WalError::Io(_)));
        committed
    }

    /// Commits the batch and a close record, which lets the next start tell a rotten last batch
    /// from a torn one.
    ///
    /// # Errors
    /// As [`Wal::commit`]; with [`WalError::Full`] the batch is dropped.
    pub fn close(mut self) -> Result<(), WalError> {
        self.commit()?;
        if !self.is_new() {
            frame::put_close(&mut self.batch.frames, self.options.group);
            // The commit has left room for the close record: closing works on a full disk.
            self.commit_leaving(0)?;
        }
        Ok(())
    }

    /// True if there is a spare segment, so that the next roll needs no room.
    pub fn has_spare(&self) -> bool {
        self.spares.is_ready()
    }

    /// A job for another thread, if the log has no spare segment. Run before the current segment is
    /// full, it saves the log from making its next segment itself. `None` while a job is under way.
    pub fn spare_wanted(&self) -> Option<SpareJob<D>> {
        if self.current.is_some() { self.spares.wanted() } else { None }
    }

    fn commit_batch(&mut self, room: usize) -> Result<(), WalError> {
        if !self.fits(room) {
            self.roll(room)?;
        }
        self.write_batch()?;
        self.drop_oldest()?;
        Ok(())
    }

    /// True if the current segment has room for the batch, and for `room` bytes after it.
    fn fits(&self, room: usize) -> bool {
        let (Some(current), Some(segment)) = (&self.current, self.segments.back()) else {
            return false;
        };
        let need = self.batch.frames.len() + room;
        current.end + need as u64 <= segment.len
    }

    /// Begins a segment with room for the batch and `room` bytes after it, and writes the preamble
    /// into it.
    fn roll(&mut self, room: usize) -> Result<(), WalError> {
        let number = self.segments.back().map_or(1, |segment| segment.number + 1);
        let preamble = self.preamble(number);
        let need = preamble.len() + self.batch.frames.len() + room;
        // Making the file is the only step that needs new room. Until it has its name, nothing
        // refers to it, so a full disk leaves the log as it was.
        let (file, len) = self.spares.take_or_make(need as u64).map_err(|e| match is_full(&e) {
            true => WalError::Full,
            false => WalError::Io(e),
        })?;
        let name = segment::name(number);
        self.disk.rename(&file, &name)?;
        let file = self.disk.open(&name)?;
        // Not synced here: the first batch's sync makes header, preamble and batch durable at once,
        // and recovery takes a segment without a whole first batch as never begun.
        self.disk.write_at(&file, 0, &preamble)?;
        self.segments.push_back(Segment::new(number, len));
        self.current = Some(Current { file, end: preamble.len() as u64 });
        Ok(())
    }

    /// The header of segment `number` and the restated state, which precede the records of its
    /// first batch and belong to that batch.
    fn preamble(&self, number: u64) -> Vec<u8> {
        let WalOptions { log_id, group, .. } = self.options;
        let first_batch = self.next_batch;
        let header = Header { group, log_id, number, first_batch };
        let mut bytes = header.encode().to_vec();
        frame::put_hard(&mut bytes, group, &self.durable.hard);
        frame::put_snapshot(&mut bytes, group, self.durable.snapshot, true);
        frame::put_clock(&mut bytes, group, self.durable.clock);
        let place = Place { log_id, segment: number };
        let frames = &mut bytes[segment::HEADER_LEN..];
        frame::seal(frames, place, segment::HEADER_LEN, first_batch, false);
        bytes
    }

    fn write_batch(&mut self) -> io::Result<()> {
        let current = self.current.as_mut().expect("a segment has been begun");
        let segment = self.segments.back().expect("the current segment is the last");
        let place = Place { log_id: self.options.log_id, segment: segment.number };
        let frames = &mut self.batch.frames;
        frame::seal(frames, place, current.end as usize, self.next_batch, true);
        self.disk.write_at(&current.file, current.end, frames)?;
        self.disk.sync(&current.file)?;

        // Only a durable record may release a segment, so retention learns of the batch after the
        // sync.
        current.end += frames.len() as u64;
        retention::note_durable(&mut self.segments, mem::take(&mut self.batch.contents));
        self.next_batch += 1;
        if let Some(hard) = self.batch.hard.take() {
            self.durable.hard = hard;
        }
        self.durable.snapshot = self.batch.outline.snapshot();
        self.durable.clock = self.batch.clock;
        frames.clear();
        frames.shrink_to(BATCH_KEPT_BYTES);
        Ok(())
    }

    /// Drops the oldest segment if recovery needs nothing of it. One at a time, so that no commit
    /// waits long; a commit adds at most one.
    fn drop_oldest(&mut self) -> io::Result<()> {
        if self.segments.len() > 1
            && let Some(oldest) = self.segments.front()
            && !oldest.is_retained(self.durable.snapshot.index)
        {
            self.spares.recycle(&segment::name(oldest.number), oldest.len)?;
            self.segments.pop_front();
        }
        Ok(())
    }
}

/// The memory that a large batch leaves allocated for the next ones, in bytes.
const BATCH_KEPT_BYTES: usize = 1 << 20;
