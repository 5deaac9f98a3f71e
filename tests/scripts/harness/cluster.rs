//! Replicas with their disks, stores and detectors, and the messages between them. Carries out the
//! effects of each step and writes the transcript; `commands` decides the next event.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use nodesync::clock::Now;
use nodesync::replica::detector::{FailureDetector, Liveness};
use nodesync::replica::{
    Alarm, Apply, Effects, Envelope, Event, HardState, Heartbeat, Input, JobNo, Message, Pull,
    ReadId, Replica, Settings, Standing, WalRecord,
};
use nodesync::rng::Rng;
use nodesync::types::{Index, NodeId, RequestId, SnapshotMeta};

use super::disk::Disk;
use super::network::{Freight, Network};
use super::show;
use super::store::{Applied, Store};

/// The start of a cluster, in microseconds of a monotonic clock …
pub const START: Now = Now(3_600_000_000);

/// … and of the wall clocks.
pub const WALL_START: u64 = 1_800_000_000_000_000;

/// More deliveries than any script needs at one moment.
const DELIVERIES_MAX: u32 = 1000;

const ALARMS: [Alarm; 3] = [Alarm::Heartbeat, Alarm::Election, Alarm::Drain];

/// A job that waits for the disk.
#[derive(Debug)]
pub struct Job {
    number: JobNo,
    records: Vec<WalRecord>,
    after: Vec<Envelope>,
}

#[derive(Debug)]
pub struct Node {
    pub settings: Settings,
    pub disk: Disk,
    pub jobs: VecDeque<Job>,
    pub store: Store,
    /// True while its disk jobs wait for `persist`, even if those of other nodes do not.
    pub stalled: bool,
    /// The requests whose clients wait for an answer.
    pub waiters: BTreeSet<RequestId>,
    /// The error of its wall clock, in milliseconds; positive if ahead.
    pub skew: i64,
    /// The latest heartbeat that it has sent.
    pub last_heartbeat: Option<Heartbeat>,
    /// Reads that wait: the key, and the index once the replica has named it.
    pub reads: BTreeMap<ReadId, (String, Option<Index>)>,
    pub detector: FailureDetector,
    /// The image that the replica has requested.
    pub image: Option<(SnapshotMeta, Store)>,
    /// The image that a peer has sent, not verified and durable yet.
    pub arriving: Option<(NodeId, SnapshotMeta, Box<Store>)>,
    /// `None` while it is crashed.
    pub replica: Option<Replica>,
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
        let node = Node {
            detector: FailureDetector::new(self.now, settings.election_timeout, []),
            settings,
            disk,
            jobs: VecDeque::new(),
            store: Store::default(),
            stalled: false,
            waiters: BTreeSet::new(),
            skew: 0,
            last_heartbeat: None,
            reads: BTreeMap::new(),
            image: None,
            arriving: None,
            replica: None,
        };
        self.nodes.insert(id, node);
    }

    /// Starts a node from its disk.
    pub fn start(&mut self, id: NodeId) {
        let (now, wall) = (self.now, self.wall(id));
        let node = self.nodes.get_mut(&id).expect("a node of the cluster");
        node.settings.incarnation = node.disk.incarnation;
        node.settings.wall_micros = wall;
        let timeout = node.settings.election_timeout;
        node.detector = FailureDetector::new(now, timeout, node.settings.peers());
        node.store = node.disk.images.get(&node.disk.snapshot).cloned().unwrap_or_default();
        node.store.put_overlay(&node.disk.held);
        let rng = Rng::new(u64::from(id.0));
        let mut recovered = node.disk.recovered();
        recovered.clock = recovered.clock.max(node.store.latest);
        node.replica = Some(Replica::new(now, node.settings.clone(), recovered, rng));
    }

    /// A node's wall clock, in microseconds.
    fn wall(&self, id: NodeId) -> u64 {
        let passed = self.now.since(START).as_micros() as u64;
        (WALL_START + passed).saturating_add_signed(1000 * self.nodes[&id].skew)
    }

    /// Ends a process: its unfinished disk jobs are lost, and unless `keep` the messages to it.
    pub fn crash(&mut self, id: NodeId, keep: bool) {
        let node = self.node(id);
        node.replica = None;
        node.jobs.clear();
        node.reads.clear();
        node.waiters.clear();
        node.image = None;
        node.arriving = None;
        node.settings.boot += 1;
        if !keep {
            self.network.clear(|(_, to)| to == id);
        }
    }

    pub fn node(&mut self, id: NodeId) -> &mut Node {
        self.nodes.get_mut(&id).unwrap_or_else(|| panic!("there is no n{id}"))
    }

    pub fn replica(&mut self, id: NodeId) -> &mut Replica {
        self.node(id).replica.as_mut().unwrap_or_else(|| panic!("n{id} is down"))
    }

    pub fn is_up(&self, id: NodeId) -> bool {
        self.nodes.get(&id).is_some_and(|node| node.replica.is_some())
    }

    pub fn say(&mut self, id: NodeId, line: impl std::fmt::Display) {
        self.transcript.push(format!("n{id} {line}"));
    }

    /// Steps one replica and carries out the effects.
    pub fn step(&mut self, id: NodeId, input: Input) {
        let now = self.now;
        let mut effects = Effects::default();
        self.replica(id).step(now, input, &mut effects);
        self.carry_out(id, effects);
    }

    fn carry_out(&mut self, id: NodeId, effects: Effects) {
        assert_eq!(effects.fatal, None, "n{id} found a broken invariant");
        for event in &effects.events {
            let of_quorum = matches!(event, Event::QuorumLost { .. } | Event::QuorumBack);
            if !of_quorum || self.show_quorum {
                self.say(id, show::event(event));
            }
        }
        if effects.job > 0 {
            if !effects.persist.is_empty() {
                self.say(
                    id,
                    format!("writes {}", show::list(effects.persist.iter().map(show::record))),
                );
            }
            let (records, after) = (effects.persist, effects.after_persist);
            self.node(id).jobs.push_back(Job { number: effects.job, records, after });
        }
        for envelope in effects.send {
            self.post(envelope);
        }
        for peer in effects.pull {
            self.pull(id, peer);
        }
        self.hold(id, &effects.spread, &effects.stamped);
        let mut checkpoints = Vec::new();
        for apply in effects.apply {
            self.apply(id, apply, &mut checkpoints);
        }
        for (read, index) in effects.reads {
            if let Some((_, wanted)) = self.node(id).reads.get_mut(&read) {
                *wanted = Some(index);
            }
        }
        self.serve_reads(id);
        for (request, why) in effects.refuse {
            self.node(id).waiters.remove(&request);
            self.say(id, format!("answers {}: {why}", show::request(&request)));
        }
        for (read, why) in effects.refuse_reads {
            if let Some((key, _)) = self.node(id).reads.remove(&read) {
                self.say(id, format!("answers read of {key}: {why}"));
            }
        }
        for (request, why) in effects.refuse_stamps {
            self.say(id, format!("answers {}: {why}", show::stamp_id(&request)));
        }
        for checkpoint in checkpoints {
            self.step(id, checkpoint);
        }
        if let Some(index) = effects.diverged {
            self.say(id, format!("differs from the others at {index} and stops"));
            return self.crash(id, false);
        }
        if !self.disks_by_hand && !self.node(id).stalled {
            while self.persist(id) {}
        }
    }

    /// Completes the oldest disk job. False if there is none.
    pub fn persist(&mut self, id: NodeId) -> bool {
        let by_hand = self.disks_by_hand || self.node(id).stalled;
        let node = self.node(id);
        if node.replica.is_none() {
            return false;
        }
        let Some(job) = node.jobs.pop_front() else { return false };
        job.records.iter().cloned().for_each(|record| node.disk.write(record));
        if by_hand {
            let records = show::list(job.records.iter().map(show::record));
            self.say(id, format!("has durably {records}"));
        }
        for envelope in job.after {
            self.post(envelope);
        }
        self.step(id, Input::Persisted(job.number));
        true
    }

    /// Sends all that a replica has for a peer, as the peer's replication thread does.
    fn pull(&mut self, id: NodeId, peer: NodeId) {
        if !self.is_up(peer) {
            return;
        }
        let (now, bytes_max) = (self.now, self.bytes_max);
        while let Some(pull) = self.replica(id).pull(now, peer, bytes_max) {
            match pull {
                Pull::Message(envelope) => self.post(envelope),
                Pull::Snapshot(meta) => {
                    let image = self.node(id).disk.images[&meta].clone();
                    let open = self.network.send((id, peer), Freight::Image(meta, image.into()));
                    let lost = if open { "" } else { " (lost)" };
                    self.transcript
                        .push(format!("n{id}→n{peer} Image {}{lost}", show::meta(&meta)));
                }
            }
        }
    }

    /// Puts a message on its way, if its receiver is up.
    fn post(&mut self, envelope: Envelope) {
        if !self.is_up(envelope.to) {
            return;
        }
        let line = show::envelope(&envelope);
        let pair = (envelope.from, envelope.to);
        let is_heartbeat = if let Message::Heartbeat(heartbeat) = &envelope.message {
            self.node(envelope.from).last_heartbeat = Some(heartbeat.clone());
            true
        } else {
            false
        };
        let open = if is_heartbeat {
            self.network.send_heartbeat(envelope)
        } else {
            self.network.send(pair, Freight::Message(envelope))
        };
        if !is_heartbeat || self.show_heartbeats {
            self.transcript.push(format!("{line}{}", if open { "" } else { " (lost)" }));
        }
    }

    /// Delivers a message or an image.
    pub fn receive(&mut self, from: NodeId, to: NodeId, freight: Freight) {
        let now = self.now;
        if !self.is_up(to) {
            return;
        }
        if self.node(to).detector.heard(now, from) {
            self.say(to, format!("hears n{from} again"));
            self.step(to, Input::Peer { peer: from, liveness: Liveness::Alive });
        }
        match freight {
            Freight::Message(envelope) => self.step(to, Input::Message(envelope)),
            Freight::Image(meta, image) => {
                self.node(to).arriving = Some((from, meta, image));
                if !self.images_by_hand {
                    self.arrive(to);
                }
                if self.is_up(from) {
                    self.step(from, Input::SnapshotSent { to, sent: true });
                }
            }
        }
    }

    /// Reports that the image sent to a node is verified and durable there.
    pub fn arrive(&mut self, id: NodeId) {
        let arriving = self.node(id).arriving.take();
        let (from, meta, image) = arriving.expect("an image has come");
        self.node(id).disk.images.insert(meta, *image);
        self.say(id, format!("has the image {} of n{from}", show::meta(&meta)));
        self.step(id, Input::SnapshotArrived { from, meta });
    }

    fn apply(&mut self, id: NodeId, apply: Apply, checkpoints: &mut Vec<Input>) {
        match apply {
            Apply::Entries(entries) => {
                for entry in &entries {
                    let applied = self.node(id).store.apply(entry);
                    let line = show::entry(entry);
                    match applied {
                        Applied::Copy(_) => self.say(id, format!("drops the copy {line}")),
                        _ => self.say(id, format!("applies {line}")),
                    }
                    if let Applied::Checkpoint(digest) = applied {
                        checkpoints.push(Input::CheckpointApplied { index: entry.index, digest });
                    }
                    if let Applied::Done(request) = applied
                        && self.node(id).waiters.remove(&request)
                    {
                        self.say(id, format!("answers {}: done", show::request(&request)));
                    }
                }
            }
            Apply::Restore(meta) => {
                let node = self.node(id);
                let image = node.disk.images[&meta].clone();
                node.store.restore(image);
                self.say(id, format!("restores the image {}", show::meta(&meta)));
            }
            Apply::Snapshot(meta) => {
                let node = self.node(id);
                node.image = Some((meta, node.store.image()));
                self.say(id, format!("takes an image of {}", show::meta(&meta)));
            }
        }
    }

    fn serve_reads(&mut self, id: NodeId) {
        let node = self.node(id);
        let applied = node.store.applied;
        let ready = |_: &ReadId, read: &mut (String, Option<Index>)| {
            read.1.is_some_and(|index| index <= applied)
        };
        let served: Vec<_> = node.reads.extract_if(.., ready).collect();
        for (_, (key, index)) in served {
            let held = self.node(id).store.base.get(&key).cloned();
            let value = held.and_then(|held| held.value);
            let value = value.map_or("nothing".to_owned(), |value| format!("{key}={value}"));
            let index = index.unwrap_or(0);
            self.say(id, format!("answers read of {key} at {index}: {value}"));
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
            let replica = node.replica.as_ref()?;
            let alarms = ALARMS.map(|alarm| Some(replica.deadline(alarm)));
            alarms.into_iter().chain([node.detector.deadline()]).flatten().min()
        };
        self.nodes.values().filter_map(deadlines).min()
    }

    fn raise(&mut self, id: NodeId) {
        let now = self.now;
        if !self.is_up(id) {
            return;
        }
        for peer in self.node(id).detector.overdue(now) {
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
        let waits = |node: &&Node| node.replica.is_some() && !node.stalled && !node.jobs.is_empty();
        let id = self.nodes.values().find(waits).map(|node| node.settings.id);
        id.is_some_and(|id| self.persist(id))
    }
}
