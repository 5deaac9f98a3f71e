//! Leadership transfer (thesis §3.10): to the highest alive node once it has caught up, and to
//! anyone fit when this node is about to stop, its disk is full or its clock is wrong.
//!
//! While a transfer is under way the leader appends nothing, so that the target can reach the end
//! of its log; requests wait, they do not fail. If the target has not taken over within an election
//! timeout the leader goes on as if nothing had been.
//!
//! Flapping is prevented three times: the target must have been alive, fit and caught up without a
//! break for `takeover_delay`; a failed transfer is not tried again for a while; and a node that
//! lost the leadership because of its disk calls itself unfit for a while.

use super::Role;
use super::heartbeat::UNFIT_TIMEOUTS;
use crate::clock::Now;
use crate::replica::progress::{Progress, State};
use crate::replica::{Cause, Effects, Event, Message, Replica};
use crate::types::{Index, NodeId};

/// A follower this many entries behind has as good as caught up: the rest takes a moment.
const NEARLY_ENTRIES: u64 = 1024;

/// How long a failed transfer is not tried again, in election timeouts; doubled with each failure,
/// up to so many times.
const RETRY_TIMEOUTS: u32 = 10;
const RETRY_DOUBLINGS_MAX: u32 = 6;

/// True if the follower has as good as caught up.
fn is_near(progress: &Progress, last: Index) -> bool {
    let replicating = matches!(progress.state, State::Replicate { .. });
    replicating && last.saturating_sub(progress.matched) <= NEARLY_ENTRIES
}

/// A hand-over under way.
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

    /// This node should not lead: the highest fit follower that has as good as caught up shall, or
    /// else the one that has most of the log.
    pub(in crate::replica) fn start_transfer_to_best(&mut self, now: Now, effects: &mut Effects) {
        let last = self.log.last_index();
        let Role::Leader(leader) = &self.role else { return };
        if leader.transfer.is_some() {
            return;
        }
        let fit = leader.progress.iter().filter(|(peer, _)| self.peer_is_fit(**peer));
        let best = fit.max_by_key(|(peer, progress)| {
            let near = is_near(progress, last);
            (near, if near { peer.0.into() } else { progress.matched })
        });
        if let Some((&to, _)) = best {
            self.start_transfer(now, to, effects);
        }
    }

    /// Tells the target to campaign once it has everything.
    pub(super) fn try_to_hand_over(&mut self, peer: NodeId, effects: &mut Effects) {
        let last = self.log.last_index();
        let Role::Leader(leader) = &self.role else { return };
        let target = leader.transfer.is_some_and(|transfer| transfer.to == peer);
        if target && leader.progress.get(&peer).is_some_and(|p| p.matched == last) {
            effects.send.push(self.envelope(peer, Message::Campaign));
        }
    }

    /// At each heartbeat of a leader: gives a transfer up, asks again, or starts one.
    pub(super) fn look_after_transfer(&mut self, now: Now, effects: &mut Effects) {
        self.note_who_is_ready(now);
        let (timeout, delay) = (self.settings.election_timeout, self.settings.takeover_delay);
        let (stopping, disk_full, id) = (self.stopping, self.disk_full, self.settings.id);
        let doubted = self.eventual.doubts_clock();
        if doubted {
            // A clock on the brink shall not make the leadership go to and fro.
            self.unfit_until = now + timeout * UNFIT_TIMEOUTS;
        }
        let Some(leader) = self.leader_state() else { return };
        match leader.transfer {
            Some(Transfer { to, since }) if now.since(since) > timeout => {
                leader.transfer = None;
                let factor = 1 << leader.transfers_failed.min(RETRY_DOUBLINGS_MAX);
                leader.transfers_failed += 1;
                leader.no_transfer_before = now + timeout * RETRY_TIMEOUTS * factor;
                effects.events.push(Event::TransferFailed { to });
                for proposal in std::mem::take(&mut leader.held) {
                    self.append_batch(now, proposal, effects);
                }
                self.hand_over_pending(now, effects);
            }
            Some(Transfer { to, .. }) => self.try_to_hand_over(to, effects),
            None if stopping => self.start_transfer_to_best(now, effects),
            None if now < leader.no_transfer_before => {}
            None if disk_full || doubted => self.start_transfer_to_best(now, effects),
            None => {
                let ready = |progress: &Progress| {
                    progress.ready_since.is_some_and(|since| now.since(since) >= delay)
                };
                let mut peers = leader.progress.iter().rev();
                let best = peers.find(|(peer, progress)| **peer > id && ready(progress));
                if let Some((&to, _)) = best {
                    self.start_transfer(now, to, effects);
                }
            }
        }
    }

    fn note_who_is_ready(&mut self, now: Now) {
        let last = self.log.last_index();
        let fit: Vec<NodeId> =
            self.settings.peers().filter(|peer| self.peer_is_fit(*peer)).collect();
        let Some(leader) = self.leader_state() else { return };
        for (peer, progress) in &mut leader.progress {
            progress.ready_since = match progress.ready_since {
                _ if !is_near(progress, last) || !fit.contains(peer) => None,
                None => Some(now),
                since => since,
            };
        }
    }

    /// The leader asks this node to take over.
    pub(super) fn receive_campaign(&mut self, now: Now, from: NodeId, effects: &mut Effects) {
        if self.leader() != Some(from) || self.is_leader() || !self.is_fit(now) {
            return;
        }
        let (term, cause) = (self.hard.term + 1, Cause::Transfer);
        effects.events.push(Event::Campaign { term, cause });
        self.last_cause = Some(cause);
        self.become_candidate(now, true, effects);
    }
}
