//! Logs of the first format, which had neither eventual writes nor a clock: they are read, and go
//! on in segments of the present format.

use super::*;
use crate::wal::segment::{FORMAT, HEADER_LEN};

/// The segment below ends with zeros up to this length.
const SEGMENT_BYTES: u64 = 512;

/// What the program of format 1 wrote: two batches, and no close mark.
const OLD_SEGMENT: [&str; 11] = [
    // The header.
    "4e53594e4357414c0100000000000000ed5e0000000000000100000000000000\
     010000000000000000000000000000000000000000000000000000005e7d91c2",
    // The first batch: restated hard state and mark, both empty …
    "23af53380e0000000100000000000000000000000100566200000000000000000000000000000000",
    "623718b8110000000100000000000000000000000300a965",
    "000000000000000000000000000000000100000000000000",
    // … hard state …
    "fb94fdd01e0000000100000000000000000000000100aee7",
    "0300000000000000018913000002010000008813000009000000000000000000",
    // … and two entries, of which the second has work in it.
    "85fc9da01100000001000000000000000000000002009a5a\
     010000000000000002000000000000000000000000000000",
    "77a5f3d83600000001000000000000000000000002010abc02000000000000000300000000000000",
    "018a130000010000000000000002000000000000000200000000000000050000000202020202\
     0000",
    // The second batch: a snapshot mark.
    "fbb800221100000002000000000000000000000003019f26",
    "010000000000000002000000000000000100000000000000",
];

fn name(number: u64) -> String {
    segment::name(number)
}

fn old_disk() -> MemoryDisk {
    let hex = OLD_SEGMENT.concat();
    let byte = |at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
    let bytes: Vec<u8> = (0..hex.len()).step_by(2).map(byte).collect();
    let disk = MemoryDisk::new();
    disk.create(&name(1), SEGMENT_BYTES).unwrap();
    let file = disk.open(&name(1)).unwrap();
    disk.write_at(&file, 0, &bytes).unwrap();
    disk.sync(&file).unwrap();
    disk
}

fn old_state() -> Recovered {
    let standing = Standing::Voter { founders: [(NodeId(5000), 9)].into() };
    let WalRecord::Entry(last) = entry(2, 3, 5) else { unreachable!() };
    Recovered {
        hard: HardState { term: 3, vote: Some(NodeId(5001)), standing },
        snapshot: SnapshotMeta { index: 1, term: 2 },
        entries: vec![last],
        ..Recovered::default()
    }
}

fn format(disk: &MemoryDisk, number: u64) -> u8 {
    disk.read(&name(number)).unwrap()[8]
}

#[test]
fn a_log_of_the_first_format_is_read_and_left_as_it_was() {
    let disk = Arc::new(old_disk());
    let before = disk.read(&name(1)).unwrap();
    let (wal, found) = open(&disk, SEGMENT_BYTES);
    assert_eq!(found, old_state());
    assert!(!wal.is_new());
    drop(wal);
    assert_eq!(disk.read(&name(1)).unwrap(), before);
}

#[test]
fn it_goes_on_in_a_segment_of_the_present_format_which_its_own_program_would_refuse() {
    let disk = Arc::new(old_disk());
    let before = disk.read(&name(1)).unwrap();
    let mut state = old_state();
    for life in 0..3 {
        let (mut wal, found) = open(&disk, SEGMENT_BYTES);
        assert_eq!(found, state, "life {life}");
        let accepted = WalRecord::Stamped(writes(life, 2, 40));
        for record in [accepted, WalRecord::Clock(Version(60 + life)), entry(3 + life, 3, 9)] {
            apply(&mut state, &record);
            wal.append(&[record]);
            wal.commit().unwrap();
        }
        assert_eq!(disk.read(&name(1)).unwrap(), before, "nothing was added to the old segment");
        assert_eq!((format(&disk, 1), format(&disk, 2)), (1, FORMAT));
    }
    assert_eq!(open(&disk, SEGMENT_BYTES).1, state);
}

#[test]
fn the_old_segment_is_dropped_and_used_again_as_any_other() {
    let disk = Arc::new(old_disk());
    let (mut wal, mut state) = open(&disk, SEGMENT_BYTES);
    for index in 3..20 {
        let meta = SnapshotMeta { index, term: 3 };
        for record in [entry(index, 3, 60), WalRecord::Snapshot(meta)] {
            apply(&mut state, &record);
            wal.append(&[record]);
        }
        wal.commit().unwrap();
        assert_eq!(open(&Arc::new(disk.fork()), SEGMENT_BYTES).1, state);
    }
    let names: Vec<String> = disk.list().unwrap().into_iter().map(|file| file.0).collect();
    assert!(!names.contains(&name(1)) && names.len() <= 4, "{names:?}");
}

#[test]
fn closing_covers_the_last_batch_of_the_old_segment_too() {
    let disk = Arc::new(old_disk());
    let (wal, state) = open(&disk, SEGMENT_BYTES);
    wal.close().unwrap();
    assert_eq!(open(&disk, SEGMENT_BYTES).1, state);
    let end = OLD_SEGMENT.concat().len() / 2;
    for byte in HEADER_LEN..end {
        let damaged = Arc::new(disk.fork());
        damaged.flip_bit(&name(1), byte * 8);
        let result = Wal::open(damaged, options(SEGMENT_BYTES)).map(|(_, found)| found);
        assert!(matches!(result, Err(WalError::Corrupt { .. })), "byte {byte}: {result:?}");
    }
}

#[test]
fn a_power_cut_in_the_change_of_formats_loses_nothing() {
    for seed in 0..60 {
        let mut rng = Rng::new(seed);
        let actions = history(&mut rng, old_state(), 12);
        let whole = Arc::new(old_disk());
        play(&whole, old_state(), SEGMENT_BYTES, &actions);
        for stop in old_disk().changes()..whole.changes() {
            let disk = Arc::new(old_disk());
            disk.stop_after(stop);
            let run = play(&disk, old_state(), SEGMENT_BYTES, &actions);
            disk.power_cut(&mut rng);
            let found = open(&disk, SEGMENT_BYTES).1;
            assert!(run.allows(&found), "seed {seed}, stop {stop}: {found:?}");
        }
    }
}
