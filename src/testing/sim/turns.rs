//! Turns: the threads of a node step its replica, and the decisions of each turn are carried out as
//! events, in the order that [`Effects`](crate::replica::Effects) demands. `node/core.rs` and the
//! workers do the same with locks and queues.

use std::time::Duration;

use crate::clock::Now;
use crate::replica::detector::Liveness;
use crate::replica::{Alarm, Envelope, Input};
use crate::service::{AfterStep, Answer, Answers, ApplyWork, Failure};
use crate::store::Image;
use crate::testing::sim::cluster::World;
use crate::testing::sim::events::{SimEvent, Timer};
use crate::testing::sim::process::Process;
use crate::testing::{Decision, Decisions};

impl World {
    /// Steps a replica with these inputs, in one turn of its shell.
    pub fn step(&mut self, node: usize, inputs: Vec<Input>) {
        self.turn(node, |process, now| {
            inputs.into_iter().for_each(|input| process.shell.step(now, input));
        });
    }

    /// One turn of a thread at a node's shell: `act` uses the shell, then the decisions are carried
    /// out. The rest of the turn, which a real thread does without the lock, follows a little
    /// later.
    /// `None` if the node has no process.
    pub fn turn<T>(&mut self, node: usize, act: impl FnOnce(&mut Process, Now) -> T) -> Option<T> {
        let now = self.local(node);
        let process = self.nodes[node].process.as_mut()?;
        let (mut decisions, mut after) = (Decisions::default(), AfterStep::default());
        process.shell.begin_turn();
        let result = act(process, now);
        process.shell.route(&mut decisions, &mut after);
        self.carry_out(node, decisions, after);
        self.check_step(node);
        self.schedule_timers(node);
        Some(result)
    }

    fn carry_out(&mut self, node: usize, Decisions(decisions): Decisions, mut after: AfterStep) {
        match after.failure.take() {
            // A real node would stop. Here the run ends: the replica has found its own bug.
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
        // Before any message of this turn leaves: the versions that have left earlier are a lower
        // bound for the new ones, and this turn's messages carry the new ones.
        after.taken.iter().for_each(|taken| self.note_taken(node, taken));
        // Reads that go ahead at once do so at the index that the store has applied.
        let applied = self.nodes[node].process.as_ref().map(|process| process.writer.applied());
        for (reply_to, answer) in after.answers.iter() {
            if let (Answer::MayRead, Some(applied)) = (answer, applied) {
                self.check_granted(node, applied.index, reply_to);
            }
        }
        let mut dropped = Vec::new();
        for decision in decisions {
            match decision {
                Decision::Persist(job) => {
                    let (number, records) = (job.number, &job.records);
                    dropped = self.dropped_writes(node, records);
                    self.check_records(node, records);
                    self.note(node, [10, number, 0], || {
                        format!("writes job {number}: {records:?}")
                    });
                    self.persist(node, job);
                }
                Decision::Post(envelope) => self.post(node, envelope),
                Decision::Apply(work) => self.hand_to_apply(node, work),
                Decision::Pull(peer) => {
                    let to = self.position(peer);
                    let process = self.nodes[node].process.as_mut();
                    if process.is_some_and(|process| process.pulls.insert(to)) {
                        let delay = Duration::from_micros(self.rng.below(self.plan.wake_micros));
                        self.schedule_pull(node, to, delay);
                    }
                }
            }
        }
        self.check_dropped(node, &dropped);
        if let Some(life) = self.life(node).filter(|_| !after.is_empty()) {
            // The thread may be held up between its turn and the rest of it. Turns of other threads
            // come in between, as they do without the lock.
            let late = Duration::from_micros(self.rng.below(self.plan.wake_micros));
            let after = Box::new(after);
            self.schedule(self.now + late, SimEvent::Complete { node, life, after });
        }
    }

    /// The rest of a turn: stamped writes become readable, and answers go to their inboxes.
    pub fn complete(&mut self, node: usize, after: AfterStep) {
        let Some(process) = &self.nodes[node].process else { return };
        after.complete(&process.writer.store());
        self.wake_loops(node);
    }

    /// A message leaves its process.
    pub fn post(&mut self, node: usize, envelope: Envelope) {
        self.check_vote(&envelope);
        self.check_versions(node, &envelope);
        let (to, term) = (envelope.to, envelope.term);
        self.note(node, [4, u64::from(to.0), term], || format!("says {envelope:?}"));
        self.send(envelope);
    }

    /// Queues work for the apply thread.
    fn hand_to_apply(&mut self, node: usize, work: ApplyWork) {
        self.check_apply(node, &work);
        let Some(process) = &mut self.nodes[node].process else { return };
        process.apply_queue.push_back(work);
        if !std::mem::replace(&mut process.apply_is_busy, true) {
            self.schedule_apply(node);
        }
    }

    fn schedule_apply(&mut self, node: usize) {
        let Some(life) = self.life(node) else { return };
        let at = self.now + Duration::from_micros(1 + self.rng.below(self.plan.apply_micros));
        self.schedule(at, SimEvent::Apply { node, life });
    }

    /// The apply thread takes the next work from its queue.
    pub fn apply_next(&mut self, node: usize) {
        let now = self.local(node);
        let Some(process) = &mut self.nodes[node].process else { return };
        let work = process.apply_queue.pop_front();
        process.apply_is_busy = !process.apply_queue.is_empty();
        let mut answers = Answers::default();
        match work {
            Some(ApplyWork::Entries(entries)) => {
                entries.iter().for_each(|entry| self.apply_entry(node, entry, &mut answers));
            }
            Some(ApplyWork::Read(index, reply_to)) => {
                process.parked_reads.park(now, index, reply_to, &mut answers);
            }
            Some(ApplyWork::Restore(image)) => self.restore(node, *image, &mut answers),
            Some(ApplyWork::Snapshot(meta)) => self.take_image(node, meta),
            None => {}
        }
        let Some(process) = &mut self.nodes[node].process else { return };
        process.parked_reads.wake(process.writer.applied().index, &mut answers);
        let busy = process.apply_is_busy;
        answers.deliver();
        self.wake_loops(node);
        if busy {
            self.schedule_apply(node);
        }
    }

    /// The apply thread replaces the store by a peer's image.
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

    /// A thread wakes up for a deadline, which may have moved in the meantime.
    pub fn timer(&mut self, node: usize, timer: Timer) {
        let (now, wall) = (self.local(node), self.wall(node));
        let Some(process) = &mut self.nodes[node].process else { return };
        process.timers[timer.place()] = None;
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
        // The deadline has moved: wait for the new one.
        if inputs.is_empty() {
            return self.schedule_timers(node);
        }
        self.note(node, [9, timer.place() as u64, 0], || format!("{inputs:?}"));
        self.step(node, inputs);
    }

    /// Schedules an event for each deadline of a node that has none yet, or none so early. Threads
    /// wake up late, so the event comes a little later than the deadline.
    pub fn schedule_timers(&mut self, node: usize) {
        let alarms = [Alarm::Heartbeat, Alarm::Election, Alarm::Drain].map(Timer::Alarm);
        for timer in alarms.into_iter().chain([Timer::Detector]) {
            let Some(process) = &mut self.nodes[node].process else { return };
            let deadline = match timer {
                Timer::Alarm(alarm) => Some(process.shell.replica().deadline(alarm)),
                Timer::Detector => process.detector.deadline(),
            };
            let deadline = deadline.filter(|at| *at < Now(u64::MAX));
            let slot = &mut process.timers[timer.place()];
            let Some(at) = deadline.filter(|at| slot.is_none_or(|due| *at < due)) else { continue };
            *slot = Some(at);
            let life = process.life;
            let at = self.globally(node, at).max(self.now);
            let late = Duration::from_micros(1 + self.rng.below(self.plan.wake_micros));
            self.schedule(at + late, SimEvent::Timer { node, life, timer });
        }
    }
}
