//! The byte form of images: it reads back as it was written, and all damage is found.

use std::io::{self, Read};

use parking_lot::RwLock;
use proptest::prelude::*;

use super::*;
use crate::store::slot::{SLOTS, Slot};
use crate::store::{Image, ImageError, Store};
use crate::types::SnapshotMeta;

/// Values and tombstones.
fn small_writer() -> Writer {
    let pairs: Vec<_> = (0..5_u8).map(|i| (vec![b'k', i], vec![i; usize::from(i)])).collect();
    let mut writer = filled(&pairs);
    merge(&mut writer, &[write(b"gone", None, 900 << 8), write(b"k", Some(b"v"), 901 << 8)]);
    checkpoint(&mut writer, 77);
    writer
}

fn bytes_of(image: &Image) -> Vec<u8> {
    let mut bytes = Vec::new();
    let len = image.clone().write(&mut bytes).unwrap();
    assert_eq!(len, bytes.len() as u64);
    bytes
}

fn filled(pairs: &[(Vec<u8>, Vec<u8>)]) -> Writer {
    let mut writer = Writer::new();
    for (key, value) in pairs {
        apply(&mut writer, set(key, value));
    }
    writer
}

fn small() -> Vec<u8> {
    bytes_of(&small_writer().image())
}

/// A section with its lengths and checksums.
fn section(kind: u8, content: &[u8]) -> Vec<u8> {
    let mut section = vec![kind];
    section.extend((content.len() as u32).to_le_bytes());
    section.extend(crc32fast::hash(content).to_le_bytes());
    section.extend(crc32fast::hash(&section).to_le_bytes());
    section.extend(content);
    section
}

/// Gives one byte at a time, as a slow pipe might.
struct Trickle<'a>(&'a [u8]);

impl Read for Trickle<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let len = out.len().min(1);
        self.0.read(&mut out[..len])
    }
}

#[test]
fn an_empty_store_has_an_image_too() {
    let writer = Writer::new();
    let image = Image::read(&mut &bytes_of(&writer.image())[..]).unwrap();
    assert_eq!(image.meta(), SnapshotMeta::default());
    assert_eq!(image.stats().keys, 0);
}

#[test]
fn an_image_is_not_touched_by_later_writes() {
    let mut writer = filled(&[(b"a".into(), b"1".into()), (b"b".into(), b"2".into())]);
    let image = writer.image();
    let before = bytes_of(&image);
    for command in [
        set(b"a", b"other"),
        set(b"new", b"new"),
        Command::Append { key: b"b", value: b"2" },
        Command::Increment { key: b"b", by: 1 },
        Command::Delete { keys: vec![b"b"] },
        Command::Clear,
    ] {
        apply(&mut writer, command);
        assert_eq!(bytes_of(&image), before);
    }
    writer.restore(image);
    assert_eq!(bytes_of(&writer.image()), before);
    assert_eq!(writer.store().read(&Command::Get { key: b"b" }), Outcome::Value((*b"2").into()));
}

#[test]
fn a_restored_store_goes_on_where_the_image_ended() {
    let mut writer = filled(&[(b"n".into(), b"1".into())]);
    let duplicate = entry(&Writer::new(), &[set(b"n", b"1")]);
    let mut restored = Writer::new();
    let store = restored.store();
    restored.restore(Image::read(&mut &bytes_of(&writer.image())[..]).unwrap());
    assert_eq!(restored.applied(), SnapshotMeta { index: 1, term: 1 });
    assert_eq!((store.applied(), store.stats()), (1, writer.store().stats()));

    let again = Entry { index: 2, ..duplicate };
    assert_eq!(restored.apply(&again, true), Ok(Applied::Duplicate));
    assert_eq!(writer.apply(&again, true), Ok(Applied::Duplicate));
    assert_eq!(apply(&mut restored, Command::Increment { key: b"n", by: 1 }), Outcome::Integer(2));
}

#[test]
fn every_flipped_byte_is_found() {
    let sound = small();
    for at in 0..sound.len() {
        for flip in [0x01, 0x80, 0xff] {
            let mut bytes = sound.clone();
            bytes[at] ^= flip;
            let error = Image::read(&mut &bytes[..]).expect_err("a damaged image was taken");
            match error {
                ImageError::NewerFormat(_) => assert_eq!(at, 8),
                ImageError::Corrupt { .. } => {}
                other => panic!("{other}"),
            }
        }
    }
}

#[test]
fn every_missing_tail_is_found_and_so_is_one_byte_too_many() {
    let mut bytes = small();
    for len in 0..bytes.len() {
        let error = Image::read(&mut &bytes[..len]).expect_err("half an image was taken");
        assert!(matches!(error, ImageError::Corrupt { .. }));
    }
    bytes.push(0);
    let error = Image::read(&mut &bytes[..]).expect_err("more than an image was taken");
    let ImageError::Corrupt { offset, .. } = error else { panic!("{error}") };
    assert_eq!(offset, bytes.len() as u64 - 1);
}

/// The offsets of the sections of an image, by their length fields; then the end of the last one.
fn section_starts(bytes: &[u8]) -> Vec<usize> {
    let mut starts = vec![33];
    while let Some(&start) = starts.last()
        && start < bytes.len()
    {
        let len = u32::from_le_bytes(bytes[start + 1..start + 5].try_into().unwrap());
        starts.push(start + 13 + len as usize);
    }
    starts
}

#[test]
fn sections_that_are_missing_doubled_or_swapped_are_found() {
    let pairs: Vec<_> = (0..9_u8).map(|i| (vec![b'k', i], vec![i; 100_000])).collect();
    let bytes = bytes_of(&filled(&pairs).image());
    let starts = section_starts(&bytes);
    let sections: Vec<&[u8]> = starts.windows(2).map(|ends| &bytes[ends[0]..ends[1]]).collect();
    assert_eq!(sections.len(), 7, "requests, two records a section, end");
    assert!(sections.iter().all(|section| section.len() <= 13 + (256 << 10)));

    let rebuilt = |order: &[usize]| {
        let parts = order.iter().map(|&number| sections[number]);
        let whole: Vec<u8> = [&bytes[..33]].into_iter().chain(parts).flatten().copied().collect();
        Image::read(&mut &whole[..])
    };
    assert!(rebuilt(&[0, 1, 2, 3, 4, 5, 6]).is_ok());
    for order in [
        &[0, 1, 2, 4, 5, 6][..],
        &[0, 1, 2, 2, 3, 4, 5, 6],
        &[0, 2, 1, 3, 4, 5, 6],
        &[1, 2, 3, 4, 5, 6],
        &[0, 0, 1, 2, 3, 4, 5, 6],
        &[0, 6],
        &[6],
        &[],
    ] {
        assert!(matches!(rebuilt(order), Err(ImageError::Corrupt { .. })), "{order:?}");
    }
}

#[test]
fn a_record_longer_than_a_section_is_carried() {
    let pairs = [
        (b"a".to_vec(), vec![1; 10]),
        (vec![b'k'; 300_000], b"long key".to_vec()),
        (b"long value".to_vec(), vec![7; 3 << 20]),
    ];
    let bytes = bytes_of(&filled(&pairs).image());
    let image = Image::read(&mut &bytes[..]).unwrap();
    assert_eq!(bytes_of(&image), bytes);
}

#[test]
fn a_long_length_with_nothing_behind_it_allocates_little() {
    let mut bytes = small()[..33].to_vec();
    let mut head = vec![2, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0];
    head.extend(crc32fast::hash(&head).to_le_bytes());
    bytes.extend(head);
    let error = Image::read(&mut &bytes[..]).expect_err("there is no such section");
    assert!(error.to_string().contains("cut off"), "{error}");
}

#[test]
fn a_failing_source_is_not_called_damage() {
    struct Broken;
    impl Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::Error::other("the disk is on fire"))
        }
    }
    let bytes = small();
    for len in [0, 33, 40, bytes.len()] {
        let error = Image::read(&mut (&bytes[..len]).chain(Broken)).unwrap_err();
        assert!(matches!(error, ImageError::Io(_)), "{error}");
    }
}

#[test]
fn an_image_keeps_versions_tombstones_floor_and_digest() {
    let writer = small_writer();
    let bytes = bytes_of(&writer.image());
    let mut restored = Writer::new();
    restored.restore(Image::read(&mut &bytes[..]).unwrap());
    assert_eq!(restored.digest(), writer.digest());
    assert_eq!(restored.latest(), Version(901 << 8));
    assert_eq!(restored.store().floor(), Version(77));
    assert_eq!(restored.store().stats(), writer.store().stats());
    assert_eq!(restored.store().stats().tombstones, 1);
    assert_eq!(merge(&mut restored, &[write(b"gone", Some(b""), 899 << 8)]), (0, 0));
    assert_eq!(merge(&mut restored, &[write(b"k", Some(b""), 902 << 8)]), (1, 0));
    assert_eq!(bytes_of(&writer.image()), bytes);
}

#[test]
fn what_the_checksums_cannot_find_the_digest_does() {
    let bytes = small();
    let starts = section_starts(&bytes);
    assert_eq!(starts.len(), 4, "requests, records, end, and the end of that");
    let content = |number: usize| &bytes[starts[number] + 13..starts[number + 1]];
    let rebuilt = |records: &[u8], end: &[u8]| {
        let parts = [&bytes[..starts[1]], &section(2, records), &section(3, end)];
        Image::read(&mut &parts.concat()[..]).map(drop)
    };
    let (records, end) = (content(1), content(2));
    rebuilt(records, end).unwrap();
    for at in 24..48 {
        let mut end = end.to_vec();
        end[at] ^= 1;
        let error = rebuilt(records, &end).unwrap_err().to_string();
        assert!(error.contains("digest"), "{at}: {error}");
    }
    // The last byte of the last value, and of its version.
    for back in [1, records.len() - 4] {
        let mut records = records.to_vec();
        let at = records.len() - back;
        records[at] ^= 1;
        assert!(rebuilt(&records, end).is_err(), "{at}");
    }
}

proptest! {
    // Each case walks the slots of several stores, which takes a debug build a while.
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn images_come_back_as_they_were(
        pairs in prop::collection::vec(
            (prop::collection::vec(any::<u8>(), 0..6), prop::collection::vec(any::<u8>(), 0..40)),
            0..60,
        ),
    ) {
        let writer = filled(&pairs);
        let bytes = bytes_of(&writer.image());
        let image = Image::read(&mut Trickle(&bytes)).unwrap();
        prop_assert_eq!(image.meta(), writer.applied());
        prop_assert_eq!(image.requests(), writer.requests());
        prop_assert_eq!(image.stats(), writer.store().stats());
        prop_assert_eq!(bytes_of(&image), bytes);
        let mut restored = Writer::new();
        restored.restore(image);
        for (key, _) in &pairs {
            let command = Command::Get { key };
            prop_assert_eq!(restored.store().read(&command), writer.store().read(&command));
        }
    }
}

proptest! {
    #[test]
    fn arbitrary_bytes_are_refused_without_panic(
        mut mixed in Just(small()),
        keep in 0..400_usize,
        bytes in prop::collection::vec(any::<u8>(), 1..200),
    ) {
        mixed.truncate(keep);
        mixed.extend(&bytes);
        prop_assert!(Image::read(&mut &mixed[..]).is_err());
    }

    /// With checksums made right, so that the fields behind them are met.
    #[test]
    fn sections_of_arbitrary_bytes_never_panic(
        mut bytes in Just(small()),
        sections in prop::collection::vec(
            (0..4_u8, prop::collection::vec(prop_oneof![Just(0), Just(1), any::<u8>()], 0..60)),
            0..4,
        ),
    ) {
        bytes.truncate(33);
        let requests = (1, vec![0, 0, 0, 0]);
        for (kind, content) in [requests].iter().chain(&sections) {
            bytes.extend(section(*kind, content));
        }
        if let Ok(image) = Image::read(&mut &bytes[..]) {
            prop_assert_eq!(bytes_of(&image), bytes);
        }
    }
}

/// Counts at each piece of an image how many slots it still shares.
struct Shared<'a> {
    store: &'a Store,
    counts: Vec<usize>,
}

impl io::Write for Shared<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let is_shared = |slot: &&RwLock<Slot>| slot.read().base.is_shared();
        self.counts.push(self.store.slots.iter().filter(is_shared).count());
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_slot_that_is_written_is_not_shared_any_more() {
    let value = [7; 1_000];
    let pairs: Vec<_> =
        (0..2_000_u32).map(|i| (i.to_le_bytes().to_vec(), value.to_vec())).collect();
    let writer = filled(&pairs);
    // Empty slots share one empty map for good.
    let empty = |slot: &&RwLock<Slot>| slot.read().base.is_empty();
    let store = writer.store();
    let empty = store.slots.iter().filter(empty).count();
    let mut shared = Shared { store: &store, counts: Vec::new() };
    writer.image().write(&mut shared).unwrap();
    let counts = shared.counts;
    assert_eq!(counts.first(), Some(&SLOTS));
    assert_eq!(counts.last(), Some(&empty));
    assert!(counts.is_sorted_by(|earlier, later| earlier >= later), "{counts:?}");
    assert!(counts.iter().any(|count| (empty + 100..SLOTS - 100).contains(count)), "{counts:?}");
}
