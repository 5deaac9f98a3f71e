//! Readers at the same time as the writer.

use std::slice;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread;

use super::*;
use crate::store::slot::slot_of;

const A: &[u8] = b"a";
const B: &[u8] = b"b";

/// Runs `reader` on two threads again and again while `writer` works, and once more after it.
fn with_reader(reader: impl Fn() + Sync, writer: impl FnOnce()) {
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !done.load(Ordering::Acquire) {
                    reader();
                }
                reader();
            });
        }
        writer();
        done.store(true, Ordering::Release);
    });
}

fn number(value: Option<&[u8]>) -> u64 {
    value.map_or(0, |value| str::from_utf8(value).unwrap().parse().unwrap())
}

#[test]
fn a_write_of_several_keys_is_never_seen_half_done() {
    // Writes name them against the order of the slots, which readers lock in: the likeliest way to
    // be seen if each key were locked by itself.
    assert!(slot_of(A) > slot_of(B));
    let mut writer = Writer::new();
    let store = writer.store();
    let read = || {
        for keys in [vec![A, B], vec![B, A, B]] {
            let Outcome::Values(values) = store.read(&Command::GetMany { keys }) else { panic!() };
            assert!(values.iter().all(|value| *value == values[0]), "{values:?}");
        }
        let found = store.read(&Command::Exists { keys: vec![A, B] });
        assert!(matches!(found, Outcome::Integer(0 | 2)), "{found:?}");
    };
    with_reader(read, || {
        for i in 0..20_000_u64 {
            let text = i.to_string();
            let value = text.as_bytes();
            apply(&mut writer, Command::SetMany { pairs: vec![(A, value), (B, value)] });
            if i % 2 == 0 {
                apply(&mut writer, Command::Delete { keys: vec![A, B] });
            } else if i % 301 == 0 {
                apply(&mut writer, Command::Clear);
            }
        }
    });
}

#[test]
fn whoever_sees_an_index_sees_its_effects() {
    let mut writer = Writer::new();
    let store = writer.store();
    let read = || {
        let applied = store.applied();
        let keys = vec![A];
        let Outcome::Values(values) = store.read(&Command::GetMany { keys }) else { panic!() };
        assert!(number(values[0].as_deref()) >= applied);
        assert!(applied == 0 || store.stats().keys == 1);
    };
    with_reader(read, || {
        for i in 1..=50_000_u64 {
            apply(&mut writer, set(A, i.to_string().as_bytes()));
        }
    });
}

#[test]
fn a_restore_is_one_moment_and_shows_its_index_last() {
    let mut other = Writer::new();
    let mut images = Vec::new();
    for i in 1..=200_u64 {
        let text = i.to_string();
        let value = text.as_bytes();
        apply(&mut other, Command::SetMany { pairs: vec![(A, value), (B, value)] });
        images.push(other.image());
    }
    let mut writer = Writer::new();
    let store = writer.store();
    let read = || {
        let applied = store.applied();
        let keys = vec![A, B];
        let Outcome::Values(values) = store.read(&Command::GetMany { keys }) else { panic!() };
        assert_eq!(values[0], values[1]);
        assert!(number(values[0].as_deref()) >= applied);
    };
    with_reader(read, || {
        for image in images {
            writer.restore(image);
        }
    });
    assert_eq!(store.applied(), 200);
}

#[test]
fn an_image_is_one_index_however_fast_the_writer_is() {
    let mut writer = Writer::new();
    thread::scope(|scope| {
        for i in 0..2_000_u64 {
            let text = i.to_string();
            let value = text.as_bytes();
            apply(&mut writer, Command::SetMany { pairs: vec![(A, value), (B, value)] });
            if i % 100 == 0 {
                let image = writer.image();
                scope.spawn(move || {
                    let mut restored = Writer::new();
                    restored.restore(image);
                    let keys = vec![A, B];
                    let read = restored.store().read(&Command::GetMany { keys });
                    let Outcome::Values(values) = read else { panic!() };
                    for found in values {
                        assert_eq!(number(found.as_deref()), i);
                    }
                });
            }
        }
    });
}

#[test]
fn a_thread_reads_its_own_write_while_it_moves_from_the_overlay_to_the_base() {
    const ROUNDS: u64 = 20_000;
    let mut writer = Writer::new();
    let store = writer.store();
    let clock = AtomicU64::new(1);
    let (drain, drained) = mpsc::channel();
    thread::scope(|scope| {
        // Keys of one slot, each of which one thread writes.
        for key in [b"{t}1", b"{t}2"] {
            let (store, clock, drain) = (&store, &clock, drain.clone());
            scope.spawn(move || {
                for round in 1..=ROUNDS {
                    let version = clock.fetch_add(1, Ordering::Relaxed);
                    let text = round.to_string();
                    let value = (round % 7 != 0).then_some(text.as_bytes());
                    let write = write(key, value, version);
                    // Half of the writes may be applied before they are put into the overlay.
                    if round % 2 == 0 {
                        drain.send(write.clone()).unwrap();
                    }
                    let existed = store.put_overlay(slice::from_ref(&write))[0];
                    assert!(existed || round % 7 <= 1 || round % 2 == 0, "{round}");
                    let found = store.read_newest(&Command::Get { key });
                    let expected = value.map_or(Outcome::Nil, |v| Outcome::Value(v.into()));
                    assert_eq!(found, expected, "{round}");
                    if round % 2 == 1 {
                        drain.send(write).unwrap();
                    }
                }
            });
        }
        drop(drain);
        let reader = || {
            let keys: Vec<&[u8]> = vec![b"{t}1", b"{t}2"];
            let mut before = [0; 2];
            while store.applied() < 2 * ROUNDS {
                let read = store.read_newest(&Command::GetMany { keys: keys.clone() });
                let Outcome::Values(values) = read else { panic!() };
                for (before, value) in before.iter_mut().zip(values) {
                    if let Some(value) = value {
                        let number = number(Some(&value));
                        assert!(number >= *before, "{number} after {before}");
                        *before = number;
                    }
                }
            }
        };
        scope.spawn(reader);
        for write in drained {
            merge(&mut writer, &[write]);
        }
    });
    assert_eq!((store.overlaid(), store.late()), (0, 0));
    assert_eq!(store.read(&Command::Get { key: b"{t}1" }), value(b"20000"));
}

#[test]
fn prefetching_many_keys_changes_nothing_and_blocks_no_other_thread() {
    // Forty keys, some of them twice and most against the order of the slots, in more than one
    // command, and behind them bytes that are none.
    let names: Vec<String> = (0..40).map(|name| format!("{{{}}}{name}", name % 30)).collect();
    let mut keys: Vec<&[u8]> = names.iter().map(|name| name.as_bytes()).collect();
    keys.sort_unstable_by_key(|key| std::cmp::Reverse(slot_of(key)));
    let mut commands = Vec::new();
    Command::Exists { keys: keys.clone() }.encode(&mut commands);
    Command::Get { key: keys[0] }.encode(&mut commands);
    Command::GetMany { keys: keys[..3].to_vec() }.encode(&mut commands);
    commands.extend([255; 3]);
    let (mut writer, mut twin) = (Writer::new(), Writer::new());
    let store = writer.store();
    let passes = AtomicU64::new(0);
    let prefetch = || {
        store.prefetch_commands(&commands);
        store.prefetch_commands(&[]);
        passes.fetch_add(1, Ordering::Relaxed);
    };
    with_reader(prefetch, || {
        let mut i = 0;
        while i < 2_000 || passes.load(Ordering::Relaxed) < 2_000 {
            i += 1;
            let value = i.to_string();
            let pairs = keys.iter().map(|&key| (key, value.as_bytes())).collect();
            let command = match i % 100 {
                0 => Command::Clear,
                1..90 => Command::SetMany { pairs },
                _ => Command::Delete { keys: keys.clone() },
            };
            assert_eq!(apply(&mut writer, command.clone()), apply(&mut twin, command));
        }
    });
    assert_eq!(writer.digest(), twin.digest());
}
