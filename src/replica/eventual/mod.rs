//! # The eventual mode
//!
//! A second promise over the same keys and the same log. One node *stamps* a blind write of an
//! eventual session with a version and answers it; only then the write enters the log. Until it is
//! there, the nodes that know it hold it in their outbox (`outbox.rs`) and show it in their store's
//! overlay. Applying its entry merges it: the base takes the write if it is the newest of its key.
//! So all replicas agree at every index, and neither the order nor the number of a write's arrivals
//! matters.
//!
//! **The stamper** (`stamp.rs`). The leader stamps. Without a leader, the highest voter that is
//! alive does, which may be a last survivor alone; a partition has one stamper on each side. Every
//! other node forwards its clients' writes to the stamper
//! ([`Message::Stamp`](super::Message::Stamp)) and holds a copy of the stamped writes. A node
//! stamps the requests that peers forward to it even if it believes that another node is the
//! stamper: versions from two nodes never collide.
//!
//! **Versions** come from a hybrid clock (Kulkarni and others, *Logical Physical Clocks*, 2014) and
//! carry the stamping node's place among the members, so no two are equal. A node's versions never
//! fall, not even over a restart: before a version leaves for a peer or the log, the disk holds a
//! bound at or above it ([`WalRecord::Clock`], raised ahead of need). A node that cannot trust its
//! clock stamps nothing (`clocks.rs`).
//!
//! **The way into the log** (`drain.rs`). The leader gathers writes for a moment and appends all
//! that it holds, in large entries; every other node spreads its writes to the leader. Without a
//! leader every node spreads them to every peer alive, so that a write survives on as many nodes as
//! possible. A write leaves the outbox when an entry commits that holds it or a newer write to its
//! key.
//!
//! **Durability.** In health a write is in the log, and on a majority of disks, some milliseconds
//! after its answer. A write that is not in the log after half a second goes to the node's own
//! disk.
//!
//! **Back-pressure.** An outbox is bounded in bytes. A session whose write finds no room waits.
//!
//! **Checkpoints** (`checkpoints.rs`). From time to time the leader appends a checkpoint. There,
//! the replicas drop the tombstones that no undrained write can need any more, and compare the
//! digests of their states.

mod checkpoints;
mod clocks;
mod drain;
mod forwarded_writes;
mod outbox;
mod seq_queue;
mod stamp;
mod stamp_requests;

use std::collections::{BTreeMap, VecDeque};
use std::slice;

use super::{Effects, Event, JobNo, Replica, Settings, WalRecord};
use crate::clock::{HybridClock, Now};
use crate::types::{NodeId, Payload, Version, Write};
use checkpoints::Checkpoints;
use forwarded_writes::ForwardedWrites;
use outbox::{Cursor, Outbox};
use stamp_requests::StampRequests;

/// This node's part in the eventual mode.
#[derive(Debug)]
pub(super) struct Eventual {
    clock: HybridClock,
    /// The moment and the value, in microseconds, of the latest reading of the wall clock.
    shown: (Now, u64),
    /// This node's place among the members: the origin of its versions.
    place: u8,
    outbox: Outbox,
    /// Unstamped requests of this node's clients.
    requests: StampRequests,
    /// Requests of peers' clients.
    forwarded: ForwardedWrites,
    /// The peer whose request was stamped last.
    last_served: NodeId,
    forwarded_first: bool,
    /// The highest tick that this node has stamped a write with.
    stamped: u64,
    /// The leader and the term at the latest step.
    known_leader: (Option<NodeId>, u64),
    /// The stamper that was reported when the majority was lost; `None` while a majority is alive.
    reported_stamper: Option<NodeId>,
    /// This leader has appended the outbox up to here.
    logged: Cursor,
    /// The outbox was spread to each peer up to here, on its present link.
    spread: BTreeMap<NodeId, Cursor>,
    /// The moment at which the leader appends new writes.
    drain_at: Now,
    /// The write held longest, and the moment since which it has been that (or was spread again).
    longest_held: (Now, Option<Cursor>),
    disk: DiskCopy,
    /// Versions up to this tick may leave this node: the disk knows of them.
    reserved: u64,
    /// Higher bounds that are on their way to the disk.
    reserving: VecDeque<(JobNo, u64)>,
    skew: clocks::Skew,
    checkpoints: Checkpoints,
    /// The claim of the latest heartbeats, see [`Heartbeat::drained`](super::Heartbeat::drained).
    pub drained_claim: Version,
}

/// The copy of the outbox on this node's own disk.
#[derive(Debug, Default)]
struct DiskCopy {
    /// The bytes of writes that recovery would find.
    bytes: usize,
    /// True after a snapshot: only these writes still keep old segments of the log.
    must_rewrite: bool,
    /// The moment at which the whole outbox was last written.
    rewritten_at: Now,
    /// The jobs on their way to the disk, and the number of writes in each.
    jobs: VecDeque<(JobNo, usize)>,
    /// The end of the outbox at recent heartbeats, oldest first.
    ends: VecDeque<(Now, Cursor)>,
}

impl Eventual {
    /// The eventual mode's state, with the writes and the version bound that the disk held.
    pub fn new(
        now: Now,
        settings: &Settings,
        held: &[Write],
        clock: Version,
        seed: u64,
    ) -> Eventual {
        let mut outbox = Outbox::new(seed);
        for write in held {
            outbox.insert(write);
        }
        outbox.take_all();
        let last = clock.max(newest(held)).tick();
        let place = settings.members.iter().position(|member| *member == settings.id);
        let disk =
            DiskCopy { bytes: outbox::size_of(held), rewritten_at: now, ..DiskCopy::default() };
        Eventual {
            clock: HybridClock::new(now, settings.wall_micros, settings.clock_offset_max, last),
            shown: (now, settings.wall_micros),
            place: place.and_then(|place| u8::try_from(place).ok()).unwrap_or(Version::LOG - 1),
            outbox,
            requests: StampRequests::new(stamp::VALID + settings.clock_offset_max),
            forwarded: ForwardedWrites::default(),
            last_served: NodeId(0),
            forwarded_first: false,
            stamped: 0,
            known_leader: (None, 0),
            reported_stamper: None,
            logged: 0,
            spread: BTreeMap::new(),
            drain_at: Now(u64::MAX),
            longest_held: (now, None),
            disk,
            reserved: clock.tick(),
            reserving: VecDeque::new(),
            skew: clocks::Skew::default(),
            checkpoints: Checkpoints::new(now),
            drained_claim: Version::default(),
        }
    }

    /// The moment at which the leader appends new writes to the log.
    pub fn drain_at(&self) -> Now {
        self.drain_at
    }

    /// The number of writes held, and their size in bytes.
    pub fn backlog(&self) -> (usize, usize) {
        (self.outbox.len(), self.outbox.bytes())
    }

    /// The number of writes held that are not durable on this node's own disk.
    pub fn unsynced(&self) -> usize {
        let under_way = self.disk.jobs.iter().map(|(_, writes)| writes).sum::<usize>();
        self.outbox.unwritten() + under_way
    }

    /// True if the doubt about this node's clock has lasted.
    pub fn doubts_clock(&self) -> bool {
        self.skew.is_certain()
    }

    /// True if no write is held and no request waits.
    pub fn is_idle(&self) -> bool {
        self.outbox.is_empty() && self.requests.is_empty() && self.forwarded.is_empty()
    }

    /// Raises the clock above the versions of an entry of the log.
    pub fn observe(&mut self, payload: &Payload) {
        let newest = match payload {
            Payload::Noop => return,
            Payload::Batch { stamp, .. } => *stamp,
            Payload::Merge(writes) => newest(writes),
            Payload::Checkpoint { floor } => *floor,
        };
        self.clock.observe(newest.tick());
    }

    /// Removes committed writes, and older ones to their keys, from the outbox.
    pub fn settle(&mut self, writes: &[Write]) {
        self.outbox.settle(writes);
    }

    /// Treats all writes as not sent to `peer`, because messages on its old link may be lost.
    pub fn link_is_new(&mut self, peer: NodeId) {
        self.spread.remove(&peer);
        self.requests.link_is_new(peer);
    }

    /// Notes that the process of `peer` is gone.
    pub fn peer_gone(&mut self, peer: NodeId) {
        self.requests.node_gone(peer);
    }

    /// Raises the clock above the latest version of an image that the store has restored.
    pub fn restored(&mut self, latest: Version) {
        self.clock.observe(latest.tick());
    }

    /// True if the outbox has room for `bytes` more. An empty outbox has room for any write.
    fn has_room(&self, bytes: usize, bytes_max: usize) -> bool {
        self.outbox.is_empty() || self.outbox.bytes() + bytes <= bytes_max
    }

    /// The first of these writes, up to the room in the outbox.
    fn fitting<'a>(&self, writes: &'a [Write], bytes_max: usize) -> &'a [Write] {
        let mut bytes = 0;
        let fits = |write: &&Write| {
            bytes += outbox::size_of(slice::from_ref(*write));
            self.has_room(bytes, bytes_max)
        };
        &writes[..writes.iter().take_while(fits).count()]
    }

    /// Adds writes to the outbox and returns the ones that were news. `from` is the peer that holds
    /// them too, if there is one.
    fn hold(&mut self, from: Option<NodeId>, writes: &[Write]) -> Vec<Write> {
        let first = self.outbox.end();
        let news = writes.iter().filter(|write| self.outbox.insert(write)).cloned().collect();
        // A peer that was up to date stays so: its own writes need not go back to it.
        if let Some(from) = from
            && let Some(spread) = self.spread.get_mut(&from).filter(|spread| **spread == first)
        {
            *spread = self.outbox.end();
        }
        news
    }
}

/// The highest version among writes.
fn newest(writes: &[Write]) -> Version {
    writes.iter().map(|write| write.version).max().unwrap_or_default()
}

impl Replica {
    /// After each step: stamps or forwards the requests that the step has set free.
    pub(super) fn serve_eventual(&mut self, now: Now, effects: &mut Effects) {
        let leader = (self.leader(), self.hard.term);
        // A new term may have cut merge entries off the log: drain or spread the whole outbox anew.
        if self.eventual.known_leader != leader {
            self.eventual.known_leader = leader;
            self.eventual.logged = 0;
            self.schedule_outbox(now, effects);
        }
        if self.eventual.requests.is_empty() && self.eventual.forwarded.is_empty() {
            return;
        }
        // A late heartbeat can raise a doubt that the next one dispels: requests wait for that.
        let skew = &self.eventual.skew;
        if skew.is_doubted() && !skew.is_certain() && !self.stopping {
            return;
        }
        let stamper = self.stamper();
        // When room is scarce, this node's clients and the peers' clients take turns.
        self.eventual.forwarded_first = !self.eventual.forwarded_first;
        if self.eventual.forwarded_first {
            self.stamp_forwarded(now, effects);
        }
        match stamper {
            Some(stamper) if stamper == self.settings.id => self.stamp_own(now, effects),
            Some(stamper) if self.eventual.requests.first_for(now, stamper).is_some() => {
                effects.pull.insert(stamper);
            }
            _ => {}
        }
        if !self.eventual.forwarded_first {
            self.stamp_forwarded(now, effects);
        }
    }

    /// The leader's stamp for a batch entry.
    pub(super) fn entry_stamp(&mut self, now: Now) -> Version {
        // A doubted clock must not push the versions of the log ahead of all other clocks.
        let trusted = !self.eventual.skew.is_doubted();
        Version::new(self.eventual.clock.next(now, trusted), Version::LOG)
    }

    /// Reports the loss and the return of the majority.
    pub(super) fn report_quorum(&mut self, effects: &mut Effects) {
        let has_quorum = self.quorum_is_alive();
        let stamper = if has_quorum { None } else { self.stamper() };
        let before = std::mem::replace(&mut self.eventual.reported_stamper, stamper);
        match stamper {
            Some(stamper) if before != Some(stamper) => {
                effects.events.push(Event::QuorumLost { stamper });
            }
            None if before.is_some() && has_quorum => {
                effects.events.push(Event::QuorumBack);
            }
            _ => {}
        }
    }

    /// The ticks that are reserved ahead of need: half of the tolerated clock difference. After a
    /// crash a node's versions can lie this far ahead of its wall clock.
    fn reservation(&self) -> u64 {
        let micros = self.settings.clock_offset_max.as_micros() as u64;
        (micros * HybridClock::TICKS / 2).max(2)
    }

    /// Reserves more ticks, unless that is under way.
    fn reserve(&mut self, effects: &mut Effects) {
        let requested = self.eventual.reserving.back().map_or(0, |(_, tick)| *tick);
        if requested > self.eventual.stamped + self.reservation() / 2 {
            return;
        }
        self.reserve_up_to(self.eventual.stamped + self.reservation(), effects);
    }

    /// Writes to the disk that this node may have stamped up to `tick`, and never stamps below it
    /// after a restart.
    fn reserve_up_to(&mut self, tick: u64, effects: &mut Effects) {
        self.eventual.reserving.push_back((self.last_job + 1, tick));
        effects.persist.push(WalRecord::Clock(Version::new(tick, Version::LOG)));
    }

    /// Takes in the report that all jobs up to `upto` are durable.
    pub(super) fn eventual_persisted(&mut self, now: Now, upto: JobNo, effects: &mut Effects) {
        while self.eventual.disk.jobs.pop_front_if(|(job, _)| *job <= upto).is_some() {}
        while let Some((_, tick)) = self.eventual.reserving.pop_front_if(|(job, _)| *job <= upto) {
            self.eventual.reserved = tick;
            // Writes with versions up to this tick may leave now.
            self.schedule_outbox(now, effects);
        }
    }
}
