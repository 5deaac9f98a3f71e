//! The byte form of one record in a segment: a header of 24 bytes, the payload, and zeros up to the
//! next multiple of 8.
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 4 | CRC-32 of place, header from byte 4 on, payload and padding |
//! | 4 | 4 | payload length in bytes |
//! | 8 | 8 | batch number: grows by one with each sync, for the life of the log |
//! | 16 | 4 | group |
//! | 20 | 1 | kind: 1 hard state, 2 entry, 3 snapshot, 4 close, 5 stamped, 6 held, 7 clock |
//! | 21 | 1 | 1 on the last frame of its batch, else 0 |
//! | 22 | 2 | check: low half of the CRC-32 of place and header bytes 4 to 22 |
//!
//! The *place* (log id, segment number, offset) is hashed but not stored. A frame is therefore
//! valid only where it was written. Frames from the former life of a recycled file, in a segment
//! copied from another node, or inside a value that a client stored are all invalid here.
//!
//! The check makes it cheap to search every offset for frames: without it a crafted value could
//! make the search hash megabytes at each step.
//!
//! | kind | payload (integers little-endian) |
//! |---|---|
//! | hard state | term u64, vote flag u8, vote u32, standing u8, founders |
//! | entry | as [`Entry::encode`] writes it |
//! | snapshot | index u64, term u64, u8: 1 if the entries behind it stay, 0 if it replaces all |
//! | close | empty |
//! | stamped, held | as [`encode_writes`] writes them |
//! | clock | version u64 |
//!
//! The standing is 0 blank, 1 catching up, 2 voter. A voter's founders follow: their number u32,
//! then for each its node u32 and incarnation u64.

use std::collections::BTreeMap;

use bytes::{BufMut, Bytes};

use crate::codec::{Malformed, Reader};
use crate::replica::{HardState, Standing};
use crate::types::{
    Entry, GroupId, NodeId, SnapshotMeta, Version, Write, Writes, decode_writes, encode_writes,
};

/// Bytes before the payload.
pub(super) const HEADER_LEN: usize = 24;
/// Frames begin at multiples of this.
pub(super) const ALIGN: usize = 8;
/// The length of a close record's frame.
pub(super) const CLOSE_LEN: usize = HEADER_LEN;

const LAST: u8 = 1;

/// The segment a frame lies in.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    /// The number that tells this log from all others.
    pub log_id: u64,
    /// The segment's number.
    pub segment: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum RecordKind {
    Hard = 1,
    Entry = 2,
    Snapshot = 3,
    Close = 4,
    Stamped = 5,
    Held = 6,
    Clock = 7,
}

/// The record that a frame holds: a [`WalRecord`](crate::replica::WalRecord) as the log stores it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum LoggedRecord {
    Hard(HardState),
    Entry(Entry),
    /// A snapshot, and whether the log held the snapshot's last entry: a reader of only the later
    /// segments could not tell.
    Snapshot {
        meta: SnapshotMeta,
        keeps_log: bool,
    },
    /// The log was closed: everything before this record was synced.
    Close,
    Stamped(Writes),
    Held(Writes),
    Clock(Version),
}

/// A frame whose checksum holds.
#[derive(Clone, Copy, Debug)]
pub(super) struct LogFrame<'a> {
    kind: u8,
    group: GroupId,
    payload: &'a [u8],
    /// The number of its batch.
    pub batch: u64,
    /// True if the frame ends its batch.
    pub is_last: bool,
    /// The offset of its first byte in the segment.
    pub offset: usize,
    /// The offset of the next frame in the segment.
    pub end: usize,
}

pub(super) fn put_hard(out: &mut Vec<u8>, group: GroupId, hard: &HardState) {
    put(out, group, RecordKind::Hard, |out| {
        out.put_u64_le(hard.term);
        out.put_u8(u8::from(hard.vote.is_some()));
        out.put_u32_le(hard.vote.unwrap_or_default().0);
        match &hard.standing {
            Standing::Blank => out.put_u8(0),
            Standing::CatchingUp => out.put_u8(1),
            Standing::Voter { founders } => {
                out.put_u8(2);
                out.put_u32_le(founders.len() as u32);
                for (node, incarnation) in founders {
                    out.put_u32_le(node.0);
                    out.put_u64_le(*incarnation);
                }
            }
        }
    });
}

pub(super) fn put_entry(out: &mut Vec<u8>, group: GroupId, entry: &Entry) {
    put(out, group, RecordKind::Entry, |out| entry.encode(out));
}

pub(super) fn put_snapshot(out: &mut Vec<u8>, group: GroupId, meta: SnapshotMeta, keeps_log: bool) {
    put(out, group, RecordKind::Snapshot, |out| {
        out.put_u64_le(meta.index);
        out.put_u64_le(meta.term);
        out.put_u8(u8::from(keeps_log));
    });
}

pub(super) fn put_close(out: &mut Vec<u8>, group: GroupId) {
    put(out, group, RecordKind::Close, |_| ());
}

pub(super) fn put_stamped(out: &mut Vec<u8>, group: GroupId, writes: &[Write]) {
    put(out, group, RecordKind::Stamped, |out| encode_writes(writes, out));
}

pub(super) fn put_held(out: &mut Vec<u8>, group: GroupId, writes: &[Write]) {
    put(out, group, RecordKind::Held, |out| encode_writes(writes, out));
}

pub(super) fn put_clock(out: &mut Vec<u8>, group: GroupId, clock: Version) {
    put(out, group, RecordKind::Clock, |out| out.put_u64_le(clock.0));
}

/// Appends a frame without batch number and checksums, which [`seal`] fills in.
fn put(out: &mut Vec<u8>, group: GroupId, kind: RecordKind, payload: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.resize(start + HEADER_LEN, 0);
    payload(out);
    let len = out.len() - start - HEADER_LEN;
    let len = u32::try_from(len).expect("limits keep every record below 4 GiB");
    out.resize(out.len().next_multiple_of(ALIGN), 0);
    let header = &mut out[start..start + HEADER_LEN];
    header[4..8].copy_from_slice(&len.to_le_bytes());
    header[16..20].copy_from_slice(&group.0.to_le_bytes());
    header[20] = kind as u8;
}

/// Completes the frames in `frames`, which will be written at `offset` of the segment. With
/// `ends_batch` the last of them ends the batch.
pub(super) fn seal(frames: &mut [u8], place: Place, offset: usize, batch: u64, ends_batch: bool) {
    let mut at = 0;
    while at < frames.len() {
        let len = u32::from_le_bytes(array(&frames[at + 4..]));
        let end = at + padded(len);
        let is_last = ends_batch && end == frames.len();
        let frame = &mut frames[at..end];
        frame[8..16].copy_from_slice(&batch.to_le_bytes());
        frame[21] = if is_last { LAST } else { 0 };
        let check = check(frame, place, offset + at);
        frame[22..24].copy_from_slice(&check.to_le_bytes());
        let crc = checksum(frame, place, offset + at);
        frame[..4].copy_from_slice(&crc.to_le_bytes());
        at = end;
    }
}

/// The frame at `offset` of a segment's bytes, if there is a valid one.
pub(super) fn read(segment: &[u8], place: Place, offset: usize) -> Option<LogFrame<'_>> {
    let rest = segment.get(offset..)?;
    let header: &[u8; HEADER_LEN] = rest.first_chunk()?;
    // The cheap check comes first: it proves the length before the payload is hashed by it.
    // RecordKind 0 is no record: zeros are the unwritten rest of a segment.
    if header[20] == 0 || check(header, place, offset).to_le_bytes() != header[22..24] {
        return None;
    }
    let len = u32::from_le_bytes(array(&header[4..]));
    let frame = rest.get(..padded(len))?;
    if checksum(frame, place, offset).to_le_bytes() != header[..4] {
        return None;
    }
    Some(LogFrame {
        kind: header[20],
        group: GroupId(u32::from_le_bytes(array(&header[16..]))),
        payload: &frame[HEADER_LEN..HEADER_LEN + len as usize],
        batch: u64::from_le_bytes(array(&header[8..])),
        is_last: header[21] & LAST != 0,
        offset,
        end: offset + frame.len(),
    })
}

impl LogFrame<'_> {
    /// The record in the frame. An entry's bytes are copied: a slice would keep the whole segment
    /// in memory.
    pub(super) fn decode(&self, group: GroupId) -> Result<LoggedRecord, Malformed> {
        if self.group != group {
            return Err(Malformed("record: of another group"));
        }
        let mut reader = Reader::new(self.payload);
        let record = match self.kind {
            k if k == RecordKind::Hard as u8 => LoggedRecord::Hard(take_hard(&mut reader)?),
            k if k == RecordKind::Entry as u8 => {
                let payload = Bytes::copy_from_slice(self.payload);
                reader = Reader::new(&payload);
                let entry = Entry::decode(&mut reader, &payload)?;
                reader.finish("entry: bytes left over")?;
                return Ok(LoggedRecord::Entry(entry));
            }
            k if k == RecordKind::Snapshot as u8 => LoggedRecord::Snapshot {
                meta: SnapshotMeta {
                    index: reader.u64("snapshot index")?,
                    term: reader.u64("snapshot term")?,
                },
                keeps_log: reader.bool("snapshot flag")?,
            },
            k if k == RecordKind::Close as u8 => LoggedRecord::Close,
            k if k == RecordKind::Stamped as u8 => {
                LoggedRecord::Stamped(decode_writes(&mut reader)?)
            }
            k if k == RecordKind::Held as u8 => LoggedRecord::Held(decode_writes(&mut reader)?),
            k if k == RecordKind::Clock as u8 => LoggedRecord::Clock(Version(reader.u64("clock")?)),
            _ => return Err(Malformed("record: of unknown kind")),
        };
        reader.finish("record: bytes left over")?;
        Ok(record)
    }
}

fn take_hard(reader: &mut Reader<'_>) -> Result<HardState, Malformed> {
    let term = reader.u64("term")?;
    let voted = reader.bool("vote flag")?;
    let node = NodeId(reader.u32("vote")?);
    let standing = match reader.u8("standing")? {
        0 => Standing::Blank,
        1 => Standing::CatchingUp,
        2 => {
            let mut founders = BTreeMap::new();
            for _ in 0..reader.count(12, "founders")? {
                let node = NodeId(reader.u32("founder")?);
                founders.insert(node, reader.u64("founder's incarnation")?);
            }
            Standing::Voter { founders }
        }
        _ => return Err(Malformed("standing")),
    };
    Ok(HardState { term, vote: voted.then_some(node), standing })
}

/// Bytes of a frame with a payload of `len` bytes.
fn padded(len: u32) -> usize {
    (HEADER_LEN + len as usize).next_multiple_of(ALIGN)
}

fn check(frame: &[u8], place: Place, offset: usize) -> u16 {
    let mut hasher = hasher(place, offset);
    hasher.update(&frame[4..22]);
    hasher.finalize() as u16
}

fn checksum(frame: &[u8], place: Place, offset: usize) -> u32 {
    let mut hasher = hasher(place, offset);
    hasher.update(&frame[4..]);
    hasher.finalize()
}

fn hasher(place: Place, offset: usize) -> crc32fast::Hasher {
    let mut bytes = [0; 24];
    bytes[..8].copy_from_slice(&place.log_id.to_le_bytes());
    bytes[8..16].copy_from_slice(&place.segment.to_le_bytes());
    bytes[16..].copy_from_slice(&(offset as u64).to_le_bytes());
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&bytes);
    hasher
}

/// The first `N` bytes of a slice that is known to have them.
fn array<const N: usize>(bytes: &[u8]) -> [u8; N] {
    *bytes.first_chunk().expect("the header is whole")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Rng;
    use crate::types::{Payload, Proposal, RequestId};

    const PLACE: Place = Place { log_id: 7, segment: 3 };
    const GROUP: GroupId = GroupId(0);

    fn entry() -> Entry {
        let id = RequestId { node: NodeId(5001), boot: 9, seq: 4 };
        let commands = Bytes::from_static(b"not decoded here");
        Entry {
            index: 12,
            term: 5,
            payload: Payload::Batch {
                stamp: Version(77),
                proposal: Proposal { id, floor: 2, commands },
            },
        }
    }

    fn hard() -> HardState {
        let founders = BTreeMap::from([(NodeId(5000), 1), (NodeId(5001), u64::MAX)]);
        let standing = Standing::Voter { founders };
        HardState { term: 3, vote: Some(NodeId(5001)), standing }
    }

    fn writes() -> Writes {
        let set = Write { version: Version(900), key: b"k".as_slice().into(), value: None };
        let value = Some(b"value".as_slice().into());
        [set.clone(), Write { version: Version(901), value, ..set }].into()
    }

    fn batch(offset: usize) -> Vec<u8> {
        let mut frames = vec![0; offset];
        put_hard(&mut frames, GROUP, &hard());
        put_entry(&mut frames, GROUP, &entry());
        put_snapshot(&mut frames, GROUP, SnapshotMeta { index: 8, term: 2 }, true);
        put_close(&mut frames, GROUP);
        put_stamped(&mut frames, GROUP, &writes());
        put_held(&mut frames, GROUP, &[]);
        put_clock(&mut frames, GROUP, Version(u64::MAX));
        seal(&mut frames[offset..], PLACE, offset, 17, true);
        frames
    }

    #[test]
    fn a_batch_reads_back_as_it_was_written() {
        let segment = batch(64);
        let (mut at, mut found) = (64, Vec::new());
        while let Some(frame) = read(&segment, PLACE, at) {
            assert_eq!(frame.batch, 17);
            assert_eq!(frame.is_last, frame.end == segment.len());
            assert_eq!(frame.end % ALIGN, 0);
            found.push(frame.decode(GROUP).unwrap());
            at = frame.end;
        }
        let meta = SnapshotMeta { index: 8, term: 2 };
        let snapshot = LoggedRecord::Snapshot { meta, keeps_log: true };
        let (hard, entry) = (LoggedRecord::Hard(hard()), LoggedRecord::Entry(entry()));
        let (stamped, held) = (LoggedRecord::Stamped(writes()), LoggedRecord::Held([].into()));
        let clock = LoggedRecord::Clock(Version(u64::MAX));
        assert_eq!(found, [hard, entry, snapshot, LoggedRecord::Close, stamped, held, clock]);
        assert_eq!(at, segment.len());
    }

    #[test]
    fn every_flipped_bit_makes_its_frame_invalid() {
        let segment = batch(64);
        let mut starts = vec![64];
        while let Some(frame) = read(&segment, PLACE, starts[starts.len() - 1]) {
            starts.push(frame.end);
        }
        for bit in 64 * 8..segment.len() * 8 {
            let mut damaged = segment.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            let start = *starts.iter().rfind(|start| **start <= bit / 8).unwrap();
            assert!(read(&damaged, PLACE, start).is_none(), "bit {bit}");
        }
    }

    #[test]
    fn a_frame_is_valid_only_where_it_was_written() {
        let segment = batch(64);
        assert!(read(&segment, PLACE, 64).is_some());
        assert!(read(&segment, Place { segment: 4, ..PLACE }, 64).is_none());
        assert!(read(&segment, Place { log_id: 8, ..PLACE }, 64).is_none());
        assert!(read(&segment[8..], PLACE, 56).is_none());
    }

    #[test]
    fn a_record_of_another_group_or_an_unknown_kind_is_malformed() {
        let segment = batch(0);
        let frame = read(&segment, PLACE, 0).unwrap();
        assert_eq!(frame.decode(GroupId(1)), Err(Malformed("record: of another group")));
        for kind in RecordKind::Clock as u8 + 1..=u8::MAX {
            let strange = LogFrame { kind, ..frame };
            assert_eq!(strange.decode(GROUP), Err(Malformed("record: of unknown kind")));
        }
    }

    #[test]
    fn a_payload_that_is_too_short_or_too_long_is_malformed() {
        let segment = batch(0);
        let mut at = 0;
        while let Some(frame) = read(&segment, PLACE, at) {
            for len in 0..frame.payload.len() {
                let short = LogFrame { payload: &frame.payload[..len], ..frame };
                assert!(short.decode(GROUP).is_err(), "kind {}, {len} bytes", frame.kind);
            }
            let payload = [frame.payload, &[0]].concat();
            let long = LogFrame { payload: &payload, ..frame };
            assert!(long.decode(GROUP).is_err(), "kind {}", frame.kind);
            at = frame.end;
        }
    }

    #[test]
    fn arbitrary_payloads_never_panic_nor_claim_more_than_they_hold() {
        let segment = batch(0);
        let frame = read(&segment, PLACE, 0).unwrap();
        let mut rng = Rng::new(5);
        for _ in 0..20_000 {
            // Small bytes are counts and flags that often make sense.
            let bound = if rng.chance(1, 2) { 3 } else { 256 };
            let payload: Vec<u8> = (0..rng.below(60)).map(|_| rng.below(bound) as u8).collect();
            let kind = rng.below(9) as u8;
            let strange = LogFrame { kind, payload: &payload, ..frame };
            if let Ok(LoggedRecord::Stamped(writes) | LoggedRecord::Held(writes)) =
                strange.decode(GROUP)
            {
                let len = 4 + writes.iter().map(Write::encoded_len).sum::<usize>();
                assert_eq!(len, payload.len(), "all of it was read");
            }
        }
    }
}
