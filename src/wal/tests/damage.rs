//! Bits rot and files vanish: the log reports the damage, or the damage hit nothing that matters.

use super::*;
use crate::wal::frame::Place;
use crate::wal::segment::{self as files, HEADER_LEN, Header, Start};

const SEGMENT_BYTES: u64 = 1200;

/// A log of several segments, and its state.
fn sample(clean: bool) -> (MemoryDisk, Recovered) {
    let disk = Arc::new(MemoryDisk::new());
    let (mut wal, mut state) = open(&disk, SEGMENT_BYTES);
    for index in 1..=24 {
        let mut records = vec![entry(index, 1, 40)];
        if index % 5 == 0 {
            records.push(hard(index));
        }
        match index {
            3 | 15 | 19 => records.push(WalRecord::Stamped(writes(index, 3, 9))),
            12 => records.push(WalRecord::Held(writes(index, 2, 50))),
            7 | 18 => records.push(WalRecord::Clock(Version(index))),
            _ => (),
        }
        if index == 20 {
            records.push(WalRecord::Snapshot(SnapshotMeta { index: 3, term: 1 }));
        }
        records.iter().for_each(|record| apply(&mut state, record));
        wal.append(&records);
        wal.commit().unwrap();
    }
    if clean {
        wal.close().unwrap();
    }
    (disk.fork(), state)
}

fn segment_names(disk: &MemoryDisk) -> Vec<String> {
    let mut names: Vec<String> = disk.list().unwrap().into_iter().map(|file| file.0).collect();
    names.retain(|name| name.starts_with("wal-"));
    names
}

fn reopen(disk: MemoryDisk) -> Result<Recovered, WalError> {
    Wal::open(Arc::new(disk), options(SEGMENT_BYTES)).map(|(_, recovered)| recovered)
}

/// The offsets behind the whole batches of a segment.
fn batch_ends(disk: &MemoryDisk, name: &str) -> Vec<usize> {
    let bytes = disk.read(name).unwrap();
    let Start::Header(header) = Start::of(&bytes) else { panic!("{name} has no header") };
    let place = Place { log_id: LOG_ID, segment: header.number };
    let (mut ends, mut at) = (vec![HEADER_LEN], HEADER_LEN);
    while let Some(frame) = frame::read(&bytes, place, at) {
        at = frame.end;
        if frame.is_last {
            ends.push(at);
        }
    }
    ends
}

#[test]
fn after_a_clean_stop_no_flipped_bit_in_the_data_goes_unseen() {
    let (disk, state) = sample(true);
    let names = segment_names(&disk);
    assert!(names.len() >= 3);
    for (at, name) in names.iter().enumerate() {
        let ends = batch_ends(&disk, name);
        let is_last = at + 1 == names.len();
        let data_end = if is_last { ends[ends.len() - 2] } else { ends[ends.len() - 1] };
        for bit in 0..disk.read(name).unwrap().len() * 8 {
            let damaged = disk.fork();
            damaged.flip_bit(name, bit);
            match reopen(damaged) {
                Err(WalError::Corrupt { file, .. }) => assert_eq!(&file, name),
                Ok(found) => {
                    assert!(bit / 8 >= data_end, "{name}: bit {bit} went unseen");
                    assert_eq!(found, state, "{name}: bit {bit} changed the state");
                }
                Err(other) => panic!("{other}"),
            }
        }
    }
}

#[test]
fn a_flipped_bit_before_the_last_batch_is_damage_and_in_it_a_torn_tail() {
    let (disk, state) = sample(false);
    let name = segment_names(&disk).pop().unwrap();
    let ends = batch_ends(&disk, &name);
    let (start, end) = (ends[ends.len() - 2], ends[ends.len() - 1]);
    assert!(ends.len() > 2, "the segment holds two batches or more");
    for byte in 0..end {
        let damaged = disk.fork();
        damaged.flip_bit(&name, byte * 8 + byte % 8);
        match reopen(damaged) {
            Err(WalError::Corrupt { .. }) => assert!(byte < start, "byte {byte}"),
            Ok(found) => {
                assert!(byte >= start, "byte {byte}");
                assert_eq!(found.entries, state.entries[..state.entries.len() - 1]);
            }
            Err(other) => panic!("{other}"),
        }
    }
}

#[test]
fn a_sector_that_lost_its_write_is_damage_if_a_later_batch_follows() {
    let (disk, _) = sample(true);
    let name = segment_names(&disk).pop().unwrap();
    let ends = batch_ends(&disk, &name);
    let file = disk.open(&name).unwrap();
    for sector in 0..=(ends[ends.len() - 2] - 1) / 512 {
        let damaged = disk.fork();
        let len = 512.min(SEGMENT_BYTES as usize - sector * 512);
        damaged.write_at(&file, sector as u64 * 512, &vec![0; len]).unwrap();
        let result = reopen(damaged);
        // The last sector may hold the close record too; then no later batch is left.
        if (sector + 1) * 512 <= ends[ends.len() - 2] {
            assert!(matches!(result, Err(WalError::Corrupt { .. })), "sector {sector}: {result:?}");
        }
    }
}

#[test]
fn a_damaged_header_is_damage_even_if_its_only_batch_could_be_a_torn_one() {
    let disk = Arc::new(MemoryDisk::new());
    let (mut wal, _) = open(&disk, SEGMENT_BYTES);
    wal.append(&[entry(1, 1, 40)]);
    wal.commit().unwrap();
    let name = "wal-0000000000000001.log";
    let end = batch_ends(&disk, name)[1];
    for byte in 0..end {
        let damaged = disk.fork();
        damaged.flip_bit(name, byte * 8);
        match reopen(damaged) {
            Err(WalError::Corrupt { .. }) => assert!(byte < HEADER_LEN, "byte {byte}"),
            Ok(found) => {
                assert!(byte >= HEADER_LEN, "byte {byte}");
                assert_eq!(found, Recovered::default());
            }
            Err(other) => panic!("{other}"),
        }
    }
}

#[test]
fn a_missing_segment_is_damage() {
    let (disk, _) = sample(true);
    let names = segment_names(&disk);
    for name in &names[..names.len() - 1] {
        let damaged = disk.fork();
        damaged.remove(name).unwrap();
        let result = reopen(damaged);
        assert!(matches!(result, Err(WalError::Corrupt { .. })), "{name}: {result:?}");
    }
}

#[test]
fn a_refused_log_is_left_as_it_was() {
    let (disk, _) = sample(true);
    disk.flip_bit(&segment_names(&disk)[0], 300 * 8);
    let disk = Arc::new(disk);
    let changes = disk.changes();
    assert!(Wal::open(Arc::clone(&disk), options(SEGMENT_BYTES)).is_err());
    assert_eq!(disk.changes(), changes);
}

/// A new segment that nothing was written into.
fn add_unbegun_segment(disk: &MemoryDisk) {
    let names = segment_names(disk);
    disk.create(&files::name(names.len() as u64 + 1), SEGMENT_BYTES).unwrap();
}

#[test]
fn a_refused_log_keeps_its_last_segment_even_if_that_never_began() {
    let (disk, _) = sample(true);
    let name = segment_names(&disk).pop().unwrap();
    let ends = batch_ends(&disk, &name);
    add_unbegun_segment(&disk);
    disk.flip_bit(&name, ends[0] * 8);
    let (before, disk) = (segment_names(&disk), Arc::new(disk));
    let result = Wal::open(Arc::clone(&disk), options(SEGMENT_BYTES)).map(|(_, found)| found);
    assert!(matches!(result, Err(WalError::Corrupt { .. })), "{result:?}");
    assert_eq!(segment_names(&disk), before);
}

#[test]
fn a_segment_whose_only_batch_rotted_is_damage_if_the_next_one_was_made() {
    let disk = Arc::new(MemoryDisk::new());
    let (mut wal, _) = open(&disk, SEGMENT_BYTES);
    for index in 1..=2 {
        // Each fills a segment of its own.
        wal.append(&[entry(index, 1, 2 * SEGMENT_BYTES as usize)]);
        wal.commit().unwrap();
    }
    assert_eq!(segment_names(&disk).len(), 2);
    add_unbegun_segment(&disk);
    disk.flip_bit(&files::name(2), 1000 * 8);
    let result = reopen(disk.fork());
    assert!(matches!(result, Err(WalError::Corrupt { .. })), "{result:?}");
}

#[test]
fn the_largest_batch_number_is_refused() {
    let disk = MemoryDisk::new();
    let (group, log_id, number) = (GroupId::default(), LOG_ID, 1);
    let header = Header { group, log_id, number, first_batch: u64::MAX };
    let mut bytes = header.encode().to_vec();
    frame::put_clock(&mut bytes, group, Version(1));
    let place = Place { log_id, segment: number };
    frame::seal(&mut bytes[HEADER_LEN..], place, HEADER_LEN, u64::MAX, true);
    disk.create(&files::name(number), SEGMENT_BYTES).unwrap();
    let file = disk.open(&files::name(number)).unwrap();
    disk.write_at(&file, 0, &bytes).unwrap();
    let result = reopen(disk);
    assert!(matches!(result, Err(WalError::Corrupt { .. })), "{result:?}");
}

#[test]
fn the_log_of_another_node_or_group_is_refused() {
    let (disk, _) = sample(true);
    let disk = Arc::new(disk);
    for other in [
        WalOptions { log_id: LOG_ID + 1, ..options(SEGMENT_BYTES) },
        WalOptions { group: GroupId(1), ..options(SEGMENT_BYTES) },
    ] {
        let result = Wal::open(Arc::clone(&disk), other).map(|(_, recovered)| recovered);
        assert!(matches!(result, Err(WalError::Corrupt { .. })), "{result:?}");
    }
}

#[test]
fn another_format_is_refused_with_its_number() {
    for format in [files::FORMAT - 1, files::FORMAT + 1] {
        let (disk, _) = sample(true);
        let name = segment_names(&disk).remove(1);
        let mut header = disk.read(&name).unwrap()[..HEADER_LEN].to_vec();
        header[8] = format;
        let crc = crc32fast::hash(&header[..60]);
        header[60..].copy_from_slice(&crc.to_le_bytes());
        let file = disk.open(&name).unwrap();
        disk.write_at(&file, 0, &header).unwrap();
        let found = match reopen(disk) {
            Err(WalError::OlderFormat { file, version, supported }) if format < supported => {
                (file, version, supported)
            }
            Err(WalError::NewerFormat { file, version, supported }) if format > supported => {
                (file, version, supported)
            }
            other => panic!("{other:?}"),
        };
        assert_eq!(found, (name, format, files::FORMAT));
    }
}

#[test]
fn bytes_of_a_valid_frame_inside_a_value_do_not_count_as_a_frame() {
    // A client stores a copy of the log; then the batch is torn.
    let (copied, _) = sample(true);
    let names = segment_names(&copied);
    let copy = copied.read(&names[names.len() - 1]).unwrap();
    let disk = Arc::new(MemoryDisk::new());
    let (mut wal, _) = open(&disk, 1 << 14);
    wal.append(&[entry(1, 1, 5)]);
    wal.commit().unwrap();
    let before = disk.read(&segment_names(&disk)[0]).unwrap();
    let end = before.iter().rposition(|byte| *byte != 0).unwrap() + 1;
    let id = RequestId { node: NodeId(1), boot: 1, seq: 2 };
    let proposal = Proposal { id, floor: 0, commands: Bytes::from(copy) };
    let payload = Payload::Batch { stamp: Version::default(), proposal };
    wal.append(&[WalRecord::Entry(Entry { index: 2, term: 1, payload })]);
    wal.commit().unwrap();
    disk.flip_bit(&segment_names(&disk)[0], (end + 100) * 8);
    let (_, found) = open(&disk, 1 << 14);
    assert_eq!(found.entries.len(), 1);
}
