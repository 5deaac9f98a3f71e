//! Log entries and their one byte form, shared by WAL records and append messages.

use bytes::{BufMut, Bytes};

use super::{Index, NodeId, RequestId, Term, Version, Write, Writes, decode_writes, encode_writes};
use crate::codec::{Malformed, Reader, put_bytes};

/// The commands of one client pipeline in one piece: they run in order, with no other command
/// between them, or none of them runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proposal {
    /// The id by which the state machine drops a second copy.
    pub id: RequestId,
    /// Every request of this node and boot with a lower number is settled: a later copy of it is
    /// dropped.
    pub floor: u64,
    /// Encoded [`Command`](super::Command)s, one after the other; decoded only where they are
    /// applied.
    pub commands: Bytes,
}

/// The content of an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Payload {
    /// A new leader's first entry: commits the entries before it (Raft §5.4.2, §8).
    Noop,
    /// Work for the state machine.
    Batch {
        /// The leader's hybrid clock when it appended the entry. The batch's writes have this
        /// version, or a later one if the log has held a later one before.
        stamp: Version,
        /// The commands to run.
        proposal: Proposal,
    },
    /// Writes of eventual sessions. Each counts only if it is the newest of its key, so the same
    /// write may come any number of times.
    Merge(Writes),
    /// A checkpoint that the leader sets now and then: all replicas compare their states there, and
    /// forget the tombstones up to `floor`.
    Checkpoint {
        /// Writes up to this version to keys without a record are too late.
        floor: Version,
    },
}

/// One entry of the replicated log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its position.
    pub index: Index,
    /// The term of the leader that appended it.
    pub term: Term,
    /// Its content.
    pub payload: Payload,
}

/// The place of a snapshot in the log: the state after applying the log up to `index`, whose entry
/// has the term `term`.
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
    // Kind 1 stays unused: programs older than the first release wrote it.
    const NOOP: u8 = 0;
    const BATCH: u8 = 2;
    const MERGE: u8 = 3;
    const CHECKPOINT: u8 = 4;

    /// The smallest encoded entry, in bytes.
    pub const ENCODED_LEN_MIN: usize = 8 + 8 + 1;

    /// The length of the byte form, in bytes.
    pub fn encoded_len(&self) -> usize {
        Entry::ENCODED_LEN_MIN
            + match &self.payload {
                Payload::Noop => 0,
                Payload::Batch { proposal, .. } => 8 + Proposal::OVERHEAD + proposal.commands.len(),
                Payload::Merge(writes) => 4 + writes.iter().map(Write::encoded_len).sum::<usize>(),
                Payload::Checkpoint { .. } => 8,
            }
    }

    /// Appends the byte form: index u64, term u64, kind u8; then for a batch its
    /// stamp u64 and proposal, for a merge its writes, for a checkpoint its floor u64.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.put_u64_le(self.index);
        out.put_u64_le(self.term);
        match &self.payload {
            Payload::Noop => out.put_u8(Entry::NOOP),
            Payload::Batch { stamp, proposal } => {
                out.put_u8(Entry::BATCH);
                out.put_u64_le(stamp.0);
                proposal.encode(out);
            }
            Payload::Merge(writes) => {
                out.put_u8(Entry::MERGE);
                encode_writes(writes, out);
            }
            Payload::Checkpoint { floor } => {
                out.put_u8(Entry::CHECKPOINT);
                out.put_u64_le(floor.0);
            }
        }
    }

    /// Reads one entry; its commands stay a slice of `frame`, which `reader` must be reading.
    pub fn decode(reader: &mut Reader<'_>, frame: &Bytes) -> Result<Entry, Malformed> {
        let index = reader.u64("entry index")?;
        let term = reader.u64("entry term")?;
        let payload = match reader.u8("entry kind")? {
            Entry::NOOP => Payload::Noop,
            Entry::BATCH => Payload::Batch {
                stamp: Version(reader.u64("stamp")?),
                proposal: Proposal::decode(reader, frame)?,
            },
            Entry::MERGE => Payload::Merge(decode_writes(reader)?),
            Entry::CHECKPOINT => Payload::Checkpoint { floor: Version(reader.u64("floor")?) },
            _ => return Err(Malformed("entry kind")),
        };
        Ok(Entry { index, term, payload })
    }
}
