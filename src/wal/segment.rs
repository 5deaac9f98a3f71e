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
//! Every later format keeps magic, version, length and checksum where they are, so that an older
//! program can tell a newer file from a damaged one.
//!
//! The first batch of a segment begins with the hard state, the snapshot mark and the clock as they
//! were before that batch, so that no older segment is needed to know them.

use crate::codec::{Malformed, Reader};
use crate::types::GroupId;

use super::frame::{self, ALIGN, Frame, Logged, Place};
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

/// What the first bytes of a segment file turn out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Start {
    /// Zeros: the file was made, but nothing was written into it.
    Zeros,
    /// A header whose checksum holds.
    Header(Header),
    /// A header of this other format, whose checksum holds.
    OtherFormat(u8),
    /// Neither.
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

/// What a file name in the log's directory means to the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Named {
    Segment(u64),
    Spare(u64),
    Unfinished(u64),
    /// Somebody else's file.
    Other,
}

impl Named {
    pub(super) fn of(name: &str) -> Named {
        let number = |prefix: &str, suffix: &str| {
            let digits = name.strip_prefix(prefix)?.strip_suffix(suffix)?;
            let ours = digits.len() == 16
                && digits.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
            if ours { u64::from_str_radix(digits, 16).ok() } else { None }
        };
        if let Some(number) = number("wal-", ".log") {
            Named::Segment(number)
        } else if let Some(number) = number("spare-", ".log") {
            Named::Spare(number)
        } else if let Some(number) = number("spare-", ".tmp") {
            Named::Unfinished(number)
        } else {
            Named::Other
        }
    }
}

/// What a walk over a segment found.
#[derive(Clone, Copy, Debug)]
pub(super) struct Walk {
    /// The number that the next batch must have.
    pub next_batch: u64,
    /// Where the last whole batch begins …
    pub last_start: usize,
    /// … and where it ends; equal if there is none.
    pub end: usize,
    /// What the whole batches mean for this segment and those before it.
    pub contents: Contents,
}

/// A record that is valid but makes no sense.
#[derive(Debug)]
pub(super) struct Senseless {
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
    mut apply: impl FnMut(Logged) -> Result<(), String>,
) -> Result<Walk, Senseless> {
    let mut walk = Walk {
        next_batch: first_batch,
        last_start: HEADER_LEN,
        end: HEADER_LEN,
        contents: Contents::default(),
    };
    let mut batch: Vec<Frame<'_>> = Vec::new();
    let mut at = HEADER_LEN;
    while let Some(frame) = frame::read(segment, place, at) {
        if frame.batch != walk.next_batch {
            break;
        }
        at = frame.end;
        batch.push(frame);
        if !frame.last {
            continue;
        }
        for frame in batch.drain(..) {
            let senseless = |what| Senseless { offset: frame.offset, what };
            let logged = frame.decode(group).map_err(|e| senseless(e.to_string()))?;
            match &logged {
                Logged::Entry(entry) => walk.contents.entry(entry.index),
                Logged::Stamped(writes) => walk.contents.accepted(writes),
                Logged::Held(writes) => walk.contents.held(writes),
                Logged::Hard(_) | Logged::Snapshot { .. } | Logged::Close | Logged::Clock(_) => (),
            }
            apply(logged).map_err(senseless)?;
        }
        walk.last_start = walk.end;
        walk.end = at;
        let no_more =
            || Senseless { offset: at, what: "the last batch number there is".to_owned() };
        walk.next_batch = walk.next_batch.checked_add(1).ok_or_else(no_more)?;
    }
    Ok(walk)
}

/// The offset of a valid frame at or after `from` whose batch is later than `batch`, if there is
/// one.
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
        assert_eq!(Named::of(&name(0xfe)), Named::Segment(0xfe));
        assert_eq!(Named::of(&spare_name(1)), Named::Spare(1));
        assert_eq!(Named::of(&unfinished_name(2)), Named::Unfinished(2));
        for other in ["wal-1.log", "wal-00000000000000FE.log", "wal-+0000000000000fe.log", "lock"] {
            assert_eq!(Named::of(other), Named::Other, "{other}");
        }
    }
}
