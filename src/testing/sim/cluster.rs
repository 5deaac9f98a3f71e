//! The world: nodes, links, clients, virtual time, and a queue of events. Its handlers are in files
//! of their own, and `dispatch` calls them.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap};
use std::time::Duration;

use crate::clock::Now;
use crate::rng::Rng;
use crate::testing::sim::connection::SimConnection;
use crate::testing::sim::disk::SimDisk;
use crate::testing::sim::events::{Scheduled, SimEvent};
use crate::testing::sim::faults::Struck;
use crate::testing::sim::link::SimLink;
use crate::testing::sim::log_model::LogModel;
use crate::testing::sim::mutant::Mutant;
use crate::testing::sim::options::Options;
use crate::testing::sim::oracle::Oracle;
use crate::testing::sim::plan::Plan;
use crate::testing::sim::process::Process;
use crate::testing::sim::promises::Promises;
use crate::testing::sim::report::Coverage;
use crate::testing::sim::trace::Trace;
use crate::testing::sim::workload::Workload;
use crate::types::NodeId;

/// A node: its machine and its disk, which stay when its process ends, and its process.
#[derive(Debug, Default)]
pub struct SimNode {
    pub id: NodeId,
    pub disk: SimDisk,
    /// Names the directory that the disk holds.
    pub incarnation: u64,
    /// The number of the latest start.
    pub boot: u64,
    /// The log of this directory has its first record.
    pub has_log: bool,
    pub process: Option<Process>,
    /// The process is stopped (SIGSTOP).
    pub paused: bool,
    /// Events that wait for the end of the pause.
    pub deferred: Vec<SimEvent>,
    /// The node has been a full member.
    pub founded: bool,
    /// The durable records of the directories that it has lost since it was last a full member.
    pub ghosts: Vec<LogModel>,
    /// Files in which a bit has flipped. A start that finds all it needs clears the list.
    pub rotten: BTreeSet<String>,
    /// The lead of its wall clock over the true time, in microseconds.
    pub skew_micros: i64,
    /// The excess speed of its monotonic clock, in millionths.
    pub rate_ppm: i64,
    pub disk_slow_until: Now,
    pub disk_stalled_until: Now,
}

/// The virtual time at which a run begins. It is not zero, so that a moment long ago can be written
/// as a subtraction.
pub const BEGINNING: Now = Now(3_600_000_000);

/// The greatest error of a sound wall clock, in microseconds.
pub const SKEW_MICROS: i64 = 200_000;

/// A simulated cluster with its clients, its faults and its checks.
#[derive(Debug)]
pub struct World {
    /// The true time.
    pub now: Now,
    pub sequence: u64,
    pub queue: BinaryHeap<Reverse<Scheduled>>,
    pub rng: Rng,
    pub plan: Plan,
    pub nodes: Vec<SimNode>,
    /// From each node to each node.
    pub links: Vec<SimLink>,
    pub load: Workload,
    pub connections: Vec<SimConnection>,
    pub oracle: Oracle,
    pub promises: Promises,
    pub trace: Trace,
    pub mutant: Option<Mutant>,
    /// The faults that have struck.
    pub struck: Vec<Struck>,
    /// Seeds the random numbers of each fault, so that leaving one out changes no other one.
    pub fault_seed: u64,
    /// The faults that strike, by their numbers; `None`: all.
    pub only: Option<BTreeSet<u64>>,
    /// The number of faults so far, with those that were left out.
    pub faults: u64,
    /// No fault strikes any more.
    pub calm: bool,
    /// The first broken invariant, and the facts that contradict it.
    pub failure: Option<(&'static str, String)>,
    /// The number of events so far.
    pub steps: u64,
    pub coverage: Coverage,
}

impl World {
    /// A world in which nothing has happened. All nodes, clients and faults are about to start.
    pub fn new(mut rng: Rng, plan: Plan, trace: Trace, options: &Options) -> World {
        let size = plan.nodes;
        let node = |at: usize| SimNode { id: NodeId(7001 + at as u32), ..SimNode::default() };
        let load = Workload::new(&plan, &mut rng);
        let mut world = World {
            now: BEGINNING,
            sequence: 0,
            queue: BinaryHeap::new(),
            nodes: (0..size).map(node).collect(),
            links: (0..size * size).map(|_| SimLink::default()).collect(),
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
            coverage: Coverage::default(),
        };
        for node in 0..size {
            world.nodes[node].incarnation = world.rng.bits();
            world.nodes[node].rate_ppm = world.plan.draw_rate(&mut world.rng);
            world.set_clock(node, SKEW_MICROS);
            let at = world.now + Duration::from_micros(world.rng.below(200_000));
            world.schedule(at, SimEvent::Start(node));
        }
        for client in 0..world.load.clients.len() {
            let at = world.now + Duration::from_micros(world.rng.below(500_000));
            world.schedule(at, SimEvent::ClientTurn(client));
        }
        world.schedule(world.now + world.plan.quiet, SimEvent::Fault);
        world
    }

    /// Lets an event happen at `at`.
    pub fn schedule(&mut self, at: Now, event: SimEvent) {
        self.sequence += 1;
        self.queue.push(Reverse(Scheduled { at, sequence: self.sequence, event }));
    }

    /// Lets the thread of a link pull messages after `delay`.
    pub fn schedule_pull(&mut self, from: usize, to: usize, delay: Duration) {
        let Some(life) = self.life(from) else { return };
        self.schedule(self.now + delay, SimEvent::Pull { from, to, life });
    }

    /// Gives a node's wall clock a new error of up to `micros`.
    pub fn set_clock(&mut self, node: usize, micros: i64) {
        let skew = self.rng.below(2 * micros.unsigned_abs() + 1).cast_signed() - micros;
        self.nodes[node].skew_micros = skew;
    }

    /// A node's wall clock, in microseconds since 1970.
    pub fn wall(&self, node: usize) -> u64 {
        const NOON: u64 = 1_800_000_000_000_000;
        (NOON + self.now.0).saturating_add_signed(self.nodes[node].skew_micros)
    }

    /// A node's monotonic clock.
    pub fn local(&self, node: usize) -> Now {
        local(self.now, self.nodes[node].rate_ppm)
    }

    /// The true time at which a node's monotonic clock will show `at`.
    pub fn globally(&self, node: usize, at: Now) -> Now {
        let rate = 1_000_000 + i128::from(self.nodes[node].rate_ppm);
        Now((i128::from(at.0) * 1_000_000 / rate) as u64 + 1)
    }

    /// The time since the run began, in microseconds.
    pub fn age_micros(&self) -> u64 {
        self.now.since(BEGINNING).as_micros() as u64
    }

    /// The life of a node's running process.
    pub fn life(&self, node: usize) -> Option<u64> {
        self.nodes[node].process.as_ref().map(|process| process.life)
    }

    /// A node's place in `nodes`.
    pub fn position(&self, id: NodeId) -> usize {
        (id.0 - self.nodes[0].id.0) as usize
    }

    /// Adds an event of a node to the trace: in numbers for the hash, in words for the reader.
    pub fn note(&mut self, node: usize, what: [u64; 3], text: impl FnOnce() -> String) {
        let what = [what[0] << 8 | node as u64, what[1], what[2]];
        let id = self.nodes[node].id;
        self.trace.note(self.age_micros(), what, || format!("{id} {}", text()));
    }

    /// Reports a broken invariant. Only the first one counts: the others may follow from it.
    pub fn fail(&mut self, invariant: &'static str, how: String) {
        self.failure.get_or_insert((invariant, how));
    }

    /// The nodes that have a process.
    pub fn running(&self) -> BTreeSet<usize> {
        (0..self.nodes.len()).filter(|&node| self.nodes[node].process.is_some()).collect()
    }
}

/// A monotonic clock that runs too fast by `rate_ppm` millionths, at the true time `now`.
pub fn local(now: Now, rate_ppm: i64) -> Now {
    let rate = 1_000_000 + i128::from(rate_ppm);
    Now((i128::from(now.0) * rate / 1_000_000) as u64)
}
