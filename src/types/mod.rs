//! The words that every layer speaks: nodes ([`NodeId`]), places in the log ([`Term`], [`Index`]),
//! requests ([`Command`], [`Proposal`]) and their results ([`Outcome`], [`Rejected`], [`Unknown`]).
//! Plain values and their byte forms; no behaviour.

mod command;
mod entry;
mod integer;
mod record;
mod write;

pub use command::{Command, Failure, Outcome, Value, When};
pub use entry::{Entry, Payload, Proposal, SnapshotMeta};
pub use integer::parse_integer;
pub use record::{Record, SharedBytes};
pub use write::{Consistency, Key, Version, Write, Writes, decode_writes, encode_writes};

use std::fmt;

/// A node's identity in its cluster: its port unless `--id` says otherwise. Also its rank: of the
/// alive nodes the one with the highest id leads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub u32);

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A Raft group. There is one today; formats carry it so that many can come without a rewrite.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupId(pub u32);

/// A leader's period of office (Raft §5.1). 0 before the first election.
pub type Term = u64;

/// A position in the replicated log. The first entry has index 1; 0 stands before it.
pub type Index = u64;

/// Names one proposal for ever: the node that took it from a client, that node's process lifetime
/// (`boot`, grows with each start) and a number that grows within it. The state machine drops a
/// proposal whose id it has applied already.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId {
    /// The node whose client made the request.
    pub node: NodeId,
    /// That node's process lifetime.
    pub boot: u64,
    /// The number within it, from 1.
    pub seq: u64,
}

/// Why a request was **certainly not done**; trying again is safe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rejected {
    /// Fewer nodes than a majority are alive.
    #[error("quorum not reached")]
    NoQuorum,
    /// No leader was found before the request timed out. A read that times out gets this too, even
    /// if there is a leader and only this node's apply was slow: it has changed nothing.
    #[error("leader unavailable")]
    NoLeader,
    /// Too many requests are in flight.
    #[error("too many requests in flight")]
    Busy,
    /// The node is shutting down.
    #[error("node is shutting down")]
    Stopping,
    /// The disk has no room for another log segment.
    #[error("disk full")]
    DiskFull,
    /// This node's clock differs too much from the other nodes' to stamp versions.
    #[error("clocks of the nodes differ too much")]
    ClockSkew,
    /// This node joined with an empty directory and has not caught up yet.
    #[error("node is joining the cluster")]
    Joining,
}

/// Why the result of a request is not known: it **may or may not be done**.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unknown {
    /// It was proposed, and no result was seen in time.
    #[error("no result within the request timeout")]
    TimedOut,
    /// It was done; this node learned that from a snapshot, which does not carry results.
    #[error("the result was lost behind a snapshot")]
    ResultLost,
    /// It was interrupted: a part of it is done.
    #[error("interrupted, a part of it was done")]
    Partly,
    /// The node stopped before it saw the result.
    #[error("the node stopped before the result was known")]
    Stopped,
}

/// The end of a request that has no outcomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unserved {
    /// Certainly not done.
    #[error(transparent)]
    Rejected(#[from] Rejected),
    /// May or may not be done.
    #[error(transparent)]
    Unknown(#[from] Unknown),
}
