//! Log entries, commands and versioned writes in their encoded forms. For any bytes:
//!
//! - a decoded entry, command or list of writes is the same after another encoding and decoding,
//!   and has the length that it reports;
//! - a batch of any bytes is applied or refused alike with and without outcomes, and the states are
//!   equal afterwards.

use bytes::Bytes;
use nodesync::codec::Reader;
use nodesync::store::Writer;
use nodesync::types::{
    Command, Entry, NodeId, Payload, Proposal, RequestId, Version, When, Write, decode_writes,
    encode_writes,
};

use super::{Case, Seeds};

pub fn run(case: &Case<'_>) -> bool {
    let commands = check_commands(case.bytes);
    let writes = check_writes(case.bytes);
    let entries = check_entries(case.bytes);
    commands || writes || entries
}

/// True if `bytes` consists of commands.
fn check_commands(bytes: &[u8]) -> bool {
    let (mut whole, mut known) = (true, Vec::new());
    for command in Command::decode_all(bytes) {
        let Ok(command) = command else {
            whole = false;
            break;
        };
        assert!(command.is_loggable(), "a decoded command can be logged: {command:?}");
        let before = known.len();
        command.encode(&mut known);
        let again = Command::decode(&mut Reader::new(&known[before..]));
        assert_eq!(again.as_ref(), Ok(&command));
    }
    assert!(bytes.starts_with(&known), "the encoded form is unique");
    // Each check makes two stores, so only a quarter of the batches are tried.
    if (whole || known.len() > 40) && crc32fast::hash(bytes).is_multiple_of(4) {
        check_batch(bytes, whole);
    }
    whole && !bytes.is_empty()
}

fn check_batch(bytes: &[u8], whole: bool) {
    let id = RequestId { node: NodeId(1), boot: 1, seq: 1 };
    let commands = Bytes::copy_from_slice(bytes);
    let payload = Payload::Batch {
        stamp: Version(crc32fast::hash(bytes).into()),
        proposal: Proposal { id, floor: 0, commands },
    };
    let entry = Entry { index: 1, term: 1, payload };
    let (mut with_outcomes, mut without) = (Writer::new(), Writer::new());
    let result = with_outcomes.apply(&entry, true).map(|_| ());
    let result_without = without.apply(&entry, false).map(|_| ());
    assert_eq!(result, result_without);
    assert_eq!(result.is_ok(), whole);
    assert_eq!(with_outcomes.digest(), without.digest());
}

/// True if `bytes` begins with a list of writes.
fn check_writes(bytes: &[u8]) -> bool {
    let mut reader = Reader::new(bytes);
    let Ok(writes) = decode_writes(&mut reader) else { return false };
    let read = bytes.len() - reader.rest().len();
    assert_eq!(read, 4 + writes.iter().map(Write::encoded_len).sum::<usize>());
    let mut again = Vec::new();
    encode_writes(&writes, &mut again);
    assert!(bytes.starts_with(&again), "the encoded form is unique");
    true
}

/// True if `bytes` consists of entries.
fn check_entries(bytes: &[u8]) -> bool {
    let frame = Bytes::copy_from_slice(bytes);
    let mut reader = Reader::new(&frame);
    while !reader.is_empty() {
        let Ok(entry) = Entry::decode(&mut reader, &frame) else { return false };
        let mut again = Vec::new();
        entry.encode(&mut again);
        assert_eq!(again.len(), entry.encoded_len());
        let again = Bytes::from(again);
        let mut reader = Reader::new(&again);
        assert_eq!(Entry::decode(&mut reader, &again), Ok(entry));
        assert!(reader.is_empty());
    }
    !bytes.is_empty()
}

fn commands() -> Vec<u8> {
    let commands = [
        Command::Set { key: b"k", value: b"12", when: When::Always, get: false },
        Command::Set { key: b"k", value: b"w", when: When::Absent, get: true },
        Command::SetMany { pairs: vec![(b"a", b"1"), (b"b", b"")] },
        Command::Append { key: b"a", value: b"0" },
        Command::Increment { key: b"a", by: i64::MAX },
        Command::Merge { version: Version(u64::MAX), key: b"m", value: Some(b"v") },
        Command::Get { key: b"k" },
        Command::GetMany { keys: vec![b"a", b"b"] },
        Command::Length { key: b"k" },
        Command::Exists { keys: vec![b"a", b"a"] },
        Command::Merge { version: Version(7), key: b"m", value: None },
        Command::Take { key: b"k" },
        Command::Delete { keys: vec![b"a", b"b"] },
        Command::Clear,
        Command::Increment { key: b"{tag}a", by: -1 },
    ];
    let mut bytes = Vec::new();
    commands.iter().for_each(|command| command.encode(&mut bytes));
    bytes
}

/// Write to a key of one letter.
pub fn write(version: u64, key: u8, value: Option<&[u8]>) -> Write {
    Write { version: Version(version), key: [key].as_slice().into(), value: value.map(Into::into) }
}

/// One entry of each kind, from `index` on.
pub fn entries(index: u64) -> Vec<Entry> {
    let id = RequestId { node: NodeId(5001), boot: 1_700_000_000_000, seq: index };
    let proposal = Proposal { id, floor: 1, commands: commands().into() };
    let writes = [write(900 << 8, b'a', Some(b"1")), write(901 << 8, b'b', None)];
    let payloads = [
        Payload::Noop,
        Payload::Batch { stamp: Version(902 << 8 | 255), proposal },
        Payload::Merge(writes.into()),
        Payload::Checkpoint { floor: Version(800 << 8) },
    ];
    let entry = |(at, payload)| Entry { index: index + at, term: 3, payload };
    (0..).zip(payloads).map(entry).collect()
}

pub fn seeds() -> Seeds {
    let mut all = Vec::new();
    entries(1).iter().for_each(|entry| entry.encode(&mut all));
    let mut writes = Vec::new();
    let (small, large) = (write(5 << 8, b'a', Some(b"")), write(6 << 8, b'b', Some(&[7; 100])));
    encode_writes(&[small, large, write(7 << 8, b'c', None)], &mut writes);
    [("commands", commands()), ("entries", all), ("writes", writes)]
        .map(|(name, bytes)| (name.to_owned(), bytes))
        .to_vec()
}
