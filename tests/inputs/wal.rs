//! The write-ahead log. An input is the bytes of its segments, one after the other, each
//! [`SEGMENT_BYTES`] long; the first header gives the log's id and the first segment's number. For
//! any bytes:
//!
//! - the log is refused as damaged or as of another format, and the disk is left unchanged; or it
//!   opens;
//! - a log that opens has the state of a plain walk over its batches (`Walk`): all of every whole
//!   batch up to the first one that is not whole, and nothing else;
//! - a sound log that was damaged, without repaired checksums, opens with a state that it once had;
//! - a second opening gives the same state, also behind a close; appended records are there at the
//!   next opening.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use nodesync::codec::Reader;
use nodesync::replica::{HardState, Recovered, Standing, WalRecord};
use nodesync::testing::MemoryDisk;
use nodesync::types::{Entry, NodeId, Payload, SnapshotMeta, Version, decode_writes};
use nodesync::wal::{Disk, Wal, WalError, WalOptions};

use super::entries::write;
use super::{Case, Seeds};

const SEGMENT_BYTES: usize = 1024;
const HEADER_LEN: usize = 64;
const FRAME_HEADER_LEN: usize = 24;

/// Current format.
const FORMAT: u8 = 2;

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(*bytes[at..].first_chunk().expect("the field is within the bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(*bytes[at..].first_chunk().expect("the field is within the bytes"))
}

/// Id of the log, and number of its first segment.
fn names(bytes: &[u8]) -> (u64, u64) {
    if bytes.len() < HEADER_LEN {
        return (1, 1);
    }
    let count = bytes.len().div_ceil(SEGMENT_BYTES) as u64;
    let first = u64_at(bytes, 24);
    (u64_at(bytes, 16), if first.checked_add(count + 1).is_some() { first } else { 1 })
}

fn disk_of(bytes: &[u8]) -> Arc<MemoryDisk> {
    let disk = MemoryDisk::new();
    let (_, first) = names(bytes);
    for (number, segment) in (first..).zip(bytes.chunks(SEGMENT_BYTES)) {
        let name = format!("wal-{number:016x}.log");
        disk.create(&name, segment.len() as u64).unwrap();
        let file = disk.open(&name).unwrap();
        disk.write_at(&file, 0, segment).unwrap();
        disk.sync(&file).unwrap();
    }
    Arc::new(disk)
}

fn open(disk: &Arc<MemoryDisk>, log_id: u64) -> Result<(Wal<MemoryDisk>, Recovered), WalError> {
    let options = WalOptions { segment_bytes: SEGMENT_BYTES as u64, ..WalOptions::new(log_id) };
    Wal::open(Arc::clone(disk), options)
}

pub fn run(case: &Case<'_>) -> bool {
    let disk = disk_of(case.bytes);
    let (log_id, _) = names(case.bytes);
    let before = disk.changes();
    let (wal, found) = match open(&disk, log_id) {
        Ok(opened) => opened,
        Err(error) => {
            let headers = case.bytes.chunks(SEGMENT_BYTES).filter(|bytes| bytes.len() > 8);
            match error {
                WalError::Corrupt { .. } => {}
                WalError::NewerFormat { version, .. } => {
                    let mut versions = headers.map(|bytes| bytes[8]);
                    assert!(versions.any(|found| found == version && found > FORMAT));
                }
                WalError::OlderFormat { version, .. } => {
                    let mut versions = headers.map(|bytes| bytes[8]);
                    assert!(versions.any(|found| found == version && found < FORMAT));
                }
                other => panic!("the disk has not failed: {other}"),
            }
            assert_eq!(disk.changes(), before, "a refused log is left as it was");
            return false;
        }
    };
    let walk = Walk::over(case.bytes);
    assert_eq!(&found, walk.states.last().expect("there is a state before the first batch"));
    if let Some(origin) = case.origin
        && names(origin) == names(case.bytes)
    {
        let known = Walk::over(origin).states;
        assert!(known.contains(&found), "a state that the log never had: {found:?}");
    }
    if case.bytes.len() % 16 < 8 {
        drop(wal);
    } else {
        wal.close().expect("a log that opens can be closed");
    }
    let (wal, again) = open(&disk, log_id).expect("a log that has opened opens again");
    assert_eq!(again, found, "the second time");
    check_appends(&disk, log_id, wal, found);
    true
}

/// Checks that appended records are there when the log is opened again.
fn check_appends(disk: &Arc<MemoryDisk>, id: u64, mut wal: Wal<MemoryDisk>, found: Recovered) {
    let mut expected = found;
    let last = expected.entries.last().map_or(expected.snapshot.index, |entry| entry.index);
    let held = [write(77 << 8, b'z', Some(b"z"))];
    let clock = Version(expected.clock.0.saturating_add(1));
    let hard = HardState { term: 9, ..expected.hard.clone() };
    let mut records =
        vec![WalRecord::Hard(hard), WalRecord::Stamped(held.into()), WalRecord::Clock(clock)];
    if let Some(index) = last.checked_add(1) {
        let entry = Entry { index, term: 9, payload: Payload::Noop };
        records.extend([
            WalRecord::Entry(entry),
            WalRecord::Snapshot(SnapshotMeta { index, term: 9 }),
        ]);
    }
    for record in records {
        wal.append(std::slice::from_ref(&record));
        wal.commit().expect("there is room");
        apply(&mut expected, &record);
        let (_, found) = open(&Arc::new(disk.fork()), id).expect("the log opens");
        assert_eq!(found, expected, "after {record:?}");
    }
}

fn apply(state: &mut Recovered, record: &WalRecord) {
    match record {
        WalRecord::Hard(hard) => state.hard = hard.clone(),
        WalRecord::Entry(entry) => {
            state.entries.retain(|old| old.index < entry.index);
            state.entries.push(entry.clone());
        }
        WalRecord::Snapshot(meta) => {
            state.entries.retain(|entry| entry.index > meta.index);
            state.snapshot = *meta;
        }
        WalRecord::Stamped(writes) => state.held.extend_from_slice(writes),
        WalRecord::Held(writes) => state.held = writes.to_vec(),
        WalRecord::Clock(clock) => state.clock = state.clock.max(*clock),
    }
}

/// States that a log has had: before its first batch and after each whole one. The walk ends where
/// a batch is not whole, or a header is not the one that must follow.
struct Walk {
    states: Vec<Recovered>,
}

impl Walk {
    fn over(bytes: &[u8]) -> Walk {
        let (log_id, first) = names(bytes);
        let (mut state, mut batch) = (Recovered::default(), None);
        let mut states = vec![state.clone()];
        for (number, segment) in (first..).zip(bytes.chunks(SEGMENT_BYTES)) {
            if !is_header(segment, log_id, number) {
                break;
            }
            let first_batch = u64_at(segment, 32);
            let mut next = *batch.get_or_insert(first_batch);
            if next != first_batch {
                break;
            }
            let (mut at, mut frames) = (HEADER_LEN, Vec::new());
            while let Some(end) = frame_end(segment, log_id, number, at)
                && u64_at(segment, at + 8) == next
            {
                frames.push(at);
                if segment[at + 21] & 1 != 0 {
                    for at in frames.drain(..) {
                        if replay(&mut state, segment, at).is_none() {
                            return Walk { states };
                        }
                    }
                    states.push(state.clone());
                    next = next.wrapping_add(1);
                }
                at = end;
            }
            batch = Some(next);
        }
        Walk { states }
    }
}

fn is_header(segment: &[u8], log_id: u64, number: u64) -> bool {
    segment.len() >= HEADER_LEN
        && segment.starts_with(b"NSYNCWAL")
        && segment[8] == FORMAT
        && u32_at(segment, 60) == crc32fast::hash(&segment[..60])
        && (u32_at(segment, 12), u64_at(segment, 16)) == (0, log_id)
        && u64_at(segment, 24) == number
}

/// Checksums of the frame at `at`: that of its header, and that of the whole frame.
fn checksums(frame: &[u8], log_id: u64, number: u64, at: usize) -> (u16, u32) {
    let mut place = crc32fast::Hasher::new();
    [log_id, number, at as u64].iter().for_each(|part| place.update(&part.to_le_bytes()));
    let mut all = place.clone();
    place.update(&frame[4..22]);
    all.update(&frame[4..]);
    (place.finalize() as u16, all.finalize())
}

/// End of the frame at `at` by its length field, if it lies within the segment.
fn end_by_length(segment: &[u8], at: usize) -> Option<usize> {
    let header = segment.get(at..at + FRAME_HEADER_LEN)?;
    let end = at + (FRAME_HEADER_LEN + u32_at(header, 4) as usize).next_multiple_of(8);
    (header[20] != 0 && end <= segment.len()).then_some(end)
}

/// End of the frame at `at`, if the frame is sound.
fn frame_end(segment: &[u8], log_id: u64, number: u64, at: usize) -> Option<usize> {
    let end = end_by_length(segment, at)?;
    let frame = &segment[at..end];
    let (check, crc) = checksums(frame, log_id, number, at);
    (frame[22..24] == check.to_le_bytes() && frame[..4] == crc.to_le_bytes()).then_some(end)
}

/// Applies the record in the frame at `at`; `None` if the frame holds no valid record.
fn replay(state: &mut Recovered, segment: &[u8], at: usize) -> Option<()> {
    let start = at + FRAME_HEADER_LEN;
    let payload = &segment[start..start + u32_at(segment, at + 4) as usize];
    let mut reader = Reader::new(payload);
    let record = match segment[at + 20] {
        1 => WalRecord::Hard(hard_state(&mut reader).ok()?),
        2 => {
            let frame = Bytes::copy_from_slice(payload);
            WalRecord::Entry(Entry::decode(&mut Reader::new(&frame), &frame).ok()?)
        }
        3 => {
            let (index, term) = (reader.u64("").ok()?, reader.u64("").ok()?);
            if !reader.bool("").ok()? {
                state.entries.clear();
            }
            WalRecord::Snapshot(SnapshotMeta { index, term })
        }
        4 => return Some(()),
        5 => WalRecord::Stamped(decode_writes(&mut reader).ok()?),
        6 => WalRecord::Held(decode_writes(&mut reader).ok()?),
        7 => WalRecord::Clock(Version(reader.u64("").ok()?)),
        _ => return None,
    };
    apply(state, &record);
    Some(())
}

fn hard_state(reader: &mut Reader<'_>) -> Result<HardState, nodesync::codec::Malformed> {
    let term = reader.u64("")?;
    let voted = reader.bool("")?;
    let vote = NodeId(reader.u32("")?);
    let standing = match reader.u8("")? {
        0 => Standing::Blank,
        1 => Standing::CatchingUp,
        _ => {
            let count = reader.count(12, "")?;
            let founder = |_| Ok((NodeId(reader.u32("")?), reader.u64("")?));
            let founders = (0..count).map(founder).collect::<Result<BTreeMap<_, _>, _>>()?;
            Standing::Voter { founders }
        }
    };
    Ok(HardState { term, vote: voted.then_some(vote), standing })
}

/// Corrects the checksums of all headers, and of all frames that can be found behind them.
pub fn repair(bytes: &mut [u8]) {
    let (log_id, first) = names(bytes);
    for (number, segment) in (first..).zip(bytes.chunks_mut(SEGMENT_BYTES)) {
        if segment.len() < HEADER_LEN || segment.iter().all(|byte| *byte == 0) {
            continue;
        }
        let crc = crc32fast::hash(&segment[..60]);
        segment[60..64].copy_from_slice(&crc.to_le_bytes());
        let mut at = HEADER_LEN;
        while let Some(end) = end_by_length(segment, at) {
            let frame = &mut segment[at..end];
            let (check, _) = checksums(frame, log_id, number, at);
            frame[22..24].copy_from_slice(&check.to_le_bytes());
            let (_, crc) = checksums(frame, log_id, number, at);
            frame[..4].copy_from_slice(&crc.to_le_bytes());
            at = end;
        }
    }
}

/// Bytes of a log with one commit for each batch of records; `close` closes it at the end.
fn logged(log_id: u64, batches: &[Vec<WalRecord>], close: bool) -> Vec<u8> {
    let disk = Arc::new(MemoryDisk::new());
    let (mut wal, _) = open(&disk, log_id).expect("an empty disk");
    for records in batches {
        wal.append(records);
        wal.commit().expect("there is room");
    }
    if close {
        wal.close().expect("there is room");
    }
    let files = disk.list().unwrap().into_iter().map(|file| file.0);
    let segments = files.filter(|name| name.starts_with("wal-"));
    segments.flat_map(|name| disk.read(&name).unwrap()).collect()
}

fn entry(index: u64, term: u64, len: usize) -> WalRecord {
    let writes = [write(index << 8, b'k', Some(&vec![index as u8; len]))];
    WalRecord::Entry(Entry { index, term, payload: Payload::Merge(writes.into()) })
}

fn hard(term: u64) -> WalRecord {
    let standing = Standing::Voter { founders: [(NodeId(5000), 7), (NodeId(5001), 9)].into() };
    WalRecord::Hard(HardState { term, vote: Some(NodeId(5001)), standing })
}

fn stamped(version: u64) -> WalRecord {
    let value = (!version.is_multiple_of(3)).then_some(&b"value"[..]);
    WalRecord::Stamped([write(version << 8, b'a', value)].into())
}

pub fn seeds() -> Seeds {
    let snapshot = |index, term| WalRecord::Snapshot(SnapshotMeta { index, term });
    let held = WalRecord::Held([write(8 << 8, b'h', None), write(9 << 8, b'i', Some(b"x"))].into());
    let young = vec![vec![hard(1)], vec![entry(1, 1, 10), entry(2, 1, 0)], vec![stamped(3)]];
    let mut long: Vec<Vec<WalRecord>> = (1..=18).map(|index| vec![entry(index, 1, 40)]).collect();
    long[3].extend([hard(2), WalRecord::Clock(Version(500 << 8))]);
    long[6].push(stamped(4));
    // Another leader replaces uncommitted entries (§5.3).
    long[11].extend([hard(3), entry(11, 3, 5)]);
    long.truncate(12);
    long.extend([vec![held.clone(), stamped(10)], vec![snapshot(6, 1)]]);
    let mut dropped: Vec<Vec<WalRecord>> =
        (1..=16).map(|index| vec![entry(index, 2, 150)]).collect();
    dropped[6].push(snapshot(6, 2));
    dropped[12].push(snapshot(11, 2));
    let installed =
        vec![vec![hard(4)], vec![entry(1, 1, 3)], vec![snapshot(90, 4)], vec![entry(91, 4, 9)]];
    let mut eventual: Vec<Vec<WalRecord>> =
        (1..=16).map(|at| vec![stamped(at), WalRecord::Clock(Version(at << 12))]).collect();
    eventual[4].push(held);
    let of_format = |format: u8| {
        let mut bytes = logged(0x17, &young, false);
        bytes[8] = format;
        repair(&mut bytes);
        bytes
    };
    [
        ("young", logged(0x11, &young, false)),
        ("closed", logged(0x12, &young, true)),
        ("several-segments", logged(0x13, &long, false)),
        ("oldest-dropped", logged(0x14, &dropped, true)),
        ("snapshot-installed", logged(0x15, &installed, false)),
        ("eventual", logged(0x16, &eventual, true)),
        ("refused-older-format", of_format(FORMAT - 1)),
        ("refused-later-format", of_format(FORMAT + 1)),
    ]
    .map(|(name, bytes)| (name.to_owned(), bytes))
    .to_vec()
}
