//! A snapshot: the state as of one index, and its byte form on disk and between nodes.
//!
//! All numbers are little-endian, all checksums CRC32 (IEEE).
//!
//! | head, 33 bytes | |
//! |---|---|
//! | magic | `NSIMAGE` and a line feed, which a text-mode transfer would spoil |
//! | version u8 | 2 |
//! | group u32 | the Raft group; 0 |
//! | index u64, term u64 | what the log was applied up to |
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
//! # What is found
//! Every byte lies under a checksum of a field whose place and length are already proved: any
//! single flipped byte is found for certain, any other damage but for one case in 2^32. A missing
//! tail is found by the missing end, a missing section by the end's counts, and by the digest
//! whatever else keeps an image from being the state that was written.
//!
//! # Memory
//! Reading takes no length on trust: a buffer grows only as bytes arrive. Both ways need one buffer
//! as long as the longest record, besides the state itself.
//!
//! Left out: compression.

use std::fmt;
use std::io::{self, Read, Write};
use std::sync::Arc;

use bytes::BufMut;
use thiserror::Error;

use super::Stats;
use super::record::{Map, Totals};
use super::requests::Requests;
use super::slot::{SLOTS, slot_of};
use crate::codec::{Malformed, Reader, put_bytes};
use crate::types::{GroupId, Record, SnapshotMeta, Version};

const MAGIC: [u8; 8] = *b"NSIMAGE\n";
const FORMAT: u8 = 2;
const HEAD_LEN: usize = 8 + 1 + 4 + 8 + 8 + 4;

const REQUESTS: u8 = 1;
const RECORDS: u8 = 2;
const END: u8 = 3;
const SECTION_HEAD_LEN: usize = 1 + 4 + 4 + 4;

/// A section of records is closed before it would become longer than this.
const SECTION_LEN: usize = 256 << 10;

/// How much of a buffer is kept from one section to the next.
const BUFFER_LEN_KEPT: usize = 1 << 20;

/// The state as of one index. Shares its data with the store it was taken from, which leaves shared
/// maps alone; dropping it frees what the store has replaced since, which is better done away from
/// the writer.
#[derive(Clone)]
pub struct Image {
    pub(super) meta: SnapshotMeta,
    pub(super) requests: Requests,
    /// [`SLOTS`] of them.
    pub(super) slots: Vec<Arc<Map>>,
    pub(super) totals: Totals,
}

/// Why there is no image in these bytes.
#[derive(Debug, Error)]
pub enum ImageError {
    /// The source failed; the image may be sound.
    #[error("reading a snapshot: {0}")]
    Io(#[from] io::Error),
    /// The bytes are no image, or not all of one.
    #[error("snapshot damaged at byte {offset}: {what}")]
    Corrupt {
        /// Where the damaged section starts.
        offset: u64,
        /// What is wrong there.
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

    /// Which requests had been applied.
    pub fn requests(&self) -> &Requests {
        &self.requests
    }

    /// How much it holds.
    pub fn stats(&self) -> Stats {
        self.totals.stats
    }

    /// Writes the byte form, in pieces of at least a section; its length in bytes. Does not flush.
    /// Each slot is let go as soon as it is written, so that the store can change it again.
    pub fn write(self, out: &mut dyn Write) -> io::Result<u64> {
        let Image { meta, requests, slots, totals } = self;
        let mut sink = Sink { out, offset: 0 };
        sink.head(meta)?;
        let mut content = Vec::with_capacity(SECTION_LEN);
        requests.encode(&mut content);
        sink.section(REQUESTS, &mut content)?;
        for slot in slots {
            for record in by_key(&slot) {
                let record_len = encoded_len(record);
                if !content.is_empty() && content.len() + record_len > SECTION_LEN {
                    sink.section(RECORDS, &mut content)?;
                }
                encode(record, &mut content);
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
        let mut source = Source { input, start: 0, end: 0, content: Vec::new() };
        let meta = source.head()?;
        if source.section()? != REQUESTS {
            return Err(source.corrupt("the requests do not come first"));
        }
        let requests = source.sound(whole(&source.content, Requests::decode))?;
        let mut builder = Builder::default();
        loop {
            match source.section()? {
                RECORDS => {
                    source.sound(whole(&source.content, |reader| builder.push_all(reader)))?
                }
                END => break,
                _ => return Err(source.corrupt("unknown or misplaced section")),
            }
        }
        let (slots, totals) = builder.finish();
        let totals = source.sound(whole(&source.content, |reader| totals.proved(reader)))?;
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

/// Decodes something that fills `content` to its end.
fn whole<'a, T>(
    content: &'a [u8],
    decode: impl FnOnce(&mut Reader<'a>) -> Result<T, Malformed>,
) -> Result<T, Malformed> {
    let mut reader = Reader::new(content);
    let value = decode(&mut reader)?;
    reader.finish("length of a section")?;
    Ok(value)
}

/// The writing of sections.
struct Sink<'a> {
    out: &'a mut dyn Write,
    offset: u64,
}

impl Sink<'_> {
    fn head(&mut self, meta: SnapshotMeta) -> io::Result<()> {
        let mut head = Vec::with_capacity(HEAD_LEN);
        head.put_slice(&MAGIC);
        head.put_u8(FORMAT);
        head.put_u32_le(GroupId::default().0);
        head.put_u64_le(meta.index);
        head.put_u64_le(meta.term);
        head.put_u32_le(crc32fast::hash(&head));
        self.put(&head)
    }

    /// Writes a section and empties `content` for the next one.
    fn section(&mut self, kind: u8, content: &mut Vec<u8>) -> io::Result<()> {
        let len = u32::try_from(content.len()).map_err(|_| {
            io::Error::other("a record of 4 GiB or more has no place in a snapshot")
        })?;
        let mut head = Vec::with_capacity(SECTION_HEAD_LEN);
        head.put_u8(kind);
        head.put_u32_le(len);
        head.put_u32_le(crc32fast::hash(content));
        head.put_u32_le(crc32fast::hash(&head));
        self.put(&head)?;
        self.put(content)?;
        content.clear();
        content.shrink_to(BUFFER_LEN_KEPT);
        Ok(())
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.offset += bytes.len() as u64;
        self.out.write_all(bytes)
    }
}

/// The reading of sections.
struct Source<'a> {
    input: &'a mut dyn Read,
    /// Where the current section, or the head, starts …
    start: u64,
    /// … and how far the input has been read.
    end: u64,
    /// The current section's content, proved by its checksum.
    content: Vec<u8>,
}

impl Source<'_> {
    fn head(&mut self) -> Result<SnapshotMeta, ImageError> {
        let head: [u8; HEAD_LEN] = self.array()?;
        if !head.starts_with(&MAGIC) {
            return Err(self.corrupt("this is no snapshot"));
        }
        let (format, group, meta, crc) = self.sound(whole(&head[MAGIC.len()..], |reader| {
            let (format, group) = (reader.u8("version")?, GroupId(reader.u32("group")?));
            let meta = SnapshotMeta { index: reader.u64("index")?, term: reader.u64("term")? };
            Ok((format, group, meta, reader.u32("checksum of the head")?))
        }))?;
        if format > FORMAT {
            return Err(ImageError::NewerFormat(format));
        }
        if crc != crc32fast::hash(&head[..HEAD_LEN - 4]) {
            return Err(self.corrupt("checksum of the head"));
        }
        if format < FORMAT {
            return Err(ImageError::OlderFormat(format));
        }
        if group != GroupId::default() {
            return Err(self.corrupt("group"));
        }
        Ok(meta)
    }

    /// Reads the next section into `content`; its kind.
    fn section(&mut self) -> Result<u8, ImageError> {
        self.start = self.end;
        let head: [u8; SECTION_HEAD_LEN] = self.array()?;
        let (kind, len, content_crc, head_crc) = self.sound(whole(&head, |reader| {
            let (kind, len) = (reader.u8("kind")?, reader.u32("length")?);
            Ok((kind, len, reader.u32("checksum")?, reader.u32("checksum")?))
        }))?;
        if head_crc != crc32fast::hash(&head[..SECTION_HEAD_LEN - 4]) {
            return Err(self.corrupt("checksum of a section's head"));
        }
        self.content.clear();
        self.content.shrink_to(BUFFER_LEN_KEPT);
        self.content.reserve((len as usize).min(BUFFER_LEN_KEPT));
        let read = (&mut *self.input).take(u64::from(len)).read_to_end(&mut self.content)?;
        self.end += read as u64;
        if read < len as usize {
            return Err(self.corrupt("cut off inside a section"));
        }
        if content_crc != crc32fast::hash(&self.content) {
            return Err(self.corrupt("checksum of a section"));
        }
        Ok(kind)
    }

    fn finish(&mut self) -> Result<(), ImageError> {
        self.start = self.end;
        let mut more = Vec::new();
        match (&mut *self.input).take(1).read_to_end(&mut more)? {
            0 => Ok(()),
            _ => Err(self.corrupt("bytes after the end")),
        }
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], ImageError> {
        let mut array = [0; N];
        self.input.read_exact(&mut array).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => self.corrupt("cut off"),
            _ => ImageError::Io(error),
        })?;
        self.end += N as u64;
        Ok(array)
    }

    fn corrupt(&self, what: &'static str) -> ImageError {
        ImageError::Corrupt { offset: self.start, what }
    }

    fn sound<T>(&self, decoded: Result<T, Malformed>) -> Result<T, ImageError> {
        decoded.map_err(|Malformed(what)| self.corrupt(what))
    }
}

/// A slot's records in ascending order of their keys. To compare two keys is to wait for the memory
/// of both, so each key is looked at once, for the eight bytes in which it begins to differ from
/// others; as a rule these decide.
fn by_key(slot: &Map) -> impl Iterator<Item = &Record> {
    slot.fetch();
    let mut records: Vec<(u64, &Record)> = slot.iter().map(|record| (0, record)).collect();
    let first = records.first().map_or(&[][..], |(_, record)| record.key());
    let alike = |key: &[u8]| key.iter().zip(first).take_while(|(a, b)| a == b).count();
    let common = records.iter().map(|(_, record)| alike(record.key())).min().unwrap_or(0);
    for (start, record) in &mut records {
        let rest = &record.key()[common..];
        let mut bytes = [0; 8];
        let len = rest.len().min(bytes.len());
        bytes[..len].copy_from_slice(&rest[..len]);
        *start = u64::from_be_bytes(bytes);
    }
    records.sort_unstable_by(|(a, first), (b, second)| {
        a.cmp(b).then_with(|| first.key().cmp(second.key()))
    });
    records.into_iter().map(|(_, record)| record)
}

/// The length of a record's byte form.
fn encoded_len(record: &Record) -> usize {
    4 + record.key().len() + 1 + 8 + record.value().map_or(0, |value| 4 + value.len())
}

fn encode(record: &Record, out: &mut Vec<u8>) {
    put_bytes(out, record.key());
    out.put_u8(u8::from(record.has_value()));
    out.put_u64_le(record.version().0);
    if let Some(value) = record.value() {
        put_bytes(out, value);
    }
}

fn decode(reader: &mut Reader<'_>) -> Result<Record, Malformed> {
    let key = reader.bytes("key")?;
    let has_value = reader.bool("kind of a record")?;
    let version = Version(reader.u64("version")?);
    let value = if has_value { Some(reader.bytes("value")?) } else { None };
    Ok(Record::new(version, key, value))
}

impl Totals {
    fn encode(&self, out: &mut Vec<u8>) {
        let Stats { keys, bytes, tombstones } = self.stats;
        let numbers = [keys, bytes, tombstones, self.floor.0, self.latest.0, self.digest()];
        numbers.into_iter().for_each(|number| out.put_u64_le(number));
    }

    /// The totals of all records that were read, made whole and compared with what the end says.
    fn proved(mut self, end: &mut Reader<'_>) -> Result<Totals, Malformed> {
        let (keys, bytes) = (end.u64("count of keys")?, end.u64("count of bytes")?);
        let tombstones = end.u64("count of tombstones")?;
        if self.stats != (Stats { keys, bytes, tombstones }) {
            return Err(Malformed("records are missing"));
        }
        self.floor = Version(end.u64("floor")?);
        self.latest = Version(end.u64("latest version")?);
        let sound = end.u64("digest")? == self.digest();
        if sound { Ok(self) } else { Err(Malformed("digest of the state")) }
    }
}

/// Slots on their way from sorted records to maps.
#[derive(Default)]
struct Builder {
    /// The slots before the current one.
    finished: Vec<Arc<Map>>,
    /// The slots that hold nothing.
    empty: Arc<Map>,
    /// The slot of the records below.
    slot: usize,
    records: Vec<Record>,
    totals: Totals,
}

impl Builder {
    fn push_all(&mut self, reader: &mut Reader<'_>) -> Result<(), Malformed> {
        while !reader.is_empty() {
            let record = decode(reader)?;
            let slot = slot_of(record.key());
            let in_order = match self.records.last() {
                Some(last) => (self.slot, last.key()) < (slot, record.key()),
                None => true,
            };
            if !in_order {
                return Err(Malformed("records out of order"));
            }
            if slot > self.slot {
                self.finish_slots(slot);
            }
            self.totals.add(&record);
            self.records.push(record);
        }
        Ok(())
    }

    /// Builds the current slot's map, and none for those after it and before `next`.
    fn finish_slots(&mut self, next: usize) {
        if !self.records.is_empty() {
            self.finished.resize(self.slot, Arc::clone(&self.empty));
            self.finished.push(Arc::new(self.records.drain(..).collect()));
        }
        self.slot = next;
    }

    fn finish(mut self) -> (Vec<Arc<Map>>, Totals) {
        self.finish_slots(SLOTS);
        self.finished.resize(SLOTS, self.empty);
        (self.finished, self.totals)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn records_come_in_the_order_of_their_keys(
            common in prop::collection::vec(0..2_u8, 0..12),
            ends in prop::collection::btree_set(prop::collection::vec(0..3_u8, 0..12), 0..40),
        ) {
            let keys: Vec<_> = ends.iter().map(|end| [&common[..], end].concat()).collect();
            let map: Map = keys.iter().map(|key| Record::new(Version(1), key, None)).collect();
            let sorted: Vec<&[u8]> = by_key(&map).map(Record::key).collect();
            prop_assert_eq!(sorted, keys);
        }
    }
}
