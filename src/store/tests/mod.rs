//! Tests that need more than one file of the module: the state machine against a model of it, the
//! byte form of images, and readers beside the writer.

mod image;
mod model;
mod threads;

use bytes::Bytes;

use super::{Applied, Writer};
use crate::types::{Command, Entry, NodeId, Outcome, Payload, Proposal, RequestId, When};

/// The entry that is next for `writer`, a fresh request with these commands.
fn entry(writer: &Writer, commands: &[Command<'_>]) -> Entry {
    let mut bytes = Vec::new();
    for command in commands {
        command.encode(&mut bytes);
    }
    let index = writer.applied().index + 1;
    let id = RequestId { node: NodeId(1), boot: 1, seq: index };
    let proposal = Proposal { id, floor: index, commands: Bytes::from(bytes) };
    Entry { index, term: 1, payload: Payload::Batch(proposal) }
}

/// Applies one command; its outcome.
fn apply(writer: &mut Writer, command: Command<'_>) -> Outcome {
    let entry = entry(writer, &[command]);
    match writer.apply(&entry, true).unwrap() {
        Applied::Done(outcomes) => outcomes.into_iter().next().unwrap(),
        other => panic!("{other:?}"),
    }
}

fn set<'a>(key: &'a [u8], value: &'a [u8]) -> Command<'a> {
    Command::Set { key, value, when: When::Always, get: false }
}
