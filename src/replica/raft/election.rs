//! Elections (Raft §5.2): campaigns, votes, and the ways into each role.
//!
//! Rank orders the campaigns: each alive, fit node with a higher id adds to a node's patience. A
//! peer whose port refuses connections is gone for certain. If that peer was the leader, the node
//! of the best rank campaigns at once, and again every few milliseconds while the other nodes have
//! not noticed the loss yet.

use std::collections::BTreeSet;
use std::time::Duration;

use super::read::LeaderReads;
use super::{Follower, Leader, Role, Votes};
use crate::clock::Now;
use crate::replica::detector::Liveness;
use crate::replica::progress::Progress;
use crate::replica::{
    Cause, Effects, Event, Message, Replica, VoteReply, VoteRequest, WalRecord, quorum,
};
use crate::types::{Entry, NodeId, Payload};

/// The delay of each rank's campaign, and between campaigns, when the leader is known to be gone.
const URGENT_STEP: Duration = Duration::from_millis(20);

impl Replica {
    /// The number of nodes that should campaign before this one.
    fn rank(&self, now: Now) -> u32 {
        // An unfit node comes last, but it does campaign: a poor leader is better than none.
        if !self.is_fit(now) {
            return self.settings.members.len() as u32;
        }
        // The present leader does not count: patience is about the election after its loss.
        let lost = self.leader();
        let better = self.peers.iter().filter(|(id, peer)| {
            **id > self.settings.id
                && Some(**id) != lost
                && peer.liveness == Liveness::Alive
                && peer.heartbeat.as_ref().is_some_and(|heartbeat| heartbeat.fit)
        });
        better.count() as u32
    }

    /// The time that this node waits for a leader before it campaigns.
    pub(in crate::replica) fn patience(&self, now: Now) -> Duration {
        if self.settings.members.len() == 1 {
            return Duration::ZERO;
        }
        // Rank on top of Raft §5.2's random timeouts: half a timeout for each better node, and a
        // jitter below that step for nodes that disagree about the ranks.
        let timeout = self.settings.election_timeout;
        timeout + timeout / 2 * self.rank(now) + self.jitter
    }

    /// Draws the random part of this node's patience.
    pub(in crate::replica) fn draw_jitter(&mut self) {
        let bound = self.settings.election_timeout.as_micros() as u64 / 8;
        self.jitter = Duration::from_micros(self.rng.below(bound));
    }

    /// Sets the election alarm anew after a change of its inputs: leader, ranks, liveness.
    pub(in crate::replica) fn reset_election_alarm(&mut self, now: Now) {
        if let Role::Follower(Follower { heard_at, .. }) = self.role {
            let at = now.max(heard_at + self.patience(now));
            // The leader is gone: news about other nodes must not postpone the campaign.
            self.election_at = if self.urgent { at.min(self.election_at) } else { at };
        }
    }

    /// Notes that a peer's process is gone for certain.
    pub(in crate::replica) fn peer_gone(&mut self, now: Now, gone: NodeId, effects: &mut Effects) {
        if let Some(peer) = self.peers.get_mut(&gone) {
            peer.liveness = Liveness::Suspected;
        }
        self.eventual.peer_gone(gone);
        self.report_quorum(effects);
        // Only the loss of the leader is a reason to campaign.
        if self.is_leader() || self.leader() != Some(gone) {
            self.reset_election_alarm(now);
            return;
        }
        self.leader_is_gone(now);
    }

    /// Notes that the leader of this term leads no more: the node of the best rank campaigns at
    /// once.
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
        // The leader was heard after this alarm was set: wait for the rest of the patience.
        if let Role::Follower(Follower { heard_at, .. }) = self.role
            && !self.urgent
            && now < heard_at + self.patience(now)
        {
            self.election_at = heard_at + self.patience(now);
            return;
        }
        // A node that catches up may have forgotten votes (joining.rs); a stalled disk cannot make
        // the own vote durable.
        let may_campaign = self.is_voter() && !self.stopping && !self.disk_is_stalled(now);
        if self.is_leader() || !may_campaign {
            self.election_at = now + self.settings.election_timeout;
            return;
        }
        // Without a quorum no campaign can succeed, so there is no hurry.
        self.urgent &= self.quorum_is_alive();
        let cause = match (self.settings.members.len(), self.urgent) {
            (1, _) => Cause::Alone,
            (_, true) => Cause::LeaderGone,
            (_, false) => Cause::LeaderSilent,
        };
        self.become_pre_candidate(now, cause, effects);
    }

    /// The time after which a campaign without a winner is repeated.
    fn campaign_timeout(&mut self, now: Now) -> Duration {
        let step = if self.urgent { URGENT_STEP } else { self.settings.election_timeout / 2 };
        step + step / 2 * self.rank(now)
            + Duration::from_micros(self.rng.below(step.as_micros() as u64))
    }

    fn become_pre_candidate(&mut self, now: Now, cause: Cause, effects: &mut Effects) {
        let term = self.hard.term + 1;
        // Without a quorum a campaign repeats for ever; log it once per term and cause.
        if self.reported_campaign != Some((term, cause)) {
            effects.events.push(Event::Campaign { term, cause });
        }
        (self.reported_campaign, self.last_cause) = (Some((term, cause)), Some(cause));
        // Pre-vote (thesis §9.6): the term stays, nothing is persisted, no leader is disturbed.
        self.role = Role::PreCandidate(Votes::default());
        self.election_at = now + self.campaign_timeout(now);
        let request = self.vote_request(true, false);
        for peer in self.settings.peers() {
            effects.send.push(self.envelope(peer, Message::Vote(request)));
        }
        self.count_votes(now, effects);
    }

    /// Enters a new term and requests votes.
    pub(super) fn become_candidate(&mut self, now: Now, transfer: bool, effects: &mut Effects) {
        self.enter_term(self.hard.term + 1, Some(self.settings.id));
        effects.persist.push(WalRecord::Hard(self.hard.clone()));
        self.role = Role::Candidate(Votes::default());
        self.election_at = now + self.campaign_timeout(now);
        let request = self.vote_request(false, transfer);
        // Raft figure 2: the term and the vote for itself are durable before a message carries
        // them.
        for peer in self.settings.peers() {
            effects.after_persist.push(self.envelope(peer, Message::Vote(request)));
        }
        self.count_votes(now, effects);
    }

    fn vote_request(&self, pre: bool, transfer: bool) -> VoteRequest {
        let (last_index, last_term) = (self.log.last_index(), self.log.last_term());
        VoteRequest { pre, transfer, last_index, last_term }
    }

    /// Answers a request for a vote or a pre-vote. `receive` (raft/mod.rs) has dropped strangers,
    /// old terms, and candidates of a newer term under a live leader.
    pub(super) fn receive_vote(
        &mut self,
        now: Now,
        from: NodeId,
        request: VoteRequest,
        effects: &mut Effects,
    ) {
        let VoteRequest { pre, transfer, last_index, last_term } = request;
        // A node that catches up may have voted before it lost its directory (joining.rs).
        if !self.is_voter() {
            return;
        }
        // Raft §5.4.1: only a log at least as complete as ours may win our vote.
        let log_is_complete = self.log.is_covered_by(last_index, last_term);
        // Thesis §4.2.3: while we hear a leader, refuse candidates, unless the leader itself
        // started the election. `receive` asks the same before it adopts a newer term, because
        // adopting it forgets the leader. For pre-votes and votes of this term, this is the only
        // check.
        let has_live_leader = !transfer && self.has_live_leader(now);
        // Raft §5.2: one vote a term, and the same answer to a repeated request. A pre-vote
        // promises nothing, so it never uses up the vote.
        let vote_is_free = pre || self.hard.vote.is_none_or(|vote| vote == from);
        let granted = log_is_complete && !has_live_leader && vote_is_free;
        let reply = self.envelope(from, Message::VoteReply(VoteReply { pre, granted }));
        if pre || !granted {
            effects.send.push(reply);
            return;
        }
        if self.hard.vote.is_none() {
            self.hard.vote = Some(from);
            effects.persist.push(WalRecord::Hard(self.hard.clone()));
        }
        // Raft §5.2: a granted vote restarts the patience; the candidate gets time to win.
        match &mut self.role {
            Role::Follower(follower) => follower.heard_at = now,
            _ => self.role = Role::follower(now),
        }
        self.urgent = false;
        self.reset_election_alarm(now);
        // The vote is durable before the candidate hears of it, or a restart could vote twice.
        effects.after_persist.push(reply);
    }

    pub(super) fn receive_vote_reply(
        &mut self,
        now: Now,
        from: NodeId,
        reply: VoteReply,
        effects: &mut Effects,
    ) {
        // A pre-vote promises nothing, so it must never count as a vote.
        let votes = match &mut self.role {
            Role::PreCandidate(votes) if reply.pre => votes,
            Role::Candidate(votes) if !reply.pre => votes,
            _ => return,
        };
        votes.replies.insert(from, reply.granted);
        self.count_votes(now, effects);
    }

    fn count_votes(&mut self, now: Now, effects: &mut Effects) {
        let (pre, votes) = match &self.role {
            Role::PreCandidate(votes) => (true, votes),
            Role::Candidate(votes) => (false, votes),
            _ => return,
        };
        let granted = 1 + votes.replies.values().filter(|granted| **granted).count();
        let refused = votes.replies.len() + 1 - granted;
        let result = quorum::count_votes(self.settings.members.len(), granted, refused);
        // A lost campaign is repeated by the election alarm.
        if result == quorum::VoteResult::Won {
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
        // Raft §5.4.2, §8: the no-op commits the entries of former terms before it, and with it the
        // leader learns the commit index.
        self.append_entry(Entry { index: last + 1, term, payload: Payload::Noop }, effects);
        for peer in self.settings.peers() {
            effects.send.push(self.heartbeat(now, peer));
        }
        // The requests of this node's own clients went to the former leader; now they are appended
        // here.
        self.pending.send_again();
        self.submit_pending(now, effects);
        for id in self.follower_reads.take_all() {
            self.read(now, id, effects);
        }
        if self.stopping {
            self.start_transfer_to_best(now, effects);
        }
    }

    /// Follows `leader`, or no leader for now. The pending requests and reads of this node's
    /// clients go to the new leader.
    pub(super) fn become_follower(
        &mut self,
        now: Now,
        leader: Option<NodeId>,
        effects: &mut Effects,
    ) {
        self.draw_jitter();
        // A new term alone is no sign of a leader: patience goes on from where it was.
        let heard_at = match &self.role {
            Role::Follower(follower) if leader.is_none() => follower.heard_at,
            _ => now,
        };
        let follower = Follower { leader, heard_at };
        if let Role::Leader(led) = std::mem::replace(&mut self.role, Role::Follower(follower)) {
            for id in led.reads.into_local() {
                self.follower_reads.add(id);
            }
        }
        self.urgent &= leader.is_none();
        self.reset_election_alarm(now);
        if let Some(leader) = leader {
            self.reported_campaign = None;
            self.pending.send_again();
            self.follower_reads.send_again();
            effects.pull.insert(leader);
            effects.events.push(Event::Leader { leader, term: self.hard.term });
        }
    }

    /// Steps down without knowing another leader. The vote of this term stays cast.
    pub(super) fn step_down(&mut self, now: Now, cause: Cause, effects: &mut Effects) {
        effects.events.push(Event::SteppedDown(cause));
        self.become_follower(now, None, effects);
    }

    /// Notes that `from` leads this term and was heard just now.
    pub(super) fn hear_leader(&mut self, now: Now, from: NodeId, effects: &mut Effects) {
        if let Role::Follower(follower) = &mut self.role
            && follower.leader == Some(from)
        {
            follower.heard_at = now;
            return;
        }
        // Raft §5.2: a candidate that hears the leader of its term follows it.
        if !self.is_leader() {
            self.become_follower(now, Some(from), effects);
        }
    }
}
