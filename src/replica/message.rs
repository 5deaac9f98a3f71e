//! Messages between replicas, and the persistent state of a replica. `wire` and `wal` define their
//! byte forms.

use std::collections::BTreeMap;

use crate::types::{
    Entry, Index, NodeId, Proposal, Rejected, RequestId, SnapshotMeta, Term, Version, Write, Writes,
};

/// A message with its addresses and the sender's term.
///
/// A receiver with an older term adopts that term first (Raft §5.1), with three exceptions. The
/// term of an eventual message is ignored, because versions order eventual writes. A candidate is
/// ignored while the receiver hears a leader (thesis §4.2.3). A blank node adopts nothing
/// (joining.rs). The receiver decides this in `raft/mod.rs`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Envelope {
    /// The sender.
    pub from: NodeId,
    /// The receiver.
    pub to: NodeId,
    /// The sender's current term.
    pub term: Term,
    /// The message.
    pub message: Message,
}

/// A message from one replica to another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// "I am alive", from every node to every other at each heartbeat interval and for each read
    /// round.
    Heartbeat(Heartbeat),
    /// The leader's entries (AppendEntries, Raft §5.3).
    Append(Append),
    /// The answer to an `Append`; `Matched` leaves after the entries are durable.
    AppendAck(AppendAck),
    /// A candidate requests a vote (RequestVote, Raft §5.2; pre-vote, thesis §9.6).
    Vote(VoteRequest),
    /// The answer to a `Vote`; a granted vote leaves after it is durable.
    VoteReply(VoteReply),
    /// A follower forwards its clients' proposals to the leader, in their order.
    Forward(Vec<Proposal>),
    /// The leader did not append these forwarded proposals.
    Refuse {
        /// The proposals.
        ids: Vec<RequestId>,
        /// The reason.
        reason: Rejected,
    },
    /// A follower requests the index that it must have applied to serve reads (ReadIndex, thesis
    /// §6.4).
    ReadIndex {
        /// The follower's number for this request; grows.
        position: u64,
    },
    /// The leader's answer: it led after the request was sent, and had committed `index`.
    ReadIndexReply {
        /// The request's number.
        position: u64,
        /// Every write that was acknowledged before the request lies at or before this index.
        index: Index,
    },
    /// A node forwards its clients' unstamped eventual writes to the node that stamps them.
    Stamp {
        /// The sender's wall clock, in microseconds since 1970: a request that is old when its turn
        /// comes is not stamped.
        sent: u64,
        /// The highest version that the sender has seen: the new versions must be higher.
        seen: Version,
        /// The sender's process has the answers to all its requests below this number.
        floor: u64,
        /// The requests.
        requests: Vec<(RequestId, Writes)>,
    },
    /// The answer to a `Stamp`: for each request the version of its first write, or the reason for
    /// refusing it. The request's other writes have the versions that follow
    /// ([`Version::plus`]).
    Stamped(Vec<(RequestId, Result<Version, Rejected>)>),
    /// Stamped eventual writes that the sender holds and that are not known to be in the log. They
    /// go to the leader, which appends them; without a leader, to every peer.
    Spread(Writes),
    /// The leader hands over: the receiver campaigns at once (TimeoutNow, thesis §3.10).
    Campaign,
}

/// A sign of life, with the positions that repair a lost message.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Heartbeat {
    /// The node that the sender follows (itself, if it leads).
    pub leader: Option<NodeId>,
    /// From a leader: its commit index.
    pub commit: Index,
    /// The last index of the sender's log.
    pub last: Index,
    /// From a follower: its durable log is known to equal the leader's of this term up to here.
    pub matched: Index,
    /// From a leader: its current read round. A follower that sees a new one answers at once.
    pub read_round: u64,
    /// From a follower: the echo, the latest read round that it has seen in this term.
    pub read_round_seen: u64,
    /// The random number that the sender's data directory was created with.
    pub incarnation: u64,
    /// False while the sender's directory is new and the sender does not know yet whether it has
    /// forgotten promises.
    pub admitted: bool,
    /// True if the sender may vote and lead.
    pub voter: bool,
    /// False if the sender declines the leadership now (for example because its disk stalls).
    pub fit: bool,
    /// The *receiver's* incarnation when the sender founded the cluster with it.
    pub founder: Option<u64>,
    /// The receiver's incarnation, if the latest heartbeat from it said that it may not vote yet.
    /// Proves that this heartbeat was sent after that one.
    pub answers: Option<u64>,
    /// The sender's wall clock, in microseconds since 1970.
    pub clock: u64,
    /// The sender holds no undrained write up to this version and will make none.
    pub drained: Version,
    /// The latest checkpoint that the sender has applied, and the digest of its state there.
    pub checkpoint: Option<(Index, u64)>,
}

/// Entries for a follower, with the position that they follow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Append {
    /// The index before the first entry …
    pub prev_index: Index,
    /// … and the term there: the receiver's log must match (Log Matching, Raft §5.3).
    pub prev_term: Term,
    /// The leader's commit index.
    pub commit: Index,
    /// Entries from `prev_index + 1` on, without a gap; none in a probe.
    pub entries: Vec<Entry>,
}

/// A follower's answer to an append.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AppendAck {
    /// The follower's durable log equals the leader's up to here.
    Matched(Index),
    /// The follower's log has no entry with this `prev_index` and `prev_term`.
    Missing {
        /// The `prev_index` that was refused.
        prev_index: Index,
        /// The logs can agree only at or before this index …
        hint_index: Index,
        /// … in an entry whose term is at most this one (the faster backtracking of Raft §5.3).
        hint_term: Term,
    },
}

/// A candidate's request for a vote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VoteRequest {
    /// A pre-vote: "would you vote for me in the next term?" The answer promises nothing.
    pub pre: bool,
    /// The leader itself started this election, so a live leader is no reason to refuse.
    pub transfer: bool,
    /// The last index of the candidate's log …
    pub last_index: Index,
    /// … and its term (Raft §5.4.1).
    pub last_term: Term,
}

/// A member's answer to a request for a vote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VoteReply {
    /// True in answer to a pre-vote.
    pub pre: bool,
    /// True if the vote is granted.
    pub granted: bool,
}

/// A part of a snapshot's image on its way to a peer. Chunks of one image arrive in order on one
/// link; the receiver accepts the image when it is whole and its checksum holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// The sender's term.
    pub term: Term,
    /// The snapshot.
    pub meta: SnapshotMeta,
    /// The offset of these bytes in the image file.
    pub offset: u64,
    /// The image file's length.
    pub total: u64,
    /// The bytes.
    pub data: bytes::Bytes,
}

/// A decision that must be durable before a replica may act on it, in the order of decisions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WalRecord {
    /// The hard state. Replaces the previous one.
    Hard(HardState),
    /// An entry to append. One at or below the last index first removes all entries from there on.
    Entry(Entry),
    /// A snapshot whose image is durable: entries up to it are no longer needed. If the log has no
    /// entry with that index and term, the snapshot replaces the whole log (Raft §7).
    Snapshot(SnapshotMeta),
    /// Eventual writes that this node holds and that are not in the log yet.
    Stamped(Writes),
    /// All eventual writes that this node holds. Replaces every `Stamped` and `Held` before it.
    Held(Writes),
    /// The highest version that this node may have stamped. Replaces the previous one.
    Clock(Version),
}

/// Raft's persistent state beside the log (Raft figure 2), and the node's standing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HardState {
    /// The current term.
    pub term: Term,
    /// The vote in this term.
    pub vote: Option<NodeId>,
    /// The node's rights.
    pub standing: Standing,
}

/// A node's rights. They depend on the votes and acknowledgements that it may have forgotten.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Standing {
    /// Its directory is new. The node may be a founder or may have lost its data; it takes part in
    /// nothing until every other member has told it which.
    #[default]
    Blank,
    /// It may have voted and acknowledged before its directory was lost. It stores the leader's
    /// entries, but neither votes nor campaigns until it has caught up.
    CatchingUp,
    /// A full member.
    Voter {
        /// The incarnations of the other members when this node founded the cluster; empty if the
        /// node came back later with an empty directory.
        founders: BTreeMap<NodeId, u64>,
    },
}

/// The state that a restarted node found on its disk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovered {
    /// The latest hard state; the default if there was none.
    pub hard: HardState,
    /// The latest snapshot; the default (index 0) if there was none.
    pub snapshot: SnapshotMeta,
    /// The log after the snapshot, without a gap.
    pub entries: Vec<Entry>,
    /// The eventual writes that the node held, in the order of their arrival; some may be in the
    /// log by now.
    pub held: Vec<Write>,
    /// No version that this node has stamped lies above this one.
    pub clock: Version,
}
