//! What replicas say to each other, and what a replica keeps on disk. Byte forms are the business
//! of `wire` and `wal`.

use std::collections::BTreeMap;

use crate::types::{
    Entry, Index, NodeId, Proposal, Rejected, RequestId, SnapshotMeta, Term, Version, Write, Writes,
};

/// A message under way. `term` is the sender's current term, whatever the message; a receiver with
/// an older term adopts it first (Raft §5.1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Envelope {
    /// Who sent it.
    pub from: NodeId,
    /// Who shall have it.
    pub to: NodeId,
    /// The sender's current term.
    pub term: Term,
    /// What it says.
    pub message: Message,
}

/// What it says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// "I am alive", from every node to every other at each heartbeat, and the round of a read.
    Heartbeat(Heartbeat),
    /// The leader's entries (AppendEntries, Raft §5.3).
    Append(Append),
    /// The answer to an `Append`; an accepting one leaves after the entries are durable.
    AppendAck(AppendAck),
    /// A candidate asks for a vote (RequestVote, Raft §5.2; pre-vote, thesis §9.6).
    Vote(VoteRequest),
    /// The answer to a `Vote`; a real vote leaves after it is durable.
    VoteReply(VoteReply),
    /// A follower hands its clients' proposals to the leader, in their order.
    Forward(Vec<Proposal>),
    /// The leader did not append these forwarded proposals.
    Refuse {
        /// Which ones.
        ids: Vec<RequestId>,
        /// Why not.
        reason: Rejected,
    },
    /// A follower asks how far it must have applied to serve reads (ReadIndex, thesis §6.4).
    ReadIndex {
        /// The follower's number for this question; grows.
        position: u64,
    },
    /// The leader's answer: it led when it was asked, and had committed `index`.
    ReadIndexReply {
        /// The question.
        position: u64,
        /// Applying up to here makes every write visible that was acknowledged before the question.
        index: Index,
    },
    /// A node hands its clients' eventual writes, not stamped yet, to the one that stamps them.
    Stamp {
        /// The sender's wall clock, in microseconds since 1970: a request that is old when its turn
        /// comes is not stamped.
        sent: u64,
        /// What is stamped must be newer: the highest version that the sender has seen.
        seen: Version,
        /// The sender's requests of this process below this number have their answers.
        floor: u64,
        /// The requests.
        requests: Vec<(RequestId, Writes)>,
    },
    /// The answer to an `Accept`: for each request the version of its first write, whose others
    /// follow it as [`Version::plus`] says; or why it was not taken.
    Stamped(Vec<(RequestId, Result<Version, Rejected>)>),
    /// Eventual writes that the sender holds and that are not known to be in the log: to the
    /// leader, who brings them there; to every peer while there is none.
    Spread(Writes),
    /// The leader hands over: the receiver shall campaign at once (TimeoutNow, thesis §3.10).
    Campaign,
}

/// See [`Message::Heartbeat`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Heartbeat {
    /// Whom the sender follows (itself, if it leads).
    pub leader: Option<NodeId>,
    /// From a leader: its commit index.
    pub commit: Index,
    /// The last index of the sender's log.
    pub last: Index,
    /// From a follower: how far its durable log is known to equal the leader's of this term.
    pub matched: Index,
    /// From a leader: its current round of reads, which asks for an answer at once.
    pub asked: u64,
    /// From a follower: the latest round it has seen in this term.
    pub heard: u64,
    /// The random number that the sender's data directory was created with.
    pub incarnation: u64,
    /// False while the sender's directory is new and it has not yet learned what it may have
    /// forgotten.
    pub admitted: bool,
    /// True if the sender may vote and lead.
    pub voter: bool,
    /// False if the sender should not be handed the leadership now (its disk stalls, it is
    /// stopping).
    pub fit: bool,
    /// The incarnation of the *receiver* that the sender founded the cluster with.
    pub founder: Option<u64>,
    /// The receiver's incarnation, if the sender's latest beat from it said that it may not vote
    /// yet: proof that what is said here was said after that.
    pub answers: Option<u64>,
    /// What the sender's wall clock shows, in microseconds since 1970.
    pub clock: u64,
    /// The sender holds no undrained write up to this version and will make none.
    pub drained: Version,
    /// The latest mark that the sender has applied, and the digest of its state there.
    pub checkpoint: Option<(Index, u64)>,
}

/// See [`Message::Append`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Append {
    /// The index before the first entry …
    pub prev_index: Index,
    /// … and the term there: the receiver must have it (Raft's log matching).
    pub prev_term: Term,
    /// The leader's commit index.
    pub commit: Index,
    /// Entries from `prev_index + 1` on, without a gap; none in a probe.
    pub entries: Vec<Entry>,
}

/// See [`Message::AppendAck`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AppendAck {
    /// The receiver's durable log equals the leader's up to here.
    Matched(Index),
    /// The receiver has no such `prev_index` and `prev_term`.
    Missing {
        /// The `prev_index` that was refused.
        prev_index: Index,
        /// The leader should go on from an entry at or before this index …
        hint_index: Index,
        /// … whose term is at most this one (raft thesis §5.3's accelerated backtracking).
        hint_term: Term,
    },
}

/// See [`Message::Vote`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VoteRequest {
    /// A pre-vote: "would you vote for me in the next term?" Binds nobody.
    pub pre: bool,
    /// The leader itself asked for this election, so a live leader is no reason to refuse.
    pub transfer: bool,
    /// The last index of the candidate's log …
    pub last_index: Index,
    /// … and its term (Raft §5.4.1).
    pub last_term: Term,
}

/// See [`Message::VoteReply`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VoteReply {
    /// Answers a pre-vote.
    pub pre: bool,
    /// Yes or no.
    pub granted: bool,
}

/// A part of a snapshot on its way to a peer. Chunks of one image come in order on one link; the
/// receiver counts it as arrived when it is whole and its checksum holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// The sender's term.
    pub term: Term,
    /// Which snapshot.
    pub meta: SnapshotMeta,
    /// Where in the image file these bytes belong.
    pub offset: u64,
    /// The image file's length.
    pub total: u64,
    /// The bytes.
    pub data: bytes::Bytes,
}

/// What must be durable before a replica may act on it, in the order it was decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WalRecord {
    /// Replaces the previous one.
    Hard(HardState),
    /// Appends an entry. One at or below the last index first removes that index and all after it.
    Entry(Entry),
    /// The image of this snapshot is durable: entries up to it are no longer needed, and if the log
    /// does not hold an entry with that index and term, the whole log gives way to the snapshot.
    Snapshot(SnapshotMeta),
    /// Eventual writes that this node holds and that are not in the log yet.
    Stamped(Writes),
    /// All eventual writes that this node holds: takes the place of every `Stamped` and `Held`
    /// before it.
    Held(Writes),
    /// This node may make versions up to here. Replaces the previous one.
    Clock(Version),
}

/// Raft's persistent state beside the log (Raft §5, figure 2), and the node's standing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HardState {
    /// The current term.
    pub term: Term,
    /// The vote in this term.
    pub vote: Option<NodeId>,
    /// What this node may do.
    pub standing: Standing,
}

/// What a node may do, which depends on how much it may have forgotten.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Standing {
    /// Its directory is new. It may be a founder or may have lost its data; it takes part in
    /// nothing until every other member has told it which.
    #[default]
    Blank,
    /// It may have voted and acknowledged before its directory was wiped. It stores what the leader
    /// sends, but neither votes nor campaigns until it has caught up.
    CatchingUp,
    /// A full member.
    Voter {
        /// The incarnations of all members when this node founded the cluster; empty if it came
        /// back later with an empty directory.
        founders: BTreeMap<NodeId, u64>,
    },
}

/// What a restarted node found on its disk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovered {
    /// The latest hard state; the default if there was none.
    pub hard: HardState,
    /// The latest snapshot; the default (index 0) if there was none.
    pub snapshot: SnapshotMeta,
    /// The log after the snapshot, without a gap.
    pub entries: Vec<Entry>,
    /// The eventual writes that it held, in the order in which it took them; some may be in the
    /// log by now.
    pub held: Vec<Write>,
    /// No version that this node has made lies above this one.
    pub clock: Version,
}
