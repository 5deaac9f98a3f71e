//! Log entries and their one byte form, shared by WAL records and append messages.

use bytes::{BufMut, Bytes};

use super::{Index, NodeId, RequestId, Term};
use crate::codec::{Malformed, Reader, put_bytes};

/// What one client pipeline asked for, in one piece: its commands run in order, with nothing
/// between them, or none of them does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proposal {
    /// Its name.
    pub id: RequestId,
    /// Every number of this node and boot below `floor` has its answer already, so that a copy of
    /// one that comes later is dropped unseen.
    pub floor: u64,
    /// One encoded [`Command`](super::Command) after the other; never decoded on the way to apply.
    pub commands: Bytes,
}

/// What an entry holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Payload {
    /// A new leader's first entry: commits what came before it (Raft §5.4.2, §8).
    Noop,
    /// Work for the state machine.
    Batch(Proposal),
}

/// One entry of the replicated log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its position.
    pub index: Index,
    /// The term of the leader that appended it.
    pub term: Term,
    /// What it holds.
    pub payload: Payload,
}

/// What a snapshot stands for: the state after applying the log up to `index`, whose term is
/// `term`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SnapshotMeta {
    /// The last index that it includes.
    pub index: Index,
    /// The term of the entry there.
    pub term: Term,
}

impl Proposal {
    /// Bytes of an encoded proposal beside its commands.
    pub const OVERHEAD: usize = 4 + 8 + 8 + 8 + 4;

    /// Appends the byte form: node u32, boot u64, seq u64, floor u64, length u32, commands.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.put_u32_le(self.id.node.0);
        out.put_u64_le(self.id.boot);
        out.put_u64_le(self.id.seq);
        out.put_u64_le(self.floor);
        put_bytes(out, &self.commands);
    }

    /// Reads one proposal; its commands stay a slice of `frame`, which `reader` must be reading.
    pub fn decode(reader: &mut Reader<'_>, frame: &Bytes) -> Result<Proposal, Malformed> {
        let node = NodeId(reader.u32("request node")?);
        let boot = reader.u64("request boot")?;
        let seq = reader.u64("request number")?;
        let floor = reader.u64("request floor")?;
        let commands = frame.slice_ref(reader.bytes("commands")?);
        Ok(Proposal { id: RequestId { node, boot, seq }, floor, commands })
    }
}

impl Entry {
    const NOOP: u8 = 0;
    const BATCH: u8 = 1;

    /// The smallest encoded entry, in bytes.
    pub const ENCODED_LEN_MIN: usize = 8 + 8 + 1;

    /// The length of the byte form, in bytes.
    pub fn encoded_len(&self) -> usize {
        Entry::ENCODED_LEN_MIN
            + match &self.payload {
                Payload::Noop => 0,
                Payload::Batch(proposal) => Proposal::OVERHEAD + proposal.commands.len(),
            }
    }

    /// Appends the byte form: index u64, term u64, kind u8, then the proposal of a batch.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.put_u64_le(self.index);
        out.put_u64_le(self.term);
        match &self.payload {
            Payload::Noop => out.put_u8(Entry::NOOP),
            Payload::Batch(proposal) => {
                out.put_u8(Entry::BATCH);
                proposal.encode(out);
            }
        }
    }

    /// Reads one entry; its commands stay a slice of `frame`, which `reader` must be reading.
    pub fn decode(reader: &mut Reader<'_>, frame: &Bytes) -> Result<Entry, Malformed> {
        let index = reader.u64("entry index")?;
        let term = reader.u64("entry term")?;
        let payload = match reader.u8("entry kind")? {
            Entry::NOOP => Payload::Noop,
            Entry::BATCH => Payload::Batch(Proposal::decode(reader, frame)?),
            _ => return Err(Malformed("entry kind")),
        };
        Ok(Entry { index, term, payload })
    }
}
