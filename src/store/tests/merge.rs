//! Merged writes: the newest of each key wins, in any order and any number of times.

use std::sync::Arc;

use proptest::prelude::*;
use proptest::sample::Index;

use super::*;
use crate::store::record::Map;

/// Few keys and few versions, so that writes meet. A version belongs to one write to a key.
fn writes() -> impl Strategy<Value = Vec<Write>> {
    let one = (0..4_u8, 0..60_u64).prop_map(|(key, tick)| {
        let text = tick.to_string();
        let value = (tick % 3 != 0).then_some(text.as_bytes());
        write(&[key], value, tick << 8)
    });
    prop::collection::vec(one, 0..12)
}

/// The checkpoint between two windows of merges, at the same place on every replica.
fn fixed() -> impl Strategy<Value = Option<u64>> {
    prop_oneof![4 => Just(None), 1 => (0..60_u64).prop_map(|tick| Some(tick << 8))]
}

fn strong(number: u8) -> Vec<Command<'static>> {
    match number % 5 {
        0 => vec![set(&[0], b"strong"), Command::Delete { keys: vec![&[1], &[2]] }],
        1 => vec![Command::Append { key: &[1], value: b"+" }],
        2 => vec![Command::Clear, set(&[3], b"after")],
        3 => vec![Command::Take { key: &[2] }],
        _ => vec![Command::Increment { key: &[3], by: 1 }],
    }
}

fn same_state(one: &Writer, other: &Writer) -> bool {
    let (one_image, other_image) = (one.image(), other.image());
    let same_slot = |(one, other): (&Arc<Map>, &Arc<Map>)| {
        one.len() == other.len() && one.iter().all(|record| other.get(record.key()) == Some(record))
    };
    one_image.slots.iter().zip(&other_image.slots).all(same_slot)
        && one_image.totals == other_image.totals
        && one.digest() == other.digest()
}

proptest! {
    // Each case walks the slots of several stores, which takes a debug build a while.
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn any_order_any_grouping_and_any_repetition_give_the_same_state(
        windows in prop::collection::vec((writes(), fixed(), any::<u8>()), 1..5),
        swaps in prop::collection::vec((any::<Index>(), any::<Index>()), 0..20),
        again in prop::collection::vec(any::<Index>(), 0..12),
        group in 1..5_usize,
    ) {
        let (mut plain, mut other) = (Writer::new(), Writer::new());
        let mut past: Vec<Write> = Vec::new();
        for (writes, floor, number) in &windows {
            merge(&mut plain, writes);
            past.extend_from_slice(writes);

            // The same writes in another order, and some of all that came before once more.
            let mut shuffled = writes.clone();
            if !past.is_empty() {
                shuffled.extend(again.iter().map(|index| index.get(&past).clone()));
            }
            for (from, to) in &swaps {
                if !shuffled.is_empty() {
                    let (from, to) = (from.index(shuffled.len()), to.index(shuffled.len()));
                    shuffled.swap(from, to);
                }
            }
            shuffled.chunks(group).for_each(|group| _ = merge(&mut other, group));
            prop_assert!(same_state(&plain, &other));

            match floor {
                Some(floor) => {
                    prop_assert_eq!(checkpoint(&mut plain, *floor), checkpoint(&mut other, *floor));
                }
                None => for writer in [&mut plain, &mut other] {
                    let entry = entry(writer, &strong(*number));
                    writer.apply(&entry, false).unwrap();
                },
            }
        }
        prop_assert!(same_state(&plain, &other));
    }
}

#[test]
fn a_strong_write_beats_all_that_the_log_held_before_it() {
    let mut writer = Writer::new();
    merge(&mut writer, &[write(b"k", Some(b"eventual"), 900 << 8), write(b"x", None, 950 << 8)]);
    apply(&mut writer, set(b"k", b"strong"));
    assert_eq!(writer.latest(), Version::new(951, Version::LOG));
    assert_eq!(merge(&mut writer, &[write(b"k", Some(b"late"), 950 << 8)]), (0, 0));
    assert_eq!(writer.store().read(&Command::Get { key: b"k" }), value(b"strong"));
    assert_eq!(merge(&mut writer, &[write(b"k", Some(b"newer"), 952 << 8)]), (1, 0));

    let mut stamped = entry(&writer, &[set(b"k", b"stamped")]);
    let Payload::Batch { stamp, .. } = &mut stamped.payload else { panic!() };
    *stamp = Version::new(2_000, 255);
    writer.apply(&stamped, false).unwrap();
    assert_eq!(writer.latest(), Version::new(2_000, 255));
    assert_eq!(merge(&mut writer, &[write(b"k", Some(b"x"), 1_999 << 8 | 1)]), (0, 0));
}

#[test]
fn a_write_merged_in_front_of_a_batch_is_seen_by_it_and_stays_older_than_it() {
    let mut writer = Writer::new();
    let number = Command::Merge { version: Version(70 << 8), key: b"n", value: Some(b"41") };
    let gone = Command::Merge { version: Version(70 << 8), key: b"gone", value: None };
    let batch = [number, gone, Command::Increment { key: b"n", by: 1 }, set(b"gone", b"new")];
    let entry = entry(&writer, &batch);
    let outcomes = vec![Outcome::Integer(42), Outcome::Done];
    assert_eq!(writer.apply(&entry, true), Ok(Applied::Done(outcomes)));
    let drained = [write(b"n", Some(b"41"), 70 << 8), write(b"gone", None, 70 << 8)];
    assert_eq!(merge(&mut writer, &drained), (0, 0));
    assert_eq!(writer.store().read(&Command::Get { key: b"n" }), value(b"42"));
    assert_eq!(writer.store().read(&Command::Get { key: b"gone" }), value(b"new"));
}

#[test]
fn a_deletion_is_remembered_also_of_a_key_that_was_not_there() {
    let mut writer = Writer::new();
    let (early, late) = (write(b"a", Some(b"old"), 5 << 8), write(b"b", Some(b"old"), 5 << 8));
    merge(&mut writer, &[write(b"c", Some(b""), 5 << 8)]);
    apply(&mut writer, Command::Delete { keys: vec![b"a", b"a"] });
    assert_eq!(merge(&mut writer, &[early]), (0, 0));

    // These change nothing, so they leave nothing.
    apply(&mut writer, Command::Take { key: b"b" });
    apply(&mut writer, Command::Set { key: b"b", value: b"", when: When::Present, get: false });
    apply(&mut writer, Command::Set { key: b"c", value: b"", when: When::Absent, get: true });
    assert_eq!(writer.store().stats().tombstones, 1);
    assert_eq!(merge(&mut writer, &[late, write(b"c", None, 6 << 8)]), (2, 0));
}

#[test]
fn after_a_mark_older_writes_to_forgotten_keys_are_refused_and_counted() {
    let mut writer = Writer::new();
    let store = writer.store();
    let alive = write(b"alive", Some(b"1"), 10);
    merge(&mut writer, &[alive, write(b"old", None, 20), write(b"young", None, 40)]);
    assert_eq!((store.stats().tombstones, store.stats().keys), (2, 1));
    assert_eq!(checkpoint(&mut writer, 30), writer.digest());
    assert_eq!((store.stats().tombstones, store.floor()), (1, Version(30)));

    let back = [write(b"old", Some(b"back"), 19), write(b"none", Some(b""), 30)];
    assert_eq!(merge(&mut writer, &back), (0, 2));
    assert_eq!(store.late(), 2);
    assert_eq!(store.read(&Command::Count), Outcome::Integer(1));
    // Whatever has a record is judged by that alone.
    assert_eq!(merge(&mut writer, &[write(b"young", Some(b""), 39)]), (0, 0));
    assert_eq!(merge(&mut writer, &[write(b"alive", Some(b"2"), 11)]), (1, 0));
    assert_eq!(merge(&mut writer, &[write(b"old", Some(b"new"), 31)]), (1, 0));
    // A checkpoint never lowers the floor.
    checkpoint(&mut writer, 7);
    assert_eq!(store.floor(), Version(30));
}

#[test]
fn a_restored_writer_forgets_the_tombstones_that_came_with_the_image() {
    let mut writer = Writer::new();
    merge(&mut writer, &[write(b"a", None, 20), write(b"b", None, 50), write(b"c", None, 60)]);
    apply(&mut writer, set(b"c", b"again"));
    let mut restored = Writer::new();
    restored.restore(writer.image());
    assert_eq!(restored.digest(), writer.digest());
    assert_eq!(checkpoint(&mut restored, 30), checkpoint(&mut writer, 30));
    assert_eq!(restored.store().stats().tombstones, 1);
    assert_eq!(restored.store().stats(), writer.store().stats());
}

#[test]
fn deleting_everything_refuses_all_that_is_older() {
    let mut writer = Writer::new();
    merge(&mut writer, &[write(b"a", Some(b"1"), 5 << 8), write(b"b", None, 6 << 8)]);
    apply(&mut writer, Command::Clear);
    assert_eq!(writer.store().stats(), crate::store::Stats::default());
    assert_eq!(writer.store().floor(), writer.latest());
    assert_eq!(merge(&mut writer, &[write(b"a", Some(b"1"), 5 << 8)]), (0, 1));
    assert_eq!(merge(&mut writer, &[write(b"a", Some(b"2"), 8 << 8)]), (1, 0));
}

#[test]
fn one_flipped_byte_gives_another_digest() {
    let digest = |value: &[u8]| {
        let mut writer = Writer::new();
        merge(&mut writer, &[write(b"a", Some(value), 5), write(b"b", Some(b"same"), 6)]);
        writer.digest()
    };
    let sound = vec![7; 300];
    assert_eq!(digest(&sound), digest(&sound));
    for at in [0, 1, 150, 299] {
        let mut value = sound.clone();
        value[at] ^= 1;
        assert_ne!(digest(&sound), digest(&value));
    }
}
