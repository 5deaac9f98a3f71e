//! A replica's report on itself, for INFO, ROLE, NODES and the node's own log.

use super::detector::Liveness;
use super::raft::Role;
use super::{Cause, Replica};
use crate::types::{Index, NodeId, Term};

/// A node's role, as INFO shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RoleName {
    /// The node leads.
    Leader,
    /// It follows a leader, or waits for one.
    Follower,
    /// It campaigns, with votes or with pre-votes.
    Candidate,
    /// Its directory was empty, and it is not a full member yet.
    Joining,
}

/// A replica at one moment.
#[derive(Clone, Debug)]
pub struct Status {
    /// This node.
    pub id: NodeId,
    /// Its role.
    pub role: RoleName,
    /// The node that it follows (itself, if it leads).
    pub leader: Option<NodeId>,
    /// Its term.
    pub term: Term,
    /// Its commit index.
    pub commit: Index,
    /// The last index of its log.
    pub last: Index,
    /// The last durable index of its log.
    pub durable: Index,
    /// The latest snapshot's last index.
    pub snapshot: Index,
    /// The pending proposals of its own clients, and their bytes.
    pub pending: (usize, usize),
    /// True if a majority of members is alive.
    pub quorum: bool,
    /// The node that stamps eventual writes, as far as this node knows.
    pub stamper: Option<NodeId>,
    /// The eventual writes that are not known to be in the log, and their size in bytes.
    pub backlog: (usize, usize),
    /// The number of those that are not durable on this node's own disk.
    pub unsynced: usize,
    /// False while at least as many live members contradict this node's clock as confirm it.
    pub clock_trusted: bool,
    /// The latest checkpoint applied here, and the digest of the state there.
    pub checkpoint: Option<(Index, u64)>,
    /// True while the disk has no room for further log segments.
    pub disk_full: bool,
    /// The cause of its last campaign.
    pub last_election_cause: Option<Cause>,
    /// Its peers, ascending.
    pub peers: Vec<PeerStatus>,
}

/// A peer at one moment.
#[derive(Clone, Debug)]
pub struct PeerStatus {
    /// The peer.
    pub id: NodeId,
    /// True if it was heard within the timeout.
    pub alive: bool,
    /// The last index of its log, from its latest heartbeat.
    pub last: Option<Index>,
    /// At a leader: the peer's durable log equals the leader's up to here, and the replication
    /// state.
    pub progress: Option<(Index, &'static str)>,
}

impl RoleName {
    /// The name in lower case.
    pub fn as_str(self) -> &'static str {
        match self {
            RoleName::Leader => "leader",
            RoleName::Follower => "follower",
            RoleName::Candidate => "candidate",
            RoleName::Joining => "joining",
        }
    }
}

impl Cause {
    /// The name in lower case.
    pub fn as_str(self) -> &'static str {
        match self {
            Cause::LeaderSilent => "leader-silent",
            Cause::LeaderGone => "leader-gone",
            Cause::Transfer => "transfer",
            Cause::Alone => "only-member",
            Cause::QuorumLost => "quorum-lost",
            Cause::DiskStalled => "disk-stalled",
            Cause::NewerTerm => "newer-term",
        }
    }
}

impl Replica {
    /// This replica at this moment.
    pub fn status(&self) -> Status {
        let role = match &self.role {
            _ if !self.is_voter() => RoleName::Joining,
            Role::Leader(_) => RoleName::Leader,
            Role::Follower(_) => RoleName::Follower,
            Role::PreCandidate(_) | Role::Candidate(_) => RoleName::Candidate,
        };
        let peers = self.peers.iter().map(|(id, peer)| PeerStatus {
            id: *id,
            alive: peer.liveness == Liveness::Alive,
            last: peer.heartbeat.as_ref().map(|heartbeat| heartbeat.last),
            progress: match &self.role {
                Role::Leader(leader) => {
                    leader.progress.get(id).map(|p| (p.matched, p.state_name()))
                }
                _ => None,
            },
        });
        Status {
            id: self.settings.id,
            role,
            leader: self.leader(),
            term: self.hard.term,
            commit: self.commit,
            last: self.log.last_index(),
            durable: self.durable,
            snapshot: self.log.snapshot().index,
            pending: (self.pending.len(), self.pending.bytes()),
            quorum: self.quorum_is_alive(),
            stamper: self.stamper(),
            backlog: self.eventual.backlog(),
            unsynced: self.eventual.unsynced(),
            clock_trusted: !self.eventual.doubts_clock(),
            checkpoint: self.checkpoint(),
            disk_full: self.disk_full,
            last_election_cause: self.last_cause,
            peers: peers.collect(),
        }
    }
}
