//! Tests that need more than one file of the module: the state machine against a model of it,
//! merges in any order, the overlay, the byte form of images, and concurrent readers, a few and
//! hundreds.

mod crowd;
mod image;
mod merge;
mod model;
mod overlay;
mod threads;

use bytes::Bytes;

use super::{Applied, Writer};
use crate::types::{
    Command, Entry, NodeId, Outcome, Payload, Proposal, RequestId, Version, When, Write,
};

/// The entry that is next for `writer`, a fresh request with these commands.
fn entry(writer: &Writer, commands: &[Command<'_>]) -> Entry {
    stamped(writer, Version::new(1, Version::LOG), commands)
}

fn stamped(writer: &Writer, stamp: Version, commands: &[Command<'_>]) -> Entry {
    let mut bytes = Vec::new();
    for command in commands {
        command.encode(&mut bytes);
    }
    let index = writer.applied().index + 1;
    let id = RequestId { node: NodeId(1), boot: 1, seq: index };
    let proposal = Proposal { id, floor: index, commands: Bytes::from(bytes) };
    Entry { index, term: 1, payload: Payload::Batch { stamp, proposal } }
}

/// Applies one command; its outcome.
fn apply(writer: &mut Writer, command: Command<'_>) -> Outcome {
    let entry = entry(writer, &[command]);
    match writer.apply(&entry, true).unwrap() {
        Applied::Done(outcomes) => outcomes.into_iter().next().unwrap(),
        other => panic!("{other:?}"),
    }
}

/// Applies an entry that is not a batch; returns its result.
fn apply_payload(writer: &mut Writer, payload: Payload) -> Applied {
    let index = writer.applied().index + 1;
    writer.apply(&Entry { index, term: 1, payload }, false).unwrap()
}

/// Applies versioned writes; returns the numbers of those taken and those too late.
fn merge(writer: &mut Writer, writes: &[Write]) -> (u64, u64) {
    match apply_payload(writer, Payload::Merge(writes.into())) {
        Applied::Merged { taken, late } => (taken, late),
        other => panic!("{other:?}"),
    }
}

/// Applies a checkpoint; returns the digest there.
fn checkpoint(writer: &mut Writer, floor: u64) -> u64 {
    match apply_payload(writer, Payload::Checkpoint { floor: Version(floor) }) {
        Applied::Checkpoint { digest } => digest,
        other => panic!("{other:?}"),
    }
}

fn write(key: &[u8], value: Option<&[u8]>, version: u64) -> Write {
    Write { version: Version(version), key: key.into(), value: value.map(Into::into) }
}

fn value(value: &[u8]) -> Outcome {
    Outcome::Value(value.into())
}

fn image_bytes(writer: &Writer) -> Vec<u8> {
    let mut bytes = Vec::new();
    writer.image().write(&mut bytes).unwrap();
    bytes
}

fn set<'a>(key: &'a [u8], value: &'a [u8]) -> Command<'a> {
    Command::Set { key, value, when: When::Always, get: false }
}
