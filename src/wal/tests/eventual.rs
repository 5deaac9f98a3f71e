//! Eventual writes and the clock in the log: recovery returns them, and the segments that hold them
//! are retained.

use super::*;

const SEGMENT_BYTES: u64 = 1024;

fn held(found: &Recovered) -> Vec<u64> {
    found.held.iter().map(|write| write.version.0).collect()
}

/// The state that a restart would find now.
fn now(disk: &Arc<MemoryDisk>) -> Recovered {
    open(&Arc::new(disk.fork()), SEGMENT_BYTES).1
}

fn segments(disk: &MemoryDisk) -> usize {
    disk.list().unwrap().iter().filter(|file| file.0.starts_with("wal-")).count()
}

fn commit(wal: &mut Wal<MemoryDisk>, records: &[WalRecord]) {
    wal.append(records);
    wal.commit().unwrap();
}

/// Appends entries, each covered by a snapshot at once, until `segments` more segments were begun.
fn roll(wal: &mut Wal<MemoryDisk>, last: &mut Index, segments: u64) {
    let until = wal.segments.back().map_or(0, |segment| segment.number) + segments;
    while wal.segments.back().map_or(0, |segment| segment.number) < until {
        *last += 1;
        let meta = SnapshotMeta { index: *last, term: 1 };
        commit(wal, &[entry(*last, 1, 200), WalRecord::Snapshot(meta)]);
    }
}

#[test]
fn held_writes_are_those_of_the_latest_held_and_all_stamped_since() {
    let disk = Arc::new(MemoryDisk::new());
    let (mut wal, _) = open(&disk, SEGMENT_BYTES);
    commit(&mut wal, &[WalRecord::Stamped(writes(10, 2, 5))]);
    commit(&mut wal, &[WalRecord::Stamped(writes(5, 1, 5))]);
    assert_eq!(held(&now(&disk)), [10, 11, 5], "in the order in which they came");
    commit(&mut wal, &[WalRecord::Held(writes(11, 1, 5)), WalRecord::Stamped(writes(30, 1, 0))]);
    assert_eq!(held(&now(&disk)), [11, 30]);
    commit(&mut wal, &[WalRecord::Stamped(writes(40, 1, 5)), WalRecord::Held(writes(50, 2, 5))]);
    assert_eq!(now(&disk).held, writes(50, 2, 5).to_vec(), "keys, values and deletions too");
    commit(&mut wal, &[WalRecord::Held([].into())]);
    assert_eq!(held(&now(&disk)), []);
}

#[test]
fn the_clock_never_goes_back_and_outlives_the_segment_it_was_written_in() {
    let disk = Arc::new(MemoryDisk::new());
    let (mut wal, _) = open(&disk, SEGMENT_BYTES);
    commit(&mut wal, &[WalRecord::Clock(Version(70)), WalRecord::Clock(Version(60))]);
    commit(&mut wal, &[WalRecord::Clock(Version(70))]);
    assert_eq!(now(&disk).clock, Version(70));
    wal.append(&[WalRecord::Clock(Version(69))]);
    assert_eq!(wal.pending_bytes(), 0, "an older clock is left out");
    let mut last = 0;
    roll(&mut wal, &mut last, 5);
    assert!(wal.segments.front().unwrap().number > 1, "the first segment was dropped");
    assert_eq!(now(&disk).clock, Version(70));
    drop(wal);
    let (mut wal, _) = open(&disk, SEGMENT_BYTES);
    roll(&mut wal, &mut last, 5);
    assert_eq!(now(&disk).clock, Version(70));
}

#[test]
fn a_segment_with_held_writes_stays_until_a_later_held_is_durable() {
    for replacement in [writes(90, 1, 5), [].into()] {
        let disk = Arc::new(MemoryDisk::new());
        let (mut wal, _) = open(&disk, SEGMENT_BYTES);
        let mut last = 0;
        roll(&mut wal, &mut last, 3);
        commit(&mut wal, &[WalRecord::Stamped(writes(10, 2, 5))]);
        let kept = wal.segments.back().unwrap().number;
        roll(&mut wal, &mut last, 6);
        assert_eq!(wal.segments.front().unwrap().number, kept);
        assert_eq!(held(&now(&disk)), [10, 11]);
        // A restart retains the segment as well.
        drop(wal);
        let (mut wal, found) = open(&disk, SEGMENT_BYTES);
        assert_eq!(held(&found), [10, 11]);
        roll(&mut wal, &mut last, 3);
        assert_eq!(wal.segments.front().unwrap().number, kept);

        wal.append(&[WalRecord::Held(Arc::clone(&replacement))]);
        assert_eq!(wal.segments.front().unwrap().number, kept, "not durable yet");
        wal.commit().unwrap();
        let holder = wal.segments.back().unwrap().number;
        roll(&mut wal, &mut last, 20);
        // An empty `Held` is retained no longer than the writes that it replaced.
        let front = wal.segments.front().unwrap().number;
        assert_eq!(front == holder, !replacement.is_empty(), "{front}, {holder}");
        assert_eq!(now(&disk).held, replacement.to_vec());
    }
}

#[test]
fn a_held_in_an_uncommitted_or_failed_batch_releases_nothing() {
    let disk = Arc::new(MemoryDisk::new());
    let (mut wal, _) = open(&disk, SEGMENT_BYTES);
    let mut last = 0;
    commit(&mut wal, &[WalRecord::Stamped(writes(10, 1, 5))]);
    roll(&mut wal, &mut last, 4);
    wal.append(&[WalRecord::Held([].into())]);
    disk.fail_next_sync();
    assert!(wal.commit().is_err());
    assert_eq!(wal.segments.front().unwrap().number, 1);
    disk.power_cut(&mut Rng::new(1));
    // The torn `Held` may have reached the disk or not.
    let (wal, found) = open(&disk, SEGMENT_BYTES);
    assert!(matches!(held(&found)[..], [] | [10]));
    assert_eq!(wal.segments.front().unwrap().is_retained(last), held(&found) == [10]);
}

#[test]
fn dropping_segments_one_by_one_never_brings_replaced_writes_back() {
    let disk = Arc::new(MemoryDisk::new());
    let (mut wal, _) = open(&disk, SEGMENT_BYTES);
    for round in 0..6 {
        commit(&mut wal, &[entry(round + 1, 1, 300), WalRecord::Stamped(writes(round, 1, 300))]);
    }
    commit(&mut wal, &[WalRecord::Held(writes(90, 1, 5)), WalRecord::Stamped(writes(91, 1, 5))]);
    let before = segments(&disk);
    assert!(before >= 6);
    let snapshot = WalRecord::Snapshot(SnapshotMeta { index: 6, term: 1 });
    let mut dropped = 0;
    for _ in 0..before {
        commit(&mut wal, std::slice::from_ref(&snapshot));
        assert_eq!(held(&now(&disk)), [90, 91]);
        dropped = dropped.max(before - segments(&disk));
    }
    assert_eq!(dropped, before - 1, "all but the last");
}

#[test]
fn a_held_larger_than_a_segment_gets_a_segment_of_its_own_length() {
    let disk = Arc::new(MemoryDisk::new());
    let (mut wal, _) = open(&disk, SEGMENT_BYTES);
    let large = writes(1, 50, 1000);
    commit(&mut wal, &[WalRecord::Stamped(writes(1, 1, 5))]);
    commit(&mut wal, &[WalRecord::Held(Arc::clone(&large)), WalRecord::Stamped(writes(99, 1, 5))]);
    assert_eq!(wal.segments.back().map(|segment| segment.number), Some(2));
    assert_eq!(segments(&disk), 1, "nothing in the first segment is retained any more");
    commit(&mut wal, &[WalRecord::Stamped(writes(100, 1, 5))]);
    wal.close().unwrap();
    let expected = [&large[..], &writes(99, 1, 5), &writes(100, 1, 5)].concat();
    let (mut wal, found) = open(&disk, SEGMENT_BYTES);
    assert_eq!(found.held, expected);

    let mut last = 0;
    roll(&mut wal, &mut last, 2);
    let len = |disk: &MemoryDisk| disk.list().unwrap().iter().map(|file| file.1).sum::<u64>();
    assert!(len(&disk) > 37_000, "the large segment is still retained");
    commit(&mut wal, &[WalRecord::Held([].into())]);
    roll(&mut wal, &mut last, 4);
    assert!(len(&disk) <= 6 * SEGMENT_BYTES, "{} bytes", len(&disk));
}

#[test]
fn the_disk_stays_bounded_if_a_held_comes_now_and_then_and_grows_if_none_does() {
    for has_held in [true, false] {
        let disk = Arc::new(MemoryDisk::new());
        let (mut wal, _) = open(&disk, SEGMENT_BYTES);
        let (mut most, mut stamped) = (0, Vec::new());
        for round in 0..2000 {
            let new = writes(round, 1, 100);
            stamped.extend(new.iter().cloned());
            wal.append(&[WalRecord::Stamped(new)]);
            if has_held && round % 20 == 19 {
                stamped.drain(..stamped.len() - 3);
                wal.append(&[WalRecord::Held(stamped.iter().cloned().collect())]);
            }
            wal.commit().unwrap();
            if round % 97 == 0 {
                wal = open(&disk, SEGMENT_BYTES).0;
            }
            most = most.max(disk.list().unwrap().len());
        }
        assert_eq!(now(&disk).held, stamped);
        assert_eq!(stamped.len() > 2 * 20, !has_held);
        assert!(if has_held { most <= 10 } else { most > 200 }, "{most} files");
    }
}

#[test]
fn a_power_cut_while_held_writes_change_hands_loses_none() {
    // Few entries and many eventual writes: segments are released by a `Held` alone.
    for seed in 0..30 {
        let mut rng = Rng::new(seed);
        let mut state = Recovered::default();
        let mut actions = Vec::new();
        for round in 0..60 {
            let records = if rng.chance(1, 8) {
                vec![WalRecord::Held(state.held.iter().skip(3).cloned().collect())]
            } else {
                vec![WalRecord::Stamped(writes(round, 1 + rng.below(3), rng.below(90) as usize))]
            };
            records.iter().for_each(|record| apply(&mut state, record));
            actions.extend([Action::Append(records), Action::Commit]);
        }
        let whole = Arc::new(MemoryDisk::new());
        let run = play(&whole, Recovered::default(), 700, &actions);
        assert_eq!(run.acknowledged, 60, "nothing stopped it");
        for stop in 0..whole.changes() {
            let disk = Arc::new(MemoryDisk::new());
            disk.stop_after(stop);
            let run = play(&disk, Recovered::default(), 700, &actions);
            disk.power_cut(&mut rng);
            let found = open(&disk, 700).1;
            assert!(run.allows(&found), "seed {seed}, stop {stop}: {found:?}");
        }
    }
}
