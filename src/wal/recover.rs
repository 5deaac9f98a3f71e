//! From files to state: reads all segments, judges every byte that matters, and leaves a log that
//! can be appended to.
//!
//! **A torn tail or damage?** A batch is written only after the sync of the batch before it has
//! returned. A frame of batch *j* therefore proves that all batches before *j* were once whole on
//! the disk. If one of them is unreadable now, the disk has lost acknowledged data, and the log is
//! `Corrupt`. An unreadable batch with no later batch behind it was never acknowledged: it is a
//! torn tail, and is cut. One case looks the same and is not: the very last batch was acknowledged
//! and rotted before anything else was written. No checksum can tell the two apart. The close
//! record covers the common case, a rotten last batch between a clean stop and the next start.
//!
//! **Sealed segments.** The log leaves a segment only after all its batches were synced, and the
//! header of the next segment names the batch that follows. Fewer batches than that are damage. So
//! is a sealed segment without any batch, because each segment began with one.
//!
//! **A last segment that never began.** Its first writes, made durable by one sync, are the header,
//! the restated state and the first batch. The header lies in one sector, so after a crash it is
//! either the old content (zeros, or the valid header of a recycled file's former life) or the new
//! header; any other bytes are damage. With old content, or with a new header and no whole batch
//! behind it, the first sync never returned, unless a later batch is found. The file then holds
//! nothing acknowledged: it is removed, and the segment before it is the last one again.
//!
//! **Cutting.** The remains of a torn batch are overwritten with zeros. The number of the cut batch
//! is used again, so without the zeros a second crash could mix frames of both. A crash while the
//! zeros are being written leaves even less of the torn batch, so cutting may be repeated.
//!
//! **Rewriting the last whole batch.** Its bytes may come from the page cache alone: the process
//! was killed before the sync, or the sync failed and the kernel then took the pages for clean.
//! State that recovery reports must be durable, so the batch is written again with the same bytes
//! and synced with the zeros.

use std::collections::VecDeque;

use crate::replica::Recovered;

use super::disk::Disk;
use super::frame::Place;
use super::history::LogReplay;
use super::retention::{self, Segment};
use super::segment::{self, FORMAT, FileKind, HEADER_LEN, Header, InvalidRecord, Start};
use super::{WalError, WalOptions};

/// The log as recovery found it and left it.
pub(super) struct RecoveredLog {
    pub recovered: Recovered,
    /// In order.
    pub segments: VecDeque<Segment>,
    /// The offset of the next batch in the last segment; `None` if there is no segment.
    pub end: Option<u64>,
    pub next_batch: u64,
}

/// The last segment's repair, which waits until the whole log has been judged.
struct TailRepair {
    name: String,
    offset: usize,
    bytes: Vec<u8>,
}

enum LogVerdict {
    Sound(Box<RecoveredLog>, Option<TailRepair>),
    /// The last segment never began.
    LastNeverBegan,
}

/// Reads the log on `disk`. On an error nothing has been changed, unless it is an I/O error.
pub(super) fn recover<D: Disk>(disk: &D, options: &WalOptions) -> Result<RecoveredLog, WalError> {
    let mut numbers = segment_numbers(disk)?;
    let mut never_began = None;
    loop {
        match judge(disk, options, &numbers)? {
            // Judge again without it: the segment before it now follows the rules for a last one,
            // so later batches behind an unreadable one are looked for in it too. One round more at
            // most, because as a sealed segment it has just shown a whole first batch.
            LogVerdict::LastNeverBegan => never_began = numbers.pop(),
            // The whole log is sound: only now may the disk be changed.
            LogVerdict::Sound(log, repair) => {
                if let Some(number) = never_began {
                    disk.remove(&segment::name(number))?;
                }
                if let Some(TailRepair { name, offset, bytes }) = repair {
                    let file = disk.open(&name)?;
                    disk.write_at(&file, offset as u64, &bytes)?;
                    disk.sync(&file)?;
                }
                return Ok(*log);
            }
        }
    }
}

/// Reads all segments; changes nothing.
fn judge<D: Disk>(disk: &D, options: &WalOptions, numbers: &[u64]) -> Result<LogVerdict, WalError> {
    let mut reading = LogReading {
        options,
        replay: LogReplay::default(),
        segments: VecDeque::with_capacity(numbers.len()),
        end: HEADER_LEN,
        next_batch: None,
    };
    let mut repair = None;
    for (at, number) in numbers.iter().enumerate() {
        let bytes = disk.read(&segment::name(*number))?;
        if at + 1 < numbers.len() {
            reading.read_sealed(*number, &bytes)?;
        } else {
            repair = reading.read_last(*number, &bytes)?;
        }
    }
    let LogReading { replay, segments, end, next_batch, .. } = reading;
    let recovered = replay.finish().map_err(|what| {
        let oldest = segment::name(numbers.first().copied().unwrap_or_default());
        WalError::Corrupt { file: oldest, offset: 0, what }
    })?;
    if segments.len() < numbers.len() {
        return Ok(LogVerdict::LastNeverBegan);
    }
    let end = (!segments.is_empty()).then_some(end as u64);
    let next_batch = next_batch.unwrap_or(1);
    let log = RecoveredLog { recovered, segments, end, next_batch };
    Ok(LogVerdict::Sound(Box::new(log), repair))
}

/// The numbers of the segments on the disk, ascending and without a gap.
fn segment_numbers<D: Disk>(disk: &D) -> Result<Vec<u64>, WalError> {
    let mut numbers: Vec<u64> = Vec::new();
    for (name, _) in disk.list()? {
        if let FileKind::Segment(number) = FileKind::of(&name) {
            numbers.push(number);
        }
    }
    numbers.sort_unstable();
    for pair in numbers.windows(2) {
        // The log removes its oldest segment only, so it has not removed a file in a gap.
        if pair[1] != pair[0] + 1 {
            let what = format!("missing, although {} is here", segment::name(pair[1]));
            let file = segment::name(pair[0] + 1);
            return Err(WalError::Corrupt { file, offset: 0, what });
        }
    }
    Ok(numbers)
}

/// The state of a reading between two segments.
struct LogReading<'a> {
    options: &'a WalOptions,
    replay: LogReplay,
    segments: VecDeque<Segment>,
    /// The offset behind the last whole batch of the segment just read.
    end: usize,
    /// `None` before the oldest segment.
    next_batch: Option<u64>,
}

impl LogReading<'_> {
    /// Reads a segment that a later one follows. It was left only after all its batches were
    /// synced, so everything unreadable in it is damage.
    fn read_sealed(&mut self, number: u64, bytes: &[u8]) -> Result<(), WalError> {
        let Some(header) = self.header(number, bytes)? else {
            return Err(corrupt(number, 0, "no header, although a later segment exists"));
        };
        self.check_first_batch(number, &header)?;
        let walk = self.walk(number, &header, bytes)?;
        // Batches missing at the end show in the next header's `first_batch`. If the next segment
        // never began, it has no header, so a segment without any batch is refused here.
        if walk.end == HEADER_LEN {
            return Err(corrupt(
                number,
                walk.end,
                "the first batch of a sealed segment is unreadable",
            ));
        }
        Ok(())
    }

    /// Reads the last segment, whose tail may be torn; `None` if the segment never began.
    fn read_last(&mut self, number: u64, bytes: &[u8]) -> Result<Option<TailRepair>, WalError> {
        let place = Place { log_id: self.options.log_id, segment: number };
        // The log drops older segments only after a commit to this one, so if they are gone, its
        // first batch was synced.
        let has_begun = self.next_batch.is_none() && number != 1;
        let Some(header) = self.header(number, bytes)? else {
            if has_begun {
                return Err(corrupt(number, 0, "no header, and the segments before it are gone"));
            }
            // The header and the first batch share a sync. A later batch proves that the sync
            // returned, and so that the header is lost.
            let first_batch = self.next_batch.unwrap_or(1);
            return match segment::find_later(bytes, place, HEADER_LEN, first_batch) {
                Some(at) => Err(lost(number, 0, at)),
                None => Ok(None),
            };
        };
        self.check_first_batch(number, &header)?;
        let walk = self.walk(number, &header, bytes)?;
        // Damage, not a torn tail: batch j+1 is written only after the sync of batch j, so a frame
        // of a later batch proves that the unreadable one was acknowledged.
        if let Some(at) = segment::find_later(bytes, place, walk.end, walk.next_batch) {
            return Err(lost(number, walk.end, at));
        }
        if walk.end == HEADER_LEN {
            if has_begun {
                return Err(corrupt(number, walk.end, "the first batch is unreadable"));
            }
            // The first sync never returned, so nothing in the file was acknowledged.
            self.segments.pop_back();
            return Ok(None);
        }
        // A torn tail: cutting it loses no acknowledged write. Rewrite the last whole batch, which
        // may be in the page cache only, and zero everything behind it, because the torn batch's
        // number is used again.
        let used = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |at| at + 1);
        let mut again = bytes[walk.last_start..walk.end.max(used)].to_vec();
        again[walk.end - walk.last_start..].fill(0);
        Ok(Some(TailRepair { name: segment::name(number), offset: walk.last_start, bytes: again }))
    }

    /// The segment's own header; `None` if its first write has not reached the disk.
    fn header(&self, number: u64, bytes: &[u8]) -> Result<Option<Header>, WalError> {
        match Start::of(bytes) {
            Start::Zeros => Ok(None),
            // The header lies in one sector, so a torn write cannot have left these bytes.
            Start::Damaged => Err(corrupt(number, 0, "the header is damaged")),
            // The checksum holds, so the file is sound and belongs to another program version.
            Start::OtherFormat(version) => {
                let file = segment::name(number);
                Err(if version > FORMAT {
                    WalError::NewerFormat { file, version, supported: FORMAT }
                } else {
                    WalError::OlderFormat { file, version, supported: FORMAT }
                })
            }
            Start::Header(header) => {
                if header.log_id != self.options.log_id || header.group != self.options.group {
                    return Err(corrupt(number, 0, "the header is that of another log"));
                }
                // Numbers only grow, so a recycled file's former life has a lower one.
                if header.number > number {
                    return Err(corrupt(number, 0, "the header is that of a later segment"));
                }
                Ok((header.number == number).then_some(header))
            }
        }
    }

    /// Checks that the segment begins with the batch that follows the segment before it.
    fn check_first_batch(&self, number: u64, header: &Header) -> Result<(), WalError> {
        match self.next_batch {
            // The log begins a segment only after all batches before it were synced: the missing
            // ones were acknowledged.
            Some(expected) if expected != header.first_batch => {
                let first = header.first_batch;
                let what =
                    format!("batch {expected} is unreadable; the next segment begins with {first}");
                Err(corrupt(number - 1, self.end, &what))
            }
            _ => Ok(()),
        }
    }

    fn walk(
        &mut self,
        number: u64,
        header: &Header,
        bytes: &[u8],
    ) -> Result<segment::Walk, WalError> {
        let place = Place { log_id: header.log_id, segment: number };
        let (group, first_batch) = (header.group, header.first_batch);
        let replay = &mut self.replay;
        let walk = segment::walk(bytes, place, group, first_batch, |record| replay.apply(record))
            .map_err(|InvalidRecord { offset, what }| corrupt(number, offset, &what))?;
        self.next_batch = Some(walk.next_batch);
        self.end = walk.end;
        self.segments.push_back(Segment::new(number, bytes.len() as u64));
        retention::note_durable(&mut self.segments, walk.contents);
        Ok(walk)
    }
}

fn corrupt(number: u64, offset: usize, what: &str) -> WalError {
    let (file, offset) = (segment::name(number), offset as u64);
    WalError::Corrupt { file, offset, what: what.to_owned() }
}

fn lost(number: u64, offset: usize, later: usize) -> WalError {
    let what = format!("a synced batch is unreadable: offset {later} holds a later one");
    corrupt(number, offset, &what)
}
