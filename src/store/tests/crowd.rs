//! Hundreds of threads on one store: readers of both views and writers into the overlay, while one
//! thread applies. Each reader remembers what it has seen, and must never see an older state.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use parking_lot::Mutex;

use super::*;
use crate::rng::Rng;
use crate::store::{Image, Store};

const READERS: u64 = 200;

/// Rests for a moment, so that hundreds of threads leave the writer its turn.
fn rest(rng: &mut Rng) {
    thread::sleep(Duration::from_micros(rng.below(1_000)));
}

/// Groups of keys in slots of their own; each group is written as one.
const GROUPS: u64 = 4;
const KEYS_OF_A_GROUP: u64 = 5;

fn keys_of(group: u64) -> Vec<Vec<u8>> {
    (0..KEYS_OF_A_GROUP).map(|key| format!("{group}:{key}").into_bytes()).collect()
}

fn number(value: Option<&[u8]>) -> u64 {
    value.map_or(0, |value| str::from_utf8(value).unwrap().parse().unwrap())
}

/// Tells the readers that the writer has ended, also when it fails.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

/// Reads all keys in one command, and the versions one by one around it.
fn check_read(store: &Store, rng: &mut Rng, seen: &mut [(u64, Version)]) {
    let group = rng.below(GROUPS);
    let keys = keys_of(group);
    let (value, version) = &mut seen[group as usize];
    let applied = store.applied();
    let view = if rng.below(2) == 0 { Store::read } else { Store::read_newest };
    let mut names: Vec<&[u8]> = keys.iter().map(Vec::as_slice).collect();
    if rng.below(2) == 0 {
        names.reverse();
    }
    let found = view(store, &Command::GetMany { keys: names });
    let Outcome::Values(values) = found else { panic!("{found:?}") };
    assert!(values.iter().all(|found| *found == values[0]), "torn: {values:?}");
    let found = number(values[0].as_deref());
    assert!(found >= *value, "group {group}: {found} after {value}");
    *value = found;
    // Every entry writes one group, in turn: a reader of an applied index must find it.
    assert!(found + GROUPS > applied, "group {group}: {found} at index {applied}");
    let key = &keys[rng.below(KEYS_OF_A_GROUP) as usize];
    let now = store.version(key);
    assert!(now >= *version, "{now:?} after {version:?}");
    *version = now;
}

#[test]
fn no_reader_of_hundreds_sees_a_torn_write_or_an_older_one_than_before() {
    const ENTRIES: u64 = 1_000;
    let mut writer = Writer::new();
    let store = writer.store();
    let done = AtomicBool::new(false);
    // Digests by index, as the writer knows them, and images taken on the way.
    let (mut digests, mut images) = (HashMap::new(), Vec::new());
    let reads: u64 = thread::scope(|scope| {
        let end = End(&done);
        let readers: Vec<_> = (0..READERS)
            .map(|seed| {
                let (store, done) = (&store, &done);
                scope.spawn(move || {
                    let mut rng = Rng::new(seed);
                    let mut seen = [(0, Version::default()); GROUPS as usize];
                    let mut reads = 0;
                    while !done.load(Ordering::Acquire) {
                        check_read(store, &mut rng, &mut seen);
                        reads += 1;
                        rest(&mut rng);
                    }
                    reads
                })
            })
            .collect();
        for at in 1..=ENTRIES {
            let (keys, text) = (keys_of(at % GROUPS), at.to_string());
            let pairs = keys.iter().map(|key| (key.as_slice(), text.as_bytes())).collect();
            let entry = stamped(&writer, Version::new(at, 1), &[Command::SetMany { pairs }]);
            writer.apply(&entry, false).unwrap();
            digests.insert(at, writer.digest());
            if at % 50 == 0 {
                images.push(writer.image());
            }
        }
        drop(end);
        readers.into_iter().map(|reader| reader.join().unwrap()).sum()
    });
    println!("{reads} reads");
    assert!(reads > READERS, "the readers hardly read");
    for image in images {
        check_image(image, &digests);
    }
}

/// An image is the state at its index, whatever was written while it was taken and since.
fn check_image(image: Image, digests: &HashMap<u64, u64>) {
    let index = image.meta().index;
    let mut bytes = Vec::new();
    image.write(&mut bytes).unwrap();
    let mut restored = Writer::new();
    restored.restore(Image::read(&mut bytes.as_slice()).unwrap());
    assert_eq!(restored.digest(), digests[&index], "at index {index}");
    for group in 0..GROUPS {
        for key in keys_of(group) {
            let found = restored.store().read(&Command::Get { key: &key });
            let Outcome::Value(found) = found else { panic!("{found:?} at index {index}") };
            let latest = (0..GROUPS).map(|back| index - back).find(|at| at % GROUPS == group);
            assert_eq!(Some(number(Some(&found))), latest, "{group} at index {index}");
        }
    }
}

/// One eventual write: stamps a version, puts the write into the overlay, and reads it back.
fn write_eventually(
    store: &Store,
    clock: &AtomicU64,
    rng: &mut Rng,
    keys: &[&[u8]],
) -> (Write, Version) {
    let key = keys[rng.below(keys.len() as u64) as usize];
    let version = clock.fetch_add(1, Ordering::Relaxed);
    let text = version.to_string();
    let write = write(key, Some(text.as_bytes()), version);
    store.put_overlay(std::slice::from_ref(&write));
    let found = store.read_newest(&Command::Get { key });
    let Outcome::Value(found) = found else { panic!("{found:?} after {version}") };
    assert!(number(Some(&found)) >= version, "{found:?} after {version}");
    (write, Version(version))
}

#[test]
fn eventual_writes_of_hundreds_of_threads_never_vanish_and_all_leave_the_overlay() {
    const WRITERS: u64 = 128;
    const WRITES: u64 = 60;
    // Two of them share a slot; all are hot.
    let keys: [&[u8]; 4] = [b"{t}1", b"{t}2", b"a", b"b"];
    let mut writer = Writer::new();
    let store = writer.store();
    let clock = AtomicU64::new(1);
    let highest = Mutex::new(HashMap::new());
    let done = AtomicBool::new(false);
    let (drain, drained) = mpsc::channel();
    thread::scope(|scope| {
        let end = End(&done);
        for seed in 0..WRITERS {
            let (store, clock, highest, drain) = (&store, &clock, &highest, drain.clone());
            scope.spawn(move || {
                let mut rng = Rng::new(seed);
                for _ in 0..WRITES {
                    let (write, version) = write_eventually(store, clock, &mut rng, &keys);
                    let mut highest = highest.lock();
                    let known = highest.entry(write.key.clone()).or_insert(version);
                    *known = version.max(*known);
                    drop(highest);
                    drain.send(write).unwrap();
                }
            });
        }
        drop(drain);
        for seed in 0..WRITERS {
            let (store, done) = (&store, &done);
            scope.spawn(move || {
                let mut rng = Rng::new(WRITERS + seed);
                let mut seen = [0; 4];
                while !done.load(Ordering::Acquire) {
                    let at = rng.below(4) as usize;
                    let found = store.read_newest(&Command::Get { key: keys[at] });
                    let found = match &found {
                        Outcome::Value(found) => number(Some(found)),
                        _ => 0,
                    };
                    assert!(found >= seen[at], "{found} after {}", seen[at]);
                    seen[at] = found;
                    rest(&mut rng);
                }
            });
        }
        // The log gets the writes out of order: a later stamp may come first.
        let mut batch: Vec<Write> = Vec::new();
        let mut rng = Rng::new(0);
        for write in drained {
            let at = rng.below(batch.len() as u64 + 1) as usize;
            batch.insert(at, write);
            if batch.len() > 20 {
                merge(&mut writer, &batch.split_off(10));
            }
        }
        merge(&mut writer, &batch);
        drop(end);
    });
    assert_eq!((store.overlaid(), store.late()), (0, 0));
    for (key, version) in highest.into_inner() {
        assert_eq!(store.version(&key), version);
        let expected = Outcome::Value(version.0.to_string().as_bytes().into());
        assert_eq!(store.read(&Command::Get { key: &key }), expected);
        assert_eq!(store.read_newest(&Command::Get { key: &key }), expected);
    }
}

#[test]
fn a_restore_and_each_clear_are_one_moment_to_hundreds_of_readers() {
    let mut other = Writer::new();
    let mut images = Vec::new();
    let keys = keys_of(0);
    for at in 1..=100_u64 {
        let text = at.to_string();
        let pairs = keys.iter().map(|key| (key.as_slice(), text.as_bytes())).collect();
        apply(&mut other, Command::SetMany { pairs });
        images.push(other.image());
    }
    let mut writer = Writer::new();
    let store = writer.store();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let end = End(&done);
        for seed in 0..READERS {
            let (store, done, keys) = (&store, &done, &keys);
            scope.spawn(move || {
                let mut rng = Rng::new(seed);
                let view = if seed % 2 == 0 { Store::read } else { Store::read_newest };
                while !done.load(Ordering::Acquire) {
                    let names = keys.iter().map(Vec::as_slice).collect();
                    let found = view(store, &Command::GetMany { keys: names });
                    let Outcome::Values(values) = found else { panic!("{found:?}") };
                    assert!(values.iter().all(|found| *found == values[0]), "torn: {values:?}");
                    let names = keys.iter().map(Vec::as_slice).collect();
                    let found = view(store, &Command::Exists { keys: names });
                    assert!(matches!(found, Outcome::Integer(0 | 5)), "{found:?}");
                    rest(&mut rng);
                }
            });
        }
        for image in images {
            writer.restore(image);
            if writer.applied().index.is_multiple_of(3) {
                apply(&mut writer, Command::Clear);
            }
        }
        drop(end);
    });
}
