//! Linearizable reads without a log entry (ReadIndex, thesis §6.4).
//!
//! At the leader, reads gather in `open`. A *round* takes all of them, notes the commit index, and
//! sends a heartbeat with the round's number to all peers. When a majority, the leader included,
//! has echoed the number, no newer leader existed when the round began. So the noted index covers
//! every write that was acknowledged before the reads arrived. One round is under way at a time;
//! reads that arrive meanwhile take the next one. A follower gathers reads in the same way and
//! sends one request for all of them to the leader.
//!
//! A follower's request is itself an echo: the follower sent it after its reads had arrived, and
//! was in the leader's term then. If two nodes are a majority, the leader and this follower are
//! one, and the leader answers at once.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{Follower, Role};
use crate::clock::Now;
use crate::replica::{Effects, Message, ReadId, Replica, quorum};
use crate::types::{Index, NodeId, Rejected};

/// A read, or a follower's request, that waits for a round.
#[derive(Clone, Copy, Debug)]
enum ReadWaiter {
    Local(ReadId),
    Remote { peer: NodeId, position: u64 },
}

/// The reads that wait at a leader.
#[derive(Debug, Default)]
pub struct LeaderReads {
    /// Reads for the next round.
    open: Vec<ReadWaiter>,
    /// The number of the latest round; 0 before the first.
    round: u64,
    /// Reads of the round under way; empty if there is none.
    waiting: Vec<ReadWaiter>,
    /// The commit index when that round began.
    index: Index,
    /// The latest round that each peer has echoed.
    echoes: BTreeMap<NodeId, u64>,
}

impl LeaderReads {
    /// The number of the latest round.
    pub fn round(&self) -> u64 {
        self.round
    }

    /// Notes that a peer has echoed rounds up to `round`.
    pub fn echoed(&mut self, peer: NodeId, round: u64) {
        let echo = self.echoes.entry(peer).or_default();
        *echo = round.min(self.round).max(*echo);
    }

    /// The reads of this node's own clients, which outlive its leadership.
    pub fn into_local(self) -> impl Iterator<Item = ReadId> {
        self.open.into_iter().chain(self.waiting).filter_map(|waiter| match waiter {
            ReadWaiter::Local(id) => Some(id),
            ReadWaiter::Remote { .. } => None,
        })
    }

    fn cancel(&mut self, id: ReadId) {
        let others =
            |waiter: &ReadWaiter| !matches!(waiter, ReadWaiter::Local(local) if *local == id);
        self.open.retain(others);
        self.waiting.retain(others);
    }
}

/// The reads that wait at a follower.
#[derive(Debug)]
pub struct FollowerReads {
    /// Reads for the next request.
    open: Vec<ReadId>,
    /// Reads of the request under way; empty if there is none.
    waiting: Vec<ReadId>,
    /// The number of the latest request.
    position: u64,
    sent_at: Now,
}

impl FollowerReads {
    /// No reads. Each process of a node counts from a `position` of its own, so that a late answer
    /// to an earlier process never matches a request of this one.
    pub fn new(position: u64) -> FollowerReads {
        FollowerReads { open: Vec::new(), waiting: Vec::new(), position, sent_at: Now(0) }
    }

    /// Adds a read.
    pub fn add(&mut self, id: ReadId) {
        self.open.push(id);
    }

    /// The number of a new request for all reads that have gathered, unless one is under way.
    pub fn request(&mut self, now: Now) -> Option<u64> {
        if !self.waiting.is_empty() || self.open.is_empty() {
            return None;
        }
        self.position += 1;
        self.sent_at = now;
        std::mem::swap(&mut self.waiting, &mut self.open);
        Some(self.position)
    }

    /// Sends all reads again, because the leader or the link to it is new.
    pub fn send_again(&mut self) {
        // A late answer must not match: the new leader may have committed more.
        self.position += 1;
        self.open.append(&mut self.waiting);
    }

    /// True if the request under way has had no answer for longer than `patience`.
    pub fn is_overdue(&self, now: Now, patience: Duration) -> bool {
        !self.waiting.is_empty() && now.since(self.sent_at) > patience
    }

    /// Takes all reads out, whether a request for them is under way or not.
    pub fn take_all(&mut self) -> Vec<ReadId> {
        self.send_again();
        std::mem::take(&mut self.open)
    }

    fn answered(&mut self, position: u64) -> Vec<ReadId> {
        if position == self.position { std::mem::take(&mut self.waiting) } else { Vec::new() }
    }

    fn cancel(&mut self, id: ReadId) {
        self.open.retain(|other| *other != id);
        self.waiting.retain(|other| *other != id);
    }
}

impl Replica {
    pub(in crate::replica) fn read(&mut self, now: Now, id: ReadId, effects: &mut Effects) {
        if self.stopping {
            effects.refuse_reads.push((id, Rejected::Stopping));
        } else if !self.is_voter() {
            effects.refuse_reads.push((id, Rejected::Joining));
        } else if !self.quorum_is_alive() {
            effects.refuse_reads.push((id, Rejected::NoQuorum));
        } else if let Some(leader) = self.leader_state() {
            leader.reads.open.push(ReadWaiter::Local(id));
            self.start_read_round(now, effects);
        } else {
            self.follower_reads.add(id);
            if let Role::Follower(Follower { leader: Some(leader), .. }) = &self.role {
                effects.pull.insert(*leader);
            }
        }
    }

    pub(in crate::replica) fn cancel_read(&mut self, id: ReadId) {
        self.follower_reads.cancel(id);
        if let Some(leader) = self.leader_state() {
            leader.reads.cancel(id);
        }
    }

    /// Begins a round for all open reads, unless one is under way.
    pub(super) fn start_read_round(&mut self, now: Now, effects: &mut Effects) {
        let commit = self.commit;
        let Some(leader) = self.leader_state() else { return };
        // Thesis §6.4, step 1: a new leader holds all committed entries (Leader Completeness) but
        // knows its commit index only after committing an entry of its own term.
        let knows_commit = commit >= leader.term_start;
        let reads = &mut leader.reads;
        if !knows_commit || reads.open.is_empty() || !reads.waiting.is_empty() {
            return;
        }
        // Steps 2 and 3: note the commit index first, then confirm the leadership.
        reads.round += 1;
        reads.index = commit;
        std::mem::swap(&mut reads.waiting, &mut reads.open);
        for peer in self.settings.peers() {
            effects.send.push(self.heartbeat(now, peer));
        }
        self.finish_read_round(now, effects);
    }

    /// Answers the reads of the round under way, once a majority has echoed it.
    pub(super) fn finish_read_round(&mut self, now: Now, effects: &mut Effects) {
        let peers: Vec<NodeId> = self.settings.peers().collect();
        let Some(leader) = self.leader_state() else { return };
        let reads = &mut leader.reads;
        let echo = |peer: &NodeId| reads.echoes.get(peer).copied().unwrap_or(0);
        let mut rounds: Vec<u64> = peers.iter().map(echo).collect();
        rounds.push(reads.round);
        let is_confirmed = quorum::reached_by_majority(&mut rounds) >= reads.round;
        if reads.waiting.is_empty() || !is_confirmed {
            return;
        }
        let index = reads.index;
        for waiter in std::mem::take(&mut reads.waiting) {
            match waiter {
                ReadWaiter::Local(id) => effects.reads.push((id, index)),
                ReadWaiter::Remote { peer, position } => {
                    let answer = Message::ReadIndexReply { position, index };
                    effects.send.push(self.envelope(peer, answer));
                }
            }
        }
        self.start_read_round(now, effects);
    }

    pub(super) fn receive_read_index(
        &mut self,
        now: Now,
        peer: NodeId,
        position: u64,
        effects: &mut Effects,
    ) {
        let (commit, members) = (self.commit, self.settings.members.len());
        let Some(leader) = self.leader_state() else { return };
        let knows_commit = commit >= leader.term_start;
        // The request is this follower's echo; with the leader's own it may be a majority already.
        let request_confirms = quorum::majority(members) <= 2;
        if knows_commit && request_confirms {
            let answer = Message::ReadIndexReply { position, index: commit };
            effects.send.push(self.envelope(peer, answer));
        } else {
            leader.reads.open.push(ReadWaiter::Remote { peer, position });
            self.start_read_round(now, effects);
        }
    }

    pub(super) fn receive_read_index_reply(
        &mut self,
        from: NodeId,
        position: u64,
        index: Index,
        effects: &mut Effects,
    ) {
        if self.leader() != Some(from) {
            return;
        }
        // The index was committed at the leader, so the reads need not wait for the next heartbeat.
        self.learn_commit(index, effects);
        let answered = self.follower_reads.answered(position);
        effects.reads.extend(answered.into_iter().map(|id| (id, index)));
        // Reads that gathered meanwhile go out with the next request.
        effects.pull.insert(from);
    }
}
