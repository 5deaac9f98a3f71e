//! Stamping: the choice of the stamper, and the way of a request to its version, on this node or on
//! a peer.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::clock::{HybridClock, Now};
use crate::replica::detector::Liveness;
use crate::replica::eventual::{Eventual, newest, outbox};
use crate::replica::pending::Cancelled;
use crate::replica::{Effects, Envelope, Event, Heartbeat, Message, Replica, Standing};
use crate::types::{NodeId, Rejected, RequestId, Unknown, Unserved, Version, Write, Writes};

/// The bytes of requests in one message to the stamper.
const REQUEST_BYTES_MAX: usize = 1 << 20;

/// The age, by wall clocks, beyond which a forwarded request is not stamped any more.
pub(super) const VALID: Duration = Duration::from_secs(1);

/// The multiple of the backlog bound beyond which a node forwards nothing. The stamper has room,
/// but this node does not learn of commits, so its own outbox keeps growing.
const BACKLOGS_MAX: usize = 2;

/// Gives the writes of a request successive versions.
fn stamp(writes: impl IntoIterator<Item = Write>, first: Version) -> Writes {
    writes.into_iter().zip(0..).map(|(write, nth)| write.stamped(first.plus(nth))).collect()
}

impl Replica {
    /// Names a request for eventual writes, to be made under the same lock.
    pub fn next_stamp(&mut self) -> RequestId {
        let seq = self.eventual.requests.next_seq();
        self.own_id(seq)
    }

    /// Cancels a request for eventual writes, and says whether it may still be done.
    pub fn cancel_stamp(&mut self, id: RequestId) -> Cancelled {
        self.eventual.requests.cancel(id.seq)
    }

    /// The node that stamped this version; `None` if the log did.
    pub fn origin(&self, version: Version) -> Option<NodeId> {
        self.settings.members.get(usize::from(version.origin())).copied()
    }

    /// `Ok` if a version that this node holds may enter the log ahead of its turn. A version from a
    /// wrong clock would push all later versions of the log ahead.
    pub fn trust(&self, now: Now, version: Version) -> Result<(), Rejected> {
        let Eventual { skew, clock, .. } = &self.eventual;
        let is_sound = !skew.is_doubted() && clock.ahead(now, version.tick()).is_none();
        if is_sound { Ok(()) } else { Err(Rejected::ClockSkew) }
    }

    fn own_id(&self, seq: u64) -> RequestId {
        RequestId { node: self.settings.id, boot: self.settings.boot, seq }
    }

    /// The node that stamps eventual writes, as far as this node knows: the leader if it is alive,
    /// or else the highest live voter.
    pub fn stamper(&self) -> Option<NodeId> {
        let is_alive = |id: &NodeId| {
            *id == self.settings.id
                || self.peers.get(id).is_some_and(|peer| peer.liveness == Liveness::Alive)
        };
        self.leader().filter(is_alive).or_else(|| {
            let is_voter = |heartbeat: &Heartbeat| heartbeat.voter;
            let voters = self
                .peers
                .iter()
                .filter(|(id, peer)| is_alive(id) && peer.heartbeat.as_ref().is_some_and(is_voter));
            let own = self.is_voter().then_some(self.settings.id);
            voters.map(|(id, _)| *id).chain(own).max()
        })
    }

    /// Takes in [`Input::Stamp`](crate::replica::Input::Stamp): queues the request or refuses it.
    pub(in crate::replica) fn request_stamp(
        &mut self,
        id: RequestId,
        writes: Vec<Write>,
        effects: &mut Effects,
    ) {
        let bytes = outbox::size_of(&writes);
        let requests = &self.eventual.requests;
        // A blank node would ignore the stamper's answer, so the stamper would stamp the request
        // again and again.
        let refused = if self.stopping {
            Some(Rejected::Stopping)
        } else if self.hard.standing == Standing::Blank {
            Some(Rejected::Joining)
        } else if self.stamper().is_none() {
            Some(Rejected::NoLeader)
        } else if self.eventual.skew.is_certain() {
            Some(Rejected::ClockSkew)
        } else if !requests.is_empty() && requests.bytes() + bytes > self.settings.pending_bytes_max
        {
            Some(Rejected::Busy)
        } else {
            None
        };
        match refused {
            Some(reason) => effects.refuse_stamps.push((id, reason.into())),
            None => self.eventual.requests.insert(id.seq, writes, bytes),
        }
    }

    /// True if a request can be answered now: stamped, because there is room, or refused, because
    /// the node is stopping.
    fn can_answer(&self, bytes: usize) -> bool {
        self.stopping || self.eventual.has_room(bytes, self.settings.backlog_bytes_max)
    }

    /// Stamps the requests of this node's clients, as far as there is room.
    pub(super) fn stamp_own(&mut self, now: Now, effects: &mut Effects) {
        while let Some((seq, bytes)) = self.eventual.requests.first_for(now, self.settings.id)
            && self.can_answer(bytes)
            && let Some(request) = self.eventual.requests.remove(seq)
        {
            let id = self.own_id(seq);
            match self.next_versions(now, request.writes.len(), effects) {
                Ok(first) => {
                    let writes = stamp(request.writes, first);
                    self.eventual.hold(None, &writes);
                    effects.stamped.push((id, writes));
                    self.schedule_outbox(now, effects);
                }
                Err(reason) => {
                    // A peer that has had the request may have stamped it.
                    let is_certain = !request.was_sent();
                    effects.refuse_stamps.push((id, unserved(reason, is_certain)));
                }
            }
        }
    }

    /// The moment of the wall clock before which forwarded requests are too old.
    pub(super) fn valid_since(&self, now: Now) -> u64 {
        self.eventual.clock.wall(now).saturating_sub(VALID.as_micros() as u64)
    }

    /// Stamps the requests of peers' clients, as far as there is room; one request of each peer in
    /// turn.
    pub(super) fn stamp_forwarded(&mut self, now: Now, effects: &mut Effects) {
        let since = self.valid_since(now);
        let mut decisions: BTreeMap<NodeId, Vec<_>> = BTreeMap::new();
        let mut last = self.eventual.last_served;
        while let Some((id, writes)) = self.eventual.forwarded.next(last, since)
            && self.can_answer(outbox::size_of(&writes))
        {
            last = id.node;
            let first = self.next_versions(now, writes.len(), effects);
            if let Ok(first) = first {
                let writes = stamp(writes.iter().cloned(), first);
                self.eventual.hold(Some(id.node), &writes);
                effects.spread.push(writes);
                self.schedule_outbox(now, effects);
            }
            self.eventual.forwarded.decide(id, first);
            decisions.entry(id.node).or_default().push((id, first));
        }
        self.eventual.last_served = last;
        for (peer, decisions) in decisions {
            self.send_stamped(peer, decisions, effects);
        }
    }

    fn send_stamped(
        &mut self,
        peer: NodeId,
        decisions: Vec<(RequestId, Result<Version, Rejected>)>,
        effects: &mut Effects,
    ) {
        // A version leaves only when the disk holds a bound at or above it. Otherwise a restarted
        // node could stamp it a second time.
        let is_unreserved = self.is_withholding();
        if is_unreserved {
            self.reserve(effects);
        }
        let answer = self.envelope(peer, Message::Stamped(decisions));
        let way = if is_unreserved { &mut effects.after_persist } else { &mut effects.send };
        way.push(answer);
    }

    /// The first of `count` successive versions, or the reason for which this node stamps nothing.
    fn next_versions(
        &mut self,
        now: Now,
        count: usize,
        effects: &mut Effects,
    ) -> Result<Version, Rejected> {
        let eventual = &mut self.eventual;
        if self.stopping {
            return Err(Rejected::Stopping);
        }
        if self.disk_full {
            return Err(Rejected::DiskFull);
        }
        if eventual.skew.is_certain() {
            return Err(Rejected::ClockSkew);
        }
        let Some(first) = eventual.clock.stamp(now, count as u64) else {
            if eventual.skew.should_report(now) {
                effects.events.push(Event::ClockBehind);
            }
            return Err(Rejected::ClockSkew);
        };
        let first = Version::new(first, eventual.place);
        eventual.stamped = first.plus(count.saturating_sub(1) as u64).tick();
        Ok(first)
    }

    /// Takes in a message of the eventual mode, whose term is ignored.
    pub(in crate::replica) fn receive_eventual(
        &mut self,
        now: Now,
        from: NodeId,
        message: Message,
        effects: &mut Effects,
    ) {
        match message {
            Message::Stamp { sent, seen, floor, requests } => {
                let refused = self.stamp_refusal(now, from, sent, seen, effects);
                self.receive_stamp_requests(from, (sent, floor), requests, refused, effects);
            }
            Message::Stamped(decisions) => {
                for (id, decision) in decisions {
                    self.receive_stamped(now, from, id, decision, effects);
                }
            }
            Message::Spread(writes) => self.receive_spread(now, from, &writes, effects),
            _ => {}
        }
    }

    /// The reason for which this node does not stamp requests of `from`, if there is one. Also
    /// raises the clock above all versions that the clients of `from` may have seen.
    fn stamp_refusal(
        &mut self,
        now: Now,
        from: NodeId,
        sent: u64,
        seen: Version,
        effects: &mut Effects,
    ) -> Option<Rejected> {
        let clock = &mut self.eventual.clock;
        if self.stopping {
            return Some(Rejected::Stopping);
        }
        if !matches!(self.hard.standing, Standing::Voter { .. }) {
            return Some(Rejected::Joining);
        }
        // The age of a request is the difference of two nodes' clocks, and the new version must be
        // higher than all that its client has seen: neither works if the clocks are too far apart.
        let sent_tick = sent.saturating_mul(HybridClock::TICKS);
        if let Some(ahead) = clock.ahead(now, seen.tick().max(sent_tick)) {
            self.report_future_writes(now, from, ahead, effects);
            return Some(Rejected::ClockSkew);
        }
        clock.observe(seen.tick());
        None
    }

    /// Queues the requests of a peer for stamping, and answers those that are decided already.
    fn receive_stamp_requests(
        &mut self,
        from: NodeId,
        (sent, floor): (u64, u64),
        requests: Vec<(RequestId, Writes)>,
        refused: Option<Rejected>,
        effects: &mut Effects,
    ) {
        let mut answers = Vec::new();
        for (id, writes) in requests.into_iter().filter(|(id, _)| id.node == from) {
            // A repeated request gets the decision that it had. A refusal now would claim that it
            // was not done, although its writes may be in the log.
            let forwarded = &mut self.eventual.forwarded;
            let decided = forwarded
                .insert(id, writes, sent, floor)
                .or_else(|| refused.inspect(|reason| forwarded.decide(id, Err(*reason))).map(Err));
            answers.extend(decided.map(|decision| (id, decision)));
        }
        if !answers.is_empty() {
            self.send_stamped(from, answers, effects);
        }
    }

    /// Takes in the stamper's decision on a request of this node's clients.
    fn receive_stamped(
        &mut self,
        now: Now,
        from: NodeId,
        id: RequestId,
        decision: Result<Version, Rejected>,
        effects: &mut Effects,
    ) {
        // An answer to an earlier process of this node does not count.
        if id != self.own_id(id.seq) {
            return;
        }
        // A stopping node stamps nothing any more, so the request goes to the next stamper.
        if decision == Err(Rejected::Stopping) {
            return self.eventual.requests.refuse(id.seq, from);
        }
        let Some(request) = self.eventual.requests.remove_from(id.seq, from) else { return };
        match decision {
            Ok(first) => {
                let writes = stamp(request.writes, first);
                let newest = newest(&writes).tick();
                if let Some(ahead) = self.eventual.clock.ahead(now, newest) {
                    self.report_future_writes(now, from, ahead, effects);
                }
                // The next write of this node's clients gets a higher version, whatever node stamps
                // it.
                self.eventual.clock.observe(newest);
                self.eventual.hold(Some(from), &writes);
                effects.stamped.push((id, writes));
            }
            Err(reason) => {
                effects.refuse_stamps.push((id, unserved(reason, request.is_refusal_certain())));
            }
        }
    }

    /// The next requests of this node's clients for `peer`, if it is the stamper.
    pub(in crate::replica) fn pull_stamp(&mut self, now: Now, peer: NodeId) -> Option<Envelope> {
        let bytes_max = self.settings.backlog_bytes_max.saturating_mul(BACKLOGS_MAX);
        if self.stamper() != Some(peer) || self.eventual.outbox.bytes() > bytes_max {
            return None;
        }
        let (node, boot) = (self.settings.id, self.settings.boot);
        let (sent, floor) = (self.eventual.clock.wall(now), self.eventual.requests.floor());
        let seen = Version::new(self.eventual.clock.last(), Version::LOG);
        let sent_now = self.eventual.requests.send_to(now, peer, REQUEST_BYTES_MAX);
        let named = |(seq, writes): (u64, &[Write])| (RequestId { node, boot, seq }, writes.into());
        let requests: Vec<(RequestId, Writes)> = sent_now.into_iter().map(named).collect();
        if requests.is_empty() {
            return None;
        }
        Some(self.envelope(peer, Message::Stamp { sent, seen, floor, requests }))
    }
}

/// The answer to a request that this refusal ends. `is_certain` says that no other node can have
/// stamped it.
fn unserved(reason: Rejected, is_certain: bool) -> Unserved {
    if is_certain { reason.into() } else { Unknown::TimedOut.into() }
}
