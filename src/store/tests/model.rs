//! The state machine against a sorted map that does the obvious.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::super::glob;
use super::super::{ApplyError, Stats, Store};
use super::*;
use crate::codec::Malformed;
use crate::store::slot::{SLOTS, slot_of};
use crate::types::{Failure, Value};

type Bytes = Vec<u8>;

/// A command that owns its bytes.
#[derive(Clone, Debug)]
enum Op {
    Get(Bytes),
    GetMany(Vec<Bytes>),
    Length(Bytes),
    Exists(Vec<Bytes>),
    Set(Bytes, Bytes, When, bool),
    SetMany(Vec<(Bytes, Bytes)>),
    Append(Bytes, Bytes),
    Increment(Bytes, i64),
    Take(Bytes),
    Delete(Vec<Bytes>),
    Clear,
}

impl Op {
    fn command(&self) -> Command<'_> {
        match self {
            Op::Get(key) => Command::Get { key },
            Op::GetMany(keys) => Command::GetMany { keys: list(keys) },
            Op::Length(key) => Command::Length { key },
            Op::Exists(keys) => Command::Exists { keys: list(keys) },
            Op::Set(key, value, when, get) => Command::Set { key, value, when: *when, get: *get },
            Op::SetMany(pairs) => {
                Command::SetMany { pairs: pairs.iter().map(|(k, v)| (&k[..], &v[..])).collect() }
            }
            Op::Append(key, value) => Command::Append { key, value },
            Op::Increment(key, by) => Command::Increment { key, by: *by },
            Op::Take(key) => Command::Take { key },
            Op::Delete(keys) => Command::Delete { keys: list(keys) },
            Op::Clear => Command::Clear,
        }
    }
}

fn list(keys: &[Bytes]) -> Vec<&[u8]> {
    keys.iter().map(Vec::as_slice).collect()
}

fn value_or_nil(value: Option<&Bytes>) -> Outcome {
    value.map_or(Outcome::Nil, |value| Outcome::Value(value[..].into()))
}

#[derive(Default)]
struct Model(BTreeMap<Bytes, Bytes>);

impl Model {
    fn run(&mut self, op: &Op) -> Outcome {
        let map = &mut self.0;
        match op {
            Op::Get(key) => value_or_nil(map.get(key)),
            Op::GetMany(keys) => {
                Outcome::Values(keys.iter().map(|k| map.get(k).map(|v| v[..].into())).collect())
            }
            Op::Length(key) => Outcome::Integer(map.get(key).map_or(0, Vec::len) as i64),
            Op::Exists(keys) => {
                Outcome::Integer(keys.iter().filter(|key| map.contains_key(*key)).count() as i64)
            }
            Op::Set(key, value, when, get) => {
                let old = map.get(key).cloned();
                let allowed = match when {
                    When::Always => true,
                    When::Absent => old.is_none(),
                    When::Present => old.is_some(),
                };
                if allowed {
                    map.insert(key.clone(), value.clone());
                }
                match (get, allowed) {
                    (true, _) => value_or_nil(old.as_ref()),
                    (false, true) => Outcome::Done,
                    (false, false) => Outcome::Nil,
                }
            }
            Op::SetMany(pairs) => {
                map.extend(pairs.iter().cloned());
                Outcome::Done
            }
            Op::Append(key, value) => {
                let whole = map.entry(key.clone()).or_default();
                whole.extend_from_slice(value);
                Outcome::Integer(whole.len() as i64)
            }
            Op::Increment(key, by) => {
                let text = map.get(key).map_or(b"0".to_vec(), Clone::clone);
                let number = String::from_utf8(text.clone()).ok().and_then(|t| t.parse().ok());
                match number.filter(|number: &i64| number.to_string().as_bytes() == text) {
                    None => Outcome::Failed(Failure::NotAnInteger),
                    Some(number) => match number.checked_add(*by) {
                        None => Outcome::Failed(Failure::Overflow),
                        Some(sum) => {
                            map.insert(key.clone(), sum.to_string().into());
                            Outcome::Integer(sum)
                        }
                    },
                }
            }
            Op::Take(key) => value_or_nil(map.remove(key).as_ref()),
            Op::Delete(keys) => {
                Outcome::Integer(keys.iter().filter_map(|key| map.remove(key)).count() as i64)
            }
            Op::Clear => {
                map.clear();
                Outcome::Done
            }
        }
    }

    fn stats(&self) -> Stats {
        let bytes = self.0.iter().map(|(key, value)| (key.len() + value.len()) as u64).sum();
        Stats { keys: self.0.len() as u64, bytes }
    }
}

/// Few keys, so that commands meet; some share a slot by their tag, some are no text.
fn key() -> impl Strategy<Value = Bytes> {
    prop_oneof!["[a-d]", "\\{t\\}[a-d]", "", "[0-9]{2}"]
        .prop_map(Bytes::from)
        .boxed()
        .prop_union(Just(vec![0xff, 0, b'\n']).boxed())
}

fn value() -> impl Strategy<Value = Bytes> {
    prop_oneof![
        Just(Bytes::from("9223372036854775807")),
        Just(Bytes::from("-9223372036854775808")),
        "-?[0-9]{1,3}".prop_map(Bytes::from),
        prop::collection::vec(any::<u8>(), 0..20),
    ]
}

fn op() -> impl Strategy<Value = Op> {
    let keys = || prop::collection::vec(key(), 0..6);
    let when = prop_oneof![Just(When::Always), Just(When::Absent), Just(When::Present)];
    prop_oneof![
        2 => key().prop_map(Op::Get),
        2 => keys().prop_map(Op::GetMany),
        1 => key().prop_map(Op::Length),
        1 => keys().prop_map(Op::Exists),
        5 => (key(), value(), when, any::<bool>()).prop_map(|(k, v, w, g)| Op::Set(k, v, w, g)),
        3 => prop::collection::vec((key(), value()), 0..6).prop_map(Op::SetMany),
        2 => (key(), value()).prop_map(|(k, v)| Op::Append(k, v)),
        3 => (key(), prop_oneof![-3..3_i64, any::<i64>()]).prop_map(|(k, by)| Op::Increment(k, by)),
        1 => key().prop_map(Op::Take),
        1 => keys().prop_map(Op::Delete),
        1 => Just(Op::Clear),
    ]
}

/// All pages of a SCAN, one after the other.
fn scan_all(store: &Store, pattern: Option<&[u8]>, count: u64) -> Vec<Value> {
    let (mut cursor, mut names) = (0, Vec::new());
    loop {
        match store.read(&Command::Scan { cursor, pattern, count }) {
            Outcome::Page(next, page) => {
                names.extend(page);
                cursor = next;
            }
            other => panic!("{other:?}"),
        }
        if cursor == 0 {
            return names;
        }
    }
}

fn sorted(names: &[Value]) -> Vec<Bytes> {
    let mut names: Vec<Bytes> = names.iter().map(|name| name.to_vec()).collect();
    names.sort();
    names
}

proptest! {
    // Each case walks the slots of several stores, which takes a debug build a while.
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn random_batches_do_what_the_model_does(
        batches in prop::collection::vec(prop::collection::vec(op(), 0..6), 0..40),
        image_every in 3..20_usize,
    ) {
        let (mut writer, mut quiet, mut model) = (Writer::new(), Writer::new(), Model::default());
        let store = writer.store();
        let mut images = Vec::new();
        for (number, batch) in batches.iter().enumerate() {
            let commands: Vec<_> = batch.iter().map(Op::command).collect();
            let entry = entry(&writer, &commands);
            let expected = batch.iter().map(|op| model.run(op)).collect();
            prop_assert_eq!(writer.apply(&entry, true), Ok(Applied::Done(expected)));
            prop_assert_eq!(quiet.apply(&entry, false), Ok(Applied::Done(vec![])));
            prop_assert_eq!(store.stats(), model.stats());
            prop_assert_eq!(store.applied(), entry.index);
            if number % image_every == 0 {
                // Kept, so that later writes have to copy what it shares.
                images.push((writer.image(), model.0.clone()));
            }
        }

        let bytes = |writer: &Writer| {
            let mut bytes = Vec::new();
            writer.image().write(&mut bytes).unwrap();
            bytes
        };
        prop_assert_eq!(bytes(&writer), bytes(&quiet), "outcomes wanted or not, the state is one");
        for (image, expected) in images {
            let mut restored = Writer::new();
            restored.restore(image);
            prop_assert_eq!(restored.store().stats(), Model(expected.clone()).stats());
            for (key, value) in &expected {
                let found = restored.store().read(&Command::Get { key });
                prop_assert_eq!(found, value_or_nil(Some(value)));
            }
        }
    }

    #[test]
    fn keys_and_scan_find_what_matches(
        pairs in prop::collection::vec((key(), value()), 0..30),
        pattern in prop_oneof!["[a-d*?]{0,2}", "\\{t\\}\\*", "\\[a-b\\]"],
        count in 0..40_u64,
    ) {
        let mut writer = Writer::new();
        let pairs: BTreeMap<Bytes, Bytes> = pairs.into_iter().collect();
        let list = pairs.iter().map(|(key, value)| (&key[..], &value[..])).collect();
        apply(&mut writer, Command::SetMany { pairs: list });
        let store = writer.store();

        let pattern = pattern.as_bytes();
        let every: Vec<Bytes> = pairs.keys().cloned().collect();
        let matching: Vec<Bytes> =
            every.iter().filter(|key| glob::matches(pattern, key)).cloned().collect();
        let Outcome::Names(names) = store.read(&Command::Keys { pattern }) else { panic!() };
        prop_assert_eq!(sorted(&names), matching.clone());
        prop_assert_eq!(sorted(&scan_all(&store, Some(pattern), count)), matching);
        let names = scan_all(&store, None, count);
        prop_assert!(names.is_sorted_by_key(|name| (slot_of(name), name.clone())));
        prop_assert_eq!(sorted(&names), every);
        let all = store.read(&Command::Count);
        prop_assert_eq!(all, Outcome::Integer(pairs.len() as i64));
    }
}

#[test]
fn a_page_of_scan_ends_at_the_border_of_a_slot() {
    let mut writer = Writer::new();
    for key in ["{a}1", "{a}2", "{a}3", "{b}1", "{c}1"] {
        apply(&mut writer, set(key.as_bytes(), b""));
    }
    let store = writer.store();
    let mut slots = [slot_of(b"a"), slot_of(b"b"), slot_of(b"c")];
    slots.sort();
    let page = |cursor, count| match store.read(&Command::Scan { cursor, pattern: None, count }) {
        Outcome::Page(cursor, names) => (cursor, names.len()),
        other => panic!("{other:?}"),
    };
    assert_eq!(page(0, 1_000), (0, 5));
    for count in [0, 1, 2, 3] {
        let found = page(slot_of(b"a") as u64, count);
        assert_eq!(found, (slot_of(b"a") as u64 + 1, 3), "a slot is neither split nor passed");
    }
    assert_eq!(page(slots[2] as u64 + 1, 1), (0, 0));
    for beyond in [SLOTS as u64, u64::MAX] {
        assert_eq!(page(beyond, 10), (0, 0));
    }
}

#[test]
fn entries_out_of_order_are_refused_and_change_nothing() {
    let mut writer = Writer::new();
    let mut entry = entry(&writer, &[set(b"k", b"v")]);
    for found in [0, 2, u64::MAX] {
        entry.index = found;
        let error = ApplyError::OutOfOrder { expected: 1, found };
        assert_eq!(writer.apply(&entry, true), Err(error));
    }
    assert_eq!(writer.store().applied(), 0);
    assert_eq!(writer.store().stats(), Stats::default());
}

#[test]
fn a_noop_moves_the_index_and_a_copy_or_a_stale_request_does_no_more() {
    let mut writer = Writer::new();
    let noop = Entry { index: 1, term: 3, payload: Payload::Noop };
    assert_eq!(writer.apply(&noop, true), Ok(Applied::Nothing));
    let mut entry = entry(&writer, &[Command::Increment { key: b"n", by: 1 }]);
    let done = Applied::Done(vec![Outcome::Integer(1)]);
    assert_eq!(writer.apply(&entry, true), Ok(done));
    entry.index = 3;
    assert_eq!(writer.apply(&entry, true), Ok(Applied::Duplicate));
    let Payload::Batch(proposal) = &mut entry.payload else { panic!() };
    assert!(writer.requests().contains(proposal.id));
    (entry.index, proposal.id.boot) = (4, 0);
    assert_eq!(writer.apply(&entry, true), Ok(Applied::Stale));
    assert_eq!(writer.store().applied(), 4);
    assert_eq!(writer.store().read(&Command::Get { key: b"n" }), Outcome::Value((*b"1").into()));
}

#[test]
fn a_batch_that_cannot_be_read_is_an_error() {
    let mut writer = Writer::new();
    let mut entry = entry(&writer, &[set(b"k", b"v")]);
    let Payload::Batch(proposal) = &mut entry.payload else { panic!() };
    proposal.commands = proposal.commands.slice(..proposal.commands.len() - 1);
    let malformed = Malformed("value");
    assert_eq!(writer.apply(&entry, true), Err(ApplyError::Malformed { index: 1, malformed }));
    assert_eq!(writer.store().applied(), 0);
}
