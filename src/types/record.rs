//! A key, its value and its version in one piece of memory, and shares in it.
//!
//! A store holds many small records. One allocation for each, behind a pointer of 8 bytes, keeps
//! the store small and a look-up short: the key that it compares stands right before the value. A
//! clone is a pointer and a count, so values and names leave the store without a copy, and an image
//! shares them.
//!
//! A share of a record keeps the whole record: a name on its way to a client keeps its value in
//! memory.

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::iter;
use std::ops::Deref;

use triomphe::{Arc, ThinArc};

use super::Version;

/// A key with its value, or a tombstone if it was deleted, and its version. Cheap to clone;
/// immutable.
#[derive(Clone)]
pub struct Record(ThinArc<Head, u8>);

/// The fields before the key and the value.
struct Head {
    version: Version,
    key_len: u32,
    /// True if there is a value, which may be empty; else the record is a tombstone.
    has_value: bool,
}

/// A key or a value that shares its record's memory: bytes that are cheap to clone.
#[derive(Clone)]
pub struct SharedBytes {
    record: Record,
    field: Field,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Field {
    Key,
    Value,
}

impl Record {
    /// Copies key and value into a new record; without a value it is a tombstone.
    ///
    /// # Panics
    /// On a key of 4 GiB or more, which no byte form can hold.
    pub fn new(version: Version, key: &[u8], value: Option<&[u8]>) -> Record {
        Record::build(version, key, value.is_some(), [value.unwrap_or_default(), &[]])
    }

    /// The same with a value that is made of two parts.
    pub fn joined(version: Version, key: &[u8], head: &[u8], tail: &[u8]) -> Record {
        Record::build(version, key, true, [head, tail])
    }

    fn build(version: Version, key: &[u8], has_value: bool, [head, tail]: [&[u8]; 2]) -> Record {
        let key_len = u32::try_from(key.len()).expect("limits keep keys far below 4 GiB");
        let len = key.len() + head.len() + tail.len();
        // Zeros first: that costs no more than joining the parts in a buffer, and saves a second
        // copy.
        let head_of_record = Head { version, key_len, has_value };
        let mut arc = ThinArc::from_header_and_iter(head_of_record, iter::repeat_n(0, len));
        arc.with_arc_mut(|arc| {
            let record = Arc::get_mut(arc).expect("a new record is not shared yet");
            let (of_key, of_value) = record.slice_mut().split_at_mut(key.len());
            let (of_head, of_tail) = of_value.split_at_mut(head.len());
            of_key.copy_from_slice(key);
            of_head.copy_from_slice(head);
            of_tail.copy_from_slice(tail);
        });
        Record(arc)
    }

    /// The same record at another version; a copy if the record is shared.
    pub(super) fn stamped(mut self, version: Version) -> Record {
        let is_unshared = self.0.with_arc_mut(|arc| match Arc::get_mut(arc) {
            Some(record) => {
                record.header_mut().version = version;
                true
            }
            None => false,
        });
        if is_unshared { self } else { Record::new(version, self.key(), self.value()) }
    }

    /// The version at which it was written.
    pub fn version(&self) -> Version {
        self.head().version
    }

    /// The key.
    pub fn key(&self) -> &[u8] {
        self.parts().0
    }

    /// The value; a tombstone, which remembers a deletion against older writes, has none.
    pub fn value(&self) -> Option<&[u8]> {
        self.has_value().then(|| self.parts().1)
    }

    /// False for a tombstone.
    pub fn has_value(&self) -> bool {
        self.head().has_value
    }

    /// A share of it that is its key.
    pub fn share_key(&self) -> SharedBytes {
        SharedBytes { record: self.clone(), field: Field::Key }
    }

    /// A share of it that is its value.
    pub fn share_value(&self) -> Option<SharedBytes> {
        self.has_value().then(|| self.clone().into_value())
    }

    /// The share of it that is its value, empty for a tombstone.
    fn into_value(self) -> SharedBytes {
        SharedBytes { record: self, field: Field::Value }
    }

    /// The record of these parts: without a copy if they are the two shares of one record of this
    /// version.
    pub(super) fn of(version: Version, key: &SharedBytes, value: Option<&SharedBytes>) -> Record {
        let record = &key.record;
        let is_value = |value: &SharedBytes| value.field == Field::Value && value.record.is(record);
        let is_same = key.field == Field::Key
            && record.version() == version
            && value.map_or(!record.has_value(), is_value);
        if is_same {
            record.clone()
        } else {
            Record::new(version, key, value.map(|value| &**value))
        }
    }

    /// True if both are one piece of memory.
    fn is(&self, other: &Record) -> bool {
        self.0.as_ptr() == other.0.as_ptr()
    }

    fn head(&self) -> &Head {
        &self.0.header.header
    }

    fn parts(&self) -> (&[u8], &[u8]) {
        self.0.slice.split_at(self.head().key_len as usize)
    }
}

impl PartialEq for Record {
    fn eq(&self, other: &Record) -> bool {
        (self.version(), self.key(), self.value()) == (other.version(), other.key(), other.value())
    }
}

impl Eq for Record {}

impl fmt::Debug for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Record")
            .field("version", &self.version())
            .field("key", &self.key())
            .field("value", &self.value())
            .finish()
    }
}

impl Deref for SharedBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        let (key, value) = self.record.parts();
        match self.field {
            Field::Key => key,
            Field::Value => value,
        }
    }
}

impl From<&[u8]> for SharedBytes {
    /// Copies the bytes into a record with an empty key.
    fn from(bytes: &[u8]) -> SharedBytes {
        Record::new(Version::default(), &[], Some(bytes)).into_value()
    }
}

impl<const N: usize> From<[u8; N]> for SharedBytes {
    fn from(bytes: [u8; N]) -> SharedBytes {
        SharedBytes::from(&bytes[..])
    }
}

impl From<Vec<u8>> for SharedBytes {
    fn from(bytes: Vec<u8>) -> SharedBytes {
        SharedBytes::from(&bytes[..])
    }
}

impl AsRef<[u8]> for SharedBytes {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl Borrow<[u8]> for SharedBytes {
    fn borrow(&self) -> &[u8] {
        self
    }
}

impl PartialEq for SharedBytes {
    fn eq(&self, other: &SharedBytes) -> bool {
        **self == **other
    }
}

impl Eq for SharedBytes {}

impl PartialOrd for SharedBytes {
    fn partial_cmp(&self, other: &SharedBytes) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for SharedBytes {
    fn cmp(&self, other: &SharedBytes) -> Ordering {
        (**self).cmp(&**other)
    }
}

impl Hash for SharedBytes {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (**self).hash(state);
    }
}

impl fmt::Debug for SharedBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VERSION: Version = Version(7);

    #[test]
    fn a_record_gives_back_what_it_was_made_of() {
        let long = vec![7; 100_000];
        for key in [&b""[..], b"k", b"key of some length", &long] {
            let tombstone = Record::new(VERSION, key, None);
            assert_eq!((tombstone.key(), tombstone.value()), (key, None));
            assert_eq!(tombstone.share_value(), None);
            for value in [&b""[..], b"v", &long] {
                let record = Record::new(VERSION, key, Some(value));
                assert_eq!(record.version(), VERSION);
                assert_eq!((record.key(), record.value()), (key, Some(value)));
                assert_eq!(&*record.share_key(), key);
                assert_eq!(record.share_value().as_deref(), Some(value));
                let (head, tail) = value.split_at(value.len() / 3);
                assert_eq!(Record::joined(VERSION, key, head, tail), record);
                assert_ne!(tombstone, record);
            }
        }
    }

    #[test]
    fn a_record_costs_32_bytes_beside_its_key_and_value_and_a_share_16() {
        assert_eq!(size_of::<Head>(), 16);
        assert_eq!(size_of::<Option<Record>>(), 8);
        assert_eq!(size_of::<Option<SharedBytes>>(), 16);
    }

    #[test]
    fn parts_that_are_a_record_already_are_not_copied() {
        let alive = Record::new(VERSION, b"k", Some(b"v"));
        let dead = Record::new(VERSION, b"k", None);
        let (key, value) = (alive.share_key(), alive.share_value());
        assert!(Record::of(VERSION, &key, value.as_ref()).is(&alive));
        assert!(Record::of(VERSION, &dead.share_key(), None).is(&dead));
    }

    #[test]
    fn a_new_version_does_not_change_a_shared_record() {
        let record = Record::new(VERSION, b"k", Some(b"v"));
        let held = record.clone();
        let later = record.stamped(Version(8));
        assert_eq!(held, Record::new(VERSION, b"k", Some(b"v")));
        assert_eq!(later, Record::new(Version(8), b"k", Some(b"v")));
        let place = later.key().as_ptr();
        assert_eq!(later.stamped(Version(9)).key().as_ptr(), place);
    }

    #[test]
    fn parts_of_something_else_become_a_record_of_their_own() {
        let record = Record::new(VERSION, b"k", Some(b"k"));
        let (key, value) = (record.share_key(), record.share_value().unwrap());
        let (own_key, own_value) = (SharedBytes::from(*b"k"), SharedBytes::from(*b"k"));
        for (version, key, value) in [
            (Version(8), &key, Some(&value)),
            (VERSION, &key, None),
            (VERSION, &key, Some(&own_value)),
            (VERSION, &key, Some(&key)),
            (VERSION, &value, Some(&value)),
            (VERSION, &own_key, Some(&value)),
            (Version(0), &own_value, Some(&own_value)),
        ] {
            let made = Record::of(version, key, value);
            assert!(!made.is(&record));
            assert_eq!(made, Record::new(version, b"k", value.map(|value| &**value)));
        }
    }
}
