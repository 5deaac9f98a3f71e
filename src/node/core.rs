//! The core: one lock around the [`Shell`].
//!
//! A thread that has news for the replica takes a *turn*: lock, step, route, unlock. Effects are
//! routed before the lock is released, and only by sends that cannot block. So no two threads can
//! reorder work for the log, for a peer or for the store. The lock is held for about a microsecond
//! and never across I/O. After the lock the same thread writes to the peers as much as their
//! sockets take at once (`peers/link.rs`), completes stamped writes and wakes clients.
//!
//! **A panic under the lock.** The lock does not poison: while the panicking thread unwinds, other
//! threads may still take turns with a half-finished step. The panic stops the node
//! ([`PanicWatch`](super::shared::PanicWatch)) and its cause is kept, so this lasts for moments.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use crossbeam_channel::bounded;
use parking_lot::Mutex;

use super::clients::Waiter;
use super::events;
use super::peers::link::{LinkNote, PeerLink};
use super::queues::{ApplyJob, Queues, WalWork};
use super::stop::Stop;
use crate::clock::{Clock, Now};
use crate::replica::{Alarm, Envelope, Input, JobNo, Pull, Status, WalRecord};
use crate::service::{
    AfterStep, Answer, Answers, ApplyWork, Outside, ReplyTo, Request, RequestHandle, Shell,
};
use crate::store::{Image, Store};
use crate::types::{NodeId, Outcome, Rejected, RequestId, SnapshotMeta, Version};

/// From this many waiting requests on, a client's thread leaves sending to the link's thread. By
/// the time that thread is awake, other clients have added their requests, and it sends all of them
/// in one message. (64 threads that each sent on their own served 15 % fewer writes a second.)
const CROWD: usize = 4;

/// Published in [`Core::leader`] while no leader is known.
const NO_LEADER: u64 = u64::MAX;

/// One lock around the shell, with the queues of the threads that carry out its decisions.
pub struct Core {
    shell: Mutex<Shell>,
    queues: Queues,
    clock: Clock,
    store: Arc<Store>,
    stop: Arc<Stop>,
    /// The leader's id as of the latest turn, readable without the lock.
    leader: AtomicU64,
}

/// The queues during one turn, and the links that the turn has given work.
struct Turn<'a> {
    queues: &'a Queues,
    /// Links to be flushed by this thread after the turn.
    links: BTreeSet<NodeId>,
    /// Leaves pulling to the links' threads, see [`CROWD`].
    links_gather: bool,
}

// Sends to a thread that has ended are dropped, see `queues.rs`.
impl Outside for Turn<'_> {
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
        if self.links_gather {
            link.wake_thread();
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

    /// A turn that leaves pulling to the links' threads if at least `crowd` requests wait already.
    fn turn_in_crowd<T>(&self, crowd: usize, act: impl FnOnce(&mut Shell, Now) -> T) -> T {
        let mut after = AfterStep::default();
        let mut shell = self.shell.lock();
        let links_gather = shell.waiting().len() >= crowd;
        let mut turn = Turn { queues: &self.queues, links: BTreeSet::new(), links_gather };
        shell.begin_turn();
        // The time is read under the lock, so that the replica never sees it go back.
        let result = act(&mut shell, self.clock.now());
        shell.route(&mut turn, &mut after);
        self.publish_leader(&shell);
        drop(shell);
        // Writing to a socket is I/O, and pulling takes the lock again: both after the unlock.
        turn.links.into_iter().for_each(|peer| self.flush(peer));
        self.complete(after);
        result
    }

    /// The part of a turn that needs no lock.
    fn complete(&self, mut after: AfterStep) {
        // A broken invariant or a diverged state: this node's decisions cannot be trusted any more.
        if let Some(failure) = after.failure.take() {
            self.stop.fail(events::fatal(&failure));
        }
        let events = std::mem::take(&mut after.events);
        after.complete(&self.store);
        // Last, because a log line may block, and clients wait for their answers.
        events.iter().for_each(events::log);
    }

    fn publish_leader(&self, shell: &Shell) {
        let leader = shell.replica().leader().map_or(NO_LEADER, |leader| leader.0.into());
        // Compare first: a store at every turn would take the cache line from all readers. Relaxed:
        // the value guides replies and is no proof of leadership, so nothing is ordered by it.
        if self.leader.load(Ordering::Relaxed) != leader {
            self.leader.store(leader, Ordering::Relaxed);
        }
    }

    /// The present moment.
    #[cfg(test)]
    pub fn now(&self) -> Now {
        self.clock.now()
    }

    /// Steps the replica with `inputs`, in one turn.
    pub fn step(&self, inputs: impl IntoIterator<Item = Input>) {
        self.turn(|shell, now| inputs.into_iter().for_each(|input| shell.step(now, input)));
    }

    /// Asks the shell for all of `requests` in one turn. The answers go to their inboxes, some of
    /// them before this returns.
    pub fn ask(&self, requests: Vec<(Request, ReplyTo)>) -> Vec<RequestHandle> {
        self.turn(|shell, now| {
            let ask = |(request, reply_to)| shell.ask(now, request, reply_to);
            requests.into_iter().map(ask).collect()
        })
    }

    /// Asks the shell for one request and waits for the answer. At `deadline` the request is
    /// cancelled; the answer then says whether it is certainly not done or may be done.
    pub fn ask_and_wait(&self, request: Request, waiter: &Arc<Waiter>, deadline: Now) -> Answer {
        let reply_to = waiter.open(deadline);
        let handle = self.turn_in_crowd(CROWD, |shell, now| shell.ask(now, request, reply_to));
        let answer = waiter.wait_until(self.clock.instant(deadline));
        // A time-out alone says nothing about the request. The shell knows whether it has left this
        // node: if not, it is certainly not done (`Rejected`); else it may be done (`Unknown`).
        let answer = answer.or_else(|| self.cancel(handle));
        // Neither answered in time nor cancelled: another thread has taken the request out of the
        // shell's table and is about to deliver its answer. This wait is short and certain to end.
        answer.unwrap_or_else(|| waiter.wait())
    }

    /// Cancels a request and returns its answer; `None` if another answer is on its way.
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

    /// Delivers the outcomes of requests of this node's clients that the store has applied.
    pub fn applied(&self, outcomes: &mut Vec<(RequestId, Vec<Outcome>)>) {
        if outcomes.is_empty() {
            return;
        }
        let mut answers = Answers::default();
        // No turn: nothing is stepped, so there are no effects to route.
        self.shell.lock().applied(outcomes.drain(..), &mut answers);
        answers.deliver();
    }

    /// See [`Shell::restored`].
    pub fn restored(&self, latest: Version, was_applied: impl Fn(RequestId) -> bool) {
        let mut answers = Answers::default();
        self.shell.lock().restored(latest, was_applied, &mut answers);
        answers.deliver();
    }

    /// Tells the replica that a peer's image is verified and durable on this node.
    pub fn snapshot_arrived(&self, from: NodeId, image: Box<Image>) {
        self.turn(|shell, now| shell.snapshot_arrived(now, from, image));
    }

    /// See [`Shell::pull`].
    pub fn pull(&self, peer: NodeId, bytes_max: usize) -> Option<Pull> {
        self.shell.lock().pull(self.clock.now(), peer, bytes_max)
    }

    /// The time at which `alarm` is due, for the one thread that watches it.
    pub fn watch(&self, alarm: Alarm) -> Instant {
        let at = self.shell.lock().watch(alarm);
        self.clock.instant(at)
    }

    /// The replica's state at this moment.
    pub fn status(&self) -> Status {
        self.shell.lock().replica().status()
    }

    /// The node that this node follows; this node itself, if it leads.
    pub fn leader(&self) -> Option<NodeId> {
        u32::try_from(self.leader.load(Ordering::Relaxed)).ok().map(NodeId)
    }

    /// The members that a node with an empty directory still waits to hear from.
    pub fn unanswered(&self) -> Vec<NodeId> {
        self.shell.lock().replica().unanswered()
    }

    /// True if this node has nothing left to finish.
    pub fn is_idle(&self) -> bool {
        self.shell.lock().is_idle()
    }

    /// Answers every waiting request: the node stops.
    pub fn cancel_all(&self) {
        let mut answers = Answers::default();
        let mut shell = self.shell.lock();
        shell.cancel_all(&mut answers);
        // Reads are parked by sends under this lock. So each read is either in front of this job,
        // which refuses it, or behind it, and then the apply thread refuses it at once.
        let _ = self.queues.apply.send(ApplyJob::RefuseReads);
        drop(shell);
        answers.deliver();
    }

    /// Sends messages that waited until the log was durable.
    pub fn release(&self, envelopes: impl IntoIterator<Item = Envelope>) {
        let links = BTreeSet::new();
        let mut turn = Turn { queues: &self.queues, links, links_gather: false };
        envelopes.into_iter().for_each(|envelope| turn.post(envelope));
        turn.links.into_iter().for_each(|peer| self.flush(peer));
    }

    /// Waits until the snapshot that the log relies on is durable, and returns it. `None` if the
    /// wal thread ends first, or if the replica has failed: then an older snapshot may still be
    /// needed.
    pub fn durable_snapshot(&self) -> Option<SnapshotMeta> {
        // The snapshot's record was queued under the lock, so it stands before the barrier.
        let snapshot = self.shell.lock().snapshot()?;
        let (sender, durable) = bounded(1);
        let _ = self.queues.wal.send(WalWork::Barrier(sender));
        // If the wal thread has ended, the barrier is dropped with its sender, and this returns.
        durable.recv().ok().map(|()| snapshot)
    }

    /// Writes waiting messages to a peer, without waiting for it.
    fn flush(&self, peer: NodeId) {
        if let Some(link) = self.link(peer) {
            link.flush(|bytes_max| self.pull(peer, bytes_max));
        }
    }

    /// The link to `peer`; `None` if there is no such peer.
    pub fn link(&self, peer: NodeId) -> Option<&PeerLink> {
        self.queues.links.get(&peer)
    }

    /// Makes the wal thread check whether the log wants a spare segment.
    pub fn check_spare(&self) {
        let _ = self.queues.wal.send(WalWork::CheckSpare);
    }

    /// Ends the links' threads.
    pub fn stop_links(&self) {
        self.queues.links.values().for_each(|link| link.note(LinkNote::Stop));
    }

    /// Wakes the watchers of the alarms, so that they see that the node has stopped.
    pub fn poke_alarms(&self) {
        self.queues.poke(Alarm::Election);
        self.queues.poke(Alarm::Drain);
    }

    /// Ends the wal and the apply thread after the work that is queued for them.
    pub fn stop_workers(&self) {
        let _ = self.queues.wal.send(WalWork::Stop);
        let _ = self.queues.apply.send(ApplyJob::Stop);
    }
}
