//! The write-ahead log: what a replica must not forget, on the disk before anybody is told. Beside
//! it in the same directory, and on the same [`Disk`], the images that let it be cut ([`Images`]);
//! and whose the directory is ([`DataDir`]).
//!
//! # Use
//! [`Wal::append`] encodes records into memory. [`Wal::commit`] writes all that was appended since
//! the last commit, the *batch*, and returns when it would survive a power cut. So one sync pays
//! for as many records as have come together. [`Wal::open`] gives back what the records add up to.
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
//! takes 0.35 ms. A batch lies in one segment; one that does not fit into the rest of the current
//! segment begins the next, one that is larger than a segment gets a segment of its own length.
//! `frame.rs` and `segment.rs` have the byte tables.
//!
//! # Rules
//! - A frame proves by its checksum what it says and where it belongs; a batch number proves that
//!   all earlier batches were synced. `recover.rs` argues from this what is a torn tail, to be cut,
//!   and what is damage, to be refused.
//! - A batch is all or nothing: recovery never returns a part of one.
//! - Nothing is removed but by dropping the oldest segment, when a durable snapshot mark covers the
//!   highest entry index that it holds, and a durable `Held` has taken the place of its eventual
//!   writes. Each segment restates hard state, mark and clock at its beginning. Eventual writes are
//!   never restated: whoever holds some for long appends a `Held` now and then, or the log grows.
//! - A segment that has been dropped becomes a spare. A frame of its former life is never taken for
//!   a new one, because the checksum includes the segment's number.
//! - After a failed write or sync nothing is known about the file, so the log refuses all further
//!   work: a failed sync is never tried again. A full disk is seen while a segment is being made,
//!   before anything depends on it, and is the one error after which `commit` may be called again.
//!   (On a file system that writes in place. One that copies on write has no room reserved.)
//! - At most one write is in flight, from one thread.
//!
//! # Left out
//! Compression; several logs in one file (the format has room: each record carries its group);
//! repair of a damaged log: a node with a corrupt log must start with an empty directory and learn
//! from its peers.

mod data_dir;
mod disk;
mod frame;
mod history;
mod images;
mod recover;
mod retention;
mod segment;
mod spare;
#[cfg(test)]
mod tests;

pub use data_dir::{DataDir, DataDirError, Identity};
pub use disk::{Disk, FileDisk};
pub use images::{ImageFile, Images, Incoming, Outgoing, Part, is_full};
pub use spare::SpareJob;

use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::mem;
use std::sync::Arc;

use thiserror::Error;

use crate::replica::{HardState, Recovered, WalRecord};
use crate::types::{GroupId, SnapshotMeta, Version};

use frame::Place;
use history::Shape;
use retention::{Contents, Segment};
use segment::Header;
use spare::Spares;

/// How a log is kept.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// The length of a segment, in bytes.
    pub segment_bytes: u64,
    /// Tells this log from the logs of all other directories: the incarnation of its [`DataDir`].
    pub log_id: u64,
    /// The group whose records these are.
    pub group: GroupId,
}

impl Options {
    /// The usual segment length: 16 MiB.
    pub const SEGMENT_BYTES: u64 = 16 << 20;

    /// The usual options for the log `log_id` of the one group there is.
    pub fn new(log_id: u64) -> Options {
        Options { segment_bytes: Options::SEGMENT_BYTES, log_id, group: GroupId::default() }
    }
}

/// Why the log cannot go on.
#[derive(Debug, Error)]
pub enum WalError {
    /// The disk has lost or changed what was synced. Nothing has been altered.
    #[error(
        "{file}: damaged at offset {offset}: {what}. Acknowledged data may be lost here: move this \
         node's data directory away and start with an empty one, so that it learns from its peers"
    )]
    Corrupt {
        /// The segment's file name.
        file: String,
        /// Where in it, in bytes.
        offset: u64,
        /// What is wrong.
        what: String,
    },
    /// A later version of the program wrote the log. Nothing has been altered.
    #[error(
        "{file}: format {version}, but this program knows formats up to {supported}: upgrade it"
    )]
    NewerFormat {
        /// The segment's file name.
        file: String,
        /// Its format.
        version: u8,
        /// The latest format known here.
        supported: u8,
    },
    /// A program older than the first release wrote the log. Nothing has been altered.
    #[error(
        "{file}: format {version}, which no release has written (this program reads format \
         {supported}): move this node's data directory away and start with an empty one, so that \
         it learns from its peers"
    )]
    OlderFormat {
        /// The segment's file name.
        file: String,
        /// Its format.
        version: u8,
        /// The format known here.
        supported: u8,
    },
    /// No room for another segment. Nothing is lost: what was appended waits, and `commit` may be
    /// called again when there is room.
    #[error("no room on the disk for another log segment")]
    Full,
    /// The disk failed. What is on it is known only after a restart.
    #[error("write-ahead log: {0}")]
    Io(#[from] io::Error),
}

/// The log of one node.
pub struct Wal<D: Disk> {
    disk: Arc<D>,
    options: Options,
    spares: Spares<D>,
    /// All segments in order; the last one is being written.
    segments: VecDeque<Segment>,
    /// `None` before the first commit to a new log.
    current: Option<Current<D::File>>,
    next_batch: u64,
    durable: Durable,
    pending: Pending,
    failed: bool,
}

/// The segment being written.
struct Current<F> {
    file: F,
    /// Where the next batch goes, in bytes.
    end: u64,
}

/// What the next segment restates: the state as of the last commit.
struct Durable {
    hard: HardState,
    snapshot: SnapshotMeta,
    clock: Version,
}

/// What was appended and not committed yet.
struct Pending {
    frames: Vec<u8>,
    /// The latest hard state in it.
    hard: Option<HardState>,
    /// The log's shape after it.
    shape: Shape,
    /// The clock after it.
    clock: Version,
    /// What it will mean for the segments.
    contents: Contents,
}

impl<D: Disk> Wal<D> {
    /// Reads the log on `disk`, or begins one, and says what its records add up to. All of that is
    /// durable.
    ///
    /// # Errors
    /// [`WalError::Corrupt`], [`WalError::NewerFormat`], [`WalError::OlderFormat`],
    /// [`WalError::Io`].
    pub fn open(disk: Arc<D>, options: Options) -> Result<(Wal<D>, Recovered), WalError> {
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
        let pending = Pending {
            frames: Vec::new(),
            hard: None,
            shape: Shape::of(&recovered),
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
            pending,
            failed: false,
        };
        Ok((wal, recovered))
    }

    /// Adds records to the next batch; they are in memory only until [`Wal::commit`]. A snapshot
    /// mark or clock older than the one before it says nothing and is left out.
    ///
    /// # Panics
    /// If an entry does not continue the log: a mistake of the caller that would make the log
    /// unreadable.
    pub fn append(&mut self, records: &[WalRecord]) {
        let group = self.options.group;
        let pending = &mut self.pending;
        for record in records {
            match record {
                WalRecord::Hard(hard) => {
                    pending.hard = Some(hard.clone());
                    frame::put_hard(&mut pending.frames, group, hard);
                }
                WalRecord::Entry(entry) => {
                    pending.shape.entry(entry.index, entry.term);
                    pending.contents.entry(entry.index);
                    frame::put_entry(&mut pending.frames, group, entry);
                }
                WalRecord::Snapshot(meta) if meta.index >= pending.shape.snapshot().index => {
                    let keeps_log = pending.shape.mark(*meta);
                    frame::put_snapshot(&mut pending.frames, group, *meta, keeps_log);
                }
                WalRecord::Snapshot(_) => (),
                WalRecord::Stamped(writes) => {
                    pending.contents.accepted(writes);
                    frame::put_accepted(&mut pending.frames, group, writes);
                }
                WalRecord::Held(writes) => {
                    pending.contents.held(writes);
                    frame::put_held(&mut pending.frames, group, writes);
                }
                WalRecord::Clock(clock) if *clock > pending.clock => {
                    pending.clock = *clock;
                    frame::put_clock(&mut pending.frames, group, *clock);
                }
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
        self.pending.frames.len()
    }

    /// Writes what waits and returns when it is durable: one write (two at the beginning of a
    /// segment) and one sync.
    ///
    /// # Errors
    /// [`WalError::Full`]: nothing is lost, call again. [`WalError::Io`]: the log is unusable until
    /// it is opened again, and every further call fails.
    pub fn commit(&mut self) -> Result<(), WalError> {
        self.commit_leaving(frame::CLOSE_LEN)
    }

    /// Commits what waits, and leaves at least `room` bytes free in its segment.
    fn commit_leaving(&mut self, room: usize) -> Result<(), WalError> {
        if self.failed {
            return Err(io::Error::other("it has failed before; restart the node").into());
        }
        if self.pending.frames.is_empty() {
            return Ok(());
        }
        let committed = self.commit_pending(room);
        self.failed = matches!(committed, Err(WalError::Io(_)));
        committed
    }

    /// Commits what waits and marks the end, so that the next start can tell a rotten last batch
    /// from a torn one.
    ///
    /// # Errors
    /// As [`Wal::commit`]; with [`WalError::Full`] what waited is given up.
    pub fn close(mut self) -> Result<(), WalError> {
        self.commit()?;
        if !self.is_new() {
            frame::put_close(&mut self.pending.frames, self.options.group);
            self.commit_leaving(0)?;
        }
        Ok(())
    }

    /// True if there is a spare segment, so that the next roll needs no room.
    pub fn has_spare(&self) -> bool {
        self.spares.is_ready()
    }

    /// A job for another thread, if the log has no spare segment: run it before the current segment
    /// is full, and the log need not make its next segment itself. `None` while a job is under way.
    pub fn spare_wanted(&self) -> Option<SpareJob<D>> {
        if self.current.is_some() { self.spares.wanted() } else { None }
    }

    fn commit_pending(&mut self, room: usize) -> Result<(), WalError> {
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
        let need = self.pending.frames.len() + room;
        current.end + need as u64 <= segment.len
    }

    /// Begins a segment with room for the batch and `room` bytes after it, whose first part is the
    /// restated state. Only making the file can find the disk full.
    fn roll(&mut self, room: usize) -> Result<(), WalError> {
        let number = self.segments.back().map_or(1, |segment| segment.number + 1);
        let preamble = self.preamble(number);
        let need = preamble.len() + self.pending.frames.len() + room;
        let (file, len) = self.spares.take_or_make(need as u64).map_err(|e| match e.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => WalError::Full,
            _ => WalError::Io(e),
        })?;
        let name = segment::name(number);
        self.disk.rename(&file, &name)?;
        let file = self.disk.open(&name)?;
        self.disk.write_at(&file, 0, &preamble)?;
        self.segments.push_back(Segment::new(number, len));
        self.current = Some(Current { file, end: preamble.len() as u64 });
        Ok(())
    }

    /// What stands in segment `number` before its first batch's own records.
    fn preamble(&self, number: u64) -> Vec<u8> {
        let Options { log_id, group, .. } = self.options;
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
        let frames = &mut self.pending.frames;
        frame::seal(frames, place, current.end as usize, self.next_batch, true);
        self.disk.write_at(&current.file, current.end, frames)?;
        self.disk.sync(&current.file)?;

        current.end += frames.len() as u64;
        retention::note(&mut self.segments, mem::take(&mut self.pending.contents));
        self.next_batch += 1;
        if let Some(hard) = self.pending.hard.take() {
            self.durable.hard = hard;
        }
        self.durable.snapshot = self.pending.shape.snapshot();
        self.durable.clock = self.pending.clock;
        frames.clear();
        frames.shrink_to(PENDING_KEPT_BYTES);
        Ok(())
    }

    /// Drops the oldest segment if nothing in it is needed. One at a time, so that no commit waits
    /// long; a commit adds at most one.
    fn drop_oldest(&mut self) -> io::Result<()> {
        if self.segments.len() > 1
            && let Some(oldest) = self.segments.front()
            && !oldest.is_needed(self.durable.snapshot.index)
        {
            self.spares.recycle(&segment::name(oldest.number), oldest.len)?;
            self.segments.pop_front();
        }
        Ok(())
    }
}

/// What a large batch leaves allocated for the next ones, in bytes.
const PENDING_KEPT_BYTES: usize = 1 << 20;
