//! Linearizable reads without a log entry (ReadIndex, thesis §6.4).
//!
//! At the leader, reads gather in `open`. A *round* takes all of them, notes the commit index, and
//! sends a beat with the round's number to all peers. When a majority, the leader included, has
//! echoed it, the leader was still the leader after the reads were asked, so the noted index covers
//! every write acknowledged before. One round is under way at a time; whoever comes meanwhile takes
//! the next. A follower gathers reads in the same way and asks the leader for an index for all of
//! them.
//!
//! A follower's question is itself an echo: it was sent after its reads had begun, by a node that
//! was in the leader's term then. Where two nodes are a majority, leader and asker are one, and the
//! leader answers at once.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{Follower, Role};
use crate::clock::Now;
use crate::replica::{Effects, Message, ReadId, Replica, quorum};
use crate::types::{Index, NodeId, Rejected};

/// Who waits for a round.
#[derive(Clone, Copy, Debug)]
enum Reader {
    Local(ReadId),
    Remote { peer: NodeId, position: u64 },
}

/// The reads that a leader has to answer.
#[derive(Debug, Default)]
pub struct LeaderReads {
    /// Waiting for the next round.
    open: Vec<Reader>,
    /// The number of the latest round; 0 before the first.
    asked: u64,
    /// Waiting for the round under way; empty if none is.
    waiting: Vec<Reader>,
    /// The commit index when that round began.
    index: Index,
    /// The latest round that each peer has echoed.
    echoes: BTreeMap<NodeId, u64>,
}

impl LeaderReads {
    /// The number of the latest round.
    pub fn asked(&self) -> u64 {
        self.asked
    }

    /// A peer has echoed rounds up to `round`.
    pub fn heard(&mut self, peer: NodeId, round: u64) {
        let echo = self.echoes.entry(peer).or_default();
        *echo = round.min(self.asked).max(*echo);
    }

    /// The reads of this node's own clients, which outlive its leadership.
    pub fn into_local(self) -> impl Iterator<Item = ReadId> {
        self.open.into_iter().chain(self.waiting).filter_map(|reader| match reader {
            Reader::Local(id) => Some(id),
            Reader::Remote { .. } => None,
        })
    }

    fn abandon(&mut self, id: ReadId) {
        let others = |reader: &Reader| !matches!(reader, Reader::Local(local) if *local == id);
        self.open.retain(others);
        self.waiting.retain(others);
    }
}

/// The reads of a follower's clients.
#[derive(Debug)]
pub struct FollowerReads {
    open: Vec<ReadId>,
    /// Waiting for the answer to the question under way; empty if none is.
    waiting: Vec<ReadId>,
    position: u64,
    asked_at: Now,
}

impl FollowerReads {
    /// No reads. Each process of a node counts from a `position` of its own, so that an answer to
    /// an earlier one, late on an old link, is never taken for an answer to this one.
    pub fn new(position: u64) -> FollowerReads {
        FollowerReads { open: Vec::new(), waiting: Vec::new(), position, asked_at: Now(0) }
    }

    /// One more read.
    pub fn add(&mut self, id: ReadId) {
        self.open.push(id);
    }

    /// The number of a question for all reads that have gathered, unless one is under way.
    pub fn ask(&mut self, now: Now) -> Option<u64> {
        if !self.waiting.is_empty() || self.open.is_empty() {
            return None;
        }
        self.position += 1;
        self.asked_at = now;
        std::mem::swap(&mut self.waiting, &mut self.open);
        Some(self.position)
    }

    /// The leader, or the link to it, is new: what was asked is asked again.
    pub fn ask_again(&mut self) {
        self.position += 1;
        self.open.append(&mut self.waiting);
    }

    /// True if the question under way has had no answer for longer than `patience`.
    pub fn is_overdue(&self, now: Now, patience: Duration) -> bool {
        !self.waiting.is_empty() && now.since(self.asked_at) > patience
    }

    /// All reads, whether asked or not.
    pub fn take_all(&mut self) -> Vec<ReadId> {
        self.ask_again();
        std::mem::take(&mut self.open)
    }

    fn answered(&mut self, position: u64) -> Vec<ReadId> {
        if position == self.position { std::mem::take(&mut self.waiting) } else { Vec::new() }
    }

    fn abandon(&mut self, id: ReadId) {
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
            leader.reads.open.push(Reader::Local(id));
            self.start_read_round(now, effects);
        } else {
            self.follower_reads.add(id);
            if let Role::Follower(Follower { leader: Some(leader), .. }) = &self.role {
                effects.pull.insert(*leader);
            }
        }
    }

    pub(in crate::replica) fn cancel_read(&mut self, id: ReadId) {
        self.follower_reads.abandon(id);
        if let Some(leader) = self.leader_state() {
            leader.reads.abandon(id);
        }
    }

    /// Begins a round for all open reads, unless one is under way. Before a leader has committed
    /// something in its own term it does not know what is committed, and reads wait.
    pub(super) fn start_read_round(&mut self, now: Now, effects: &mut Effects) {
        let commit = self.commit;
        let Some(leader) = self.leader_state() else { return };
        let reads = &mut leader.reads;
        if commit < leader.term_start || reads.open.is_empty() || !reads.waiting.is_empty() {
            return;
        }
        reads.asked += 1;
        reads.index = commit;
        std::mem::swap(&mut reads.waiting, &mut reads.open);
        for peer in self.settings.peers() {
            effects.send.push(self.heartbeat(now, peer));
        }
        self.finish_read_round(now, effects);
    }

    /// Answers the reads of the round under way if a majority has echoed it.
    pub(super) fn finish_read_round(&mut self, now: Now, effects: &mut Effects) {
        let peers: Vec<NodeId> = self.settings.peers().collect();
        let Some(leader) = self.leader_state() else { return };
        let reads = &mut leader.reads;
        let echo = |peer: &NodeId| reads.echoes.get(peer).copied().unwrap_or(0);
        let mut rounds: Vec<u64> = peers.iter().map(echo).collect();
        rounds.push(reads.asked);
        if reads.waiting.is_empty() || quorum::reached_by_majority(&mut rounds) < reads.asked {
            return;
        }
        let index = reads.index;
        for reader in std::mem::take(&mut reads.waiting) {
            match reader {
                Reader::Local(id) => effects.reads.push((id, index)),
                Reader::Remote { peer, position } => {
                    let answer = Message::ReadIndexReply { position, index };
                    effects.send.push(self.envelope(peer, answer));
                }
            }
        }
        self.start_read_round(now, effects);
    }

    pub(super) fn receive_read_ask(
        &mut self,
        now: Now,
        peer: NodeId,
        position: u64,
        effects: &mut Effects,
    ) {
        let (commit, members) = (self.commit, self.settings.members.len());
        let Some(leader) = self.leader_state() else { return };
        if commit >= leader.term_start && quorum::majority(members) <= 2 {
            let answer = Message::ReadIndexReply { position, index: commit };
            effects.send.push(self.envelope(peer, answer));
        } else {
            leader.reads.open.push(Reader::Remote { peer, position });
            self.start_read_round(now, effects);
        }
    }

    pub(super) fn receive_read_answer(
        &mut self,
        from: NodeId,
        position: u64,
        index: Index,
        effects: &mut Effects,
    ) {
        if self.leader() != Some(from) {
            return;
        }
        self.learn_commit(index, effects);
        let answered = self.follower_reads.answered(position);
        effects.reads.extend(answered.into_iter().map(|id| (id, index)));
        effects.pull.insert(from);
    }
}
