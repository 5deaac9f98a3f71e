//! One node's process: the replica, the store and what the node's threads do around them, with the
//! order that [`Effects`] asks for.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;
use std::time::Duration;

use super::Sabotage;
use super::cluster::{Event, Timer, World};
use super::disk::{Batch, Saved, View};
use super::trace::mix;
use crate::clock::Now;
use crate::replica::detector::{FailureDetector, Liveness};
use crate::replica::{Alarm, Apply, Effects, Envelope, Input, ReadId, Replica, Settings, Standing};
use crate::store::{Image, Writer};
use crate::types::{Entry, Index, RequestId, SnapshotMeta};

/// Work of the apply thread. An image is held from the moment it is asked for: by the time its turn
/// comes a later one may have replaced it on the disk.
#[derive(Debug)]
pub enum Work {
    Entries(Vec<Entry>),
    Restore(Rc<Saved>),
    Snapshot(SnapshotMeta),
}

/// See the module.
#[derive(Debug)]
pub struct Process {
    /// The same as its boot.
    pub life: u64,
    pub replica: Replica,
    pub writer: Writer,
    pub detector: FailureDetector,
    /// What the replica has decided so far, durable or not.
    pub view: View,
    /// Of everything applied, see [`super::invariants::Oracle`].
    pub digest: u64,
    /// Committed entries up to here were handed to apply.
    pub handed: Index,
    pub work: VecDeque<Work>,
    working: bool,
    /// The clients' requests without an answer, by operation.
    pub waiting: BTreeMap<RequestId, usize>,
    pub reading: BTreeMap<ReadId, usize>,
    pub accepting: BTreeMap<RequestId, usize>,
    /// Requests whose writes are taken and about to be visible.
    pub answering: BTreeSet<usize>,
    /// Reads that wait for an index to be applied.
    pub granted: Vec<(Index, ReadId)>,
    /// When each timer is due to be looked at: heartbeat, election, drain, detector.
    timers: [Option<Now>; 4],
    /// Peers that a pull is under way for.
    pub pulls: BTreeSet<usize>,
    pub stopping: bool,
    pub led: bool,
    /// Term and commit index after the previous step.
    pub reached: (u64, Index),
}

impl World {
    /// A node's process begins, with what its disk holds.
    pub fn start(&mut self, node: usize) {
        if self.nodes[node].process.is_some() {
            return;
        }
        self.check_found(node);
        self.nodes[node].boot += 1 + self.rng.below(3);
        let (id, boot) = (self.nodes[node].id, self.nodes[node].boot);
        let members = self.nodes.iter().map(|node| node.id).collect();
        let incarnation = self.nodes[node].incarnation;
        let wall_micros = self.wall(node);
        let settings =
            Settings { id, members, boot, incarnation, wall_micros, ..self.plan.settings.clone() };
        let mut recovered = self.nodes[node].disk.recover();
        self.sabotage_recovered(&mut recovered);
        let view = View::new(&recovered);
        let (mut writer, mut digest) = (Writer::new(), 0);
        if recovered.snapshot.index > 0 {
            let Some(saved) = self.nodes[node].disk.image(recovered.snapshot) else {
                let how = format!("{id} starts without that of {:?}", recovered.snapshot);
                return self.fail("a snapshot has an image", how);
            };
            digest = saved.digest;
            self.restore_into(&mut writer, &saved, true);
        }
        writer.store().accept(&recovered.held);
        self.note_start(node);
        recovered.clock = recovered.clock.max(writer.latest());
        let peers: Vec<_> = settings.peers().collect();
        let detector = FailureDetector::new(self.now, settings.election_timeout, peers);
        let handed = recovered.snapshot.index;
        let reached = (recovered.hard.term, handed);
        let text = format!("starts, boot {boot}, {:?}, {handed}..{}", view.hard, view.last_index());
        self.note(node, [1, boot, handed], || text);
        let replica = Replica::new(self.now, settings, recovered, self.rng.fork());
        self.nodes[node].process = Some(Process {
            life: boot,
            replica,
            writer,
            detector,
            view,
            digest,
            handed,
            work: VecDeque::new(),
            working: false,
            waiting: BTreeMap::new(),
            reading: BTreeMap::new(),
            accepting: BTreeMap::new(),
            answering: BTreeSet::new(),
            granted: Vec::new(),
            timers: [None; 4],
            pulls: BTreeSet::new(),
            stopping: false,
            led: false,
            reached,
        });
        for peer in (0..self.nodes.len()).filter(|&peer| peer != node) {
            let at = self.now + Duration::from_micros(self.rng.below(2_000));
            self.schedule(at, Event::Connect { from: node, to: peer, life: boot });
        }
        self.schedule_timers(node);
    }

    fn restore_into(&mut self, writer: &mut Writer, saved: &Saved, at_start: bool) {
        let forget = at_start && self.sabotage == Some(Sabotage::ForgottenRequests);
        let bytes = if forget { without_requests(&saved.bytes) } else { saved.bytes.clone() };
        match Image::read(&mut &bytes[..]) {
            Ok(image) if image.meta() == saved.meta => {
                writer.restore(image);
            }
            other => self.fail("an image can be read", format!("{:?}: {other:?}", saved.meta)),
        }
    }

    /// The process is gone, whatever it was doing.
    pub fn kill(&mut self, node: usize) {
        let Some(process) = self.nodes[node].process.take() else { return };
        self.note(node, [2, process.life, 0], || "dies".to_owned());
        self.forget_deferred(node);
        self.links_of_the_dead(node);
        let waiting = process.waiting.into_values().chain(process.accepting.into_values());
        let waiting = waiting.chain(process.answering);
        for operation in waiting.chain(process.reading.into_values()) {
            self.unknown(operation);
        }
    }

    /// Steps a replica with what happened, in one go, and carries out what follows.
    pub fn step(&mut self, node: usize, inputs: Vec<Input>) {
        let Some(process) = &mut self.nodes[node].process else { return };
        let mut effects = Effects::default();
        for input in inputs {
            process.replica.step(self.now, input, &mut effects);
        }
        self.carry_out(node, effects);
        self.check_step(node);
        self.schedule_timers(node);
    }

    fn carry_out(&mut self, node: usize, effects: Effects) {
        let Effects { persist, after_persist, job, send, pull, apply, .. } = effects;
        if let Some(broken) = effects.fatal {
            return self.fail("the replica finds no broken invariant", broken);
        }
        if let Some(index) = effects.diverged {
            return self.fail("no state differs from the others", format!("#{node} at {index}"));
        }
        for event in &effects.events {
            self.note(node, [3, 0, 0], || format!("-- {event:?}"));
        }
        self.check_records(node, &persist);
        for (id, writes) in effects.accepted {
            self.accepted(node, id, writes);
        }
        if job > 0 {
            self.note(node, [10, job, 0], || format!("writes job {job}: {persist:?}"));
            self.persist(node, Batch { job, records: persist, after: after_persist });
        }
        for envelope in send {
            self.post(node, envelope);
        }
        for item in apply {
            self.hand_to_apply(node, item);
        }
        for (read, index) in effects.reads {
            if let Some(process) = &mut self.nodes[node].process {
                process.granted.push((index, read));
            }
        }
        self.serve_reads(node);
        for (id, why) in effects.refuse {
            self.refused(node, id, why);
        }
        for writes in effects.spread {
            self.taken_in(node, writes, None);
        }
        for (id, why) in effects.refuse_accepts {
            self.accept_refused(node, id, why);
        }
        for (read, _) in effects.refuse_reads {
            self.read_refused(node, read);
        }
        for peer in pull {
            let to = self.position(peer);
            let fresh = self.nodes[node].process.as_mut().is_some_and(|p| p.pulls.insert(to));
            if fresh {
                let delay = Duration::from_micros(self.rng.below(self.plan.wake_micros));
                self.schedule_pull(node, to, delay);
            }
        }
    }

    /// A message leaves its process.
    pub fn post(&mut self, node: usize, envelope: Envelope) {
        self.check_vote(&envelope);
        self.check_versions(node, &envelope);
        let (to, term) = (envelope.to, envelope.term);
        self.note(node, [4, u64::from(to.0), term], || format!("says {envelope:?}"));
        self.send(envelope);
    }

    fn persist(&mut self, node: usize, mut batch: Batch) {
        let job = batch.job;
        if self.sabotage == Some(Sabotage::AckBeforeSync) {
            for envelope in std::mem::take(&mut batch.after) {
                self.post(node, envelope);
            }
        }
        self.nodes[node].disk.push(batch);
        self.begin_sync(node);
        if self.sabotage == Some(Sabotage::PersistedTooEarly)
            && let Some(process) = &mut self.nodes[node].process
        {
            let mut effects = Effects::default();
            process.replica.step(self.now, Input::Persisted(job), &mut effects);
            self.carry_out(node, effects);
        }
    }

    fn begin_sync(&mut self, node: usize) {
        let Some(life) = self.life(node) else { return };
        if !self.nodes[node].disk.begin_sync() {
            return;
        }
        let slow = self.now < self.nodes[node].disk_slow_until;
        let factor = if slow { 50 } else { 1 };
        let micros = self.plan.sync_micros / 2 + self.rng.below(self.plan.sync_micros);
        let from = self.now.max(self.nodes[node].disk_stalled_until);
        self.schedule(from + Duration::from_micros(micros * factor), Event::Synced { node, life });
    }

    /// The disk has answered: what waited for it leaves, then the replica learns of it.
    pub fn synced(&mut self, node: usize) {
        let batches = match self.nodes[node].disk.end_sync() {
            Ok(batches) => batches,
            Err(how) => return self.fail("records make sense", how),
        };
        self.note_durable(node);
        let job = batches.last().map_or(0, |batch| batch.job);
        if let Standing::Voter { .. } = self.nodes[node].disk.synced.hard.standing {
            self.nodes[node].founded = true;
            self.nodes[node].ghosts.clear();
        }
        self.note(node, [5, job, 0], || format!("synced job {job}"));
        for envelope in batches.into_iter().flat_map(|batch| batch.after) {
            self.post(node, envelope);
        }
        self.begin_sync(node);
        self.step(node, vec![Input::Persisted(job)]);
    }

    fn hand_to_apply(&mut self, node: usize, apply: Apply) {
        self.check_apply(node, &apply);
        let work = match apply {
            Apply::Entries(entries) => Work::Entries(entries),
            Apply::Snapshot(meta) => Work::Snapshot(meta),
            Apply::Restore(meta) => match self.nodes[node].disk.image(meta) {
                Some(image) => Work::Restore(image),
                None => return self.fail("a snapshot has an image", format!("restore {meta:?}")),
            },
        };
        let Some(process) = &mut self.nodes[node].process else { return };
        process.work.push_back(work);
        if !std::mem::replace(&mut process.working, true) {
            self.schedule_apply(node);
        }
    }

    fn schedule_apply(&mut self, node: usize) {
        let Some(life) = self.life(node) else { return };
        let at = self.now + Duration::from_micros(1 + self.rng.below(self.plan.apply_micros));
        self.schedule(at, Event::Apply { node, life });
    }

    /// The apply thread does one piece of work.
    pub fn apply_next(&mut self, node: usize) {
        let Some(process) = &mut self.nodes[node].process else { return };
        let work = process.work.pop_front();
        process.working = !process.work.is_empty();
        match work {
            Some(Work::Entries(entries)) => entries.iter().for_each(|e| self.apply_entry(node, e)),
            Some(Work::Restore(saved)) => self.restore(node, &saved),
            Some(Work::Snapshot(meta)) => self.take_image(node, meta),
            None => {}
        }
        self.serve_reads(node);
        if self.nodes[node].process.as_ref().is_some_and(|process| process.working) {
            self.schedule_apply(node);
        }
    }

    /// Results do not come with an image: whoever waits for one of them learns that it is lost.
    fn restore(&mut self, node: usize, saved: &Saved) {
        let Some(mut process) = self.nodes[node].process.take() else { return };
        self.note(node, [6, saved.meta.index, 0], || format!("restores {:?}", saved.meta));
        self.restore_into(&mut process.writer, saved, false);
        process.digest = saved.digest;
        process.replica.restored(process.writer.latest());
        let writer = &process.writer;
        let lost: Vec<_> = process.waiting.keys().copied().collect();
        for id in lost.into_iter().filter(|id| writer.requests().contains(*id)) {
            process.replica.withdraw(id);
            if let Some(operation) = process.waiting.remove(&id) {
                self.unknown(operation);
            }
        }
        self.nodes[node].process = Some(process);
    }

    fn take_image(&mut self, node: usize, meta: SnapshotMeta) {
        let Some(process) = &self.nodes[node].process else { return };
        let (life, digest, applied) = (process.life, process.digest, process.writer.applied());
        let mut bytes = Vec::new();
        let written = process.writer.image().write(&mut bytes);
        if applied != meta || written.is_err() {
            return self.fail("an image is of its index", format!("{meta:?} at {applied:?}"));
        }
        self.check_image(meta, &bytes);
        let failed = !self.calm && self.rng.chance(self.plan.travel.images_failed, 1000);
        let image = (!failed).then(|| Rc::new(Saved { meta, bytes, digest }));
        let micros = 500 + self.rng.below(self.plan.image_micros);
        let at = self.now + Duration::from_micros(micros);
        self.schedule(at, Event::ImageTaken { node, life, image });
    }

    /// An image of this node's own state is durable, or could not be written.
    pub fn image_taken(&mut self, node: usize, image: Option<Rc<Saved>>) {
        let Some(saved) = image else {
            return self.step(node, vec![Input::SnapshotFailed]);
        };
        let meta = saved.meta;
        self.note(node, [7, meta.index, 0], || format!("has image {meta:?}"));
        self.nodes[node].disk.put_image(saved);
        self.step(node, vec![Input::SnapshotTaken(meta)]);
    }

    /// An image from a peer is durable.
    pub fn image_stored(&mut self, node: usize, from: usize, image: Rc<Saved>) {
        let (meta, from) = (image.meta, self.nodes[from].id);
        self.note(node, [8, meta.index, 0], || format!("has image {meta:?} from {from}"));
        self.nodes[node].disk.put_image(image);
        self.step(node, vec![Input::SnapshotArrived { from, meta }]);
    }

    /// A deadline is over, or was a moment ago.
    pub fn timer(&mut self, node: usize, timer: Timer) {
        let (now, wall) = (self.now, self.wall(node));
        let Some(process) = &mut self.nodes[node].process else { return };
        process.timers[place(timer)] = None;
        let inputs = match timer {
            Timer::Alarm(alarm) if now >= process.replica.deadline(alarm) => {
                let wall = (alarm == Alarm::Heartbeat).then_some(Input::Clock(wall));
                wall.into_iter().chain([Input::Alarm(alarm)]).collect()
            }
            Timer::Alarm(_) => Vec::new(),
            Timer::Detector => {
                let liveness = Liveness::Suspected;
                let overdue = process.detector.overdue(now).into_iter();
                overdue.map(|peer| Input::Peer { peer, liveness }).collect()
            }
        };
        if inputs.is_empty() {
            return self.schedule_timers(node);
        }
        self.note(node, [9, place(timer) as u64, 0], || format!("{inputs:?}"));
        self.step(node, inputs);
    }

    /// Sees to it that each deadline is looked at when it is over, and a little later as threads
    /// are.
    fn schedule_timers(&mut self, node: usize) {
        let alarms = [Alarm::Heartbeat, Alarm::Election, Alarm::Drain].map(Timer::Alarm);
        for timer in alarms.into_iter().chain([Timer::Detector]) {
            let Some(process) = &mut self.nodes[node].process else { return };
            let deadline = match timer {
                Timer::Alarm(alarm) => Some(process.replica.deadline(alarm)),
                Timer::Detector => process.detector.deadline(),
            };
            let deadline = deadline.filter(|at| *at < Now(u64::MAX));
            let slot = &mut process.timers[place(timer)];
            let Some(at) = deadline.filter(|at| slot.is_none_or(|due| *at < due)) else { continue };
            let at = at.max(self.now);
            *slot = Some(at);
            let life = process.life;
            let late = Duration::from_micros(1 + self.rng.below(self.plan.wake_micros));
            self.schedule(at + late, Event::Timer { node, life, timer });
        }
    }
}

impl Process {
    /// Folds what an entry came to into the digest of everything applied.
    pub fn digest(before: u64, entry: &Entry, outcome: u64) -> u64 {
        mix(mix(mix(before, entry.index), entry.term), outcome)
    }
}

fn place(timer: Timer) -> usize {
    match timer {
        Timer::Alarm(Alarm::Heartbeat) => 0,
        Timer::Alarm(Alarm::Election) => 1,
        Timer::Alarm(Alarm::Drain) => 2,
        Timer::Detector => 3,
    }
}

/// The image with an empty table of requests, as a faulty snapshot format might have it.
fn without_requests(image: &[u8]) -> Vec<u8> {
    const HEAD: usize = 33;
    const SECTION_HEAD: usize = 13;
    let mut length = [0; 4];
    length.copy_from_slice(&image[HEAD + 1..HEAD + 5]);
    let rest = HEAD + SECTION_HEAD + u32::from_le_bytes(length) as usize;
    let content = 0_u32.to_le_bytes();
    let mut head = vec![image[HEAD]];
    head.extend(4_u32.to_le_bytes());
    head.extend(crc32fast::hash(&content).to_le_bytes());
    head.extend(crc32fast::hash(&head).to_le_bytes());
    [&image[..HEAD], &head, &content, &image[rest..]].concat()
}
