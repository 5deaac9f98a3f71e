//! Disk space: full disks, spares, and a bounded number of files.

use super::*;

fn names(disk: &MemoryDisk) -> Vec<String> {
    disk.list().unwrap().into_iter().map(|file| file.0).collect()
}

#[test]
fn a_full_disk_loses_nothing_and_the_commit_may_be_tried_again() {
    let disk = Arc::new(MemoryDisk::new());
    let (mut wal, mut state) = open(&disk, 1024);
    disk.set_capacity(Some(3 * 1024));
    let mut index = 0;
    let refused = loop {
        index += 1;
        wal.append(&[entry(index, 1, 100)]);
        if let Err(error) = wal.commit() {
            break error;
        }
        apply(&mut state, &entry(index, 1, 100));
    };
    assert!(matches!(refused, WalError::Full), "{refused}");
    assert!(matches!(wal.commit(), Err(WalError::Full)), "still full");
    assert_eq!(names(&disk).len(), 3, "nothing half-made is left");
    assert_eq!(open(&Arc::new(disk.fork()), 1024).1, state, "what was committed is there");

    wal.append(&[entry(index + 1, 1, 2000), hard(3)]);
    disk.set_capacity(None);
    wal.commit().unwrap();
    for record in [entry(index, 1, 100), entry(index + 1, 1, 2000), hard(3)] {
        apply(&mut state, &record);
    }
    wal.close().unwrap();
    assert_eq!(open(&disk, 1024).1, state);
}

#[test]
fn a_log_that_could_commit_has_room_to_close() {
    for len in 550..700 {
        let disk = Arc::new(MemoryDisk::new());
        disk.set_capacity(Some(1024));
        let (mut wal, _) = open(&disk, 1024);
        wal.append(&[entry(1, 1, 100)]);
        wal.commit().unwrap();
        wal.append(&[entry(2, 1, len)]);
        match wal.commit() {
            Ok(()) => wal.close().unwrap(),
            Err(error) => assert!(matches!(error, WalError::Full), "{error}"),
        }
    }
}

#[test]
fn a_batch_larger_than_a_segment_gets_a_segment_of_its_own() {
    let disk = Arc::new(MemoryDisk::new());
    let (mut wal, _) = open(&disk, 1024);
    wal.append(&[entry(1, 1, 10)]);
    wal.commit().unwrap();
    wal.append(&[entry(2, 1, 100_000), entry(3, 1, 10)]);
    wal.commit().unwrap();
    wal.append(&[entry(4, 1, 10)]);
    wal.commit().unwrap();
    wal.close().unwrap();
    assert_eq!(open(&disk, 1024).1.entries.len(), 4);
}

#[test]
fn files_stay_few_under_a_million_overwrites() {
    let disk = Arc::new(MemoryDisk::new());
    let (mut wal, _) = open(&disk, 1 << 18);
    let (mut most, mut last) = (0, 0);
    for round in 0..1000 {
        let records: Vec<WalRecord> = (1..=1000).map(|i| entry(last + i, 1, 8)).collect();
        last += 1000;
        wal.append(&records);
        if round % 5 == 4 {
            wal.append(&[WalRecord::Snapshot(SnapshotMeta { index: last - 500, term: 1 })]);
        }
        wal.commit().unwrap();
        if let Some(job) = wal.spare_wanted() {
            job.run().unwrap();
        }
        most = most.max(names(&disk).len());
    }
    assert!(most <= 8, "{most} files");
    wal.close().unwrap();
    let (_, found) = open(&disk, 1 << 18);
    assert_eq!(found.snapshot, SnapshotMeta { index: last - 500, term: 1 });
    assert_eq!(found.entries.len(), 500);
}

#[test]
fn a_recycled_segment_never_shows_its_former_life() {
    let disk = Arc::new(MemoryDisk::new());
    let (mut wal, _) = open(&disk, 1024);
    let mut recycled = 0;
    for index in 1..200 {
        wal.append(&[entry(index, 1, 100), WalRecord::Snapshot(SnapshotMeta { index, term: 1 })]);
        wal.commit().unwrap();
        let files = names(&disk);
        recycled += files.iter().filter(|name| name.starts_with("spare-")).count();
        let image = Arc::new(disk.fork());
        let (_, found) = open(&image, 1024);
        assert_eq!((found.snapshot.index, found.entries.len()), (index, 0));
    }
    assert!(recycled > 100, "segments were recycled");
    assert!(names(&disk).len() <= 4, "{:?}", names(&disk));
}

#[test]
fn another_thread_makes_the_spare_that_the_next_segment_comes_from() {
    let disk = Arc::new(MemoryDisk::new());
    let (mut wal, _) = open(&disk, 1024);
    assert!(wal.spare_wanted().is_none(), "an unused log needs no spare");
    wal.append(&[entry(1, 1, 600)]);
    wal.commit().unwrap();
    let job = wal.spare_wanted().expect("no spare yet");
    assert!(wal.spare_wanted().is_none(), "one job at a time");
    drop(job);
    let job = wal.spare_wanted().expect("a dropped job is asked for again");
    std::thread::spawn(move || job.run()).join().unwrap().unwrap();
    assert!(wal.spare_wanted().is_none(), "one spare is enough");

    disk.set_capacity(Some(0));
    wal.append(&[entry(2, 1, 600)]);
    wal.commit().expect("the spare is there already");
    assert!(names(&disk).iter().all(|name| name.starts_with("wal-")));
}

#[test]
fn unfinished_and_unfit_spares_are_removed_at_the_start() {
    let disk = Arc::new(MemoryDisk::new());
    disk.create("spare-0000000000000001.tmp", 10).unwrap();
    disk.create("spare-0000000000000002.log", 10).unwrap();
    for number in 3..7 {
        disk.create(&format!("spare-{number:016x}.log"), 1024).unwrap();
    }
    disk.create("identity", 10).unwrap();
    let (mut wal, _) = open(&disk, 1024);
    assert_eq!(names(&disk).len(), 3, "two spares and a file that is not the log's");
    wal.append(&[entry(1, 1, 600)]);
    wal.commit().unwrap();
    assert!(names(&disk).contains(&"wal-0000000000000001.log".to_owned()));
}

#[test]
fn a_real_directory_keeps_a_log() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Arc::new(FileDisk::new(dir.path()));
    let mut state = Recovered::default();
    for life in 0..3 {
        let (mut wal, found) = Wal::open(Arc::clone(&disk), options(1 << 14)).unwrap();
        assert_eq!(found, state);
        let last = state.entries.last().map_or(0, |entry| entry.index);
        for index in last + 1..last + 200 {
            let records = [entry(index, 1, 100), hard(index)];
            records.iter().for_each(|record| apply(&mut state, record));
            wal.append(&records);
            wal.commit().unwrap();
        }
        if life == 1 {
            wal.close().unwrap();
        }
    }
}
