//! What a replica is told ([`Input`]) and what it asks to be done ([`Effects`]), with the order in
//! which that must happen: the contract between the pure core and whoever drives it.

use std::collections::BTreeSet;

use bytes::Bytes;

use super::detector::Liveness;
use super::{Envelope, WalRecord};
use crate::types::{
    Entry, Index, NodeId, Rejected, RequestId, SnapshotMeta, Term, Unserved, Write, Writes,
};

/// Numbers the batches that a replica has asked to be made durable.
pub type JobNo = u64;

/// Names one wait of a session for the right to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReadId(pub u64);

/// The deadlines of a replica, each watched by a thread of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Alarm {
    /// Time to tell the peers that this node is alive, and to look after what is overdue.
    Heartbeat,
    /// Time to campaign, or to give a campaign up.
    Election,
    /// Time to bring eventual writes into the log.
    Drain,
}

/// What happened.
#[derive(Clone, Debug)]
pub enum Input {
    /// A session asks for commands to be executed. `id` comes from
    /// [`Replica::next_request`](super::Replica::next_request).
    Propose {
        /// The request's name.
        id: RequestId,
        /// Encoded commands, see [`Proposal`](crate::types::Proposal).
        commands: Bytes,
    },
    /// A session asks for eventual writes to be taken. `id` comes from
    /// [`Replica::next_stamp`](super::Replica::next_accept).
    Stamp {
        /// The request's name.
        id: RequestId,
        /// The writes, not stamped yet.
        writes: Vec<Write>,
    },
    /// A session asks for the right to read. The id comes from
    /// [`Replica::next_read`](super::Replica::next_read).
    Read(ReadId),
    /// Nobody waits for this read any longer.
    CancelRead(ReadId),
    /// A peer said something.
    Message(Envelope),
    /// A deadline has passed (see [`Replica::deadline`](super::Replica::deadline)); too early is
    /// harmless.
    Alarm(Alarm),
    /// The detector changed its mind about a peer.
    Peer {
        /// The peer.
        peer: NodeId,
        /// What is thought of it now.
        liveness: Liveness,
    },
    /// The peer's port refuses connections: its process is gone.
    PeerGone(NodeId),
    /// A link to this peer is new: what was sent on the old one may be lost.
    LinkUp(NodeId),
    /// Everything up to and including this job is durable.
    Persisted(JobNo),
    /// The machine's wall clock, in microseconds since 1970; to be told at each heartbeat.
    Clock(u64),
    /// A [mark](crate::types::Payload::Checkpoint) was applied.
    CheckpointApplied {
        /// Where it stands in the log.
        index: Index,
        /// The digest of the state there.
        digest: u64,
    },
    /// The image of this snapshot is durable on this node.
    SnapshotTaken {
        /// What it holds.
        meta: SnapshotMeta,
        /// How long it is.
        bytes: u64,
    },
    /// The image asked for by [`Apply::Snapshot`] could not be written.
    SnapshotFailed,
    /// An image from a peer is complete, verified and durable on this node.
    SnapshotArrived {
        /// Who sent it.
        from: NodeId,
        /// What it holds.
        meta: SnapshotMeta,
    },
    /// The image for this peer was sent, or could not be.
    SnapshotSent {
        /// The peer.
        to: NodeId,
        /// Sent to the end.
        sent: bool,
    },
    /// The disk has no room for further log segments, or has room again.
    DiskFull(bool),
    /// The node is about to stop: hand over, take nothing new.
    Stop,
}

/// Work for the thread that owns the store, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Apply {
    /// Committed entries, the first one following the last of the previous work.
    Entries(Vec<Entry>),
    /// Put the image of this snapshot, which is on this node's disk, in place of everything.
    Restore(SnapshotMeta),
    /// Take an image of the state as of the last entry.
    Snapshot(SnapshotMeta),
}

/// Something worth a line in the node's log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// This node stands for election.
    Campaign {
        /// In this term (for a pre-vote: the term it would be).
        term: Term,
        /// Why.
        cause: Cause,
    },
    /// A leader is known.
    Leader {
        /// Who.
        leader: NodeId,
        /// Since which term.
        term: Term,
    },
    /// This node no longer leads.
    SteppedDown(Cause),
    /// This node hands the leadership over.
    Transfer {
        /// To whom.
        to: NodeId,
    },
    /// The hand-over came to nothing in time.
    TransferFailed {
        /// To whom it should have gone.
        to: NodeId,
    },
    /// This node founded the cluster together with all others.
    Founded,
    /// This node's directory was empty in a cluster that knows it; it has to catch up first.
    CatchingUp,
    /// It has caught up and is a full member.
    CaughtUp,
    /// Fewer nodes than a majority are alive; this one takes eventual writes.
    QuorumLost {
        /// Who takes them: the highest node alive.
        accepts: NodeId,
    },
    /// A majority is alive again.
    QuorumBack,
    /// The wall clock has jumped so far that it is not believed.
    ClockJumped {
        /// Microseconds ahead of what it should show; negative if behind.
        by: i64,
    },
    /// A peer has sent eventual writes from too far in the future, which were not taken.
    FutureWrites {
        /// Who.
        from: NodeId,
        /// How far ahead of this node's clock, in microseconds.
        ahead: u64,
    },
    /// At least as many of the members that are alive show another time than this node as show the
    /// same: it stamps nothing.
    ClockDoubted {
        /// How many.
        members: usize,
    },
    /// Versions lie further ahead of this node's clock than clocks may differ: it stamps nothing
    /// until the clock has caught up.
    ClockBehind,
}

/// Why an election was held, or a leader stepped down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// Nothing was heard of a leader within the election timeout.
    LeaderSilent,
    /// The leader's process is gone.
    LeaderGone,
    /// The leader handed over.
    Transfer,
    /// The only member.
    Alone,
    /// No majority was heard within the election timeout.
    QuorumLost,
    /// The disk has not answered for too long.
    DiskStalled,
    /// Somebody is in a newer term.
    NewerTerm,
}

/// What shall be done. Filled by [`Replica::step`](super::Replica::step), emptied by whoever
/// carries it out, in this order.
#[derive(Debug, Default)]
pub struct Effects {
    /// To be written to the log in this order, then synced.
    pub persist: Vec<WalRecord>,
    /// To be sent once `persist` and everything before it is durable.
    pub after_persist: Vec<Envelope>,
    /// The number to report as [`Input::Persisted`] once that is so; 0 if there is nothing to
    /// write.
    pub job: JobNo,
    /// To be sent at once.
    pub send: Vec<Envelope>,
    /// Peers for which [`Replica::pull`](super::Replica::pull) has something.
    pub pull: BTreeSet<NodeId>,
    /// Work for the store, in order.
    pub apply: Vec<Apply>,
    /// These reads may be served once the index is applied.
    pub reads: Vec<(ReadId, Index)>,
    /// These eventual writes are taken: to be put into the store's overlay and then answered.
    pub stamped: Vec<(RequestId, Writes)>,
    /// Eventual writes from a peer, for the overlay.
    pub spread: Vec<Writes>,
    /// These requests end without outcomes.
    pub refuse: Vec<(RequestId, Unserved)>,
    /// These eventual writes end without being taken.
    pub refuse_stamps: Vec<(RequestId, Unserved)>,
    /// These reads cannot be served.
    pub refuse_reads: Vec<(ReadId, Rejected)>,
    /// For the log.
    pub events: Vec<Event>,
    /// An invariant is broken: the node must stop.
    pub fatal: Option<String>,
    /// The state differs from that of the other members: the node must stop, and its directory
    /// must not be used again.
    pub diverged: Option<Index>,
}

/// Something for a peer, see [`Replica::pull`](super::Replica::pull).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pull {
    /// Send this message.
    Message(Envelope),
    /// Send the image of this snapshot, then report [`Input::SnapshotSent`].
    Snapshot(SnapshotMeta),
}
