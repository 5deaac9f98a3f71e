//! Checkpoints in the log. The leader appends one from time to time if entries have come since the
//! last one. At a checkpoint every replica does two things.
//!
//! It drops the tombstones up to the checkpoint's *floor*. The floor is safe in one of two cases.
//! All members are alive, and each has claimed that it holds no undrained write up to there and
//! will stamp none. Or the floor lies a whole horizon back, and older undrained writes are declared
//! too late.
//!
//! It shows the digest of its state in its heartbeats. Replicas that have applied the same log up
//! to the same checkpoint have the same state, or one of them is broken. Then the minority stops;
//! of two halves, the one without the leader.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::clock::{HybridClock, Now};
use crate::replica::detector::Liveness;
use crate::replica::{Effects, Replica};
use crate::types::{Entry, Index, NodeId, Payload, Version};

/// The time for which a difference must last before it is judged: all members get time to show
/// their digests.
const JUDGE_AFTER: Duration = Duration::from_secs(1);

/// The latest checkpoint of this node, and the times of the next decisions.
#[derive(Debug)]
pub(super) struct Checkpoints {
    /// The moment at which this node, as a leader, last considered a checkpoint.
    considered_at: Now,
    /// The latest checkpoint applied here, and the digest there.
    own: Option<(Index, u64)>,
    /// The moment since which a peer has shown another digest for it.
    differs_since: Option<Now>,
}

impl Checkpoints {
    pub fn new(now: Now) -> Checkpoints {
        Checkpoints { considered_at: now, own: None, differs_since: None }
    }
}

impl Replica {
    /// Takes in the digest at a checkpoint that the store has applied.
    pub(in crate::replica) fn checkpoint_applied(&mut self, index: Index, digest: u64) {
        self.eventual.checkpoints.own = Some((index, digest));
        self.eventual.checkpoints.differs_since = None;
    }

    /// The latest checkpoint applied here, and the digest of the state there.
    pub(in crate::replica) fn checkpoint(&self) -> Option<(Index, u64)> {
        self.eventual.checkpoints.own
    }

    /// This node's drained claim: it holds no undrained write up to this version and will stamp
    /// none, not even after a restart.
    pub(in crate::replica) fn claim_drained(&mut self, now: Now) -> Version {
        if self.eventual.skew.is_doubted() {
            return Version::default();
        }
        // Beyond the bound on the disk a restarted node could stamp lower versions again.
        let claimed = self.eventual.clock.claim(now).min(self.eventual.reserved);
        let claimed = Version::new(claimed, Version::LOG);
        match self.eventual.outbox.oldest() {
            Some(oldest) => claimed.min(Version(oldest.0.saturating_sub(1))),
            None => claimed,
        }
    }

    /// Adds a bound for the drained claim to a write to the disk, twice in a checkpoint interval. A
    /// claim that only the process knew could be broken after a restart with its wall clock set
    /// back.
    pub(in crate::replica) fn persist_drained_claim(&mut self, now: Now, effects: &mut Effects) {
        if self.eventual.skew.is_doubted() || self.leader().is_none() {
            return;
        }
        let claim = self.eventual.clock.claim(now);
        let step = self.settings.checkpoint_interval.as_micros() as u64 / 2 * HybridClock::TICKS;
        let known = self.eventual.reserving.back().map_or(0, |(_, tick)| *tick);
        if claim >= known.max(self.eventual.reserved) + step {
            self.reserve_up_to(claim, effects);
        }
    }

    /// At each heartbeat of a leader: appends a checkpoint if one is due.
    pub(in crate::replica) fn append_checkpoint(&mut self, now: Now, effects: &mut Effects) {
        let checkpoints = &mut self.eventual.checkpoints;
        let is_due = now.since(checkpoints.considered_at) >= self.settings.checkpoint_interval;
        if !is_due || !self.may_append() {
            return;
        }
        self.eventual.checkpoints.considered_at = now;
        let (index, term) = (self.log.last_index() + 1, self.hard.term);
        // No work since the last checkpoint or election: an idle cluster writes nothing.
        let has_work = self.log.get(index - 1).is_some_and(|last| {
            !matches!(last.payload, Payload::Checkpoint { .. } | Payload::Noop)
        });
        if !has_work {
            return;
        }
        let payload = Payload::Checkpoint { floor: self.tombstone_floor(now) };
        self.append_entry(Entry { index, term, payload }, effects);
    }

    /// The version up to which no member can need a tombstone any more.
    fn tombstone_floor(&mut self, now: Now) -> Version {
        if self.eventual.skew.is_doubted() {
            return Version::default();
        }
        let own = self.claim_drained(now);
        let alive = self.peers.values().filter(|peer| peer.liveness == Liveness::Alive);
        let claims =
            alive.filter_map(|peer| peer.heartbeat.as_ref().map(|heartbeat| heartbeat.drained));
        let claims: Vec<Version> = claims.collect();
        // A member that is down may come back with any undrained write.
        let all_claimed = claims.len() + 1 == self.settings.members.len();
        let drained =
            if all_claimed { claims.into_iter().fold(own, Version::min) } else { Version(0) };
        // The horizon bounds the number of tombstones while a member stays away.
        let horizon = self.settings.tombstone_horizon.as_micros() as u64;
        let late = self.eventual.clock.wall(now).saturating_sub(horizon);
        drained.max(Version::new(late.saturating_mul(HybridClock::TICKS), 0))
    }

    /// At each heartbeat: compares this node's digest with those of its peers.
    pub(in crate::replica) fn compare_checkpoints(&mut self, now: Now, effects: &mut Effects) {
        let Some((index, digest)) = self.eventual.checkpoints.own else { return };
        let mut by_digest: BTreeMap<u64, Vec<NodeId>> = BTreeMap::new();
        by_digest.entry(digest).or_default().push(self.settings.id);
        for (id, peer) in &self.peers {
            if peer.liveness == Liveness::Alive
                && let Some((at, digest)) =
                    peer.heartbeat.as_ref().and_then(|heartbeat| heartbeat.checkpoint)
                && at == index
            {
                by_digest.entry(digest).or_default().push(*id);
            }
        }
        let since = &mut self.eventual.checkpoints.differs_since;
        if by_digest.len() == 1 {
            *since = None;
            return;
        }
        if now.since(*since.get_or_insert(now)) < JUDGE_AFTER {
            return;
        }
        let leader = self.leader();
        // The larger side is right; of two halves, the leader's.
        let weight = |members: &Vec<NodeId>| {
            (members.len(), leader.is_some_and(|leader| members.contains(&leader)))
        };
        let own = weight(&by_digest[&digest]);
        if by_digest.values().any(|others| weight(others) > own) {
            effects.diverged = Some(index);
        }
    }
}
