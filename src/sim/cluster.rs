//! The world: nodes, links, clients, and a queue of events ordered by (virtual time, sequence).
//!
//! An event that belongs to a process is dropped when that process is gone, and waits while it is
//! stopped: that is what SIGSTOP does to a node.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap};
use std::rc::Rc;
use std::time::Duration;

use super::Sabotage;
use super::disk::{Disk, Saved, View};
use super::eventual::Promises;
use super::faults::{Plan, Undo};
use super::invariants::Oracle;
use super::network::{Link, Packet};
use super::process::Process;
use super::trace::Trace;
use super::workload::Workload;
use crate::clock::Now;
use crate::replica::Alarm;
use crate::rng::Rng;
use crate::types::{NodeId, Writes};

/// What a process waits for with a deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Timer {
    Alarm(Alarm),
    Detector,
}

/// Something that will happen.
#[derive(Debug)]
pub enum Event {
    Start(usize),
    Timer {
        node: usize,
        life: u64,
        timer: Timer,
    },
    Arrive(Packet),
    Connect {
        from: usize,
        to: usize,
        life: u64,
    },
    LinkBroken {
        from: usize,
        to: usize,
        generation: u64,
    },
    Pull {
        from: usize,
        to: usize,
        life: u64,
    },
    Synced {
        node: usize,
        life: u64,
    },
    /// A thread puts eventual writes into the overlay, and answers the request that they are of.
    Overlay {
        node: usize,
        life: u64,
        writes: Writes,
        operation: Option<usize>,
    },
    Apply {
        node: usize,
        life: u64,
    },
    ImageTaken {
        node: usize,
        life: u64,
        image: Option<Rc<Saved>>,
    },
    ImageSent {
        from: usize,
        to: usize,
        life: u64,
        generation: u64,
        image: Rc<Saved>,
    },
    ImageStored {
        to: usize,
        life: u64,
        from: usize,
        image: Rc<Saved>,
    },
    Stopped {
        node: usize,
        life: u64,
        patience: u32,
    },
    Client(usize),
    Timeout(usize),
    Fault,
    Undo(Undo),
}

impl Event {
    /// The process that it belongs to.
    fn owner(&self) -> Option<(usize, u64)> {
        match self {
            Event::Timer { node, life, .. }
            | Event::Synced { node, life }
            | Event::Overlay { node, life, .. }
            | Event::Apply { node, life }
            | Event::ImageTaken { node, life, .. }
            | Event::Stopped { node, life, .. }
            | Event::ImageStored { to: node, life, .. }
            | Event::Connect { from: node, life, .. }
            | Event::Pull { from: node, life, .. }
            | Event::ImageSent { from: node, life, .. } => Some((*node, *life)),
            _ => None,
        }
    }
}

#[derive(Debug)]
struct Scheduled {
    at: Now,
    sequence: u64,
    event: Event,
}

impl PartialEq for Scheduled {
    fn eq(&self, other: &Scheduled) -> bool {
        self.sequence == other.sequence
    }
}

impl Eq for Scheduled {}

impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Scheduled) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Scheduled {
    fn cmp(&self, other: &Scheduled) -> std::cmp::Ordering {
        (self.at, self.sequence).cmp(&(other.at, other.sequence))
    }
}

/// A machine: what stays when its process ends.
#[derive(Debug, Default)]
pub struct Node {
    pub id: NodeId,
    pub disk: Disk,
    pub incarnation: u64,
    pub boot: u64,
    pub process: Option<Process>,
    pub paused: bool,
    /// Events that wait for the end of a pause.
    deferred: Vec<Event>,
    /// It has been a full member.
    pub founded: bool,
    /// What was durable on directories that were lost since it was last a full member.
    pub ghosts: Vec<View>,
    /// By how much its wall clock is ahead of the true time, in microseconds.
    pub skew_micros: i64,
    pub disk_slow_until: Now,
    pub disk_stalled_until: Now,
}

/// How far a sound wall clock is off at most, in microseconds.
pub const SKEW_MICROS: i64 = 200_000;

/// See the module.
#[derive(Debug)]
pub struct World {
    pub now: Now,
    sequence: u64,
    queue: BinaryHeap<Reverse<Scheduled>>,
    pub rng: Rng,
    pub plan: Plan,
    pub nodes: Vec<Node>,
    /// From each node to each node.
    pub links: Vec<Link>,
    pub load: Workload,
    pub oracle: Oracle,
    pub promises: Promises,
    pub trace: Trace,
    pub sabotage: Option<Sabotage>,
    /// No more faults.
    pub calm: bool,
    /// The first broken invariant, and how.
    pub failure: Option<(&'static str, String)>,
    pub steps: u64,
}

impl World {
    /// A world at rest, all of whose nodes and clients are about to start.
    pub fn new(mut rng: Rng, plan: Plan, trace: Trace, sabotage: Option<Sabotage>) -> World {
        let size = plan.nodes;
        let node = |at: usize| Node { id: NodeId(7001 + at as u32), ..Node::default() };
        let load = Workload::new(&plan, &mut rng);
        let mut world = World {
            now: Now(3_600_000_000),
            sequence: 0,
            queue: BinaryHeap::new(),
            nodes: (0..size).map(node).collect(),
            links: (0..size * size).map(|_| Link::default()).collect(),
            load,
            oracle: Oracle::new(size),
            promises: Promises::new(size),
            rng,
            plan,
            trace,
            sabotage,
            calm: false,
            failure: None,
            steps: 0,
        };
        for node in 0..size {
            world.nodes[node].incarnation = world.rng.bits();
            world.set_clock(node, SKEW_MICROS);
            let at = world.now + Duration::from_micros(world.rng.below(200_000));
            world.schedule(at, Event::Start(node));
        }
        for client in 0..world.load.clients() {
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
        self.trace.note(self.now, what, || format!("{id} {}", text()));
    }

    /// Notes the first broken invariant.
    pub fn fail(&mut self, invariant: &'static str, how: String) {
        self.failure.get_or_insert((invariant, how));
    }

    /// Lets the world go on until `until`, or until an invariant is broken.
    pub fn run_until(&mut self, until: Now) {
        while self.failure.is_none()
            && let Some(Reverse(next)) = self.queue.peek()
            && next.at <= until
            && let Some(Reverse(next)) = self.queue.pop()
        {
            self.now = next.at;
            self.steps += 1;
            self.happen(next.event);
        }
        self.now = self.now.max(until);
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
            Event::LinkBroken { from, to, generation } => self.link_broken(from, to, generation),
            Event::Pull { from, to, .. } => {
                if let Some(process) = &mut self.nodes[from].process {
                    process.pulls.remove(&to);
                }
                self.pull(from, to);
            }
            Event::Synced { node, .. } => self.synced(node),
            Event::Overlay { node, writes, operation, .. } => {
                self.overlay(node, &writes, operation);
            }
            Event::Apply { node, .. } => self.apply_next(node),
            Event::ImageTaken { node, image, .. } => self.image_taken(node, image),
            Event::ImageSent { from, to, generation, image, .. } => {
                self.image_sent(from, to, generation, image);
            }
            Event::ImageStored { to, from, image, .. } => self.image_stored(to, from, image),
            Event::Stopped { node, patience, .. } => self.stopped(node, patience),
            Event::Client(client) => self.client(client),
            Event::Timeout(operation) => self.timeout(operation),
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
