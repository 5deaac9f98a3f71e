//! Beats: each node tells each other one that it is alive, at its own pace, and a little of what it
//! knows. What beats carry is enough to notice and mend whatever single message was lost.

use crate::clock::Now;
use crate::replica::detector::Liveness;
use crate::replica::raft::Role;
use crate::replica::{Cause, Effects, Envelope, Heartbeat, Message, Replica, Standing, quorum};
use crate::types::{Index, NodeId, Term};

/// How long a node that had to give the leadership up for its disk or its clock is not handed it
/// again, in election timeouts.
pub(super) const UNFIT_TIMEOUTS: u32 = 15;

/// After how many election timeouts without an answer a follower asks the leader again. Links lose
/// nothing by themselves, so this is the last resort.
const RESEND_TIMEOUTS: u32 = 2;

impl Replica {
    /// What this node tells `to`.
    pub(in crate::replica) fn heartbeat(&self, now: Now, to: NodeId) -> Envelope {
        let (founder, admitted) = match &self.hard.standing {
            Standing::Blank => (None, false),
            Standing::CatchingUp => (None, true),
            Standing::Voter { founders } => (founders.get(&to).copied(), true),
        };
        let theirs = self.peers.get(&to).and_then(|peer| peer.heartbeat.as_ref());
        let (commit, asked) = match &self.role {
            Role::Leader(leader) => (self.commit, leader.reads.asked()),
            _ => (0, 0),
        };
        let heartbeat = Heartbeat {
            leader: self.leader(),
            commit,
            last: self.log.last_index(),
            matched: self.verified.min(self.durable),
            asked,
            heard: self.round,
            incarnation: self.settings.incarnation,
            admitted,
            voter: self.is_voter(),
            fit: self.is_fit(now),
            founder,
            clock: self.shown_clock(now),
            drained: self.eventual.claim,
            checkpoint: self.checkpoint(),
            answers: theirs
                .filter(|heartbeat| !heartbeat.voter)
                .map(|heartbeat| heartbeat.incarnation),
        };
        self.envelope(to, Message::Heartbeat(heartbeat))
    }

    pub(in crate::replica) fn heartbeat_alarm(&mut self, now: Now, effects: &mut Effects) {
        if now < self.heartbeat_at {
            return;
        }
        self.heartbeat_at = now + self.settings.heartbeat_interval;
        self.found_alone(now, effects);
        if self.is_leader() {
            self.look_after_followers(now, effects);
        } else {
            self.look_after_pending(now, effects);
        }
        self.eventual.claim = self.drained(now);
        self.look_after_outbox(now, effects);
        self.note_quorum(effects);
        self.compare_marks(now, effects);
        for peer in self.settings.peers() {
            effects.send.push(self.heartbeat(now, peer));
        }
    }

    /// A leader that has no majority or no disk gives up; what got lost is sent again.
    fn look_after_followers(&mut self, now: Now, effects: &mut Effects) {
        let (timeout, members) = (self.settings.election_timeout, self.settings.members.len());
        if self.disk_is_stalled(now) {
            self.unfit_until = now + timeout * UNFIT_TIMEOUTS;
            return self.step_down(now, Cause::DiskStalled, effects);
        }
        let Some(leader) = self.leader_state() else { return };
        let heard = leader.progress.values().filter(|p| now.since(p.heard) < timeout).count();
        if heard + 1 < quorum::majority(members) {
            return self.step_down(now, Cause::QuorumLost, effects);
        }
        let (mut installing, mut refused) = (Vec::new(), false);
        for (peer, progress) in &mut leader.progress {
            if progress.is_overdue(now, timeout) {
                refused |= progress.installing().is_some();
                progress.probe();
            }
            installing.extend(progress.installing().map(|image| (*peer, image)));
            effects.pull.insert(*peer);
        }
        for (peer, image) in installing {
            self.ask_behind_image(peer, image, effects);
        }
        if refused {
            self.renew_image(effects);
        }
        self.look_after_transfer(now, effects);
        self.set_mark(now, effects);
    }

    /// A follower's requests that the leader never answered are handed over again.
    fn look_after_pending(&mut self, now: Now, effects: &mut Effects) {
        let patience = RESEND_TIMEOUTS * self.settings.election_timeout;
        let Some(leader) = self.leader() else { return };
        if self.pending.is_overdue(now, patience) {
            self.pending.send_again();
            effects.pull.insert(leader);
        }
        if self.follower_reads.is_overdue(now, patience) {
            self.follower_reads.ask_again();
            effects.pull.insert(leader);
        }
    }

    /// Keeps what a beat says of its sender, whatever its term.
    pub(super) fn note_beat(
        &mut self,
        now: Now,
        from: NodeId,
        term: Term,
        heartbeat: &Heartbeat,
        effects: &mut Effects,
    ) {
        let Some(peer) = self.peers.get_mut(&from) else { return };
        (peer.heartbeat, peer.heard) = (Some(heartbeat.clone()), now);
        if !heartbeat.admitted
            && let Some(leader) = self.leader_state()
            && let Some(progress) = leader.progress.get_mut(&from)
            && progress.image().is_some()
        {
            progress.probe(); // It has thrown the image away, and shall get another one later.
        }
        self.compare_clocks(now, effects);
        self.hear_while_joining(now, from, term, heartbeat, effects);
    }

    pub(super) fn receive_beat(
        &mut self,
        now: Now,
        from: NodeId,
        heartbeat: &Heartbeat,
        effects: &mut Effects,
    ) {
        if heartbeat.leader == Some(from) {
            self.hear_leader(now, from, effects);
            self.learn_commit(heartbeat.commit, effects);
            if heartbeat.asked > self.round {
                self.round = heartbeat.asked;
                effects.send.push(self.heartbeat(now, from));
            }
            return;
        }
        // The leader has stepped down in its own term. (A beat from before it led that comes late
        // ends before the entry that its term begins with.)
        if self.leader() == Some(from) && self.verified > 0 && heartbeat.last >= self.verified {
            return self.leader_is_gone(now);
        }
        let last = self.log.last_index();
        if !self.is_leader() {
            return;
        }
        if heartbeat.last < self.matched(from)
            && let Some(leader) = self.leader_state()
            && let Some(progress) = leader.progress.get_mut(&from)
        {
            // It has lost its disk, and what it had acknowledged before came late.
            progress.link_is_new(now, last);
            effects.pull.insert(from);
        }
        if heartbeat.matched <= last && heartbeat.matched > self.matched(from) {
            self.peer_accepted(now, from, heartbeat.matched, effects);
        }
        if let Some(leader) = self.leader_state() {
            leader.reads.heard(from, heartbeat.heard);
        }
        self.finish_read_round(now, effects);
    }

    fn matched(&self, peer: NodeId) -> Index {
        match &self.role {
            Role::Leader(leader) => leader.progress.get(&peer).map_or(0, |p| p.matched),
            _ => 0,
        }
    }

    /// True if the peer is not suspected.
    pub(super) fn peer_is_alive(&self, peer: NodeId) -> bool {
        self.peers.get(&peer).is_some_and(|known| known.liveness == Liveness::Alive)
    }

    /// True if the peer is alive and says that it can lead.
    pub(super) fn peer_is_fit(&self, peer: NodeId) -> bool {
        let heartbeat = self.peers.get(&peer).and_then(|known| known.heartbeat.as_ref());
        self.peer_is_alive(peer) && heartbeat.is_some_and(|heartbeat| heartbeat.fit)
    }
}
