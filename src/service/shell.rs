//! The shell: everything between a front end's request and the replica that needs no thread. It
//! steps the [`Replica`], knows which client waits for which request, and routes the [`Effects`] of
//! a step to the [`Outside`] in the order that they demand.
//!
//! A node keeps its shell behind one lock (`node/core.rs`); the simulator keeps one for each of its
//! nodes. A caller's turn has three parts:
//!
//! 1. under the lock: [`Shell::begin_turn`], then [`Shell::step`], [`Shell::ask`] and the like;
//! 2. still under the lock: [`Shell::route`], so that no two turns can reorder work for the log,
//!    for a peer or for the store;
//! 3. after the lock: [`AfterStep::complete`], for work that has no order to keep or may take long.
//!
//! **Stamped writes.** A stamped eventual write belongs into the store's overlay before its client
//! has its answer; otherwise the session would not read its own write. Part 3 puts it there for
//! every caller alike: an [`Answer::Stamped`] can only come out of [`AfterStep::complete`].

use std::collections::BTreeMap;
use std::mem;
use std::sync::Arc;

use bytes::Bytes;

use super::completion::{Answer, Answers, ReplyTo};
use super::outside::{ApplyWork, Outside};
use crate::clock::Now;
use crate::replica::{Alarm, Apply, Effects, Event, Input, Pull, ReadId, Replica};
use crate::store::{Image, Store};
use crate::types::{
    Index, NodeId, Outcome, Rejected, RequestId, SnapshotMeta, Unknown, Version, Write, Writes,
};

/// A client's request to the replicated state.
#[derive(Debug)]
pub enum Request {
    /// Execute these encoded commands, one after the other: [`Answer::Outcomes`].
    Write(Bytes),
    /// Stamp eventual writes, here or on another node: [`Answer::Stamped`].
    Stamp(Vec<Write>),
    /// Grant a linearizable read of this node's store: [`Answer::MayRead`].
    Read,
}

/// Names a request that was asked for, to cancel it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum RequestHandle {
    /// A [`Request::Write`].
    Write(RequestId),
    /// A [`Request::Stamp`].
    Stamp(RequestId),
    /// A [`Request::Read`].
    Read(ReadId),
}

/// The replica with the requests that wait for it.
#[derive(Debug)]
pub struct Shell {
    replica: Replica,
    effects: Effects,
    store: Arc<Store>,
    /// The requests that wait for an answer. Ordered, so that a simulated run replays.
    waiting: BTreeMap<RequestHandle, ReplyTo>,
    /// An image that has just arrived, for the `Apply::Restore` that the same step may decide.
    arrived: Option<Box<Image>>,
    /// The deadlines that the watchers of these alarms know.
    election_at: Now,
    drain_at: Now,
    /// A turn has begun. Between turns, only a panic leaves this behind.
    in_turn: bool,
    /// The replica cannot be trusted any more: nothing leaves it.
    has_failed: bool,
    /// Refusals of requests that no client waits for. The replica forgets a cancelled request, so
    /// there is none but at the end of a node.
    unclaimed_refusals: u64,
}

/// Eventual writes on their way into the overlay.
#[derive(Debug)]
pub struct Taken {
    /// The writes, stamped.
    pub writes: Writes,
    /// The node that stamped them.
    pub by: Option<NodeId>,
    /// The client that waits for them; `None` if they come from a peer, or if it has left.
    pub reply_to: Option<ReplyTo>,
}

/// The rest of a turn, to be done without the lock: overlay writes, wake-ups, log lines.
#[derive(Debug, Default)]
#[must_use = "it holds clients' answers"]
pub struct AfterStep {
    /// Writes for the overlay.
    pub taken: Vec<Taken>,
    /// Answers that are ready.
    pub answers: Answers,
    /// Events for the node's log.
    pub events: Vec<Event>,
    /// The node must stop.
    pub failure: Option<Failure>,
}

/// The reason why a node must stop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// An invariant of the replica is broken.
    Broken(String),
    /// The state at this index differs from the majority's.
    Diverged(Index),
}

impl AfterStep {
    /// True if nothing is left to do.
    pub fn is_empty(&self) -> bool {
        self.taken.is_empty()
            && self.answers.is_empty()
            && self.events.is_empty()
            && self.failure.is_none()
    }

    /// Makes stamped writes readable, then hands all answers over.
    pub fn complete(mut self, store: &Store) {
        for Taken { writes, by, reply_to } in self.taken {
            let existed = store.put_overlay(&writes);
            if let Some(reply_to) = reply_to {
                self.answers.push(reply_to, Answer::Stamped { existed, by });
            }
        }
        self.answers.deliver();
    }
}

impl Shell {
    /// A shell around a replica that nothing has stepped yet.
    pub fn new(replica: Replica, store: Arc<Store>) -> Shell {
        Shell {
            replica,
            effects: Effects::default(),
            store,
            waiting: BTreeMap::new(),
            arrived: None,
            election_at: Now(u64::MAX),
            drain_at: Now(u64::MAX),
            in_turn: false,
            has_failed: false,
            unclaimed_refusals: 0,
        }
    }

    /// Begins a turn, which [`Shell::route`] ends. A turn that finds another one begun comes after
    /// a panic in the middle of a step: the replica and its effects may be half of each.
    pub fn begin_turn(&mut self) {
        if mem::replace(&mut self.in_turn, true) && !self.has_failed {
            self.effects = Effects::default();
            self.effects.fatal = Some("a turn has not ended".into());
        }
    }

    /// The replica, to look at.
    pub fn replica(&self) -> &Replica {
        &self.replica
    }

    /// Steps the replica.
    pub fn step(&mut self, now: Now, input: Input) {
        self.replica.step(now, input, &mut self.effects);
    }

    /// Asks for something on behalf of a client. The answer comes by [`AfterStep`], of this turn or
    /// of a later one.
    pub fn ask(&mut self, now: Now, request: Request, reply_to: ReplyTo) -> RequestHandle {
        let (handle, input) = match request {
            Request::Write(commands) => {
                let id = self.replica.next_request();
                (RequestHandle::Write(id), Input::Propose { id, commands })
            }
            Request::Stamp(writes) => {
                let id = self.replica.next_stamp();
                (RequestHandle::Stamp(id), Input::Stamp { id, writes })
            }
            Request::Read => {
                let id = self.replica.next_read();
                (RequestHandle::Read(id), Input::Read(id))
            }
        };
        self.waiting.insert(handle, reply_to);
        self.step(now, input);
        handle
    }

    /// Cancels a request: its answer, which says whether it may still be done. `None` if another
    /// answer is on its way.
    pub fn cancel(&mut self, now: Now, handle: RequestHandle) -> Option<Answer> {
        let waited = self.waiting.remove(&handle).is_some();
        let unserved = match handle {
            RequestHandle::Write(_) | RequestHandle::Stamp(_) if !waited => return None,
            RequestHandle::Write(id) => self.replica.cancel(id).outcome(self.replica.leader()),
            RequestHandle::Stamp(id) => {
                self.replica.cancel_stamp(id).outcome(self.replica.stamper())
            }
            RequestHandle::Read(id) => {
                if waited {
                    self.step(now, Input::CancelRead(id));
                }
                // Even if its index waits to be applied, or the read has just been granted: a read
                // that is not performed has done nothing, and a late answer is dropped by its
                // ticket.
                Rejected::NoLeader.into()
            }
        };
        Some(Answer::Unserved(unserved))
    }

    /// The store has applied requests of this node's clients.
    pub fn applied(
        &mut self,
        outcomes: impl IntoIterator<Item = (RequestId, Vec<Outcome>)>,
        answers: &mut Answers,
    ) {
        // A replica that has failed cancels all requests, so the table is empty then.
        for (id, outcomes) in outcomes {
            if let Some(reply_to) = self.waiting.remove(&RequestHandle::Write(id)) {
                answers.push(reply_to, Answer::Outcomes(outcomes));
            }
        }
    }

    /// A leader's snapshot has replaced the store. `latest` is its highest version. A request that
    /// `was_applied` finds in it is done, but its outcomes are lost: they do not travel in a
    /// snapshot.
    pub fn restored(
        &mut self,
        latest: Version,
        was_applied: impl Fn(RequestId) -> bool,
        answers: &mut Answers,
    ) {
        self.replica.restored(latest);
        let done = |handle: &RequestHandle, _: &mut ReplyTo| match handle {
            RequestHandle::Write(id) => was_applied(*id),
            _ => false,
        };
        let lost: Vec<_> = self.waiting.extract_if(.., done).collect();
        for (handle, reply_to) in lost {
            if let RequestHandle::Write(id) = handle {
                self.replica.cancel(id);
            }
            answers.push(reply_to, Answer::Unserved(Unknown::ResultLost.into()));
        }
    }

    /// A peer's image is verified and durable on this node.
    pub fn snapshot_arrived(&mut self, now: Now, from: NodeId, image: Box<Image>) {
        let meta = image.meta();
        self.arrived = Some(image);
        self.step(now, Input::SnapshotArrived { from, meta });
    }

    /// Answers every waiting request: the node ends. A write may still be done by other nodes, so
    /// its result is unknown; a read is certainly not done.
    pub fn cancel_all(&mut self, answers: &mut Answers) {
        for (handle, reply_to) in mem::take(&mut self.waiting) {
            let unserved = match handle {
                RequestHandle::Write(_) | RequestHandle::Stamp(_) => Unknown::Stopped.into(),
                RequestHandle::Read(_) => Rejected::Stopping.into(),
            };
            answers.push(reply_to, Answer::Unserved(unserved));
        }
    }

    /// See [`Replica::pull`].
    pub fn pull(&mut self, now: Now, peer: NodeId, bytes_max: usize) -> Option<Pull> {
        // A message that is pulled leaves the node, too.
        if self.has_failed || self.in_turn {
            return None;
        }
        self.in_turn = true;
        let pulled = self.replica.pull(now, peer, bytes_max);
        self.in_turn = false;
        pulled
    }

    /// Checks whether a command that depends on an undrained write of this version may travel with
    /// that write into the log.
    ///
    /// # Errors
    /// The reason why not.
    pub fn trust(&self, now: Now, version: Version) -> Result<(), Rejected> {
        self.replica.trust(now, version)
    }

    /// The time at which the alarm is due. The caller is its watcher: [`Outside::poke`] tells it
    /// when the deadline comes closer than this.
    pub fn watch(&mut self, alarm: Alarm) -> Now {
        let at = self.replica.deadline(alarm);
        match alarm {
            Alarm::Heartbeat => {}
            Alarm::Election => self.election_at = at,
            Alarm::Drain => self.drain_at = at,
        }
        at
    }

    /// The requests that wait for an answer.
    pub fn waiting(&self) -> impl ExactSizeIterator<Item = &RequestHandle> {
        self.waiting.keys()
    }

    /// The number of refusals that no client has waited for; the simulator checks that it is zero.
    pub fn unclaimed_refusals(&self) -> u64 {
        self.unclaimed_refusals
    }

    /// True if a client waits for this request.
    pub fn waits_for(&self, handle: RequestHandle) -> bool {
        self.waiting.contains_key(&handle)
    }

    /// True if this node has nothing left to finish.
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.replica.is_idle()
    }

    /// The snapshot that the log relies on, once everything decided so far is durable. `None` if
    /// the last decisions may not have reached the log: then it may rely on an older one.
    pub fn snapshot(&self) -> Option<SnapshotMeta> {
        let reaches_log = !self.has_failed && !self.in_turn;
        reaches_log.then(|| self.replica.snapshot())
    }

    /// Ends a turn: sends its effects on their way, in the order that [`Effects`] demands.
    pub fn route(&mut self, outside: &mut impl Outside, after: &mut AfterStep) {
        if let Some(failure) = self.failure() {
            self.has_failed = true;
            after.failure.get_or_insert(failure);
        }
        if self.has_failed {
            // What a broken replica decides must reach neither its disk nor a peer. The node stops;
            // its clients need not wait for that: no answer can come any more.
            after.events.append(&mut self.effects.events);
            self.effects = Effects::default();
            self.cancel_all(&mut after.answers);
            self.in_turn = false;
            return;
        }
        let effects = &mut self.effects;
        // First the log: a message in `send` may follow from a record, and a leader's own append
        // counts only once its disk has reported this job.
        if effects.job != 0 {
            let records = mem::take(&mut effects.persist);
            let messages = mem::take(&mut effects.after_persist);
            outside.persist(records, messages, mem::take(&mut effects.job));
        }
        for envelope in effects.send.drain(..) {
            outside.post(envelope);
        }
        while let Some(peer) = effects.pull.pop_first() {
            outside.pull(peer);
        }
        for work in effects.apply.drain(..) {
            let work = match work {
                Apply::Entries(entries) => ApplyWork::Entries(entries),
                Apply::Snapshot(meta) => ApplyWork::Snapshot(meta),
                Apply::Restore(_) => match self.arrived.take() {
                    Some(image) => ApplyWork::Restore(image),
                    None => continue, // `failure` has made sure that there is one.
                },
            };
            outside.apply(work);
        }
        // Without a Restore the replica had no use for the image: its log is already beyond it.
        self.arrived = None;
        self.route_answers(outside, after);
        self.route_alarms(outside);
        after.events.append(&mut self.effects.events);
        self.in_turn = false;
    }

    /// The reason why the effects of this turn must not leave, if there is one.
    fn failure(&mut self) -> Option<Failure> {
        if let Some(broken) = self.effects.fatal.take() {
            return Some(Failure::Broken(broken));
        }
        if let Some(index) = self.effects.diverged.take() {
            return Some(Failure::Diverged(index));
        }
        // Going on without the image would apply later entries to a state that lacks earlier ones.
        let arrived = self.arrived.as_ref().map(|image| image.meta());
        self.effects.apply.iter().find_map(|work| match work {
            Apply::Restore(meta) if arrived != Some(*meta) => {
                Some(Failure::Broken(format!("{meta:?} is to be restored from {arrived:?}")))
            }
            _ => None,
        })
    }

    /// Finds the clients that the effects have answers for.
    fn route_answers(&mut self, outside: &mut impl Outside, after: &mut AfterStep) {
        let Shell { replica, effects, store, waiting, unclaimed_refusals, .. } = self;
        for (id, index) in effects.reads.drain(..) {
            let Some(reply_to) = waiting.remove(&RequestHandle::Read(id)) else { continue };
            // ReadIndex (thesis §6.4): the read may go ahead once the store has reached the index.
            if store.applied() >= index {
                after.answers.push(reply_to, Answer::MayRead);
            } else {
                outside.apply(ApplyWork::Read(index, reply_to));
            }
        }
        for (id, writes) in effects.stamped.drain(..) {
            let by = writes.first().and_then(|write| replica.origin(write.version));
            // Also without a client that waits: the writes are stamped, so they are taken.
            let reply_to = waiting.remove(&RequestHandle::Stamp(id));
            after.taken.push(Taken { writes, by, reply_to });
        }
        for writes in effects.spread.drain(..) {
            after.taken.push(Taken { writes, by: None, reply_to: None });
        }
        let writes = effects.refuse.drain(..).map(|(id, why)| (RequestHandle::Write(id), why));
        let stamps =
            effects.refuse_stamps.drain(..).map(|(id, why)| (RequestHandle::Stamp(id), why));
        let reads =
            effects.refuse_reads.drain(..).map(|(id, why)| (RequestHandle::Read(id), why.into()));
        for (handle, unserved) in writes.chain(stamps).chain(reads) {
            match waiting.remove(&handle) {
                Some(reply_to) => after.answers.push(reply_to, Answer::Unserved(unserved)),
                None => *unclaimed_refusals += 1,
            }
        }
    }

    /// Wakes the watchers that would sleep too long. The heartbeat's deadline never comes closer:
    /// its watcher re-reads it each time.
    fn route_alarms(&mut self, outside: &mut impl Outside) {
        if self.replica.deadline(Alarm::Election) < self.election_at {
            outside.poke(Alarm::Election);
        }
        let drain_at = self.replica.deadline(Alarm::Drain);
        if drain_at < self.drain_at {
            // Remembered at once: every eventual write of a burst brings the same deadline.
            self.drain_at = drain_at;
            outside.poke(Alarm::Drain);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replica::{Envelope, JobNo, Recovered, Settings, WalRecord};
    use crate::rng::Rng;
    use crate::store::Writer;

    /// Counts the effects that leave.
    #[derive(Default)]
    struct Left(usize);

    impl Outside for Left {
        fn persist(&mut self, _: Vec<WalRecord>, _: Vec<Envelope>, _: JobNo) {
            self.0 += 1;
        }

        fn post(&mut self, _: Envelope) {
            self.0 += 1;
        }

        fn pull(&mut self, _: NodeId) {
            self.0 += 1;
        }

        fn apply(&mut self, _: ApplyWork) {
            self.0 += 1;
        }

        fn poke(&mut self, _: Alarm) {}
    }

    const LONG: Now = Now(60_000_000);

    /// The shell of a cluster's only member, which founds the cluster and leads at its first alarm.
    fn shell() -> Shell {
        let settings = Settings::new(NodeId(1), vec![NodeId(1)]);
        let replica = Replica::new(Now(0), settings, Recovered::default(), Rng::new(1));
        Shell::new(replica, Writer::new().store())
    }

    /// One turn in which the election alarm rings: the number of effects, and the failure.
    fn ring(shell: &mut Shell) -> (usize, Option<Failure>) {
        let (mut left, mut after) = (Left::default(), AfterStep::default());
        shell.begin_turn();
        shell.step(LONG, Input::Alarm(Alarm::Heartbeat));
        shell.step(LONG, Input::Alarm(Alarm::Election));
        shell.route(&mut left, &mut after);
        (left.0, after.failure)
    }

    #[test]
    fn nothing_leaves_a_replica_whose_invariant_is_broken() {
        assert!(ring(&mut shell()).0 > 0, "a sound one campaigns");
        let mut shell = shell();
        shell.effects.fatal = Some("two and two are five".into());
        let (left, failure) = ring(&mut shell);
        assert_eq!((left, failure), (0, Some(Failure::Broken("two and two are five".into()))));
        assert_eq!(ring(&mut shell).0, 0, "nor in any later turn");
    }

    #[test]
    fn nothing_leaves_after_a_turn_that_did_not_end() {
        let mut shell = shell();
        shell.begin_turn();
        shell.step(LONG, Input::Alarm(Alarm::Election));
        // A panic ends the thread here; its lock is free again.
        assert!(shell.pull(LONG, NodeId(1), 1).is_none());
        let (left, failure) = ring(&mut shell);
        assert!(left == 0 && matches!(failure, Some(Failure::Broken(_))), "{left}, {failure:?}");
        assert_eq!(ring(&mut shell), (0, None), "nor in any later turn; it is reported once");
    }

    /// Keeps the answers.
    #[derive(Default)]
    struct Told(std::sync::atomic::AtomicU64);

    impl crate::service::Inbox for Told {
        fn put(&self, _: crate::service::Ticket, answer: Answer) -> bool {
            assert!(matches!(answer, Answer::Unserved(_)), "{answer:?}");
            self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            false
        }

        fn wake(&self) {}
    }

    #[test]
    fn a_failed_shell_answers_every_request_and_names_no_snapshot_to_rely_on() {
        let (mut shell, told) = (shell(), Arc::<Told>::default());
        assert!(shell.snapshot().is_some());
        shell.effects.diverged = Some(7);
        for (ticket, request) in
            [Request::Read, Request::Write(Bytes::new())].into_iter().enumerate()
        {
            let (mut left, mut after) = (Left::default(), AfterStep::default());
            shell.begin_turn();
            let inbox = Arc::clone(&told) as Arc<dyn crate::service::Inbox>;
            shell.ask(LONG, request, ReplyTo { inbox, ticket: ticket as u64, deadline: LONG });
            shell.route(&mut left, &mut after);
            after.complete(&Writer::new().store());
            assert_eq!(told.0.load(std::sync::atomic::Ordering::Relaxed), ticket as u64 + 1);
        }
        assert!(shell.snapshot().is_none() && shell.waiting().len() == 0);
    }
}
