//! The contract between the pure replica and the threads that drive it: [`Input`] brings events in,
//! [`Effects`] takes work out.
//!
//! **Where does AppendEntries leave?** Through [`Replica::pull`](super::Replica::pull), like every
//! message that grows with the load: a leader's appends and snapshots, a follower's forwarded
//! proposals, eventual writes on their way to be stamped or spread. A follower's ReadIndex is one
//! number, but it is pulled too: the one request then serves all reads that have gathered by the
//! time the link can write. [`Effects::pull`] only names the peers that have something to fetch.
//!
//! Every other message leaves through [`Effects::send`] or [`Effects::after_persist`]: heartbeats,
//! votes, acknowledgements. One append does too: `probe_behind_image` in `raft/snapshot.rs` puts an
//! empty one into `send`, because nothing is pulled for a follower that installs an image.
//!
//! Bulk is pulled and not pushed, because the batch forms at the last moment. A link pulls when it
//! can write; the append then packs all that the log holds after `next`, so batches grow under load
//! by themselves. A slow link keeps no queue of copies: it pulls the log once, later. And the lock
//! around the replica is never held to build appends for a link that cannot send them; under the
//! lock a pull only clones references to entries, which the link encodes after the lock is free.

use std::collections::BTreeSet;

use bytes::Bytes;

use super::detector::Liveness;
use super::{Envelope, WalRecord};
use crate::types::{
    Entry, Index, NodeId, Rejected, RequestId, SnapshotMeta, Term, Unserved, Write, Writes,
};

/// The number of a disk job: one step's records, synced together.
pub type JobNo = u64;

/// The name of one read request of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReadId(pub u64);

/// The deadlines of a replica, each watched by a thread of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Alarm {
    /// Send heartbeats, and repeat messages that are overdue.
    Heartbeat,
    /// Campaign, or repeat a campaign without a winner.
    Election,
    /// Append the eventual writes that have gathered to the log.
    Drain,
}

/// An event that the replica learns of.
#[derive(Clone, Debug)]
pub enum Input {
    /// A session proposes commands. `id` comes from
    /// [`Replica::next_request`](super::Replica::next_request).
    Propose {
        /// The request's name.
        id: RequestId,
        /// Encoded commands, see [`Proposal`](crate::types::Proposal).
        commands: Bytes,
    },
    /// A session requests a version for eventual writes. `id` comes from
    /// [`Replica::next_stamp`](super::Replica::next_stamp).
    Stamp {
        /// The request's name.
        id: RequestId,
        /// The writes, not stamped yet.
        writes: Vec<Write>,
    },
    /// A session requests a linearizable read. The id comes from
    /// [`Replica::next_read`](super::Replica::next_read).
    Read(ReadId),
    /// The session no longer waits for this read.
    CancelRead(ReadId),
    /// A message from a peer.
    Message(Envelope),
    /// A deadline has passed (see [`Replica::deadline`](super::Replica::deadline)). An early alarm
    /// is harmless.
    Alarm(Alarm),
    /// The detector's verdict on a peer has changed.
    Peer {
        /// The peer.
        peer: NodeId,
        /// The new verdict.
        liveness: Liveness,
    },
    /// The peer's port refuses connections: its process is gone.
    PeerGone(NodeId),
    /// A new link to this peer is up. Messages on the old link may be lost.
    LinkUp(NodeId),
    /// Everything up to and including this job is durable.
    Persisted(JobNo),
    /// The machine's wall clock, in microseconds since 1970. Reported at each heartbeat.
    Clock(u64),
    /// The store has applied a [checkpoint](crate::types::Payload::Checkpoint).
    CheckpointApplied {
        /// The checkpoint's index in the log.
        index: Index,
        /// The digest of the state there.
        digest: u64,
    },
    /// The image of this snapshot is durable on this node.
    SnapshotTaken {
        /// The snapshot.
        meta: SnapshotMeta,
        /// The image's length in bytes.
        bytes: u64,
    },
    /// The image requested by [`Apply::Snapshot`] could not be written.
    SnapshotFailed,
    /// An image from a peer is complete, verified and durable on this node.
    SnapshotArrived {
        /// The sender.
        from: NodeId,
        /// The snapshot.
        meta: SnapshotMeta,
    },
    /// The transfer of an image to this peer has ended.
    SnapshotSent {
        /// The peer.
        to: NodeId,
        /// True if all of it was sent.
        sent: bool,
    },
    /// The disk has no room for further log segments, or has room again.
    DiskFull(bool),
    /// The node is about to stop: take no new requests, hand the leadership over.
    Stop,
}

/// Work for the thread that owns the store, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Apply {
    /// Apply these committed entries. The first one follows the last of the previous work.
    Entries(Vec<Entry>),
    /// Replace the whole state by the image of this snapshot, which is on this node's disk.
    Restore(SnapshotMeta),
    /// Take an image of the state after the last entry.
    Snapshot(SnapshotMeta),
}

/// An event for the node's own log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// This node campaigns.
    Campaign {
        /// The term that it campaigns for (with a pre-vote: the term that would follow).
        term: Term,
        /// The reason.
        cause: Cause,
    },
    /// A leader is known.
    Leader {
        /// The leader.
        leader: NodeId,
        /// Its term.
        term: Term,
    },
    /// This node no longer leads.
    SteppedDown(Cause),
    /// This node hands the leadership over.
    Transfer {
        /// The target.
        to: NodeId,
    },
    /// The target did not take the leadership over in time.
    TransferFailed {
        /// The target.
        to: NodeId,
    },
    /// This node founded the cluster together with all others.
    Founded,
    /// This node's directory is empty in a cluster that exists; it has to catch up first.
    CatchingUp,
    /// This node has caught up and is a full member.
    CaughtUp,
    /// Fewer nodes than a majority are alive.
    QuorumLost {
        /// The node that stamps eventual writes meanwhile: the highest one alive.
        stamper: NodeId,
    },
    /// A majority is alive again.
    QuorumBack,
    /// The wall clock has jumped so far that it is not believed.
    ClockJumped {
        /// Microseconds ahead of the expected time; negative if behind.
        by: i64,
    },
    /// A peer has sent eventual writes from too far in the future.
    FutureWrites {
        /// The peer.
        from: NodeId,
        /// Microseconds ahead of this node's clock.
        ahead: u64,
    },
    /// Of the members that are alive, at least as many contradict this node's clock as confirm it:
    /// this node stamps nothing.
    ClockDoubted {
        /// The number of members that contradict.
        members: usize,
    },
    /// Versions lie further ahead of this node's clock than clocks may differ: it stamps nothing
    /// until the clock has caught up.
    ClockBehind,
}

/// The cause of a campaign, or of a leader's step down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// No leader was heard within the election timeout.
    LeaderSilent,
    /// The leader's process is gone.
    LeaderGone,
    /// The leader handed over.
    Transfer,
    /// This node is the only member.
    Alone,
    /// No majority was heard within the election timeout.
    QuorumLost,
    /// The disk has not answered within the disk timeout.
    DiskStalled,
    /// A peer is in a newer term.
    NewerTerm,
}

/// Work that follows from steps. [`Replica::step`](super::Replica::step) fills it; the driver
/// carries it out in this order and empties it.
#[derive(Debug, Default)]
pub struct Effects {
    /// Records to write to the log in this order and to sync together.
    pub persist: Vec<WalRecord>,
    /// Messages to send once `persist` and everything before it is durable.
    pub after_persist: Vec<Envelope>,
    /// The job to report as [`Input::Persisted`] once that is done; 0 if there is nothing to write.
    pub job: JobNo,
    /// Messages to send at once.
    pub send: Vec<Envelope>,
    /// Peers for which [`Replica::pull`](super::Replica::pull) has a message.
    pub pull: BTreeSet<NodeId>,
    /// Work for the store, in order.
    pub apply: Vec<Apply>,
    /// Reads that may be served once the store has applied this index.
    pub reads: Vec<(ReadId, Index)>,
    /// Stamped writes of this node's clients: put them into the store's overlay, then answer.
    pub stamped: Vec<(RequestId, Writes)>,
    /// Stamped writes from peers, for the overlay.
    pub spread: Vec<Writes>,
    /// Proposals that end without outcomes.
    pub refuse: Vec<(RequestId, Unserved)>,
    /// Eventual writes that end without a version.
    pub refuse_stamps: Vec<(RequestId, Unserved)>,
    /// Reads that cannot be served.
    pub refuse_reads: Vec<(ReadId, Rejected)>,
    /// Events for the node's own log.
    pub events: Vec<Event>,
    /// A broken invariant: the node must stop.
    pub fatal: Option<String>,
    /// The checkpoint at which this node's state differs from that of the other members: the node
    /// must stop, and its directory must not be used again.
    pub diverged: Option<Index>,
}

/// The next transmission for a peer, see [`Replica::pull`](super::Replica::pull).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pull {
    /// Send this message.
    Message(Envelope),
    /// Send the image of this snapshot, then report [`Input::SnapshotSent`].
    Snapshot(SnapshotMeta),
}
