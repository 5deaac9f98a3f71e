//! # The eventual mode
//!
//! A second promise over the same keys and the same log. A blind write of an eventual session is
//! *stamped* with a version by one node, answered, and only then brought into the log; until it is
//! there, the nodes that know of it hold it in their `outbox.rs` and show it in their store's
//! overlay. The log merges it: the base takes it if it is the newest of its key. So all replicas
//! agree at every index, and it does not matter in which order or how often a write comes.
//!
//! **Who stamps** (`accept.rs`). The leader. While there is none, the highest voter that is alive,
//! which may be a last survivor alone; on both sides of a partition there is one. Any other node
//! hands its clients' writes over ([`Message::Stamp`](super::Message::Stamp)) and holds a copy of
//! what was stamped. A node that is asked by a peer stamps, whatever it thinks of who should: every
//! node may.
//!
//! **Versions** come from a hybrid clock and carry the stamping node's place, so no two are equal.
//! A node's versions never fall, not even over a restart: before a version leaves it for a peer or
//! the log, the disk says that the node may have come so far ([`WalRecord::Clock`], in steps that are
//! taken ahead of need). Nothing is stamped while the clocks cannot be trusted (`clocks.rs`).
//!
//! **The way into the log** (`drain.rs`). The leader gathers for a moment and appends all that it
//! holds, in large entries; everybody else sends what he holds to the leader. Without a leader
//! everybody sends to everybody alive, so that a write lives on as many nodes as there are. A write
//! leaves the outbox when an entry commits that holds it or a newer one.
//!
//! **Durability.** In health a write is in the log, and on a majority of disks, some milliseconds
//! after its answer. One that is not in the log after half a second is written to the node's own
//! disk.
//!
//! **Back-pressure.** An outbox is bounded in bytes. A session whose write finds no room waits.
//!
//! **Marks** (`checkpoints.rs`). Now and then the leader marks the log: there, tombstones end that no
//! undrained write can need any more, and the replicas compare the digests of their states.

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
    /// When the wall clock was last looked at, and what it showed, in microseconds.
    shown: (Now, u64),
    /// This node's place among the members: the origin of its versions.
    place: u8,
    outbox: Outbox,
    /// Requests of this node's clients that are not stamped yet.
    requests: StampRequests,
    /// Requests of peers' clients.
    forwarded: ForwardedWrites,
    /// Whose turn it was last.
    last_guest: NodeId,
    guests_first: bool,
    /// The highest tick that this node has stamped a write with.
    stamped: u64,
    /// Whom this node followed, and in which term, when it last looked.
    known_leader: (Option<NodeId>, u64),
    /// Who took writes, when it last looked and no majority was alive.
    stand_in: Option<NodeId>,
    /// Up to here the outbox is in this leader's log …
    logged: Cursor,
    /// … and has been sent to each peer on its present link.
    sent: BTreeMap<NodeId, Cursor>,
    /// When what is new shall go into the log.
    drain_at: Now,
    /// Since when a write has been the one held longest, and which; or since it was sent again.
    overdue: (Now, Option<Cursor>),
    disk: Disk,
    /// Versions up to this tick may leave this node.
    reserved: u64,
    /// Up to these ticks they may once the jobs are durable.
    reserving: VecDeque<(JobNo, u64)>,
    skew: clocks::Skew,
    checkpoints: Checkpoints,
    /// See [`Heartbeat::drained`](super::Heartbeat::drained); as of the latest heartbeat.
    pub claim: Version,
}

/// What is known of the writes on this node's own disk.
#[derive(Debug, Default)]
struct Disk {
    /// Bytes of writes on the disk that recovery would find.
    bytes: usize,
    /// The log behind them could be dropped, were they not there.
    is_outlived: bool,
    /// When all of them were last written anew.
    rewritten_at: Now,
    /// Jobs on their way to the disk, and how many writes each of them holds.
    jobs: VecDeque<(JobNo, usize)>,
    /// The end of the outbox at the latest heartbeats.
    ends: VecDeque<(Now, Cursor)>,
}

impl Eventual {
    /// Goes on with what the disk held.
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
        let disk = Disk { bytes: outbox::size_of(held), rewritten_at: now, ..Disk::default() };
        Eventual {
            clock: HybridClock::new(now, settings.wall_micros, settings.clock_offset_max, last),
            shown: (now, settings.wall_micros),
            place: place.and_then(|place| u8::try_from(place).ok()).unwrap_or(Version::LOG - 1),
            outbox,
            requests: StampRequests::new(stamp::VALID + settings.clock_offset_max),
            forwarded: ForwardedWrites::default(),
            last_guest: NodeId(0),
            guests_first: false,
            stamped: 0,
            known_leader: (None, 0),
            stand_in: None,
            logged: 0,
            sent: BTreeMap::new(),
            drain_at: Now(u64::MAX),
            overdue: (now, None),
            disk,
            reserved: clock.tick(),
            reserving: VecDeque::new(),
            skew: clocks::Skew::default(),
            checkpoints: Checkpoints::new(now),
            claim: Version::default(),
        }
    }

    /// When eventual writes shall be brought into the log.
    pub fn drain_at(&self) -> Now {
        self.drain_at
    }

    /// Writes held, and the room that they take, in bytes.
    pub fn backlog(&self) -> (usize, usize) {
        (self.outbox.len(), self.outbox.bytes())
    }

    /// Writes held that are not durable on this node's own disk.
    pub fn unsynced(&self) -> usize {
        let under_way = self.disk.jobs.iter().map(|(_, writes)| writes).sum::<usize>();
        self.outbox.unwritten() + under_way
    }

    /// True if this node's clock has been doubted for a while.
    pub fn doubts_clock(&self) -> bool {
        self.skew.is_certain()
    }

    /// True if nothing is held and nobody waits.
    pub fn is_idle(&self) -> bool {
        self.outbox.is_empty() && self.requests.is_empty() && self.forwarded.is_empty()
    }

    /// The log has come to hold this.
    pub fn observe(&mut self, payload: &Payload) {
        let newest = match payload {
            Payload::Noop => return,
            Payload::Batch { stamp, .. } => *stamp,
            Payload::Merge(writes) => newest(writes),
            Payload::Checkpoint { floor } => *floor,
        };
        self.clock.observe(newest.tick());
    }

    /// These writes are committed.
    pub fn settle(&mut self, writes: &[Write]) {
        self.outbox.settle(writes);
    }

    /// A link to `peer` is new: what was handed over on the old one may be lost.
    pub fn link_is_new(&mut self, peer: NodeId) {
        self.sent.remove(&peer);
        self.requests.link_is_new(peer);
    }

    /// The process of `peer` is gone.
    pub fn is_gone(&mut self, peer: NodeId) {
        self.requests.is_gone(peer);
    }

    /// The store has taken in an image whose latest version is this.
    pub fn restored(&mut self, latest: Version) {
        self.clock.observe(latest.tick());
    }

    fn has_room(&self, bytes: usize, bytes_max: usize) -> bool {
        self.outbox.is_empty() || self.outbox.bytes() + bytes <= bytes_max
    }

    /// The first of these writes, as many as there is room for.
    fn fitting<'a>(&self, writes: &'a [Write], bytes_max: usize) -> &'a [Write] {
        let mut bytes = 0;
        let fits = |write: &&Write| {
            bytes += outbox::size_of(slice::from_ref(*write));
            self.has_room(bytes, bytes_max)
        };
        &writes[..writes.iter().take_while(fits).count()]
    }

    /// Takes writes into the outbox that `from` holds too, if somebody else gave them; returns
    /// those that were news.
    fn take_in(&mut self, from: Option<NodeId>, writes: &[Write]) -> Vec<Write> {
        let first = self.outbox.end();
        let news = writes.iter().filter(|write| self.outbox.insert(write)).cloned().collect();
        if let Some(from) = from
            && let Some(sent) = self.sent.get_mut(&from).filter(|sent| **sent == first)
        {
            *sent = self.outbox.end();
        }
        news
    }
}

/// The highest version among writes.
fn newest(writes: &[Write]) -> Version {
    writes.iter().map(|write| write.version).max().unwrap_or_default()
}

impl Replica {
    /// After each step: whoever waits for a stamp, for the leader or for room may be served now.
    pub(super) fn look_after_eventual(&mut self, now: Now, effects: &mut Effects) {
        let leader = (self.leader(), self.hard.term);
        if self.eventual.known_leader != leader {
            self.eventual.known_leader = leader;
            self.eventual.logged = 0;
            self.hand_out(now, effects);
        }
        if self.eventual.requests.is_empty() && self.eventual.forwarded.is_empty() {
            return;
        }
        let skew = &self.eventual.skew;
        if skew.is_doubted() && !skew.is_certain() && !self.stopping {
            return; // They wait: a moment will tell.
        }
        let stamper = self.stamper();
        // Where there is little room, the clients of all nodes shall have their share of it.
        self.eventual.guests_first = !self.eventual.guests_first;
        if self.eventual.guests_first {
            self.stamp_guests(now, effects);
        }
        match stamper {
            Some(stamper) if stamper == self.settings.id => self.stamp_own(now, effects),
            Some(stamper) if self.eventual.requests.first_for(now, stamper).is_some() => {
                effects.pull.insert(stamper);
            }
            _ => {}
        }
        if !self.eventual.guests_first {
            self.stamp_guests(now, effects);
        }
    }

    /// What the leader stamps an entry with.
    pub(super) fn entry_stamp(&mut self, now: Now) -> Version {
        let trusted = !self.eventual.skew.is_doubted();
        Version::new(self.eventual.clock.next(now, trusted), Version::LOG)
    }

    /// Says when a majority is lost, and when it is back.
    pub(super) fn note_quorum(&mut self, effects: &mut Effects) {
        let quorum = self.quorum_is_alive();
        let accepts = if quorum { None } else { self.stamper() };
        let before = std::mem::replace(&mut self.eventual.stand_in, accepts);
        match accepts {
            Some(accepts) if before != Some(accepts) => {
                effects.events.push(Event::QuorumLost { accepts });
            }
            None if before.is_some() && quorum => {
                effects.events.push(Event::QuorumBack);
            }
            _ => {}
        }
    }

    /// How far versions are let go beyond those that are needed now, in ticks: half of what clocks
    /// may differ. After a crash this is how far ahead of the wall clock a node can be.
    fn reservation(&self) -> u64 {
        let micros = self.settings.clock_offset_max.as_micros() as u64;
        (micros * HybridClock::TICKS / 2).max(2)
    }

    /// Asks for versions to be let go further, unless that is under way.
    fn reserve(&mut self, effects: &mut Effects) {
        let asked = self.eventual.reserving.back().map_or(0, |(_, tick)| *tick);
        if asked > self.eventual.stamped + self.reservation() / 2 {
            return;
        }
        self.reserve_up_to(self.eventual.stamped + self.reservation(), effects);
    }

    /// Tells the disk that this node may have stamped up to this tick, or will never below it.
    fn reserve_up_to(&mut self, tick: u64, effects: &mut Effects) {
        self.eventual.reserving.push_back((self.last_job + 1, tick));
        effects.persist.push(WalRecord::Clock(Version::new(tick, Version::LOG)));
    }

    /// Everything up to this job is durable.
    pub(super) fn eventual_persisted(&mut self, now: Now, upto: JobNo, effects: &mut Effects) {
        while self.eventual.disk.jobs.pop_front_if(|(job, _)| *job <= upto).is_some() {}
        while let Some((_, tick)) = self.eventual.reserving.pop_front_if(|(job, _)| *job <= upto) {
            self.eventual.reserved = tick;
            self.hand_out(now, effects);
        }
    }
}
