//! Marks in the log, set by the leader when something has happened since the last one. At a mark
//! every replica does two things.
//!
//! It forgets the tombstones up to the mark's *floor*: every member that is alive has said that it
//! holds no undrained write up to there and will make none, and all are alive; or the floor lies a
//! whole horizon back, and undrained writes from before it come too late.
//!
//! It tells the digest of its state in its beats. Replicas with the same log up to the same mark
//! have the same state, or one of them is broken: then the minority stops, and where there is none
//! everybody but the leader's side.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::clock::{HybridClock, Now};
use crate::replica::detector::Liveness;
use crate::replica::{Effects, Replica};
use crate::types::{Entry, Index, NodeId, Payload, Version};

/// How long a difference must last before it is judged: everybody shall have spoken.
const JUDGE_AFTER: Duration = Duration::from_secs(1);

/// See the module.
#[derive(Debug)]
pub(super) struct Checkpoints {
    /// When this node, leading, looked last whether to set one.
    looked_at: Now,
    /// The latest mark that was applied here, and the digest there.
    own: Option<(Index, u64)>,
    /// Since when a peer has told another digest for it.
    differs_since: Option<Now>,
}

impl Checkpoints {
    pub fn new(now: Now) -> Checkpoints {
        Checkpoints { looked_at: now, own: None, differs_since: None }
    }
}

impl Replica {
    /// A mark was applied.
    pub(in crate::replica) fn checkpoint_applied(&mut self, index: Index, digest: u64) {
        self.eventual.checkpoints.own = Some((index, digest));
        self.eventual.checkpoints.differs_since = None;
    }

    /// The latest mark applied here, and the digest of the state there.
    pub(in crate::replica) fn checkpoint(&self) -> Option<(Index, u64)> {
        self.eventual.checkpoints.own
    }

    /// This node holds no undrained write up to this version and will make none, not even after a
    /// restart.
    pub(in crate::replica) fn drained(&mut self, now: Now) -> Version {
        if self.eventual.skew.is_doubted() {
            return Version::default();
        }
        let claimed = self.eventual.clock.claim(now).min(self.eventual.reserved);
        let claimed = Version::new(claimed, Version::LOG);
        match self.eventual.outbox.oldest() {
            Some(oldest) => claimed.min(Version(oldest.0.saturating_sub(1))),
            None => claimed,
        }
    }

    /// The disk is about to be written: now and then it shall learn how far a claim may go. A claim
    /// that only the process knew of would be broken if it came back with its wall clock set back.
    pub(in crate::replica) fn back_claim(&mut self, now: Now, effects: &mut Effects) {
        if self.eventual.skew.is_doubted() || self.leader().is_none() {
            return;
        }
        let claim = self.eventual.clock.claim(now);
        let step = self.settings.mark_interval.as_micros() as u64 / 2 * HybridClock::TICKS;
        let known = self.eventual.reserving.back().map_or(0, |(_, tick)| *tick);
        if claim >= known.max(self.eventual.reserved) + step {
            self.reserve_up_to(claim, effects);
        }
    }

    /// At each heartbeat of a leader.
    pub(in crate::replica) fn set_mark(&mut self, now: Now, effects: &mut Effects) {
        let checkpoints = &mut self.eventual.checkpoints;
        if now.since(checkpoints.looked_at) < self.settings.mark_interval || !self.may_append() {
            return;
        }
        self.eventual.checkpoints.looked_at = now;
        let (index, term) = (self.log.last_index() + 1, self.hard.term);
        let last = self.log.get(index - 1);
        if last
            .is_none_or(|last| matches!(last.payload, Payload::Checkpoint { .. } | Payload::Noop))
        {
            return;
        }
        let payload = Payload::Checkpoint { floor: self.floor(now) };
        self.append_entry(Entry { index, term, payload }, effects);
    }

    fn floor(&mut self, now: Now) -> Version {
        if self.eventual.skew.is_doubted() {
            return Version::default();
        }
        let own = self.drained(now);
        let alive = self.peers.values().filter(|peer| peer.liveness == Liveness::Alive);
        let claims =
            alive.filter_map(|peer| peer.heartbeat.as_ref().map(|heartbeat| heartbeat.drained));
        let claims: Vec<Version> = claims.collect();
        let all = claims.len() + 1 == self.settings.members.len();
        let drained = if all { claims.into_iter().fold(own, Version::min) } else { Version(0) };
        let horizon = self.settings.tombstone_horizon.as_micros() as u64;
        let late = self.eventual.clock.wall(now).saturating_sub(horizon);
        drained.max(Version::new(late.saturating_mul(HybridClock::TICKS), 0))
    }

    /// At each heartbeat: compares this node's state with those of its peers.
    pub(in crate::replica) fn compare_marks(&mut self, now: Now, effects: &mut Effects) {
        let Some((index, digest)) = self.eventual.checkpoints.own else { return };
        let mut votes: BTreeMap<u64, Vec<NodeId>> = BTreeMap::new();
        votes.entry(digest).or_default().push(self.settings.id);
        for (id, peer) in &self.peers {
            if peer.liveness == Liveness::Alive
                && let Some((at, digest)) =
                    peer.heartbeat.as_ref().and_then(|heartbeat| heartbeat.checkpoint)
                && at == index
            {
                votes.entry(digest).or_default().push(*id);
            }
        }
        let since = &mut self.eventual.checkpoints.differs_since;
        if votes.len() == 1 {
            *since = None;
            return;
        }
        if now.since(*since.get_or_insert(now)) < JUDGE_AFTER {
            return;
        }
        let leader = self.leader();
        let weight = |members: &Vec<NodeId>| {
            (members.len(), leader.is_some_and(|leader| members.contains(&leader)))
        };
        let own = weight(&votes[&digest]);
        if votes.values().any(|others| weight(others) > own) {
            effects.diverged = Some(index);
        }
    }
}
