//! Heartbeats: each node tells every other that it is alive, at a fixed interval, with its
//! positions in the log and in the read rounds. These positions suffice to notice and repair the
//! loss of any single message.

use crate::clock::Now;
use crate::replica::detector::Liveness;
use crate::replica::raft::Role;
use crate::replica::{Cause, Effects, Envelope, Heartbeat, Message, Replica, Standing, quorum};
use crate::types::{Index, NodeId, Term};

/// The time for which a node that lost the leadership because of its disk or its clock declines it,
/// in election timeouts.
pub(super) const UNFIT_TIMEOUTS: u32 = 15;

/// The time without an answer after which a follower sends its requests again, in election
/// timeouts. A link that stays up loses nothing, so this is the last resort.
const RESEND_TIMEOUTS: u32 = 2;

impl Replica {
    /// The heartbeat for `to`.
    pub(in crate::replica) fn heartbeat(&self, now: Now, to: NodeId) -> Envelope {
        let (founder, admitted) = match &self.hard.standing {
            Standing::Blank => (None, false),
            Standing::CatchingUp => (None, true),
            Standing::Voter { founders } => (founders.get(&to).copied(), true),
        };
        let theirs = self.peers.get(&to).and_then(|peer| peer.heartbeat.as_ref());
        let (commit, read_round) = match &self.role {
            Role::Leader(leader) => (self.commit, leader.reads.round()),
            _ => (0, 0),
        };
        let heartbeat = Heartbeat {
            leader: self.leader(),
            commit,
            last: self.log.last_index(),
            matched: self.verified.min(self.durable),
            read_round,
            read_round_seen: self.read_round,
            incarnation: self.settings.incarnation,
            admitted,
            voter: self.is_voter(),
            fit: self.is_fit(now),
            founder,
            clock: self.shown_clock(now),
            drained: self.eventual.drained_claim,
            checkpoint: self.checkpoint(),
            // Only a node that is joining needs to know which of its heartbeats this one answers.
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
            self.check_followers(now, effects);
        } else {
            self.resend_overdue(now, effects);
        }
        self.eventual.drained_claim = self.claim_drained(now);
        self.maintain_outbox(now, effects);
        self.report_quorum(effects);
        self.compare_checkpoints(now, effects);
        for peer in self.settings.peers() {
            effects.send.push(self.heartbeat(now, peer));
        }
    }

    /// At a leader: checks its disk and its quorum, and probes the followers whose answers are
    /// overdue.
    fn check_followers(&mut self, now: Now, effects: &mut Effects) {
        let (timeout, members) = (self.settings.election_timeout, self.settings.members.len());
        // A leader whose disk does not answer steps down, even if followers commit without it: its
        // own copy of the log no longer counts, and its jobs pile up in memory.
        if self.disk_is_stalled(now) {
            self.unfit_until = now + timeout * UNFIT_TIMEOUTS;
            return self.step_down(now, Cause::DiskStalled, effects);
        }
        let Some(leader) = self.leader_state() else { return };
        // Check-quorum (thesis §6.2): a leader that hears no majority within the election timeout
        // steps down, so that its clients do not wait for commits that cannot come.
        let heard = leader.progress.values().filter(|p| now.since(p.heard_at) < timeout).count();
        if heard + 1 < quorum::majority(members) {
            return self.step_down(now, Cause::QuorumLost, effects);
        }
        let (mut installing, mut image_is_suspect) = (Vec::new(), false);
        for (peer, progress) in &mut leader.progress {
            if progress.is_overdue(now, timeout) {
                image_is_suspect |= progress.installing().is_some();
                progress.probe();
            }
            installing.extend(progress.installing().map(|image| (*peer, image)));
            effects.pull.insert(*peer);
        }
        for (peer, image) in installing {
            self.probe_behind_image(peer, image, effects);
        }
        if image_is_suspect {
            self.renew_image(effects);
        }
        self.drive_transfer(now, effects);
        self.append_checkpoint(now, effects);
    }

    /// At a follower: sends the requests again that the leader has not answered in time.
    fn resend_overdue(&mut self, now: Now, effects: &mut Effects) {
        let patience = RESEND_TIMEOUTS * self.settings.election_timeout;
        let Some(leader) = self.leader() else { return };
        if self.pending.is_overdue(now, patience) {
            self.pending.send_again();
            effects.pull.insert(leader);
        }
        if self.follower_reads.is_overdue(now, patience) {
            self.follower_reads.send_again();
            effects.pull.insert(leader);
        }
    }

    /// Keeps a heartbeat's news of its sender, whatever its term.
    pub(super) fn note_heartbeat(
        &mut self,
        now: Now,
        from: NodeId,
        term: Term,
        heartbeat: &Heartbeat,
        effects: &mut Effects,
    ) {
        let Some(peer) = self.peers.get_mut(&from) else { return };
        (peer.heartbeat, peer.heard_at) = (Some(heartbeat.clone()), now);
        // A blank follower has dropped the image under way; it gets one again later.
        if !heartbeat.admitted
            && let Some(leader) = self.leader_state()
            && let Some(progress) = leader.progress.get_mut(&from)
            && progress.image().is_some()
        {
            progress.probe();
        }
        self.compare_clocks(now, effects);
        self.hear_while_joining(now, from, term, heartbeat, effects);
    }

    pub(super) fn receive_heartbeat(
        &mut self,
        now: Now,
        from: NodeId,
        heartbeat: &Heartbeat,
        effects: &mut Effects,
    ) {
        if heartbeat.leader == Some(from) {
            self.hear_leader(now, from, effects);
            self.learn_commit(heartbeat.commit, effects);
            // A new read round (thesis §6.4): the echo confirms that this node still follows.
            if heartbeat.read_round > self.read_round {
                self.read_round = heartbeat.read_round;
                effects.send.push(self.heartbeat(now, from));
            }
            return;
        }
        // The leader has stepped down in its own term. A late heartbeat from before its election
        // does not count: its log ends before the entry that the term begins with.
        if self.leader() == Some(from) && self.verified > 0 && heartbeat.last >= self.verified {
            return self.leader_is_gone(now);
        }
        let last = self.log.last_index();
        if !self.is_leader() {
            return;
        }
        // The log is shorter than what the follower acknowledged: it has lost its disk. Believe
        // nothing that it acknowledged before.
        if heartbeat.last < self.matched(from)
            && let Some(leader) = self.leader_state()
            && let Some(progress) = leader.progress.get_mut(&from)
        {
            progress.link_is_new(now, last);
            effects.pull.insert(from);
        }
        // Repairs a lost acknowledgement.
        if heartbeat.matched <= last && heartbeat.matched > self.matched(from) {
            self.peer_matched(now, from, heartbeat.matched, effects);
        }
        if let Some(leader) = self.leader_state() {
            leader.reads.echoed(from, heartbeat.read_round_seen);
        }
        self.finish_read_round(now, effects);
    }

    /// The index up to which `peer` is known to match this leader's log; 0 at any other node.
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

    /// True if the peer is alive and does not decline the leadership.
    pub(super) fn peer_is_fit(&self, peer: NodeId) -> bool {
        let heartbeat = self.peers.get(&peer).and_then(|known| known.heartbeat.as_ref());
        self.peer_is_alive(peer) && heartbeat.is_some_and(|heartbeat| heartbeat.fit)
    }
}
