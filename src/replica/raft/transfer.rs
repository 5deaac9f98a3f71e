//! Leadership transfer (thesis §3.10). The leader hands over to the highest node once that node has
//! caught up, and to any fit node when the leader is stopping, its disk is full or its clock is
//! wrong.
//!
//! During a transfer the leader appends nothing, so that the target can reach the end of its log.
//! Requests wait meanwhile; they do not fail. If the target does not take over within an election
//! timeout, the leader appends the waiting requests and continues.
//!
//! Three rules keep the leadership from flapping between nodes. The target must have been alive,
//! fit and caught up without a break for `takeover_delay`. A failed transfer is repeated only after
//! a growing delay. A node that lost the leadership because of its disk or its clock declines it
//! for a while.

use super::Role;
use super::heartbeat::UNFIT_TIMEOUTS;
use crate::clock::Now;
use crate::replica::progress::{Progress, ProgressState};
use crate::replica::{Cause, Effects, Event, Message, Replica};
use crate::types::{Index, NodeId};

/// A follower at most this many entries behind has nearly caught up: the rest takes a moment.
const NEARLY_ENTRIES: u64 = 1024;

/// The delay after a failed transfer, in election timeouts. Each failure doubles it …
const RETRY_TIMEOUTS: u32 = 10;

/// … up to this many times.
const RETRY_DOUBLINGS_MAX: u32 = 6;

/// True if the follower is at most [`NEARLY_ENTRIES`] behind.
fn has_nearly_caught_up(progress: &Progress, last: Index) -> bool {
    let is_replicating = matches!(progress.state, ProgressState::Replicate { .. });
    is_replicating && last.saturating_sub(progress.matched) <= NEARLY_ENTRIES
}

/// A transfer under way.
#[derive(Clone, Copy, Debug)]
pub struct Transfer {
    /// The next leader.
    pub to: NodeId,
    since: Now,
}

impl Replica {
    fn start_transfer(&mut self, now: Now, to: NodeId, effects: &mut Effects) {
        let Some(leader) = self.leader_state() else { return };
        leader.transfer = Some(Transfer { to, since: now });
        effects.events.push(Event::Transfer { to });
        self.try_to_hand_over(to, effects);
    }

    /// Hands over to the best follower: the highest fit one that has nearly caught up, or else the
    /// fit one with the most entries.
    pub(in crate::replica) fn start_transfer_to_best(&mut self, now: Now, effects: &mut Effects) {
        let last = self.log.last_index();
        let Role::Leader(leader) = &self.role else { return };
        if leader.transfer.is_some() {
            return;
        }
        let fit = leader.progress.iter().filter(|(peer, _)| self.peer_is_fit(**peer));
        let best = fit.max_by_key(|(peer, progress)| {
            let is_near = has_nearly_caught_up(progress, last);
            (is_near, if is_near { peer.0.into() } else { progress.matched })
        });
        if let Some((&to, _)) = best {
            self.start_transfer(now, to, effects);
        }
    }

    /// Tells the target of a transfer to campaign once it holds the whole log.
    pub(super) fn try_to_hand_over(&mut self, peer: NodeId, effects: &mut Effects) {
        let last = self.log.last_index();
        let Role::Leader(leader) = &self.role else { return };
        let is_target = leader.transfer.is_some_and(|transfer| transfer.to == peer);
        // Thesis §3.10: a target that lacks entries would lose the election (§5.4.1).
        if is_target && leader.progress.get(&peer).is_some_and(|p| p.matched == last) {
            effects.send.push(self.envelope(peer, Message::Campaign));
        }
    }

    /// At each heartbeat of a leader: ends a transfer that failed, repeats its last message, or
    /// starts a transfer.
    pub(super) fn drive_transfer(&mut self, now: Now, effects: &mut Effects) {
        self.update_readiness(now);
        let (timeout, delay) = (self.settings.election_timeout, self.settings.takeover_delay);
        let (stopping, disk_full, id) = (self.stopping, self.disk_full, self.settings.id);
        let clock_is_doubted = self.eventual.doubts_clock();
        if clock_is_doubted {
            // A clock at the edge of the tolerance must not make the leadership flap.
            self.unfit_until = now + timeout * UNFIT_TIMEOUTS;
        }
        let Some(leader) = self.leader_state() else { return };
        match leader.transfer {
            // Thesis §3.10: after an election timeout the leader resumes its work.
            Some(Transfer { to, since }) if now.since(since) > timeout => {
                leader.transfer = None;
                let factor = 1 << leader.transfers_failed.min(RETRY_DOUBLINGS_MAX);
                leader.transfers_failed += 1;
                leader.no_transfer_before = now + timeout * RETRY_TIMEOUTS * factor;
                effects.events.push(Event::TransferFailed { to });
                for proposal in std::mem::take(&mut leader.held) {
                    self.append_batch(now, proposal, effects);
                }
                self.submit_pending(now, effects);
            }
            Some(Transfer { to, .. }) => self.try_to_hand_over(to, effects),
            // A stopping node has no time to wait between attempts.
            None if stopping => self.start_transfer_to_best(now, effects),
            None if now < leader.no_transfer_before => {}
            None if disk_full || clock_is_doubted => self.start_transfer_to_best(now, effects),
            // Rank: the highest node that has been ready for the takeover delay.
            None => {
                let is_ready = |progress: &Progress| {
                    progress.ready_since.is_some_and(|since| now.since(since) >= delay)
                };
                let mut peers = leader.progress.iter().rev();
                let best = peers.find(|(peer, progress)| **peer > id && is_ready(progress));
                if let Some((&to, _)) = best {
                    self.start_transfer(now, to, effects);
                }
            }
        }
    }

    /// Notes since when each follower has been fit and nearly caught up without a break.
    fn update_readiness(&mut self, now: Now) {
        let last = self.log.last_index();
        let fit: Vec<NodeId> =
            self.settings.peers().filter(|peer| self.peer_is_fit(*peer)).collect();
        let Some(leader) = self.leader_state() else { return };
        for (peer, progress) in &mut leader.progress {
            progress.ready_since = match progress.ready_since {
                _ if !has_nearly_caught_up(progress, last) || !fit.contains(peer) => None,
                None => Some(now),
                since => since,
            };
        }
    }

    /// Campaigns at once, because the leader hands over (TimeoutNow, thesis §3.10).
    pub(super) fn receive_campaign(&mut self, now: Now, from: NodeId, effects: &mut Effects) {
        if self.leader() != Some(from) || self.is_leader() || !self.is_fit(now) {
            return;
        }
        // No pre-vote: the others still hear the leader and would refuse. The request says that the
        // leader itself started the election.
        let (term, cause) = (self.hard.term + 1, Cause::Transfer);
        effects.events.push(Event::Campaign { term, cause });
        self.last_cause = Some(cause);
        self.become_candidate(now, true, effects);
    }
}
