//! One node's process: the replica, the store and what the node's threads do around them, with the
//! order that [`Effects`] asks for.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use crate::clock::Now;
use crate::replica::detector::{FailureDetector, Liveness};
use crate::replica::{Alarm, Envelope, Input, Recovered, Replica, Settings};
use crate::service::{AfterStep, Answers, ApplyWork, Failure, ParkedReads, Shell};
use crate::store::{Image, Writer};
use crate::testing::sim::cluster::{Node, SKEW_MICROS, World};
use crate::testing::sim::disk::{Death, Unfinished, Unreadable};
use crate::testing::sim::events::{Event, Timer};
use crate::testing::sim::loops::Lane;
use crate::testing::sim::outside::{Deed, Deeds};
use crate::testing::sim::storage::Storage;
use crate::testing::sim::trace::mix;
use crate::testing::sim::view::View;
use crate::types::{Entry, Index};
use crate::wal::WalError;

/// One node's process.
#[derive(Debug)]
pub struct Process {
    /// The same as its boot.
    pub life: u64,
    pub shell: Shell,
    pub writer: Writer,
    pub detector: FailureDetector,
    /// What the replica has decided so far, durable or not.
    pub view: View,
    /// Of everything applied, see [`crate::testing::sim::invariants::Oracle`].
    pub digest: u64,
    /// Committed entries up to here were handed to apply.
    pub handed: Index,
    /// The queue of the apply thread.
    pub work: VecDeque<ApplyWork>,
    working: bool,
    reads: ParkedReads,
    /// The loops, or threads, that serve its clients.
    pub lanes: Vec<Lane>,
    /// When each timer is due to be looked at: heartbeat, election, drain, detector.
    timers: [Option<Now>; 4],
    /// Peers that a pull is under way for.
    pub pulls: BTreeSet<usize>,
    pub storage: Storage,
    pub stopping: bool,
    /// The latest sign for the detector thread comes then.
    pub signs_until: Now,
    pub led: bool,
    /// The last index of its log when it began to lead.
    pub led_from: Index,
    /// Term and commit index after the previous step.
    pub reached: (u64, Index),
    /// The first and last index of the log that it found.
    pub found: (Index, Index),
}

impl World {
    /// A node's process begins, with what its disk holds.
    pub fn start(&mut self, node: usize) {
        if self.nodes[node].process.is_some() {
            return;
        }
        let id = self.nodes[node].id;
        let (log_id, segment_bytes) = (self.nodes[node].incarnation, self.plan.segment_bytes);
        let interrupted = self.interrupt_start(node);
        let (mut recovered, image) = match self.nodes[node].disk.open(log_id, segment_bytes) {
            Ok(found) => found,
            Err(_) if interrupted => {
                self.die(node, Death::PowerCut);
                return self.start_again(node, 1_000);
            }
            Err(why) => return self.cannot_start(node, &why),
        };
        self.nodes[node].disk.files.kill(); // It was not interrupted after all.
        self.nodes[node].rotten.clear();
        self.check_found(node);
        let Some(incarnation) = self.claim(node) else { return };
        self.spoil_recovered(node, &mut recovered);
        let digest = self.digest_at(recovered.snapshot.index);
        let mut writer = Writer::new();
        if let Some(image) = image {
            writer.restore(self.spoil_image(image));
        }
        writer.store().put_overlay(&recovered.held);
        recovered.clock = recovered.clock.max(writer.latest());
        self.note_durable(node);
        self.note_start(node);
        if !self.calm && self.rng.chance(1, 4) {
            self.set_clock(node, SKEW_MICROS); // The machine has been started, too.
        }
        self.nodes[node].boot += 1 + self.rng.below(3);
        let boot = self.nodes[node].boot;
        let settings = Settings {
            id,
            members: self.nodes.iter().map(|node| node.id).collect(),
            boot,
            incarnation,
            wall_micros: self.wall(node),
            ..self.plan.settings.clone()
        };
        let (handed, term) = (recovered.snapshot.index, recovered.hard.term);
        let last = recovered.entries.last().map_or(handed, |entry| entry.index);
        let what = || format!("STARTS boot {boot}, {:?}, {handed}..{last}", recovered.hard);
        self.note(node, [1, boot, handed], what);
        let process = self.process(node, settings, recovered, writer, digest);
        let (reached, found) = ((term, handed), (handed + 1, last));
        self.nodes[node].process = Some(Process { reached, found, ..process });
        for peer in (0..self.nodes.len()).filter(|&peer| peer != node) {
            let at = self.now + Duration::from_micros(self.rng.below(2_000));
            self.schedule(at, Event::Connect { from: node, to: peer, life: boot });
        }
        self.want_spare(node);
        self.schedule_timers(node);
    }

    fn process(
        &mut self,
        node: usize,
        settings: Settings,
        recovered: Recovered,
        writer: Writer,
        digest: u64,
    ) -> Process {
        let now = self.local(node);
        let peers: Vec<_> = settings.peers().collect();
        let detector = FailureDetector::new(now, settings.election_timeout, peers);
        let (view, handed) = (View::new(&recovered), recovered.snapshot.index);
        let life = settings.boot;
        let replica = Replica::new(now, settings, recovered, self.rng.fork());
        Process {
            life,
            shell: Shell::new(replica, writer.store()),
            lanes: self.lanes(),
            writer,
            detector,
            view,
            digest,
            handed,
            work: VecDeque::new(),
            working: false,
            reads: ParkedReads::default(),
            timers: [None; 4],
            pulls: BTreeSet::new(),
            storage: Storage::default(),
            stopping: false,
            signs_until: Now(0),
            led: false,
            led_from: 0,
            reached: (0, 0),
            found: (0, 0),
        }
    }

    /// Puts the node's name on its directory: the incarnation that its peers will know. `None` if
    /// the disk fails, and with it the start.
    fn claim(&mut self, node: usize) -> Option<u64> {
        let machine = &mut self.nodes[node];
        if machine.begun && machine.disk.is_new() {
            return Some(self.rng.bits()); // It has lost its log.
        }
        if machine.disk.is_new() && machine.disk.begin_log().is_err() {
            self.die(node, Death::Killed);
            self.start_again(node, 1_000);
            return None;
        }
        machine.begun = true;
        Some(machine.incarnation)
    }

    /// What the operator does when a node refuses its directory.
    fn cannot_start(&mut self, node: usize, why: &Unreadable) {
        let id = self.nodes[node].id;
        self.note(node, [22, 0, 0], || format!("CANNOT START: {why}"));
        match why {
            // (A last batch that has rotted looks torn, if the segment after it never began.)
            Unreadable::Forgotten(how) if !self.is_rotten(node) => {
                let how = format!("{id}: {how}");
                self.fail("what was synced is found again, and nothing else", how);
            }
            // A disk that fails in the middle of a start may do better the next time.
            Unreadable::Log(WalError::Io(_)) => {
                self.die(node, Death::Killed);
                self.start_again(node, 1_000);
            }
            _ if self.is_rotten(node) => {
                self.die(node, Death::Killed);
                self.wipe(node);
                self.start_again(node, 1_000);
            }
            _ => self.fail("what was written can be read", format!("{id}: {why}")),
        }
    }

    /// True if a file is still there in which a bit has flipped.
    fn is_rotten(&self, node: usize) -> bool {
        let Node { disk, rotten, .. } = &self.nodes[node];
        rotten.iter().any(|name| disk.has(name))
    }

    /// The process is gone, whatever it was doing.
    pub fn die(&mut self, node: usize, death: Death) {
        let process = self.nodes[node].process.take();
        let (mut unfinished, rest) = match process {
            Some(mut process) => {
                self.note(node, [2, process.life, 0], || format!("DIES: {death:?}"));
                (process.storage.unfinished(), Some(process))
            }
            None => (Unfinished::default(), None),
        };
        if death == Death::Killed && self.rng.chance(1, 2) {
            unfinished = Unfinished::default();
        }
        if rest.is_some() {
            self.forget_deferred(node);
            self.links_of_the_dead(node);
            self.connections_of_the_dead(node);
        }
        self.nodes[node].disk.die(death, &mut self.rng, unfinished, rest);
    }

    /// Something has made the process stop by itself.
    pub fn exit(&mut self, node: usize, why: &str) {
        self.note(node, [23, 0, 0], || format!("EXITS: {why}"));
        self.die(node, Death::Killed);
        self.note_loss(node, false);
        self.start_again(node, 1_000);
    }

    /// Somebody starts the node within `millis`.
    pub fn start_again(&mut self, node: usize, millis: u64) {
        let at = self.soon(millis);
        self.schedule(at, Event::Start(node));
    }

    /// Tells a replica what happened, in one turn of its shell.
    pub fn step(&mut self, node: usize, inputs: Vec<Input>) {
        self.turn(node, |process, now| {
            inputs.into_iter().for_each(|input| process.shell.step(now, input));
        });
    }

    /// One turn at a node's shell, as `node::core` gives it to a thread: `act` uses the shell, then
    /// its decisions are carried out, and the rest of the turn follows a little later. `None` if
    /// the node has no process.
    pub fn turn<T>(&mut self, node: usize, act: impl FnOnce(&mut Process, Now) -> T) -> Option<T> {
        let now = self.local(node);
        let process = self.nodes[node].process.as_mut()?;
        let (mut deeds, mut after) = (Deeds::default(), AfterStep::default());
        let result = act(process, now);
        process.shell.route(&mut deeds, &mut after);
        self.carry_out(node, deeds, after);
        self.check_step(node);
        self.schedule_timers(node);
        Some(result)
    }

    fn carry_out(&mut self, node: usize, Deeds(deeds): Deeds, mut after: AfterStep) {
        match after.failure.take() {
            Some(Failure::Broken(broken)) => {
                return self.fail("the replica finds no broken invariant", broken);
            }
            Some(Failure::Diverged(index)) => {
                let how = format!("#{node} at {index}");
                return self.fail("no state differs from the others", how);
            }
            None => {}
        }
        for event in std::mem::take(&mut after.events) {
            self.note(node, [3, 0, 0], || format!("-- {event:?}"));
        }
        // Before anything leaves: the versions that left earlier bound the new ones from below.
        after.taken.iter().for_each(|taken| self.note_taken(node, taken));
        let mut left_out = Vec::new();
        for deed in deeds {
            match deed {
                Deed::Persist(batch) => {
                    let (job, records) = (batch.job, &batch.records);
                    left_out = self.left_out(node, records);
                    self.check_records(node, records);
                    self.note(node, [10, job, 0], || format!("writes job {job}: {records:?}"));
                    self.persist(node, batch);
                }
                Deed::Post(envelope) => self.post(node, envelope),
                Deed::Apply(work) => self.hand_to_apply(node, work),
                Deed::Pull(peer) => {
                    let to = self.position(peer);
                    let process = self.nodes[node].process.as_mut();
                    if process.is_some_and(|process| process.pulls.insert(to)) {
                        let delay = Duration::from_micros(self.rng.below(self.plan.wake_micros));
                        self.schedule_pull(node, to, delay);
                    }
                }
            }
        }
        self.check_left_out(node, &left_out);
        if let Some(life) = self.life(node).filter(|_| !after.is_empty()) {
            // The thread may be held up between its turn and the rest.
            let late = Duration::from_micros(self.rng.below(self.plan.wake_micros));
            let after = Box::new(after);
            self.schedule(self.now + late, Event::Complete { node, life, after });
        }
    }

    /// The rest of a turn: stamped writes become visible, and answers go to their inboxes.
    pub fn complete(&mut self, node: usize, after: AfterStep) {
        let Some(process) = &self.nodes[node].process else { return };
        after.complete(&process.writer.store());
        self.wake_lanes(node);
    }

    /// A message leaves its process.
    pub fn post(&mut self, node: usize, envelope: Envelope) {
        self.check_vote(&envelope);
        self.check_versions(node, &envelope);
        let (to, term) = (envelope.to, envelope.term);
        self.note(node, [4, u64::from(to.0), term], || format!("says {envelope:?}"));
        self.send(envelope);
    }

    fn hand_to_apply(&mut self, node: usize, work: ApplyWork) {
        self.check_apply(node, &work);
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
        let now = self.local(node);
        let Some(process) = &mut self.nodes[node].process else { return };
        let work = process.work.pop_front();
        process.working = !process.work.is_empty();
        let mut answers = Answers::default();
        match work {
            Some(ApplyWork::Entries(entries)) => {
                entries.iter().for_each(|entry| self.apply_entry(node, entry, &mut answers));
            }
            Some(ApplyWork::Read(index, reply_to)) => {
                process.reads.park(now, index, reply_to, &mut answers);
            }
            Some(ApplyWork::Restore(image)) => self.restore(node, *image, &mut answers),
            Some(ApplyWork::Snapshot(meta)) => self.take_image(node, meta),
            None => {}
        }
        let Some(process) = &mut self.nodes[node].process else { return };
        process.reads.wake(process.writer.applied().index, &mut answers);
        let working = process.working;
        answers.deliver();
        self.wake_lanes(node);
        if working {
            self.schedule_apply(node);
        }
    }

    fn restore(&mut self, node: usize, image: Image, answers: &mut Answers) {
        let meta = image.meta();
        let (digest, spoilt) = (self.digest_at(meta.index), self.spoil_image(image));
        self.note(node, [6, meta.index, 0], || format!("restores {meta:?}"));
        let Some(process) = &mut self.nodes[node].process else { return };
        process.writer.restore(spoilt);
        process.digest = digest;
        let Process { shell, writer, .. } = process;
        let requests = writer.requests();
        shell.restored(writer.latest(), |id| requests.contains(id), answers);
    }

    /// A deadline is over, or was a moment ago.
    pub fn timer(&mut self, node: usize, timer: Timer) {
        let (now, wall) = (self.local(node), self.wall(node));
        let Some(process) = &mut self.nodes[node].process else { return };
        process.timers[place(timer)] = None;
        let inputs = match timer {
            Timer::Alarm(alarm) if now >= process.shell.replica().deadline(alarm) => {
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
                Timer::Alarm(alarm) => Some(process.shell.replica().deadline(alarm)),
                Timer::Detector => process.detector.deadline(),
            };
            let deadline = deadline.filter(|at| *at < Now(u64::MAX));
            let slot = &mut process.timers[place(timer)];
            let Some(at) = deadline.filter(|at| slot.is_none_or(|due| *at < due)) else { continue };
            *slot = Some(at);
            let life = process.life;
            let at = self.globally(node, at).max(self.now);
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
