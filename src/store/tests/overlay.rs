//! Newest reads against plain maps, and the removal of superseded records from the overlay.

use std::collections::BTreeMap;
use std::slice;

use proptest::prelude::*;

use super::*;
use crate::store::Store;

fn newest(store: &Store, key: &[u8]) -> Outcome {
    store.read_newest(&Command::Get { key })
}

#[test]
fn an_put_write_is_seen_by_eventual_readers_alone_until_it_is_drained() {
    let mut writer = Writer::new();
    let store = writer.store();
    apply(&mut writer, set(b"b", b"base"));
    let at = writer.latest().0;
    let writes = [
        write(b"a", Some(b"1"), at + 1),
        write(b"b", None, at + 2),
        write(b"a", Some(b"2"), at + 3),
        write(b"c", None, at + 4),
    ];
    assert_eq!(store.put_overlay(&writes), [false, true, true, false]);
    assert_eq!(store.overlaid(), 3);
    assert_eq!(newest(&store, b"a"), value(b"2"));
    assert_eq!(newest(&store, b"b"), Outcome::Nil);
    assert_eq!(store.read(&Command::Get { key: b"a" }), Outcome::Nil);
    assert_eq!(store.read(&Command::Get { key: b"b" }), value(b"base"));
    assert_eq!(store.read(&Command::Count), Outcome::Integer(1));
    assert_eq!(store.read_newest(&Command::Count), Outcome::Integer(1));

    merge(&mut writer, &writes[..2]);
    assert_eq!(store.overlaid(), 2, "the second write to a is newer than the first");
    merge(&mut writer, &writes);
    assert_eq!(store.overlaid(), 0);
    assert_eq!(store.read(&Command::Get { key: b"a" }), value(b"2"));
}

#[test]
fn a_write_that_is_superseded_already_leaves_nothing_in_the_overlay() {
    let mut writer = Writer::new();
    let store = writer.store();
    let drained = [write(b"a", Some(b"1"), 100), write(b"b", None, 100)];
    merge(&mut writer, &drained);
    assert_eq!(store.put_overlay(&drained), [true, false]);
    assert_eq!(store.overlaid(), 0);
    store.put_overlay(&[write(b"a", Some(b"3"), 300)]);
    assert_eq!(store.put_overlay(&[write(b"a", Some(b"2"), 200)]), [true]);
    assert_eq!(newest(&store, b"a"), value(b"3"));
    checkpoint(&mut writer, 500);
    assert_eq!(store.put_overlay(&[write(b"none", Some(b""), 500)]), [false]);
    assert_eq!(newest(&store, b"none"), Outcome::Nil);
    assert_eq!(store.overlaid(), 1);
}

#[test]
fn a_strong_write_removes_what_is_older_and_leaves_what_is_newer() {
    let mut writer = Writer::new();
    let store = writer.store();
    let far = 900 << 8;
    let both = |key: &[u8]| [write(key, Some(b"old"), 1), write(&[key, b"+"].concat(), None, far)];
    for key in [b"a", b"b", b"c"] {
        store.put_overlay(&both(key));
    }
    for command in [
        Command::SetMany { pairs: vec![(b"a", b"1"), (b"a+", b"1")] },
        Command::Delete { keys: vec![b"b", b"b+"] },
        set(b"c", b"1"),
        set(b"c+", b"1"),
    ] {
        apply(&mut writer, command);
    }
    assert_eq!(store.overlaid(), 3);
    assert_eq!((newest(&store, b"a"), newest(&store, b"b")), (value(b"1"), Outcome::Nil));
    assert_eq!((newest(&store, b"a+"), newest(&store, b"c+")), (Outcome::Nil, Outcome::Nil));
}

#[test]
fn a_refused_late_write_leaves_the_overlay_and_so_does_what_an_image_or_a_clear_supersedes() {
    let mut writer = Writer::new();
    let store = writer.store();
    let late = write(b"late", Some(b""), 10);
    store.put_overlay(slice::from_ref(&late));
    checkpoint(&mut writer, 20);
    assert_eq!(newest(&store, b"late"), Outcome::Nil);
    assert_eq!(merge(&mut writer, &[late]), (0, 1));
    assert_eq!(store.overlaid(), 0);

    let (old, new) = (write(b"old", Some(b""), 50), write(b"new", Some(b"n"), 900 << 8));
    store.put_overlay(&[old.clone(), new.clone(), write(b"other", Some(b""), 60)]);
    let mut ahead = Writer::new();
    merge(&mut ahead, &[old]);
    checkpoint(&mut ahead, 70);
    writer.restore(ahead.image());
    assert_eq!(store.overlaid(), 1);
    assert_eq!(newest(&store, b"new"), value(b"n"));

    apply(&mut writer, Command::Clear);
    assert_eq!((store.overlaid(), newest(&store, b"new")), (1, value(b"n")));
    merge(&mut writer, &[write(b"x", None, 950 << 8)]);
    apply(&mut writer, Command::Clear);
    assert_eq!((store.overlaid(), newest(&store, b"new")), (0, Outcome::Nil));
}

#[test]
fn what_is_undrained_stands_in_front_of_the_commands_that_need_it() {
    let mut writer = Writer::new();
    let store = writer.store();
    let encoded = |commands: &[Command<'_>]| {
        let mut bytes = Vec::new();
        commands.iter().for_each(|command| command.encode(&mut bytes));
        bytes
    };
    let commands = [
        Command::Increment { key: b"n", by: 1 },
        Command::GetMany { keys: vec![b"n", b"gone", b"none"] },
        Command::SetMany { pairs: vec![(b"gone", b"x"), (b"done", b"x")] },
    ];
    let bytes = encoded(&commands);
    assert!(store.undrained(&bytes).0.is_empty());
    let done = write(b"done", Some(b"d"), 10);
    let more = [write(b"n", Some(b"7"), 30), write(b"gone", None, 40), write(b"else", None, 50)];
    store.put_overlay(slice::from_ref(&done));
    store.put_overlay(&more);
    merge(&mut writer, &[done]);

    let front = [
        Command::Merge { version: Version(30), key: b"n", value: Some(b"7") },
        Command::Merge { version: Version(40), key: b"gone", value: None },
    ];
    assert_eq!(store.undrained(&bytes), (encoded(&front), Version(40)));
    let entry = entry(&writer, &[&front[..], &commands[..1]].concat());
    let done = Applied::Done(vec![Outcome::Integer(8)]);
    assert_eq!(writer.apply(&entry, true), Ok(done));
    assert_eq!(store.overlaid(), 1);
    assert!(store.undrained(&bytes).0.is_empty());
    assert!(store.undrained(&bytes[..3]).0.is_empty(), "half a command names no key");
}

#[derive(Clone, Debug)]
enum Action {
    PutOverlay(Vec<(u8, Option<u8>, u64)>),
    /// The writes to keys below, oldest first or last.
    Drain(u8, bool),
    Strong(Vec<(u8, Option<u8>)>),
    Clear,
    Checkpoint(u64),
    Restore,
}

/// Key → value or deletion, and its version.
type Plain = BTreeMap<u8, (Option<u8>, Version)>;

fn action() -> impl Strategy<Value = Action> {
    let change = || (0..6_u8, prop::option::of(any::<u8>()));
    let put = (change(), 0..50_u64).prop_map(|((key, value), tick)| (key, value, tick << 8));
    prop_oneof![
        6 => prop::collection::vec(put, 1..6).prop_map(Action::PutOverlay),
        3 => (0..8_u8, any::<bool>()).prop_map(|(below, first)| Action::Drain(below, first)),
        3 => prop::collection::vec(change(), 1..3).prop_map(Action::Strong),
        1 => Just(Action::Clear),
        1 => (0..50_u64).prop_map(|tick| Action::Checkpoint(tick << 8)),
        1 => Just(Action::Restore),
    ]
}

/// Keys of several slots, two of which share one.
fn name(key: u8) -> Vec<u8> {
    if key < 2 { vec![b'{', b't', b'}', key] } else { vec![key] }
}

/// Base and overlay, as the rules have it.
#[derive(Default)]
struct Model {
    base: Plain,
    over: Plain,
    floor: Version,
}

impl Model {
    fn known(&self, key: u8) -> Version {
        self.base.get(&key).map_or(self.floor, |(_, version)| *version)
    }

    fn newest(&self, key: u8) -> Option<u8> {
        self.over.get(&key).or(self.base.get(&key))?.0
    }

    fn forget(&mut self) {
        let over = std::mem::take(&mut self.over);
        let counts = |(key, (_, version)): &(u8, (_, Version))| *version > self.known(*key);
        self.over = over.into_iter().filter(counts).collect();
    }

    fn run(&mut self, writer: &mut Writer, action: &Action) {
        let writes = |plain: &Plain| -> Vec<Write> {
            let write = |(key, (value, version)): (&u8, &(Option<u8>, Version))| {
                write(&name(*key), value.as_ref().map(slice::from_ref), version.0)
            };
            plain.iter().map(write).collect()
        };
        match action {
            Action::PutOverlay(changes) => {
                for (key, value, version) in changes {
                    let put = (*value, Version(*version));
                    let one = writes(&[(*key, put)].into());
                    let existed = self.newest(*key).is_some();
                    assert_eq!(writer.store().put_overlay(&one), [existed]);
                    let known = self.over.get(key).map_or(self.known(*key), |(_, at)| *at);
                    if put.1 > known {
                        self.over.insert(*key, put);
                    }
                }
            }
            Action::Drain(below, first) => {
                let drained: Plain = self.over.range(..below).map(|(k, v)| (*k, *v)).collect();
                let mut list = writes(&drained);
                if !first {
                    list.reverse();
                }
                merge(writer, &list);
                self.base.extend(drained);
            }
            Action::Strong(changes) => {
                for (key, value) in changes {
                    let (key_name, byte) = (name(*key), value.unwrap_or_default());
                    apply(
                        writer,
                        match value {
                            Some(_) => set(&key_name, slice::from_ref(&byte)),
                            None => Command::Delete { keys: vec![&key_name] },
                        },
                    );
                    self.base.insert(*key, (*value, writer.latest()));
                }
            }
            Action::Clear => {
                apply(writer, Command::Clear);
                self.base.clear();
                self.floor = writer.latest();
            }
            Action::Checkpoint(floor) => {
                checkpoint(writer, *floor);
                self.floor = self.floor.max(Version(*floor));
                self.base.retain(|_, (value, version)| value.is_some() || *version > self.floor);
            }
            Action::Restore => drop(writer.restore(writer.image())),
        }
        self.forget();
    }
}

proptest! {
    // Each case walks the slots again and again, which takes a debug build a while.
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn eventual_readers_see_the_newer_of_overlay_and_base(
        actions in prop::collection::vec(action(), 0..24),
    ) {
        let (mut writer, mut model) = (Writer::new(), Model::default());
        let store = writer.store();
        for action in &actions {
            model.run(&mut writer, action);
            prop_assert!(store.overlaid() >= model.over.len() as u64);
            let names: Vec<_> = (0..6).map(name).collect();
            let keys: Vec<&[u8]> = names.iter().map(Vec::as_slice).collect();
            let expected: Vec<_> = (0..6).map(|key| model.newest(key)).collect();
            let values = expected.iter().map(|v| v.map(|value| [value].as_slice().into()));
            let live = expected.iter().flatten().count() as i64;
            let found = store.read_newest(&Command::GetMany { keys: keys.clone() });
            prop_assert_eq!(found, Outcome::Values(values.collect()));
            let exists = store.read_newest(&Command::Exists { keys });
            prop_assert_eq!(exists, Outcome::Integer(live));
            prop_assert_eq!(store.read_newest(&Command::Count), Outcome::Integer(live));
        }
        let alive = |key: &u8| model.newest(*key).is_some();
        let mut expected: Vec<Vec<u8>> = (0..6).filter(alive).map(name).collect();
        expected.sort_by_key(|name| (crate::store::slot::slot_of(name), name.clone()));
        let expected: Vec<_> = expected.iter().map(|name| name.as_slice().into()).collect();
        let names = store.read_newest(&Command::Keys { pattern: b"*" });
        prop_assert_eq!(names, Outcome::Names(expected.clone()));
        let scan = Command::Scan { cursor: 0, pattern: None, count: u64::MAX };
        prop_assert_eq!(store.read_newest(&scan), Outcome::Page(0, expected));
    }
}
