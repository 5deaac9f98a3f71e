//! What a replica tells of itself: for INFO, ROLE, NODES and the node's own log.

use super::detector::Liveness;
use super::raft::Role;
use super::{Cause, Replica};
use crate::types::{Index, NodeId, Term};

/// A role's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RoleName {
    /// Leads.
    Leader,
    /// Follows, or waits for a leader.
    Follower,
    /// Stands for election, or asks whether it should.
    Candidate,
    /// Has an empty directory, or is catching up after having had one.
    Joining,
}

/// A moment's view of a replica.
#[derive(Clone, Debug)]
pub struct Status {
    /// This node.
    pub id: NodeId,
    /// Its role.
    pub role: RoleName,
    /// Whom it follows (itself, if it leads).
    pub leader: Option<NodeId>,
    /// Its term.
    pub term: Term,
    /// Committed up to here.
    pub commit: Index,
    /// The last index of its log.
    pub last: Index,
    /// Its log is durable up to here.
    pub durable: Index,
    /// The latest snapshot's last index.
    pub snapshot: Index,
    /// Requests of its own clients without an answer, and their bytes.
    pub pending: (usize, usize),
    /// True if a majority of members is alive.
    pub quorum: bool,
    /// Who stamps eventual writes, as far as this node knows.
    pub stamper: Option<NodeId>,
    /// Eventual writes that are not known to be in the log, and the room that they take, in bytes.
    pub backlog: (usize, usize),
    /// How many of them are not durable on this node's own disk.
    pub unsynced: usize,
    /// False while as many of the members alive show another time as show this node's.
    pub clock_trusted: bool,
    /// The latest mark that was applied here, and the digest of the state there.
    pub checkpoint: Option<(Index, u64)>,
    /// True while the disk has no room for further log segments.
    pub disk_full: bool,
    /// Why it last stood for election.
    pub last_election_cause: Option<Cause>,
    /// Its peers, ascending.
    pub peers: Vec<PeerStatus>,
}

/// A moment's view of a peer.
#[derive(Clone, Debug)]
pub struct PeerStatus {
    /// The peer.
    pub id: NodeId,
    /// Heard of within the timeout.
    pub alive: bool,
    /// The last index of its log, as it last said.
    pub last: Option<Index>,
    /// From a leader: durably equal up to here, and how it is fed.
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
    /// A word for it.
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
    /// A view of this moment.
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
