//! The power fails, or the process is killed, at every change that a history makes to the disk.

use super::*;

fn reopened(disk: &Arc<MemoryDisk>, segment_bytes: u64) -> Recovered {
    open(disk, segment_bytes).1
}

#[test]
fn a_power_cut_at_any_change_loses_nothing_that_was_acknowledged() {
    for seed in 0..40 {
        let mut rng = Rng::new(seed);
        let segment_bytes = 700 + rng.below(2000);
        let actions = history(&mut rng, Recovered::default(), 40);
        let whole = Arc::new(MemoryDisk::new());
        let run = play(&whole, Recovered::default(), segment_bytes, &actions);
        assert_eq!(run.acknowledged + 1, run.states.len(), "seed {seed}: nothing stopped it");
        for stop in 0..whole.changes() {
            let disk = Arc::new(MemoryDisk::new());
            disk.stop_after(stop);
            let run = play(&disk, Recovered::default(), segment_bytes, &actions);
            disk.power_cut(&mut rng);
            let image = disk.fork();
            let found = reopened(&disk, segment_bytes);
            assert!(run.allows(&found), "seed {seed}, stop {stop}: {found:?}");
            assert_eq!(reopened(&disk, segment_bytes), found, "seed {seed}, stop {stop}: again");
            cut_during_recovery(&mut rng, &image, segment_bytes, &found);
        }
    }
}

/// Whatever recovery had done when the power failed, the next recovery finds the same.
fn cut_during_recovery(rng: &mut Rng, image: &MemoryDisk, segment_bytes: u64, found: &Recovered) {
    for stop in image.changes().. {
        let disk = Arc::new(image.fork());
        disk.stop_after(stop);
        let finished = Wal::open(Arc::clone(&disk), options(segment_bytes)).is_ok();
        disk.power_cut(rng);
        assert_eq!(reopened(&disk, segment_bytes), *found, "stop {stop}");
        if finished {
            return;
        }
    }
}

#[test]
fn a_log_survives_many_crashes_in_a_row() {
    for seed in 0..400 {
        let mut rng = Rng::new(seed);
        let segment_bytes = 700 + rng.below(3000);
        let disk = Arc::new(MemoryDisk::new());
        let mut state = Recovered::default();
        for round in 0..8 {
            let actions = history(&mut rng, state.clone(), 30);
            disk.stop_after(disk.changes() + rng.below(60));
            let run = play(&disk, state, segment_bytes, &actions);
            if rng.chance(1, 2) {
                disk.kill();
            } else {
                disk.power_cut(&mut rng);
            }
            let found = reopened(&disk, segment_bytes);
            assert!(run.allows(&found), "seed {seed}, round {round}: {found:?}");
            if rng.chance(1, 2) {
                disk.power_cut(&mut rng);
                assert_eq!(reopened(&disk, segment_bytes), found, "seed {seed}: not durable");
            }
            state = found;
        }
    }
}

#[test]
fn after_a_failed_sync_the_log_refuses_everything() {
    let disk = Arc::new(MemoryDisk::new());
    let (mut wal, _) = open(&disk, 4096);
    wal.append(&[entry(1, 1, 10)]);
    wal.commit().unwrap();
    wal.append(&[entry(2, 1, 10)]);
    disk.fail_next_sync();
    assert!(matches!(wal.commit(), Err(WalError::Io(_))));
    let changes = disk.changes();
    assert!(matches!(wal.commit(), Err(WalError::Io(_))));
    wal.append(&[entry(3, 1, 10)]);
    assert!(matches!(wal.commit(), Err(WalError::Io(_))));
    assert!(matches!(wal.close(), Err(WalError::Io(_))));
    assert_eq!(disk.changes(), changes, "the disk was left alone");
}

#[test]
fn what_recovery_reports_is_durable_even_after_a_sync_that_failed() {
    for seed in 0..50 {
        let disk = Arc::new(MemoryDisk::new());
        let (mut wal, _) = open(&disk, 4096);
        wal.append(&[entry(1, 1, 10)]);
        wal.commit().unwrap();
        wal.append(&[entry(2, 1, 900)]);
        disk.fail_next_sync();
        assert!(wal.commit().is_err());
        disk.kill();
        // The page cache still shows the batch, and no sync would write it.
        let found = reopened(&disk, 4096);
        assert_eq!(found.entries.len(), 2);
        disk.power_cut(&mut Rng::new(seed));
        assert_eq!(reopened(&disk, 4096), found, "seed {seed}");
    }
}

#[test]
fn frames_of_a_cut_batch_never_mix_with_those_of_its_successor() {
    // The batches of all lives have the same number, and each of their frames fills one sector, so
    // that frames of two lives could stand side by side.
    for seed in 0..300 {
        let mut rng = Rng::new(seed);
        let disk = Arc::new(MemoryDisk::new());
        let (mut wal, _) = open(&disk, 16384);
        wal.append(&[entry(1, 1, 247)]);
        wal.commit().unwrap();
        drop(wal);
        let file = disk.read("wal-0000000000000001.log").unwrap();
        assert_eq!((file[511], file[512]), (1, 0), "the next batch begins with a sector");
        let mut state = reopened(&disk, 16384);
        for life in 2..6 {
            let records: Vec<WalRecord> = (2..=7).map(|index| entry(index, life, 431)).collect();
            // Opening takes two changes; the fourth is the sync.
            disk.stop_after(disk.changes() + 3);
            let actions = [Action::Append(records), Action::Commit];
            let run = play(&disk, state, 16384, &actions);
            assert_eq!(run.states.len(), 2, "the stop came too early");
            disk.power_cut(&mut rng);
            state = reopened(&disk, 16384);
            assert!(run.allows(&state), "seed {seed}, life {life}: {state:?}");
        }
    }
}
