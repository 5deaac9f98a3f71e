//! Who stamps eventual writes, and how a request gets there: here, or by way of a peer.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::clock::{HybridClock, Now};
use crate::replica::detector::Liveness;
use crate::replica::eventual::{Eventual, newest, outbox};
use crate::replica::pending::Cancelled;
use crate::replica::{Effects, Envelope, Event, Heartbeat, Message, Replica, Standing};
use crate::types::{NodeId, Rejected, RequestId, Unknown, Unserved, Version, Write, Writes};

/// How many of its own clients' requests a node hands over in one message at most, in bytes.
const ACCEPT_BYTES_MAX: usize = 1 << 20;

/// How old a request may be, by wall clocks, when a peer stamps it.
pub(super) const VALID: Duration = Duration::from_secs(1);

/// A node that holds so many times the backlog that is allowed hands nothing over: the leader has
/// room, but this node does not learn of what gets into the log.
const BACKLOGS_MAX: usize = 2;

/// Gives the writes of a batch their versions.
fn stamp(writes: impl IntoIterator<Item = Write>, first: Version) -> Writes {
    writes.into_iter().zip(0..).map(|(write, nth)| write.stamped(first.plus(nth))).collect()
}

impl Replica {
    /// Names a request for eventual writes, to be asked for under the same lock.
    pub fn next_stamp(&mut self) -> RequestId {
        let seq = self.eventual.requests.next_seq();
        self.own_id(seq)
    }

    /// Gives a request for eventual writes up. `None` if it has its answer, or is about to.
    pub fn cancel_stamp(&mut self, id: RequestId) -> Option<Cancelled> {
        match self.eventual.requests.cancel(id.seq) {
            Cancelled::Unknown => None,
            known => Some(known),
        }
    }

    /// The node that has stamped this version; the log has stamped what no node has.
    pub fn origin(&self, version: Version) -> Option<NodeId> {
        self.settings.members.get(usize::from(version.origin())).copied()
    }

    /// Whether a version that this node holds may get into the log ahead of its turn: no node's
    /// wrong clock shall spoil what the log stamps after it.
    pub fn trust(&self, now: Now, version: Version) -> Result<(), Rejected> {
        let Eventual { skew, clock, .. } = &self.eventual;
        let sound = !skew.is_doubted() && clock.ahead(now, version.tick()).is_none();
        if sound { Ok(()) } else { Err(Rejected::ClockSkew) }
    }

    fn own_id(&self, seq: u64) -> RequestId {
        RequestId { node: self.settings.id, boot: self.settings.boot, seq }
    }

    /// Who stamps eventual writes, as far as this node knows: the leader if it is alive, or else
    /// the highest voter that is.
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

    pub(in crate::replica) fn accept(
        &mut self,
        id: RequestId,
        writes: Vec<Write>,
        effects: &mut Effects,
    ) {
        let bytes = outbox::size_of(&writes);
        let requests = &self.eventual.requests;
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

    /// True if a request need not wait: there is room for it, or there will be none.
    fn may_decide(&self, bytes: usize) -> bool {
        self.stopping || self.eventual.has_room(bytes, self.settings.backlog_bytes_max)
    }

    /// Stamps what this node's clients ask for, as far as there is room.
    pub(super) fn stamp_own(&mut self, now: Now, effects: &mut Effects) {
        while let Some((seq, bytes)) = self.eventual.requests.first_for(now, self.settings.id)
            && self.may_decide(bytes)
            && let Some(ask) = self.eventual.requests.remove(seq)
        {
            let id = self.own_id(seq);
            match self.next_versions(now, ask.writes.len(), effects) {
                Ok(first) => {
                    let writes = stamp(ask.writes, first);
                    self.eventual.take_in(None, &writes);
                    effects.stamped.push((id, writes));
                    self.hand_out(now, effects);
                }
                Err(reason) => {
                    let handed = ask.was_handed();
                    effects.refuse_stamps.push((id, unserved(reason, !handed)));
                }
            }
        }
    }

    /// Requests that peers handed over before this moment of the wall clock are too old.
    pub(super) fn valid_since(&self, now: Now) -> u64 {
        self.eventual.clock.wall(now).saturating_sub(VALID.as_micros() as u64)
    }

    /// The same for peers' clients, one request of each in turn.
    pub(super) fn stamp_guests(&mut self, now: Now, effects: &mut Effects) {
        let since = self.valid_since(now);
        let mut stamps: BTreeMap<NodeId, Vec<_>> = BTreeMap::new();
        let mut last = self.eventual.last_guest;
        while let Some((id, writes)) = self.eventual.forwarded.next(last, since)
            && self.may_decide(outbox::size_of(&writes))
        {
            last = id.node;
            let first = self.next_versions(now, writes.len(), effects);
            if let Ok(first) = first {
                let writes = stamp(writes.iter().cloned(), first);
                self.eventual.take_in(Some(id.node), &writes);
                effects.spread.push(writes);
                self.hand_out(now, effects);
            }
            self.eventual.forwarded.decide(id, first);
            stamps.entry(id.node).or_default().push((id, first));
        }
        self.eventual.last_guest = last;
        for (peer, stamps) in stamps {
            self.answer(peer, stamps, effects);
        }
    }

    fn answer(
        &mut self,
        peer: NodeId,
        stamps: Vec<(RequestId, Result<Version, Rejected>)>,
        effects: &mut Effects,
    ) {
        // A version that the disk does not know of yet must not leave before it does.
        let unreserved = self.is_withholding();
        if unreserved {
            self.reserve(effects);
        }
        let answer = self.envelope(peer, Message::Stamped(stamps));
        let way = if unreserved { &mut effects.after_persist } else { &mut effects.send };
        way.push(answer);
    }

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
            if eventual.skew.should_tell(now) {
                effects.events.push(Event::ClockBehind);
            }
            return Err(Rejected::ClockSkew);
        };
        let first = Version::new(first, eventual.place);
        eventual.stamped = first.plus(count.saturating_sub(1) as u64).tick();
        Ok(first)
    }

    /// A peer says something of the eventual mode, which has no terms.
    pub(in crate::replica) fn receive_eventual(
        &mut self,
        now: Now,
        from: NodeId,
        message: Message,
        effects: &mut Effects,
    ) {
        match message {
            Message::Stamp { sent, seen, floor, requests } => {
                let refused = self.hear_out(now, from, sent, seen, effects);
                self.receive_accept(from, (sent, floor), requests, refused, effects);
            }
            Message::Stamped(stamps) => {
                for (id, stamp) in stamps {
                    self.receive_stamp(now, from, id, stamp, effects);
                }
            }
            Message::Spread(writes) => self.receive_spread(now, from, &writes, effects),
            _ => {}
        }
    }

    /// Why requests of `from` cannot be stamped, if they cannot: how old they are must be told by
    /// the two nodes' clocks, and nothing may be stamped below what their clients may have seen.
    fn hear_out(
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
        let sent_tick = sent.saturating_mul(HybridClock::TICKS);
        if let Some(ahead) = clock.ahead(now, seen.tick().max(sent_tick)) {
            self.tell_of_the_future(now, from, ahead, effects);
            return Some(Rejected::ClockSkew);
        }
        clock.observe(seen.tick());
        None
    }

    fn receive_accept(
        &mut self,
        from: NodeId,
        (sent, floor): (u64, u64),
        requests: Vec<(RequestId, Writes)>,
        refused: Option<Rejected>,
        effects: &mut Effects,
    ) {
        let mut answers = Vec::new();
        for (id, writes) in requests.into_iter().filter(|(id, _)| id.node == from) {
            // What has been decided before stands, whatever there is to say now.
            let forwarded = &mut self.eventual.forwarded;
            let decided = forwarded
                .insert(id, writes, sent, floor)
                .or_else(|| refused.inspect(|reason| forwarded.decide(id, Err(*reason))).map(Err));
            answers.extend(decided.map(|decision| (id, decision)));
        }
        if !answers.is_empty() {
            self.answer(from, answers, effects);
        }
    }

    fn receive_stamp(
        &mut self,
        now: Now,
        from: NodeId,
        id: RequestId,
        version: Result<Version, Rejected>,
        effects: &mut Effects,
    ) {
        if id != self.own_id(id.seq) {
            return;
        }
        if version == Err(Rejected::Stopping) {
            return self.eventual.requests.refuse(id.seq, from);
        }
        let Some(ask) = self.eventual.requests.remove_from(id.seq, from) else { return };
        match version {
            Ok(first) => {
                let writes = stamp(ask.writes, first);
                let newest = newest(&writes).tick();
                if let Some(ahead) = self.eventual.clock.ahead(now, newest) {
                    self.tell_of_the_future(now, from, ahead, effects);
                }
                // What this node's clients write next shall be newer, whoever stamps it.
                self.eventual.clock.observe(newest);
                self.eventual.take_in(Some(from), &writes);
                effects.stamped.push((id, writes));
            }
            Err(reason) => {
                effects.refuse_stamps.push((id, unserved(reason, ask.is_certain())));
            }
        }
    }

    /// This node's clients' requests for `peer`, which stamps them.
    pub(in crate::replica) fn pull_stamp(&mut self, now: Now, peer: NodeId) -> Option<Envelope> {
        let bytes_max = self.settings.backlog_bytes_max.saturating_mul(BACKLOGS_MAX);
        if self.stamper() != Some(peer) || self.eventual.outbox.bytes() > bytes_max {
            return None;
        }
        let (node, boot) = (self.settings.id, self.settings.boot);
        let (sent, floor) = (self.eventual.clock.wall(now), self.eventual.requests.floor());
        let seen = Version::new(self.eventual.clock.last(), Version::LOG);
        let handed = self.eventual.requests.hand_to(now, peer, ACCEPT_BYTES_MAX);
        let named = |(seq, writes): (u64, &[Write])| (RequestId { node, boot, seq }, writes.into());
        let requests: Vec<(RequestId, Writes)> = handed.into_iter().map(named).collect();
        if requests.is_empty() {
            return None;
        }
        Some(self.envelope(peer, Message::Stamp { sent, seen, floor, requests }))
    }
}

/// How a request ends that was not stamped; nobody else can have stamped it if that is `certain`.
fn unserved(reason: Rejected, certain: bool) -> Unserved {
    if certain { reason.into() } else { Unknown::TimedOut.into() }
}
