//! The state machine against a plain model over a sorted map.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::codec::Malformed;
use crate::store::glob;
use crate::store::slot::{SLOTS, slot_of};
use crate::store::{ApplyError, Image, Stats, Store};
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
    Merge(Bytes, Option<Bytes>, u64),
}

/// The payload of an entry.
#[derive(Clone, Debug)]
enum Step {
    Batch(u64, Vec<Op>),
    Merge(Vec<(Bytes, Option<Bytes>, u64)>),
    Checkpoint(u64),
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
            Op::Merge(key, value, version) => {
                Command::Merge { version: Version(*version), key, value: value.as_deref() }
            }
        }
    }
}

fn list(keys: &[Bytes]) -> Vec<&[u8]> {
    keys.iter().map(Vec::as_slice).collect()
}

fn value_or_nil(value: Option<&Bytes>) -> Outcome {
    value.map_or(Outcome::Nil, |value| Outcome::Value(value[..].into()))
}

/// The rules, word for word.
#[derive(Clone, Debug, Default)]
struct Model {
    /// Values and tombstones, and the versions of both.
    records: BTreeMap<Bytes, (Option<Bytes>, Version)>,
    floor: Version,
    latest: Version,
    /// Of the current batch.
    version: Version,
    late: u64,
}

impl Model {
    fn get(&self, key: &Bytes) -> Option<&Bytes> {
        self.records.get(key)?.0.as_ref()
    }

    fn set(&mut self, key: &Bytes, value: Option<Bytes>) -> Option<Bytes> {
        self.records.insert(key.clone(), (value, self.version))?.0
    }

    /// True if it was taken.
    fn merge(&mut self, key: &Bytes, value: &Option<Bytes>, version: Version) -> bool {
        self.latest = self.latest.max(version);
        let known = self.records.get(key).map(|(_, version)| *version);
        let newer = version > known.unwrap_or(self.floor);
        if newer {
            self.records.insert(key.clone(), (value.clone(), version));
        }
        self.late += u64::from(!newer && known.is_none());
        newer
    }

    fn step(&mut self, step: &Step) -> Applied {
        match step {
            Step::Batch(stamp, ops) => {
                self.version = Version(*stamp).max(self.latest.next_of_log());
                self.latest = self.version;
                Applied::Done(ops.iter().filter_map(|op| self.run(op)).collect())
            }
            Step::Merge(writes) => {
                let late = self.late;
                let taken = writes.iter().filter(|(k, v, n)| self.merge(k, v, Version(*n)));
                Applied::Merged { taken: taken.count() as u64, late: self.late - late }
            }
            Step::Checkpoint(floor) => {
                self.floor = self.floor.max(Version(*floor));
                self.latest = self.latest.max(Version(*floor));
                self.records.retain(|_, (value, at)| value.is_some() || *at > self.floor);
                Applied::Checkpoint { digest: 0 }
            }
        }
    }

    fn set_if(&mut self, key: &Bytes, value: &Bytes, when: When, get: bool) -> Outcome {
        let old = self.get(key).cloned();
        let allowed = match when {
            When::Always => true,
            When::Absent => old.is_none(),
            When::Present => old.is_some(),
        };
        if allowed {
            self.set(key, Some(value.clone()));
        }
        match (get, allowed) {
            (true, _) => value_or_nil(old.as_ref()),
            (false, true) => Outcome::Done,
            (false, false) => Outcome::Nil,
        }
    }

    fn run(&mut self, op: &Op) -> Option<Outcome> {
        Some(match op {
            Op::Get(key) => value_or_nil(self.get(key)),
            Op::GetMany(keys) => {
                Outcome::Values(keys.iter().map(|k| self.get(k).map(|v| v[..].into())).collect())
            }
            Op::Length(key) => Outcome::Integer(self.get(key).map_or(0, Vec::len) as i64),
            Op::Exists(keys) => {
                let found = keys.iter().filter(|key| self.get(key).is_some());
                Outcome::Integer(found.count() as i64)
            }
            Op::Set(key, value, when, get) => self.set_if(key, value, *when, *get),
            Op::SetMany(pairs) => {
                pairs.iter().for_each(|(key, value)| drop(self.set(key, Some(value.clone()))));
                Outcome::Done
            }
            Op::Append(key, value) => {
                let whole = [self.get(key).map_or(&[][..], |old| &old[..]), value].concat();
                let len = whole.len() as i64;
                self.set(key, Some(whole));
                Outcome::Integer(len)
            }
            Op::Increment(key, by) => {
                let text = self.get(key).map_or(b"0".to_vec(), Clone::clone);
                let number = String::from_utf8(text.clone()).ok().and_then(|t| t.parse().ok());
                match number.filter(|number: &i64| number.to_string().as_bytes() == text) {
                    None => Outcome::Failed(Failure::NotAnInteger),
                    Some(number) => match number.checked_add(*by) {
                        None => Outcome::Failed(Failure::Overflow),
                        Some(sum) => {
                            self.set(key, Some(sum.to_string().into()));
                            Outcome::Integer(sum)
                        }
                    },
                }
            }
            Op::Take(key) => match self.get(key) {
                Some(_) => value_or_nil(self.set(key, None).as_ref()),
                None => Outcome::Nil,
            },
            Op::Delete(keys) => {
                let existed = keys.iter().filter_map(|key| self.set(key, None));
                Outcome::Integer(existed.count() as i64)
            }
            Op::Clear => {
                self.records.clear();
                self.floor = self.version;
                Outcome::Done
            }
            Op::Merge(key, value, version) => {
                self.merge(key, value, Version(*version));
                if Version(*version) >= self.version {
                    self.version = self.latest.next_of_log();
                    self.latest = self.version;
                }
                return None;
            }
        })
    }

    fn stats(&self) -> Stats {
        let live = self.records.iter().filter_map(|(k, (v, _))| Some(k.len() + v.as_ref()?.len()));
        let keys = live.clone().count() as u64;
        let tombstones = self.records.len() as u64 - keys;
        Stats { keys, bytes: live.sum::<usize>() as u64, tombstones }
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
        2 => versioned().prop_map(|(key, value, version)| Op::Merge(key, value, version)),
    ]
}

/// Of about the versions that the log comes to by itself.
fn version() -> impl Strategy<Value = u64> {
    (0..40_u64, 0..3_u64).prop_map(|(tick, origin)| tick << 8 | origin)
}

fn versioned() -> impl Strategy<Value = (Bytes, Option<Bytes>, u64)> {
    (key(), prop::option::of(value()), version())
}

fn step() -> impl Strategy<Value = Step> {
    let batch = || prop::collection::vec(op(), 0..6);
    prop_oneof![
        6 => (version(), batch()).prop_map(|(at, ops)| Step::Batch(at, ops)),
        3 => prop::collection::vec(versioned(), 0..6).prop_map(Step::Merge),
        1 => version().prop_map(Step::Checkpoint),
    ]
}

/// The entry that is next for `writer` and holds `step`.
fn entry_of(writer: &Writer, step: &Step) -> Entry {
    let ops: &[Op] = if let Step::Batch(_, ops) = step { ops } else { &[] };
    let commands: Vec<_> = ops.iter().map(Op::command).collect();
    let mut entry = entry(writer, &commands);
    match (step, &mut entry.payload) {
        (Step::Batch(at, _), Payload::Batch { stamp, .. }) => *stamp = Version(*at),
        (Step::Merge(writes), payload) => {
            let writes = writes.iter().map(|(k, v, n)| write(k, v.as_deref(), *n));
            *payload = Payload::Merge(writes.collect());
        }
        (Step::Checkpoint(floor), payload) => {
            *payload = Payload::Checkpoint { floor: Version(*floor) }
        }
        _ => unreachable!("entries hold batches"),
    }
    entry
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
    fn random_entries_do_what_the_model_does(
        steps in prop::collection::vec(step(), 0..40),
        image_every in 3..20_usize,
    ) {
        let (mut writer, mut quiet, mut model) = (Writer::new(), Writer::new(), Model::default());
        let store = writer.store();
        let mut images = Vec::new();
        for (number, step) in steps.iter().enumerate() {
            let entry = entry_of(&writer, step);
            let mut expected = model.step(step);
            let applied = writer.apply(&entry, true);
            if let Applied::Checkpoint { digest } = &mut expected {
                *digest = writer.digest();
            }
            prop_assert_eq!(applied, Ok(expected.clone()));
            if let Applied::Done(outcomes) = &mut expected {
                outcomes.clear();
            }
            prop_assert_eq!(quiet.apply(&entry, false), Ok(expected));
            prop_assert_eq!(quiet.digest(), writer.digest());
            prop_assert_eq!(store.stats(), model.stats());
            prop_assert_eq!(store.applied(), entry.index);
            prop_assert_eq!((store.floor(), writer.latest()), (model.floor, model.latest));
            prop_assert_eq!(store.late(), model.late);
            if number % image_every == 0 {
                // Kept, so that later writes go into the deltas of shared maps.
                images.push((writer.image(), model.clone()));
            }
        }

        let bytes = image_bytes(&writer);
        prop_assert_eq!(&bytes, &image_bytes(&quiet), "outcomes wanted or not, the state is one");
        images.push((Image::read(&mut &bytes[..]).unwrap(), model));
        for (image, expected) in images {
            let mut restored = Writer::new();
            restored.restore(image);
            prop_assert_eq!(restored.store().stats(), expected.stats());
            for (key, (value, version)) in &expected.records {
                let found = restored.store().read(&Command::Get { key });
                prop_assert_eq!(found, value_or_nil(value.as_ref()));
                let older = merge(&mut restored, &[write(key, Some(b"older"), version.0)]);
                prop_assert_eq!(older, (0, 0), "the version is kept");
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
    let Payload::Batch { proposal, .. } = &mut entry.payload else { panic!() };
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
    let Payload::Batch { proposal, .. } = &mut entry.payload else { panic!() };
    proposal.commands = proposal.commands.slice(..proposal.commands.len() - 1);
    let malformed = Malformed("value");
    assert_eq!(writer.apply(&entry, true), Err(ApplyError::Malformed { index: 1, malformed }));
    assert_eq!(writer.store().applied(), 0);
}

#[test]
fn an_empty_log_gives_a_batch_without_a_stamp_a_version() {
    let (mut writer, mut model) = (Writer::new(), Model::default());
    let step = Step::Batch(0, Vec::new());
    let entry = entry_of(&writer, &step);
    assert_eq!(writer.apply(&entry, true), Ok(model.step(&step)));
    assert_eq!(writer.latest(), model.latest);
    assert_eq!(writer.latest(), Version::default().next_of_log());
}
