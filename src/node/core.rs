//! The core: one lock around the [`Shell`].
//!
//! Every thread that has something to tell the replica takes its turn here: lock, step, route,
//! unlock. Routing happens before the lock is released, and only by sends that cannot block: so no
//! two threads can reorder what goes to the log, to a peer or to the store. The lock is held for
//! about a microsecond and never across I/O. After that the same thread writes to the peers what
//! the system takes at once (`peers/link.rs`), completes stamped writes and wakes clients.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use crossbeam_channel::bounded;
use parking_lot::Mutex;

use super::clients::Waiter;
use super::events;
use super::peers::link::{Link, LinkNote};
use super::queues::{ApplyJob, Queues, WalWork};
use super::stop::Stop;
use crate::clock::{Clock, Now};
use crate::replica::{Alarm, Envelope, Input, JobNo, Pull, Status, WalRecord};
use crate::service::{
    AfterStep, Answer, Answers, ApplyWork, Outside, ReplyTo, Request, RequestHandle, Shell,
};
use crate::store::{Image, Store};
use crate::types::{NodeId, Outcome, Rejected, RequestId, SnapshotMeta, Version};

/// From this many waiting requests on, a client's own thread leaves sending to the link's thread:
/// until that one is awake, others will have added theirs. (64 threads that each sent on their own
/// served 15 % fewer writes a second.)
const CROWD: usize = 4;

/// Published in [`Core::leader`] while no leader is known.
const NO_LEADER: u64 = u64::MAX;

/// One lock around the shell, and the queues of the threads that serve it.
pub struct Core {
    shell: Mutex<Shell>,
    queues: Queues,
    clock: Clock,
    store: Arc<Store>,
    stop: Arc<Stop>,
    /// The leader's id as of the last turn, readable without the lock.
    leader: AtomicU64,
}

/// The queues during one turn, and the links that the turn has given something to write.
struct Turn<'a> {
    queues: &'a Queues,
    links: BTreeSet<NodeId>,
    /// Leave what is to be pulled to the links' threads, see [`CROWD`].
    others_gather: bool,
}

impl Outside for Turn<'_> {
    // A receiver is gone only when the node has stopped; then nothing is owed to anyone.
    fn persist(&mut self, records: Vec<WalRecord>, after: Vec<Envelope>, job: JobNo) {
        let _ = self.queues.wal.send(WalWork::Job { records, after, job });
    }

    fn post(&mut self, envelope: Envelope) {
        if let Some(link) = self.queues.links.get(&envelope.to) {
            self.links.insert(envelope.to);
            link.post(envelope);
        }
    }

    fn pull(&mut self, peer: NodeId) {
        let Some(link) = self.queues.links.get(&peer) else { return };
        link.want_pull();
        if self.others_gather {
            link.have_worked();
        } else {
            self.links.insert(peer);
        }
    }

    fn apply(&mut self, work: ApplyWork) {
        let _ = self.queues.apply.send(ApplyJob::Work(work));
    }

    fn poke(&mut self, alarm: Alarm) {
        self.queues.poke(alarm);
    }
}

impl Core {
    /// The core of a node. No thread has a turn yet.
    pub fn new(
        shell: Shell,
        queues: Queues,
        clock: Clock,
        store: Arc<Store>,
        stop: Arc<Stop>,
    ) -> Core {
        let leader = AtomicU64::new(NO_LEADER);
        Core { shell: Mutex::new(shell), queues, clock, store, stop, leader }
    }

    /// One turn: locks, lets `act` use the shell, routes the effects, unlocks, completes.
    fn turn<T>(&self, act: impl FnOnce(&mut Shell, Now) -> T) -> T {
        self.turn_in_crowd(usize::MAX, act)
    }

    /// A turn that leaves sending to others if at least `crowd` requests wait already.
    fn turn_in_crowd<T>(&self, crowd: usize, act: impl FnOnce(&mut Shell, Now) -> T) -> T {
        let mut after = AfterStep::default();
        let mut shell = self.shell.lock();
        let others_gather = shell.waiting().len() >= crowd;
        let mut turn = Turn { queues: &self.queues, links: BTreeSet::new(), others_gather };
        let result = act(&mut shell, self.clock.now());
        shell.route(&mut turn, &mut after);
        self.publish_leader(&shell);
        drop(shell);
        turn.links.into_iter().for_each(|peer| self.drive(peer));
        self.complete(after);
        result
    }

    /// The part of a turn that needs no lock.
    fn complete(&self, mut after: AfterStep) {
        if let Some(failure) = after.failure.take() {
            self.stop.fail(events::fatal(&failure));
        }
        let found = std::mem::take(&mut after.events);
        after.complete(&self.store);
        // Last, because writing a log line may block.
        found.iter().for_each(events::log);
    }

    fn publish_leader(&self, shell: &Shell) {
        let leader = shell.replica().leader().map_or(NO_LEADER, |leader| leader.0.into());
        // Compared first: a store would take the cache line from all readers at each turn.
        if self.leader.load(Ordering::Relaxed) != leader {
            self.leader.store(leader, Ordering::Relaxed);
        }
    }

    /// The present moment.
    #[cfg(test)]
    pub fn now(&self) -> Now {
        self.clock.now()
    }

    /// Tells the replica what has happened.
    pub fn step(&self, inputs: impl IntoIterator<Item = Input>) {
        self.turn(|shell, now| inputs.into_iter().for_each(|input| shell.step(now, input)));
    }

    /// Asks for all of `requests` in one turn. Their answers go to their inboxes, and may be there
    /// before this returns.
    pub fn ask(&self, requests: Vec<(Request, ReplyTo)>) -> Vec<RequestHandle> {
        self.turn(|shell, now| {
            let ask = |(request, reply_to)| shell.ask(now, request, reply_to);
            requests.into_iter().map(ask).collect()
        })
    }

    /// Asks for one thing and waits for its answer until `deadline`.
    pub fn ask_and_wait(&self, request: Request, waiter: &Arc<Waiter>, deadline: Now) -> Answer {
        let reply_to = waiter.open(deadline);
        let handle = self.turn_in_crowd(CROWD, |shell, now| shell.ask(now, request, reply_to));
        let answer = waiter.wait_until(self.clock.instant(deadline));
        let answer = answer.or_else(|| self.cancel(handle));
        // Neither in time nor cancelled: it is on its way.
        answer.unwrap_or_else(|| waiter.wait())
    }

    /// Cancels a request: its answer. `None` if another answer is on its way.
    pub fn cancel(&self, handle: RequestHandle) -> Option<Answer> {
        self.turn(|shell, now| shell.cancel(now, handle))
    }

    /// See [`Shell::trust`].
    ///
    /// # Errors
    /// The reason why the version may not travel into the log now.
    pub fn trust(&self, version: Version) -> Result<(), Rejected> {
        self.shell.lock().trust(self.clock.now(), version)
    }

    /// The store has applied requests of this node's clients.
    pub fn applied(&self, outcomes: &mut Vec<(RequestId, Vec<Outcome>)>) {
        if outcomes.is_empty() {
            return;
        }
        let mut answers = Answers::default();
        self.shell.lock().applied(outcomes.drain(..), &mut answers);
        answers.deliver();
    }

    /// See [`Shell::restored`].
    pub fn restored(&self, latest: Version, was_applied: impl Fn(RequestId) -> bool) {
        let mut answers = Answers::default();
        self.shell.lock().restored(latest, was_applied, &mut answers);
        answers.deliver();
    }

    /// A peer's image is verified and durable on this node.
    pub fn snapshot_arrived(&self, from: NodeId, image: Box<Image>) {
        self.turn(|shell, now| shell.snapshot_arrived(now, from, image));
    }

    /// See [`Shell::pull`].
    pub fn pull(&self, peer: NodeId, bytes_max: usize) -> Option<Pull> {
        self.shell.lock().pull(self.clock.now(), peer, bytes_max)
    }

    /// The time at which the alarm is due, for the one thread that watches it.
    pub fn watch(&self, alarm: Alarm) -> Instant {
        let at = self.shell.lock().watch(alarm);
        self.clock.instant(at)
    }

    /// The replica's state at this moment.
    pub fn status(&self) -> Status {
        self.shell.lock().replica().status()
    }

    /// The node that this node follows (itself, if it leads).
    pub fn leader(&self) -> Option<NodeId> {
        u32::try_from(self.leader.load(Ordering::Relaxed)).ok().map(NodeId)
    }

    /// The members that a node with an empty directory still has to hear from.
    pub fn unanswered(&self) -> Vec<NodeId> {
        self.shell.lock().replica().unanswered()
    }

    /// True if this node has nothing left to finish.
    pub fn is_idle(&self) -> bool {
        self.shell.lock().is_idle()
    }

    /// The node ends: everyone who still waits is told so.
    pub fn cancel_all(&self) {
        let mut answers = Answers::default();
        let mut shell = self.shell.lock();
        shell.cancel_all(&mut answers);
        // Under the lock: no read can be parked behind this.
        let _ = self.queues.apply.send(ApplyJob::RefuseReads);
        drop(shell);
        answers.deliver();
    }

    /// Sends messages that waited for the log.
    pub fn release(&self, envelopes: impl IntoIterator<Item = Envelope>) {
        let links = BTreeSet::new();
        let mut turn = Turn { queues: &self.queues, links, others_gather: false };
        envelopes.into_iter().for_each(|envelope| turn.post(envelope));
        turn.links.into_iter().for_each(|peer| self.drive(peer));
    }

    /// The snapshot that the log relies on: waits until that is durable. `None` if the log ends
    /// before.
    pub fn durable_snapshot(&self) -> Option<SnapshotMeta> {
        // Its record was queued under the lock, and so before the barrier.
        let snapshot = self.shell.lock().snapshot();
        let (sender, durable) = bounded(1);
        let _ = self.queues.wal.send(WalWork::Barrier(sender));
        durable.recv().ok().map(|()| snapshot)
    }

    /// Writes to a peer what there is for it.
    fn drive(&self, peer: NodeId) {
        if let Some(link) = self.link(peer) {
            link.drive(|bytes_max| self.pull(peer, bytes_max));
        }
    }

    /// The way to `peer`.
    pub fn link(&self, peer: NodeId) -> Option<&Link> {
        self.queues.links.get(&peer)
    }

    /// Has the log's thread see whether it wants a spare segment.
    pub fn look_for_spare(&self) {
        let _ = self.queues.wal.send(WalWork::LookForSpare);
    }

    /// Ends the links' threads.
    pub fn stop_links(&self) {
        self.queues.links.values().for_each(|link| link.note(LinkNote::Stop));
    }

    /// Has the watchers of alarms see that the node has stopped.
    pub fn poke_alarms(&self) {
        self.queues.poke(Alarm::Election);
        self.queues.poke(Alarm::Drain);
    }

    /// Ends the log's and the store's thread after what they have queued.
    pub fn stop_workers(&self) {
        let _ = self.queues.wal.send(WalWork::Stop);
        let _ = self.queues.apply.send(ApplyJob::Stop);
    }
}
