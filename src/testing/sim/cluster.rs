//! The world: nodes, links, clients, and a queue of events ordered by (virtual time, sequence).
//!
//! An event that belongs to a process is dropped when that process is gone, and waits while it is
//! stopped: that is what SIGSTOP does to a node.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap};
use std::time::Duration;

use crate::clock::Now;
use crate::rng::Rng;
use crate::testing::sim::disk::Disk;
use crate::testing::sim::events::{Event, Scheduled};
use crate::testing::sim::eventual::Promises;
use crate::testing::sim::faults::Struck;
use crate::testing::sim::invariants::Oracle;
use crate::testing::sim::network::Link;
use crate::testing::sim::plan::Plan;
use crate::testing::sim::process::Process;
use crate::testing::sim::sessions::Connection;
use crate::testing::sim::trace::Trace;
use crate::testing::sim::view::View;
use crate::testing::sim::workload::Workload;
use crate::testing::sim::{Mutant, Options};
use crate::types::NodeId;

/// A machine: what stays when its process ends.
#[derive(Debug, Default)]
pub struct Node {
    pub id: NodeId,
    pub disk: Disk,
    pub incarnation: u64,
    pub boot: u64,
    /// The log has had a record.
    pub begun: bool,
    pub process: Option<Process>,
    pub paused: bool,
    /// Events that wait for the end of a pause.
    deferred: Vec<Event>,
    /// It has been a full member.
    pub founded: bool,
    /// What was durable on directories that were lost since it was last a full member.
    pub ghosts: Vec<View>,
    /// Files in which a bit has flipped, until a start has found all that it needs.
    pub rotten: BTreeSet<String>,
    /// By how much its wall clock is ahead of the true time, in microseconds.
    pub skew_micros: i64,
    /// By how many millionths its clocks run too fast.
    pub rate_ppm: i64,
    pub disk_slow_until: Now,
    pub disk_stalled_until: Now,
}

/// When a run begins. Not at zero, so that "long ago" can be written as a subtraction.
pub const BEGINNING: Now = Now(3_600_000_000);

/// How far a sound wall clock is off at most, in microseconds.
pub const SKEW_MICROS: i64 = 200_000;

/// See the module.
#[derive(Debug)]
pub struct World {
    /// The true time.
    pub now: Now,
    sequence: u64,
    queue: BinaryHeap<Reverse<Scheduled>>,
    pub rng: Rng,
    pub plan: Plan,
    pub nodes: Vec<Node>,
    /// From each node to each node.
    pub links: Vec<Link>,
    pub load: Workload,
    pub connections: Vec<Connection>,
    pub oracle: Oracle,
    pub promises: Promises,
    pub trace: Trace,
    pub mutant: Option<Mutant>,
    /// The faults that have struck.
    pub struck: Vec<Struck>,
    /// Decides about faults alone, so that one more or less changes nothing about the others.
    pub fault_seed: u64,
    /// Which faults strike, by their numbers; `None`: all.
    pub only: Option<BTreeSet<u64>>,
    /// How many there were, those that did not strike among them.
    pub faults: u64,
    /// No more faults.
    pub calm: bool,
    /// The first broken invariant, and how.
    pub failure: Option<(&'static str, String)>,
    pub steps: u64,
    /// Requests that were asked for together with others.
    pub joined: u64,
}

impl World {
    /// A world at rest, all of whose nodes and clients are about to start.
    pub fn new(mut rng: Rng, plan: Plan, trace: Trace, options: &Options) -> World {
        let size = plan.nodes;
        let node = |at: usize| Node { id: NodeId(7001 + at as u32), ..Node::default() };
        let load = Workload::new(&plan, &mut rng);
        let mut world = World {
            now: BEGINNING,
            sequence: 0,
            queue: BinaryHeap::new(),
            nodes: (0..size).map(node).collect(),
            links: (0..size * size).map(|_| Link::default()).collect(),
            load,
            connections: Vec::new(),
            oracle: Oracle::new(size),
            promises: Promises::new(size),
            fault_seed: rng.bits(),
            rng,
            plan,
            trace,
            mutant: options.mutant,
            struck: Vec::new(),
            only: options.only.clone(),
            faults: 0,
            calm: false,
            failure: None,
            steps: 0,
            joined: 0,
        };
        for node in 0..size {
            world.nodes[node].incarnation = world.rng.bits();
            world.nodes[node].rate_ppm = world.plan.draw_rate(&mut world.rng);
            world.set_clock(node, SKEW_MICROS);
            let at = world.now + Duration::from_micros(world.rng.below(200_000));
            world.schedule(at, Event::Start(node));
        }
        for client in 0..world.load.clients.len() {
            let at = world.now + Duration::from_micros(world.rng.below(500_000));
            world.schedule(at, Event::Client(client));
        }
        world.schedule(world.now + world.plan.quiet, Event::Fault);
        world
    }

    pub fn schedule(&mut self, at: Now, event: Event) {
        self.sequence += 1;
        self.queue.push(Reverse(Scheduled { at, sequence: self.sequence, event }));
    }

    pub fn schedule_pull(&mut self, from: usize, to: usize, delay: Duration) {
        let Some(life) = self.life(from) else { return };
        self.schedule(self.now + delay, Event::Pull { from, to, life });
    }

    /// Sets a node's wall clock off by up to `micros`.
    pub fn set_clock(&mut self, node: usize, micros: i64) {
        let skew = self.rng.below(2 * micros.unsigned_abs() + 1).cast_signed() - micros;
        self.nodes[node].skew_micros = skew;
    }

    /// What a node's wall clock shows, in microseconds.
    pub fn wall(&self, node: usize) -> u64 {
        const NOON: u64 = 1_800_000_000_000_000;
        (NOON + self.now.0).saturating_add_signed(self.nodes[node].skew_micros)
    }

    /// What a node's monotonic clock shows.
    pub fn local(&self, node: usize) -> Now {
        local(self.now, self.nodes[node].rate_ppm)
    }

    /// When a node's monotonic clock will show `at`.
    pub fn globally(&self, node: usize, at: Now) -> Now {
        let rate = 1_000_000 + i128::from(self.nodes[node].rate_ppm);
        Now((i128::from(at.0) * 1_000_000 / rate) as u64 + 1)
    }

    /// How long the world has existed, in microseconds.
    pub fn age_micros(&self) -> u64 {
        self.now.since(BEGINNING).as_micros() as u64
    }

    /// The running process of a node.
    pub fn life(&self, node: usize) -> Option<u64> {
        self.nodes[node].process.as_ref().map(|process| process.life)
    }

    /// A node's place in the lists.
    pub fn position(&self, id: NodeId) -> usize {
        (id.0 - self.nodes[0].id.0) as usize
    }

    pub fn note(&mut self, node: usize, what: [u64; 3], text: impl FnOnce() -> String) {
        let what = [what[0] << 8 | node as u64, what[1], what[2]];
        let id = self.nodes[node].id;
        self.trace.note(self.age_micros(), what, || format!("{id} {}", text()));
    }

    /// Notes the first broken invariant.
    pub fn fail(&mut self, invariant: &'static str, how: String) {
        self.failure.get_or_insert((invariant, how));
    }

    /// Lets the world go on until `until`, or until an invariant is broken.
    pub fn run_until(&mut self, until: Now) {
        self.run_for(until, u64::MAX);
        self.now = self.now.max(until);
    }

    /// Lets the world go on until `until`, for at most so many steps in all, or until an invariant
    /// is broken.
    pub fn run_for(&mut self, until: Now, steps: u64) {
        while self.failure.is_none()
            && self.steps < steps
            && let Some(Reverse(next)) = self.queue.peek()
            && next.at <= until
            && let Some(Reverse(next)) = self.queue.pop()
        {
            self.now = next.at;
            self.steps += 1;
            self.happen(next.event);
        }
    }

    fn happen(&mut self, event: Event) {
        let owner = match &event {
            Event::Arrive(packet) if self.life(packet.to) == Some(packet.life) => {
                Some((packet.to, packet.life))
            }
            event => event.owner(),
        };
        if let Some((node, life)) = owner {
            if self.life(node) != Some(life) {
                return;
            }
            if self.nodes[node].paused {
                self.nodes[node].deferred.push(event);
                return;
            }
        }
        match event {
            Event::Start(node) => self.start(node),
            Event::Timer { node, timer, .. } => self.timer(node, timer),
            Event::Arrive(packet) => self.arrive(packet),
            Event::Connect { from, to, .. } => self.connect(from, to),
            Event::Sign { node, peer, refused, .. } => self.sign(node, peer, refused),
            Event::LinkBroken { from, to, generation } => self.link_broken(from, to, generation),
            Event::Pull { from, to, .. } => {
                if let Some(process) = &mut self.nodes[from].process {
                    process.pulls.remove(&to);
                }
                self.pull(from, to);
            }
            Event::Synced { node, .. } => self.synced(node),
            Event::SyncAgain { node, .. } => self.synced(node),
            Event::Spare { node, .. } => self.make_spare(node),
            Event::Complete { node, after, .. } => self.complete(node, *after),
            Event::Apply { node, .. } => self.apply_next(node),
            Event::ImageWritten { node, .. } => self.image_written(node),
            Event::SendChunk { from, to, generation, .. } => self.send_chunk(from, to, generation),
            Event::ChunkArrives { from, to, generation, chunk, .. } => {
                self.chunk_arrives(from, to, generation, &chunk);
            }
            Event::ImageVerified { node, .. } => self.image_verified(node),
            Event::Stopped { node, patience, .. } => self.stopped(node, patience),
            Event::Bytes { connection, bytes, .. } => self.bytes(connection, bytes),
            Event::Lane { node, lane, .. } => self.lane_turn(node, lane),
            Event::HasRoom { connection, .. } => self.has_room(connection),
            Event::Replies { connection, bytes } => self.replies(connection, &bytes),
            Event::Client(client) => self.client(client),
            Event::GiveUp { connection, operation } => self.give_up(connection, operation),
            Event::Fault => self.fault(),
            Event::Undo(undo) => self.undo(undo),
        }
    }

    /// The process goes on; what has piled up comes at once, its own deadlines first or last.
    pub fn resume(&mut self, node: usize) {
        self.nodes[node].paused = false;
        let deferred = std::mem::take(&mut self.nodes[node].deferred);
        let is_timer = |event: &Event| matches!(event, Event::Timer { .. });
        let (mut first, mut last): (Vec<_>, Vec<_>) = deferred.into_iter().partition(is_timer);
        if self.rng.chance(1, 2) {
            std::mem::swap(&mut first, &mut last);
        }
        for event in first.into_iter().chain(last) {
            self.schedule(self.now, event);
        }
    }

    /// What a stopped process would have done is forgotten with it.
    pub fn forget_deferred(&mut self, node: usize) {
        self.nodes[node].paused = false;
        self.nodes[node].deferred.clear();
    }

    /// The nodes that run.
    pub fn running(&self) -> BTreeSet<usize> {
        (0..self.nodes.len()).filter(|&node| self.nodes[node].process.is_some()).collect()
    }
}

/// What a monotonic clock shows that runs too fast by `rate_ppm` millionths.
pub fn local(now: Now, rate_ppm: i64) -> Now {
    let rate = 1_000_000 + i128::from(rate_ppm);
    Now((i128::from(now.0) * rate / 1_000_000) as u64)
}
