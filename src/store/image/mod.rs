//! A snapshot: the state as of one index, and its byte form on disk and between nodes.
//!
//! All numbers are little-endian, all checksums CRC32 (IEEE).
//!
//! | head, 33 bytes | |
//! |---|---|
//! | magic | `NSIMAGE` and a line feed, which a text-mode transfer would spoil |
//! | version u8 | 2 |
//! | group u32 | the Raft group; 0 |
//! | index u64, term u64 | of the last applied entry |
//! | checksum u32 | of all before it |
//!
//! | section | |
//! |---|---|
//! | kind u8 | 1 requests, 2 records, 3 end |
//! | length u32 | of the content, in bytes |
//! | content checksum u32 | |
//! | checksum u32 | of the three fields before it, so that no length is believed unproved |
//! | content | |
//!
//! The sections: one of *requests* (layout: `requests.rs`); as many of *records* as it takes, each
//! at most 256 KiB long unless a single record is longer; the *end*. Nothing may follow.
//!
//! | record | |
//! |---|---|
//! | key | behind its length u32 |
//! | kind u8 | 1 a value, 0 a tombstone |
//! | version u64 | |
//! | value | behind its length u32; not in a tombstone |
//!
//! | end | of the whole store: |
//! |---|---|
//! | keys u64, bytes u64, tombstones u64 | keys with values, bytes of these keys and values |
//! | floor u64, latest u64 | versions: of keys without a record, and the latest in the log |
//! | digest u64 | of the state (`record.rs`) |
//!
//! Records are in strictly ascending order of (slot, key): equal states have equal bytes, a
//! repeated or misplaced section is found, and a reader builds one slot after the other, each at
//! its final size.
//!
//! # Damage that is found
//! Every byte lies under a checksum of a field whose place and length are already proved. Any
//! single flipped byte is found for certain, any other damage except for one case in 2^32. A
//! missing tail shows in the missing end, a missing section in the end's counts, and any other
//! difference from the written state in the digest.
//!
//! # Memory
//! A reader trusts no length: its buffer grows only as bytes arrive. Reading and writing need one
//! buffer as long as the longest record, besides the state itself.
//!
//! Left out: compression.

mod records;
mod section;

use std::fmt;
use std::io::{self, Read, Write};
use std::sync::Arc;

use thiserror::Error;

use super::Stats;
use super::record::{Map, Totals};
use super::requests::AppliedRequests;
use crate::types::SnapshotMeta;

use records::SlotsBuilder;
use section::{SectionReader, SectionWriter, decode_whole};

const MAGIC: [u8; 8] = *b"NSIMAGE\n";
const FORMAT: u8 = 2;

const REQUESTS: u8 = 1;
const RECORDS: u8 = 2;
const END: u8 = 3;

/// A section of records is closed before it would become longer than this.
const SECTION_LEN: usize = 256 << 10;

/// The state as of one index. It shares its maps with the store that it was taken from, which does
/// not change shared maps. Dropping an image frees the records that the store has replaced since: a
/// thread other than the writer should do it.
#[derive(Clone)]
pub struct Image {
    pub(super) meta: SnapshotMeta,
    pub(super) requests: AppliedRequests,
    /// [`SLOTS`] of them.
    pub(super) slots: Vec<Arc<Map>>,
    pub(super) totals: Totals,
}

/// Why bytes hold no image that this program can use.
#[derive(Debug, Error)]
pub enum ImageError {
    /// The source failed; the image itself may be sound.
    #[error("reading a snapshot: {0}")]
    Io(#[from] io::Error),
    /// The bytes are no image, or not all of one.
    #[error("snapshot damaged at byte {offset}: {what}")]
    Corrupt {
        /// The offset of the damaged section.
        offset: u64,
        /// The damage in words.
        what: &'static str,
    },
    /// A later version of the program wrote it.
    #[error("snapshot format {0} is newer than this program's {FORMAT}")]
    NewerFormat(u8),
    /// A program older than the first release wrote it.
    #[error("snapshot format {0}, which no release has written (this program reads {FORMAT})")]
    OlderFormat(u8),
}

impl Image {
    /// The last applied index and its term.
    pub fn meta(&self) -> SnapshotMeta {
        self.meta
    }

    /// The applied requests.
    pub fn requests(&self) -> &AppliedRequests {
        &self.requests
    }

    /// The size of the state.
    pub fn stats(&self) -> Stats {
        self.totals.stats
    }

    /// Writes the byte form, in pieces of at least a section, and returns its length in bytes. Does
    /// not flush.
    pub fn write(self, out: &mut dyn Write) -> io::Result<u64> {
        let Image { meta, requests, slots, totals } = self;
        let mut sink = SectionWriter { out, offset: 0 };
        sink.head(meta)?;
        let mut content = Vec::with_capacity(SECTION_LEN);
        requests.encode(&mut content);
        sink.section(REQUESTS, &mut content)?;
        // Each slot's map is released as soon as it is written: from then on the store changes it
        // in place again.
        for slot in slots {
            for record in records::by_key(&slot) {
                let record_len = records::encoded_len(record);
                if !content.is_empty() && content.len() + record_len > SECTION_LEN {
                    sink.section(RECORDS, &mut content)?;
                }
                records::encode(record, &mut content);
            }
        }
        if !content.is_empty() {
            sink.section(RECORDS, &mut content)?;
        }
        totals.encode(&mut content);
        sink.section(END, &mut content)?;
        Ok(sink.offset)
    }

    /// Reads the byte form, which must fill `input` to its end. Reads in large pieces: no buffering
    /// is needed around a file.
    pub fn read(input: &mut dyn Read) -> Result<Image, ImageError> {
        let mut source = SectionReader { input, start: 0, end: 0, content: Vec::new() };
        let meta = source.head()?;
        if source.section()? != REQUESTS {
            return Err(source.corrupt("the requests do not come first"));
        }
        let requests = source.sound(decode_whole(&source.content, AppliedRequests::decode))?;
        let mut builder = SlotsBuilder::default();
        loop {
            match source.section()? {
                RECORDS => source
                    .sound(decode_whole(&source.content, |reader| builder.push_all(reader)))?,
                END => break,
                _ => return Err(source.corrupt("unknown or misplaced section")),
            }
        }
        // The totals of the records that were read must be those that the writer counted.
        let (slots, totals) = builder.finish();
        let totals = source.sound(decode_whole(&source.content, |reader| totals.check(reader)))?;
        source.finish()?;
        Ok(Image { meta, requests, slots, totals })
    }
}

impl fmt::Debug for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Image")
            .field("meta", &self.meta)
            .field("stats", &self.totals.stats)
            .finish_non_exhaustive()
    }
}
