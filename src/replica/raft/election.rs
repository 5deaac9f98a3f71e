//! Elections: who stands when, who votes for whom, and the ways into each role.
//!
//! Rank decides who stands first: each alive, fit node with a higher id adds to a node's patience.
//! A peer whose port refuses connections is gone for certain; when that peer was the leader, the
//! best ranked node stands at once and asks again after a moment while the others are still
//! noticing.

use std::collections::BTreeSet;
use std::time::Duration;

use super::read::LeaderReads;
use super::{Follower, Leader, Role, Votes};
use crate::clock::Now;
use crate::replica::detector::Liveness;
use crate::replica::progress::Progress;
use crate::replica::{
    Cause, Effects, Event, Message, Mutant, Replica, VoteReply, VoteRequest, WalRecord, quorum,
};
use crate::types::{Entry, NodeId, Payload};

/// How much later each rank stands, and asks again, when the leader is known to be gone.
const URGENT_STEP: Duration = Duration::from_millis(20);

impl Replica {
    /// How many nodes should stand before this one does.
    fn rank(&self, now: Now) -> u32 {
        if !self.is_fit(now) {
            return self.settings.members.len() as u32;
        }
        let lost = self.leader();
        let better = self.peers.iter().filter(|(id, peer)| {
            **id > self.settings.id
                && Some(**id) != lost
                && peer.liveness == Liveness::Alive
                && peer.heartbeat.as_ref().is_some_and(|heartbeat| heartbeat.fit)
        });
        better.count() as u32
    }

    /// How long this node waits for a leader before it stands.
    pub(in crate::replica) fn patience(&self, now: Now) -> Duration {
        if self.settings.members.len() == 1 {
            return Duration::ZERO;
        }
        let timeout = self.settings.election_timeout;
        timeout + timeout / 2 * self.rank(now) + self.jitter
    }

    pub(in crate::replica) fn draw_jitter(&mut self) {
        let bound = self.settings.election_timeout.as_micros() as u64 / 8;
        self.jitter = Duration::from_micros(self.rng.below(bound));
    }

    /// Sets the election alarm anew after something that it depends on has changed.
    pub(in crate::replica) fn reset_election_alarm(&mut self, now: Now) {
        if let Role::Follower(Follower { heard, .. }) = self.role {
            let at = now.max(heard + self.patience(now));
            // Urgency is not taken back by lesser news.
            self.election_at = if self.urgent { at.min(self.election_at) } else { at };
        }
    }

    /// The leader's process, or another peer's, is gone for certain.
    pub(in crate::replica) fn peer_gone(&mut self, now: Now, gone: NodeId, effects: &mut Effects) {
        if let Some(peer) = self.peers.get_mut(&gone) {
            peer.liveness = Liveness::Suspected;
        }
        self.eventual.is_gone(gone);
        self.note_quorum(effects);
        if self.is_leader() || self.leader() != Some(gone) {
            self.reset_election_alarm(now);
            return;
        }
        self.leader_is_gone(now);
    }

    /// The leader of this term does not lead any more: the best ranked node stands at once.
    pub(super) fn leader_is_gone(&mut self, now: Now) {
        if let Role::Follower(follower) = &mut self.role {
            follower.leader = None;
        }
        self.urgent = true;
        self.election_at = now + URGENT_STEP * self.rank(now);
    }

    pub(in crate::replica) fn election_alarm(&mut self, now: Now, effects: &mut Effects) {
        if now < self.election_at {
            return;
        }
        if let Role::Follower(Follower { heard, .. }) = self.role
            && !self.urgent
            && now < heard + self.patience(now)
        {
            self.election_at = heard + self.patience(now);
            return;
        }
        let may_stand = self.is_voter() && !self.stopping && !self.disk_is_stalled(now);
        if self.is_leader() || !may_stand {
            self.election_at = now + self.settings.election_timeout;
            return;
        }
        self.urgent &= self.quorum_is_alive(); // Who is alone need not hurry.
        let cause = match (self.settings.members.len(), self.urgent) {
            (1, _) => Cause::Alone,
            (_, true) => Cause::LeaderGone,
            (_, false) => Cause::LeaderSilent,
        };
        self.become_pre_candidate(now, cause, effects);
    }

    /// When a ballot that came to nothing is held again.
    fn ballot_timeout(&mut self, now: Now) -> Duration {
        let step = if self.urgent { URGENT_STEP } else { self.settings.election_timeout / 2 };
        step + step / 2 * self.rank(now)
            + Duration::from_micros(self.rng.below(step.as_micros() as u64))
    }

    fn become_pre_candidate(&mut self, now: Now, cause: Cause, effects: &mut Effects) {
        let term = self.hard.term + 1;
        // Without a majority it is held again and again: that is told once.
        if self.stood != Some((term, cause)) {
            effects.events.push(Event::Campaign { term, cause });
        }
        (self.stood, self.last_cause) = (Some((term, cause)), Some(cause));
        self.role = Role::PreCandidate(Votes::default());
        self.election_at = now + self.ballot_timeout(now);
        let request = self.vote_request(true, false);
        for peer in self.settings.peers() {
            effects.send.push(self.envelope(peer, Message::Vote(request)));
        }
        self.count_votes(now, effects);
    }

    /// Enters a new term and asks for votes; they are asked for once the own vote is durable.
    pub(super) fn become_candidate(&mut self, now: Now, transfer: bool, effects: &mut Effects) {
        self.enter_term(self.hard.term + 1, Some(self.settings.id));
        effects.persist.push(WalRecord::Hard(self.hard.clone()));
        self.role = Role::Candidate(Votes::default());
        self.election_at = now + self.ballot_timeout(now);
        let request = self.vote_request(false, transfer);
        for peer in self.settings.peers() {
            effects.after_persist.push(self.envelope(peer, Message::Vote(request)));
        }
        self.count_votes(now, effects);
    }

    fn vote_request(&self, pre: bool, transfer: bool) -> VoteRequest {
        let (last_index, last_term) = (self.log.last_index(), self.log.last_term());
        VoteRequest { pre, transfer, last_index, last_term }
    }

    pub(super) fn receive_vote(
        &mut self,
        now: Now,
        from: NodeId,
        request: VoteRequest,
        effects: &mut Effects,
    ) {
        let VoteRequest { pre, transfer, last_index, last_term } = request;
        if !self.is_voter() {
            return;
        }
        let complete = self.log.is_covered_by(last_index, last_term)
            || self.settings.has(Mutant::SkipLogCheck);
        let content = !transfer && self.hears_leader(now);
        let free = pre
            || self.hard.vote.is_none_or(|vote| vote == from)
            || self.settings.has(Mutant::VoteTwice);
        let granted = complete && !content && free;
        let reply = self.envelope(from, Message::VoteReply(VoteReply { pre, granted }));
        if pre || !granted {
            effects.send.push(reply);
            return;
        }
        if self.hard.vote.is_none() {
            self.hard.vote = Some(from);
            effects.persist.push(WalRecord::Hard(self.hard.clone()));
        }
        match &mut self.role {
            Role::Follower(follower) => follower.heard = now,
            _ => self.role = Role::follower(now),
        }
        self.urgent = false;
        self.reset_election_alarm(now);
        effects.after_persist.push(reply);
    }

    pub(super) fn receive_vote_reply(
        &mut self,
        now: Now,
        from: NodeId,
        reply: VoteReply,
        effects: &mut Effects,
    ) {
        // A pre-vote binds nobody and must never be counted as a vote.
        let votes = match &mut self.role {
            Role::PreCandidate(votes) if reply.pre => votes,
            Role::Candidate(votes) if !reply.pre => votes,
            _ => return,
        };
        votes.answers.insert(from, reply.granted);
        self.count_votes(now, effects);
    }

    fn count_votes(&mut self, now: Now, effects: &mut Effects) {
        let (pre, votes) = match &self.role {
            Role::PreCandidate(votes) => (true, votes),
            Role::Candidate(votes) => (false, votes),
            _ => return,
        };
        let yes = 1 + votes.answers.values().filter(|granted| **granted).count();
        let no = votes.answers.len() + 1 - yes;
        // A ballot that is lost is held again when its alarm is raised.
        if quorum::count(self.settings.members.len(), yes, no) == quorum::Ballot::Won {
            if pre {
                self.become_candidate(now, false, effects);
            } else {
                self.become_leader(now, effects);
            }
        }
    }

    fn become_leader(&mut self, now: Now, effects: &mut Effects) {
        let last = self.log.last_index();
        let progress = self.settings.peers().map(|peer| (peer, Progress::new(now, last)));
        self.role = Role::Leader(Leader {
            progress: progress.collect(),
            term_start: last + 1,
            reads: LeaderReads::default(),
            transfer: None,
            held: Vec::new(),
            no_transfer_before: now,
            transfers_failed: 0,
            uncommitted: BTreeSet::new(),
            uncommitted_bytes: 0,
        });
        self.note_uncommitted();
        self.urgent = false;
        self.election_at = now + self.settings.election_timeout;
        let (leader, term) = (self.settings.id, self.hard.term);
        effects.events.push(Event::Leader { leader, term });
        self.append_entry(Entry { index: last + 1, term, payload: Payload::Noop }, effects);
        for peer in self.settings.peers() {
            effects.send.push(self.heartbeat(now, peer));
        }
        self.pending.send_again();
        self.hand_over_pending(now, effects);
        for id in self.follower_reads.take_all() {
            self.read(now, id, effects);
        }
        if self.stopping {
            self.start_transfer_to_best(now, effects);
        }
    }

    /// Follows `leader`, or nobody for now. What this node's clients wait for goes to the new
    /// leader.
    pub(super) fn become_follower(
        &mut self,
        now: Now,
        leader: Option<NodeId>,
        effects: &mut Effects,
    ) {
        self.draw_jitter();
        let heard = match &self.role {
            Role::Follower(follower) if leader.is_none() => follower.heard,
            _ => now,
        };
        let follower = Follower { leader, heard };
        if let Role::Leader(led) = std::mem::replace(&mut self.role, Role::Follower(follower)) {
            for id in led.reads.into_local() {
                self.follower_reads.add(id);
            }
        }
        self.urgent &= leader.is_none();
        self.reset_election_alarm(now);
        if let Some(leader) = leader {
            self.stood = None;
            self.pending.send_again();
            self.follower_reads.ask_again();
            effects.pull.insert(leader);
            effects.events.push(Event::Leader { leader, term: self.hard.term });
        }
    }

    /// Gives the leadership up without knowing of another leader. This term's vote stays cast.
    pub(super) fn step_down(&mut self, now: Now, cause: Cause, effects: &mut Effects) {
        effects.events.push(Event::SteppedDown(cause));
        self.become_follower(now, None, effects);
    }

    /// Notes that `from` leads this term and has just been heard.
    pub(super) fn hear_leader(&mut self, now: Now, from: NodeId, effects: &mut Effects) {
        if let Role::Follower(follower) = &mut self.role
            && follower.leader == Some(from)
        {
            follower.heard = now;
            return;
        }
        if !self.is_leader() {
            self.become_follower(now, Some(from), effects);
        }
    }
}
