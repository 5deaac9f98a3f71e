//! One segment file: its name, its header, and the walk over its batches.
//!
//! | offset | bytes | field of the header |
//! |---|---|---|
//! | 0 | 8 | magic `NSYNCWAL` |
//! | 8 | 1 | format version |
//! | 9 | 3 | zero |
//! | 12 | 4 | group |
//! | 16 | 8 | log id |
//! | 24 | 8 | segment number |
//! | 32 | 8 | number of the segment's first batch |
//! | 40 | 20 | zero |
//! | 60 | 4 | CRC-32 of bytes 0 to 60 |
//!
//! The format is 2; no release has written another. Every later format keeps magic, version, header
//! length and checksum in place, so that an older program can tell a newer file from a damaged one.
//!
//! The first batch of a segment begins with the hard state, the snapshot record and the clock as
//! they were before that batch, so that no older segment is needed to know them.

use crate::codec::{Malformed, Reader};
use crate::types::GroupId;

use super::frame::{self, ALIGN, LogFrame, LoggedRecord, Place};
use super::retention::Contents;

/// Bytes of the header.
pub(super) const HEADER_LEN: usize = 64;
/// The one format that this program reads and writes.
pub(super) const FORMAT: u8 = 2;

const MAGIC: &[u8; 8] = b"NSYNCWAL";

/// The header's fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub group: GroupId,
    pub log_id: u64,
    pub number: u64,
    pub first_batch: u64,
}

/// The first bytes of a segment file, judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Start {
    /// Zeros: the file was made, and nothing has been written into it.
    Zeros,
    /// A header whose checksum holds.
    Header(Header),
    /// A header of this other format, whose checksum holds.
    OtherFormat(u8),
    /// Any other bytes.
    Damaged,
}

impl Header {
    pub(super) fn encode(&self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        bytes[..8].copy_from_slice(MAGIC);
        bytes[8] = FORMAT;
        bytes[12..16].copy_from_slice(&self.group.0.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.log_id.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.number.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.first_batch.to_le_bytes());
        let crc = crc32fast::hash(&bytes[..60]);
        bytes[60..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    fn decode(fields: &[u8]) -> Result<Header, Malformed> {
        let mut reader = Reader::new(fields);
        Ok(Header {
            group: GroupId(reader.u32("group")?),
            log_id: reader.u64("log id")?,
            number: reader.u64("segment number")?,
            first_batch: reader.u64("first batch")?,
        })
    }
}

impl Start {
    pub(super) fn of(segment: &[u8]) -> Start {
        let Some(bytes) = segment.first_chunk::<HEADER_LEN>() else { return Start::Damaged };
        if bytes.iter().all(|byte| *byte == 0) {
            return Start::Zeros;
        }
        let crc = crc32fast::hash(&bytes[..60]);
        if bytes[..8] != *MAGIC || bytes[60..] != crc.to_le_bytes() {
            return Start::Damaged;
        }
        // Judged after the checksum, so that a flipped bit in the version is damage.
        if bytes[8] != FORMAT {
            return Start::OtherFormat(bytes[8]);
        }
        Header::decode(&bytes[12..40]).map_or(Start::Damaged, Start::Header)
    }
}

/// The file name of segment `number`.
pub(super) fn name(number: u64) -> String {
    format!("wal-{number:016x}.log")
}

/// The file name of a spare.
pub(super) fn spare_name(number: u64) -> String {
    format!("spare-{number:016x}.log")
}

/// The file name of a segment or spare under construction.
pub(super) fn unfinished_name(number: u64) -> String {
    format!("spare-{number:016x}.tmp")
}

/// The kind of a file in the log's directory, by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FileKind {
    Segment(u64),
    Spare(u64),
    Unfinished(u64),
    /// A file that is not the log's.
    Other,
}

impl FileKind {
    pub(super) fn of(name: &str) -> FileKind {
        let number = |prefix: &str, suffix: &str| {
            let digits = name.strip_prefix(prefix)?.strip_suffix(suffix)?;
            // Only names that the log itself would give: `from_str_radix` takes a plus sign and
            // capital letters too, and two names must not mean one number.
            let is_exact = digits.len() == 16
                && digits.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
            if is_exact { u64::from_str_radix(digits, 16).ok() } else { None }
        };
        if let Some(number) = number("wal-", ".log") {
            FileKind::Segment(number)
        } else if let Some(number) = number("spare-", ".log") {
            FileKind::Spare(number)
        } else if let Some(number) = number("spare-", ".tmp") {
            FileKind::Unfinished(number)
        } else {
            FileKind::Other
        }
    }
}

/// The result of a walk over a segment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Walk {
    /// The number that the next batch must have.
    pub next_batch: u64,
    /// The offset of the last whole batch.
    pub last_start: usize,
    /// The offset behind the last whole batch; equal to `last_start` if there is none.
    pub end: usize,
    /// The effect of the whole batches on the retention of this segment and earlier ones.
    pub contents: Contents,
}

/// A record whose checksums hold and whose content is impossible at its place in the log.
#[derive(Debug)]
pub(super) struct InvalidRecord {
    pub offset: usize,
    pub what: String,
}

/// Hands every record of every whole batch to `apply`, beginning with batch `first_batch`, and
/// stops at the first frame that does not belong to a whole batch.
pub(super) fn walk(
    segment: &[u8],
    place: Place,
    group: GroupId,
    first_batch: u64,
    mut apply: impl FnMut(LoggedRecord) -> Result<(), String>,
) -> Result<Walk, InvalidRecord> {
    let mut walk = Walk {
        next_batch: first_batch,
        last_start: HEADER_LEN,
        end: HEADER_LEN,
        contents: Contents::default(),
    };
    let mut batch: Vec<LogFrame<'_>> = Vec::new();
    let mut at = HEADER_LEN;
    while let Some(frame) = frame::read(segment, place, at) {
        // Batch numbers grow by one. A frame with another number belongs to a batch that was cut
        // once, or lies behind a lost one; the caller decides which.
        if frame.batch != walk.next_batch {
            break;
        }
        at = frame.end;
        batch.push(frame);
        // A batch is all or nothing: its records count only once its last frame is found.
        if !frame.is_last {
            continue;
        }
        for frame in batch.drain(..) {
            let invalid = |what| InvalidRecord { offset: frame.offset, what };
            let record = frame.decode(group).map_err(|e| invalid(e.to_string()))?;
            match &record {
                LoggedRecord::Entry(entry) => walk.contents.entry(entry.index),
                LoggedRecord::Stamped(writes) => walk.contents.stamped(writes),
                LoggedRecord::Held(writes) => walk.contents.held(writes),
                LoggedRecord::Hard(_)
                | LoggedRecord::Snapshot { .. }
                | LoggedRecord::Close
                | LoggedRecord::Clock(_) => (),
            }
            apply(record).map_err(invalid)?;
        }
        walk.last_start = walk.end;
        walk.end = at;
        let exhausted =
            || InvalidRecord { offset: at, what: "the largest batch number".to_owned() };
        walk.next_batch = walk.next_batch.checked_add(1).ok_or_else(exhausted)?;
    }
    Ok(walk)
}

/// The offset of the first valid frame at or after `from` whose batch is later than `batch`. Looks
/// at every aligned offset, because the lengths in an unreadable batch cannot be trusted.
pub(super) fn find_later(segment: &[u8], place: Place, from: usize, batch: u64) -> Option<usize> {
    (from..segment.len())
        .step_by(ALIGN)
        .find(|at| frame::read(segment, place, *at).is_some_and(|frame| frame.batch > batch))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: Header =
        Header { group: GroupId(2), log_id: 3, number: 0x1_0000_0005, first_batch: 77 };

    #[test]
    fn a_header_reads_back_and_no_flipped_bit_goes_unseen() {
        let bytes = HEADER.encode();
        assert_eq!(Start::of(&bytes), Start::Header(HEADER));
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes;
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Start::of(&damaged), Start::Damaged, "bit {bit}");
        }
        assert_eq!(Start::of(&bytes[..63]), Start::Damaged);
        assert_eq!(Start::of(&[0; 64]), Start::Zeros);
    }

    #[test]
    fn another_format_is_recognised_by_its_number() {
        for format in [FORMAT - 1, FORMAT + 1] {
            let mut bytes = HEADER.encode();
            bytes[8] = format;
            let crc = crc32fast::hash(&bytes[..60]);
            bytes[60..].copy_from_slice(&crc.to_le_bytes());
            assert_eq!(Start::of(&bytes), Start::OtherFormat(format));
        }
    }

    #[test]
    fn only_exact_names_are_the_logs_own() {
        assert_eq!(FileKind::of(&name(0xfe)), FileKind::Segment(0xfe));
        assert_eq!(FileKind::of(&spare_name(1)), FileKind::Spare(1));
        assert_eq!(FileKind::of(&unfinished_name(2)), FileKind::Unfinished(2));
        for other in ["wal-1.log", "wal-00000000000000FE.log", "wal-+0000000000000fe.log", "lock"] {
            assert_eq!(FileKind::of(other), FileKind::Other, "{other}");
        }
    }
}
