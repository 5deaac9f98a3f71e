//! A cluster of nodes and the messages between them: starts, crashes, deliveries, the passing of
//! time. `turns` carries out the decisions of each node; `commands` decides the next event.

use std::collections::BTreeMap;
use std::time::Duration;

use nodesync::clock::Now;
use nodesync::replica::detector::Liveness;
use nodesync::replica::{Alarm, HardState, Input, Replica, Settings, Standing};
use nodesync::store::Writer;
use nodesync::types::NodeId;

use super::disk::Disk;
use super::network::{Freight, Network};
use super::process::Process;

/// The start of a cluster on the monotonic clock, in microseconds.
pub const START: Now = Now(3_600_000_000);

/// The start of a cluster on the wall clocks, in microseconds since 1970.
pub const WALL_START: u64 = 1_800_000_000_000_000;

/// More deliveries than any script needs at one moment.
const DELIVERIES_MAX: u32 = 1000;

const ALARMS: [Alarm; 3] = [Alarm::Heartbeat, Alarm::Election, Alarm::Drain];

/// A node: a disk, a wall clock, and its process while it runs.
#[derive(Debug)]
pub struct Node {
    pub settings: Settings,
    pub disk: Disk,
    /// True while its disk jobs wait for `persist`, even if those of other nodes do not.
    pub stalled: bool,
    /// The error of its wall clock, in milliseconds; positive if ahead.
    pub skew: i64,
    /// `None` while the node is down.
    pub process: Option<Process>,
}

/// A cluster of replicas that a script drives.
#[derive(Debug, Default)]
pub struct Cluster {
    pub now: Now,
    pub nodes: BTreeMap<NodeId, Node>,
    pub network: Network,
    /// True if disk jobs wait for `persist`.
    pub disks_by_hand: bool,
    /// True if images from peers wait for `arrive`.
    pub images_by_hand: bool,
    pub show_heartbeats: bool,
    /// True if the transcript shows the loss and the return of a quorum.
    pub show_quorum: bool,
    /// The bytes that one append or forward may hold.
    pub bytes_max: usize,
    pub transcript: Vec<String>,
}

impl Cluster {
    /// Adds a node with an empty directory, or one that has founded the cluster with the others.
    pub fn add(&mut self, settings: Settings, blank: bool) {
        let incarnation = |id: NodeId| 100 + u64::from(id.0);
        let standing = if blank {
            Standing::Blank
        } else {
            let founders = settings.peers().map(|peer| (peer, incarnation(peer)));
            Standing::Voter { founders: founders.collect() }
        };
        let id = settings.id;
        let hard = HardState { standing, ..HardState::default() };
        let disk = Disk { incarnation: incarnation(id), hard, ..Disk::default() };
        self.nodes.insert(id, Node { settings, disk, stalled: false, skew: 0, process: None });
    }

    /// Starts a node from its disk.
    pub fn start(&mut self, id: NodeId) {
        let (now, wall) = (self.now, self.wall(id));
        let node = self.nodes.get_mut(&id).expect("a node of the cluster");
        node.settings.incarnation = node.disk.incarnation;
        node.settings.wall_micros = wall;
        let mut writer = Writer::new();
        if let Some(image) = node.disk.images.get(&node.disk.snapshot) {
            drop(writer.restore(image.clone()));
        }
        let (settings, recovered) = (node.settings.clone(), node.disk.recovered());
        node.process = Some(Process::new(now, settings, recovered, writer));
    }

    /// A node's wall clock, in microseconds.
    fn wall(&self, id: NodeId) -> u64 {
        let passed = self.now.since(START).as_micros() as u64;
        (WALL_START + passed).saturating_add_signed(1000 * self.nodes[&id].skew)
    }

    /// Ends a process: its unfinished disk jobs are lost, and unless `keep` the messages to it.
    pub fn crash(&mut self, id: NodeId, keep: bool) {
        let node = self.node(id);
        node.process = None;
        node.settings.boot += 1;
        if !keep {
            self.network.clear(|(_, to)| to == id);
        }
    }

    pub fn node(&mut self, id: NodeId) -> &mut Node {
        self.nodes.get_mut(&id).unwrap_or_else(|| panic!("there is no n{id}"))
    }

    pub fn process(&mut self, id: NodeId) -> &mut Process {
        self.node(id).process.as_mut().unwrap_or_else(|| panic!("n{id} is down"))
    }

    pub fn replica(&self, id: NodeId) -> &Replica {
        let process = self.nodes[&id].process.as_ref();
        process.unwrap_or_else(|| panic!("n{id} is down")).shell.replica()
    }

    pub fn is_up(&self, id: NodeId) -> bool {
        self.nodes.get(&id).is_some_and(|node| node.process.is_some())
    }

    pub fn say(&mut self, id: NodeId, line: impl std::fmt::Display) {
        self.transcript.push(format!("n{id} {line}"));
    }

    /// Delivers a message or an image.
    pub fn receive(&mut self, from: NodeId, to: NodeId, freight: Freight) {
        let now = self.now;
        if !self.is_up(to) {
            return;
        }
        if self.process(to).detector.heard(now, from) {
            self.say(to, format!("hears n{from} again"));
            self.step(to, Input::Peer { peer: from, liveness: Liveness::Alive });
        }
        match freight {
            Freight::Message(envelope) => self.step(to, Input::Message(envelope)),
            Freight::Image(image) => {
                self.process(to).arriving = Some((from, *image));
                if !self.images_by_hand {
                    self.arrive(to);
                }
                if self.is_up(from) {
                    self.step(from, Input::SnapshotSent { to, sent: true });
                }
            }
        }
    }

    /// Lets time pass: alarms and suspicions come at their moments, heartbeats arrive at once. With
    /// `all`, all other messages do too; otherwise they wait for `deliver`.
    pub fn pass(&mut self, time: Duration, all: bool) {
        let end = self.now + time;
        self.settle(all);
        while let Some(at) = self.next_deadline().filter(|at| *at <= end) {
            self.now = self.now.max(at);
            for id in self.nodes.keys().copied().collect::<Vec<_>>() {
                self.raise(id);
            }
            self.settle(all);
        }
        self.now = end;
    }

    fn next_deadline(&self) -> Option<Now> {
        let deadlines = |node: &Node| {
            let Process { shell, detector, .. } = node.process.as_ref()?;
            let alarms = ALARMS.map(|alarm| Some(shell.replica().deadline(alarm)));
            alarms.into_iter().chain([detector.deadline()]).flatten().min()
        };
        self.nodes.values().filter_map(deadlines).min()
    }

    fn raise(&mut self, id: NodeId) {
        let now = self.now;
        if !self.is_up(id) {
            return;
        }
        for peer in self.process(id).detector.overdue(now) {
            self.say(id, format!("suspects n{peer}"));
            self.step(id, Input::Peer { peer, liveness: Liveness::Suspected });
        }
        for alarm in ALARMS {
            if !self.is_up(id) || self.replica(id).deadline(alarm) > now {
                continue;
            }
            if alarm == Alarm::Heartbeat {
                let wall = self.wall(id);
                self.step(id, Input::Clock(wall));
            }
            self.step(id, Input::Alarm(alarm));
        }
    }

    /// Delivers all heartbeats, and with `all` all other messages and disk jobs too.
    pub fn settle(&mut self, all: bool) {
        for _ in 0..DELIVERIES_MAX {
            if let Some(heartbeat) = self.network.take_heartbeat() {
                self.receive(heartbeat.from, heartbeat.to, Freight::Message(heartbeat));
            } else if all && let Some(&((from, to), _)) = self.network.waiting().first() {
                if let Some(freight) = self.network.take((from, to)) {
                    self.receive(from, to, freight);
                }
            } else if !all || !self.persist_any() {
                return;
            }
        }
        panic!("the cluster does not come to rest");
    }

    fn persist_any(&mut self) -> bool {
        let has_jobs = |process: &Process| !process.jobs.is_empty();
        let waits = |node: &&Node| !node.stalled && node.process.as_ref().is_some_and(has_jobs);
        let id = self.nodes.values().find(waits).map(|node| node.settings.id);
        id.is_some_and(|id| self.persist(id))
    }
}
