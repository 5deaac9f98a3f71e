//! From files to state: reads all segments, judges every byte that matters, and leaves a log that
//! can be appended to.
//!
//! **A torn tail or damage?** A batch is written only after the sync of the batch before it has
//! returned. So a frame of batch *j* proves that all batches before *j* once were whole on the
//! disk: if one of them is not whole now, the disk has lost what was acknowledged, and the log is
//! `Corrupt`. An unreadable batch with nothing of a later batch behind it was never acknowledged,
//! and is cut. (One case looks the same and is not: the very last batch was acknowledged, and
//! rotted before anything else was written. No checksum can tell; the close mark is there so that
//! at least nothing can rot unseen between a clean stop and the next start.)
//!
//! **Sealed segments.** A segment is left only after all its batches were synced, and the header of
//! the next one names the batch that follows. If fewer batches are found, the log is corrupt. So it
//! is if there is none at all, whatever follows: each segment began with one.
//!
//! **A last segment that never began.** Its first write holds the header, the restated state and
//! the first batch, in one sync. The header lies in one sector, so after a crash it is the old
//! content (zeros, or the valid header of a recycled file's former life) or the new header, never
//! garbage: garbage is damage. With old content, or a new header without one whole batch behind it,
//! the first sync never returned, unless a later batch is found: the file holds nothing that was
//! acknowledged, is removed, and the segment before it is the last one again.
//!
//! **Cutting.** What a torn batch left behind is overwritten with zeros up to the end of the file.
//! The batch number of a cut batch is used again, so without the zeros a second crash could mix
//! frames of both. The zeros are also needed only once: a crash while they are being written leaves
//! even less of the torn batch.
//!
//! **The last whole batch is written again** with the same bytes, and synced with the zeros. It may
//! have been read from the page cache only: the process was killed before the sync, or the sync
//! failed and the kernel then forgot that the pages were dirty. What recovery reports must be
//! durable.

use std::collections::VecDeque;

use crate::replica::Recovered;

use super::disk::Disk;
use super::frame::Place;
use super::history::Replay;
use super::retention::{self, Segment};
use super::segment::{self, FORMAT, HEADER_LEN, Header, Named, Senseless, Start};
use super::{Options, WalError};

/// What recovery found, and left.
pub(super) struct Found {
    pub recovered: Recovered,
    /// In order.
    pub segments: VecDeque<Segment>,
    /// The offset of the next batch in the last segment; `None` if there is no segment.
    pub end: Option<u64>,
    pub next_batch: u64,
}

/// The last segment's repair, which waits until the whole log has been judged.
struct Mend {
    name: String,
    offset: usize,
    bytes: Vec<u8>,
}

enum Verdict {
    Whole(Box<Found>, Option<Mend>),
    /// The last segment never began.
    Unbegun,
}

/// Reads the log on `disk`. On an error nothing has been changed, unless it is an I/O error.
pub(super) fn recover<D: Disk>(disk: &D, options: &Options) -> Result<Found, WalError> {
    let mut numbers = segment_numbers(disk)?;
    let mut unbegun = None;
    loop {
        match judge(disk, options, &numbers)? {
            // At most one round more: the segment before it holds whole batches. Those behind the
            // first that is not are looked for only now, and may be damage.
            Verdict::Unbegun => unbegun = numbers.pop(),
            Verdict::Whole(found, mend) => {
                if let Some(number) = unbegun {
                    disk.remove(&segment::name(number))?;
                }
                if let Some(Mend { name, offset, bytes }) = mend {
                    let file = disk.open(&name)?;
                    disk.write_at(&file, offset as u64, &bytes)?;
                    disk.sync(&file)?;
                }
                return Ok(*found);
            }
        }
    }
}

fn judge<D: Disk>(disk: &D, options: &Options, numbers: &[u64]) -> Result<Verdict, WalError> {
    let mut reading = Reading {
        options,
        replay: Replay::default(),
        segments: VecDeque::with_capacity(numbers.len()),
        end: HEADER_LEN,
        next_batch: None,
    };
    let mut mend = None;
    for (at, number) in numbers.iter().enumerate() {
        let bytes = disk.read(&segment::name(*number))?;
        if at + 1 < numbers.len() {
            reading.sealed(*number, &bytes)?;
        } else {
            mend = reading.last(*number, &bytes)?;
        }
    }
    let Reading { replay, segments, end, next_batch, .. } = reading;
    let recovered = replay.finish().map_err(|what| {
        let oldest = segment::name(numbers.first().copied().unwrap_or_default());
        WalError::Corrupt { file: oldest, offset: 0, what }
    })?;
    if segments.len() < numbers.len() {
        return Ok(Verdict::Unbegun);
    }
    let end = (!segments.is_empty()).then_some(end as u64);
    let next_batch = next_batch.unwrap_or(1);
    let found = Found { recovered, segments, end, next_batch };
    Ok(Verdict::Whole(Box::new(found), mend))
}

/// The numbers of the segments on the disk, ascending and without a gap.
fn segment_numbers<D: Disk>(disk: &D) -> Result<Vec<u64>, WalError> {
    let mut numbers: Vec<u64> = Vec::new();
    for (name, _) in disk.list()? {
        if let Named::Segment(number) = Named::of(&name) {
            numbers.push(number);
        }
    }
    numbers.sort_unstable();
    for pair in numbers.windows(2) {
        if pair[1] != pair[0] + 1 {
            let what = format!("missing, although {} is here", segment::name(pair[1]));
            let file = segment::name(pair[0] + 1);
            return Err(WalError::Corrupt { file, offset: 0, what });
        }
    }
    Ok(numbers)
}

/// The state between two segments.
struct Reading<'a> {
    options: &'a Options,
    replay: Replay,
    segments: VecDeque<Segment>,
    /// Where the whole batches of the segment just read end.
    end: usize,
    /// `None` before the oldest segment.
    next_batch: Option<u64>,
}

impl Reading<'_> {
    fn sealed(&mut self, number: u64, bytes: &[u8]) -> Result<(), WalError> {
        let Some(header) = self.header(number, bytes)? else {
            return Err(corrupt(number, 0, "no header, although a later segment exists"));
        };
        self.begin(number, &header)?;
        let walk = self.walk(number, &header, bytes)?;
        if walk.end == HEADER_LEN {
            return Err(corrupt(
                number,
                walk.end,
                "the first batch of a sealed segment is unreadable",
            ));
        }
        Ok(())
    }

    fn last(&mut self, number: u64, bytes: &[u8]) -> Result<Option<Mend>, WalError> {
        let place = Place { log_id: self.options.log_id, segment: number };
        // Older segments are dropped only after this one's first batch was synced.
        let has_begun = self.next_batch.is_none() && number != 1;
        let Some(header) = self.header(number, bytes)? else {
            if has_begun {
                return Err(corrupt(number, 0, "no header, and the segments before it are gone"));
            }
            let first_batch = self.next_batch.unwrap_or(1);
            return match segment::find_later(bytes, place, HEADER_LEN, first_batch) {
                Some(at) => Err(lost(number, 0, at)),
                None => Ok(None),
            };
        };
        self.begin(number, &header)?;
        let walk = self.walk(number, &header, bytes)?;
        if let Some(at) = segment::find_later(bytes, place, walk.end, walk.next_batch) {
            return Err(lost(number, walk.end, at));
        }
        if walk.end == HEADER_LEN {
            if has_begun {
                return Err(corrupt(number, walk.end, "the first batch is unreadable"));
            }
            self.segments.pop_back();
            return Ok(None);
        }
        let used = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |at| at + 1);
        let mut again = bytes[walk.last_start..walk.end.max(used)].to_vec();
        again[walk.end - walk.last_start..].fill(0);
        Ok(Some(Mend { name: segment::name(number), offset: walk.last_start, bytes: again }))
    }

    /// The segment's own header; `None` if its first write has not reached the disk.
    fn header(&self, number: u64, bytes: &[u8]) -> Result<Option<Header>, WalError> {
        match Start::of(bytes) {
            Start::Zeros => Ok(None),
            Start::Damaged => Err(corrupt(number, 0, "the header is damaged")),
            // A version is a refusal, not damage: the remedy is another one.
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
                if header.number > number {
                    return Err(corrupt(number, 0, "the header is that of a later segment"));
                }
                Ok((header.number == number).then_some(header))
            }
        }
    }

    /// Checks that the segment goes on where the one before it ended.
    fn begin(&self, number: u64, header: &Header) -> Result<(), WalError> {
        match self.next_batch {
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
        let walk = segment::walk(bytes, place, group, first_batch, |logged| replay.apply(logged))
            .map_err(|Senseless { offset, what }| corrupt(number, offset, &what))?;
        self.next_batch = Some(walk.next_batch);
        self.end = walk.end;
        self.segments.push_back(Segment::new(number, bytes.len() as u64));
        retention::note(&mut self.segments, walk.contents);
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
