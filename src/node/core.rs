//! The core: one lock around the pure [`Replica`], and one way in.
//!
//! [`Core::step`] locks, steps, *routes* the effects into queues, unlocks. Routing happens before
//! the lock is released, and only by sends that cannot block: so no two threads can ever reorder
//! what goes to the log, to a peer or to the store. The lock is held for about a microsecond and
//! never across I/O. After it is released the same thread writes to the peers what the system takes
//! at once (`link.rs`), and wakes sessions: waking has no order to keep.
//!
//! The requests and reads that sessions wait for are kept under the same lock, so that a request
//! and the one who waits for it come and go together.

use std::collections::{BTreeSet, HashMap};
use std::mem;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use bytes::Bytes;
use crossbeam_channel::bounded;
use parking_lot::Mutex;

use super::clients::waiter::{Answer, Answers, Asker, Waiter};
use super::events;
use super::peers::link::{Link, LinkNote};
use super::queues::{ApplyWork, Queues, WalWork};
use super::stop::{Fatal, Stop};
use crate::clock::{Clock, Now};
use crate::replica::pending::Cancelled;
use crate::replica::{
    Alarm, Apply, Effects, Envelope, Event, Input, Pull, ReadId, Replica, Status,
};
use crate::store::{Image, Store};
use crate::types::{
    NodeId, Outcome, Rejected, RequestId, SnapshotMeta, Unknown, Version, Write, Writes,
};

/// When so many threads wait for answers, one more does not send its request to the peers itself:
/// until the link's thread is awake, others will have added theirs. (64 threads sending each on its
/// own served 15 % fewer writes a second than that.)
const CROWD: usize = 4;

/// What the lock guards.
struct State {
    replica: Replica,
    effects: Effects,
    writes: HashMap<u64, Asker>,
    accepts: HashMap<u64, Asker>,
    reads: HashMap<ReadId, Asker>,
    /// An image that has just arrived, for the `Apply::Restore` that the same step may ask for.
    arrived: Option<Box<Image>>,
    /// The deadline that the election thread is waiting for …
    election_at: Now,
    /// … and the drain thread's.
    drain_at: Now,
    /// What this step gives the links to pull is left to their threads.
    others_gather: bool,
}

/// See the module.
pub struct Core {
    state: Mutex<State>,
    queues: Queues,
    clock: Clock,
    store: Arc<Store>,
    stop: Arc<Stop>,
    /// The leader's id as of the last step, to be read without the lock; [`NO_LEADER`] for none.
    leader: AtomicU64,
}

const NO_LEADER: u64 = u64::MAX;

/// What the core is asked for on behalf of clients.
#[derive(Debug)]
pub enum Request {
    /// Execute these encoded commands, one after the other: [`Answer::Outcomes`].
    Write(Bytes),
    /// Have eventual writes stamped, here or by another node: [`Answer::Stamped`]. They belong
    /// into the overlay next.
    Stamp(Vec<Write>),
    /// Say when the store may be read so that the read is linearizable: [`Answer::MayRead`].
    Read,
}

/// A request that was asked for, by which it can be given up.
#[derive(Clone, Copy, Debug)]
pub enum Open {
    /// A [`Request::Write`].
    Write(RequestId),
    /// A [`Request::Stamp`].
    Stamp(RequestId),
    /// A [`Request::Read`].
    Read(ReadId),
}

/// What has become of a request at once.
#[derive(Debug)]
pub struct Asked {
    /// The way to give it up.
    pub open: Open,
    /// Who takes eventual writes.
    pub stamper: Option<NodeId>,
    /// The writes of a [`Request::Stamp`] that this node has stamped in the same step: nobody has
    /// to be woken, and no other answer will come.
    pub stamped: Option<Writes>,
}

impl State {
    fn ask(&mut self, now: Now, request: Request, asker: Asker) -> Asked {
        let State { replica, effects, writes, accepts, reads, .. } = self;
        let mut stamped = None;
        let open = match request {
            Request::Write(commands) => {
                let id = replica.next_request();
                writes.insert(id.seq, asker);
                replica.step(now, Input::Propose { id, commands }, effects);
                Open::Write(id)
            }
            Request::Stamp(asked) => {
                let id = replica.next_stamp();
                replica.step(now, Input::Stamp { id, writes: asked }, effects);
                let at = effects.stamped.iter().position(|(accepted, _)| *accepted == id);
                stamped = at.map(|at| effects.stamped.swap_remove(at).1);
                if stamped.is_none() {
                    accepts.insert(id.seq, asker);
                }
                Open::Stamp(id)
            }
            Request::Read => {
                let id = replica.next_read();
                reads.insert(id, asker);
                replica.step(now, Input::Read(id), effects);
                Open::Read(id)
            }
        };
        Asked { open, stamper: replica.stamper(), stamped }
    }
}

/// What a step has caused that is done after the lock is released: wake-ups, and lines for the log,
/// whose writing may block.
#[derive(Default)]
struct Afterwards {
    /// Links that something was posted to, or is to be pulled for.
    links: BTreeSet<NodeId>,
    answers: Answers,
    /// Peers' eventual writes, for the overlay.
    spread: Vec<Writes>,
    events: Vec<Event>,
}

impl Core {
    /// The core of a node. No thread steps it yet.
    pub fn new(
        replica: Replica,
        queues: Queues,
        clock: Clock,
        store: Arc<Store>,
        stop: Arc<Stop>,
    ) -> Core {
        let state = State {
            replica,
            effects: Effects::default(),
            writes: HashMap::new(),
            accepts: HashMap::new(),
            reads: HashMap::new(),
            arrived: None,
            election_at: Now(u64::MAX),
            drain_at: Now(u64::MAX),
            others_gather: false,
        };
        let leader = AtomicU64::new(NO_LEADER);
        Core { state: Mutex::new(state), queues, clock, store, stop, leader }
    }

    /// Tells the replica what has happened.
    pub fn step(&self, inputs: impl IntoIterator<Item = Input>) {
        self.act(|State { replica, effects, .. }, now| {
            for input in inputs {
                replica.step(now, input, effects);
            }
        });
    }

    /// Locks, lets `act` step the replica, routes what follows, unlocks, and then wakes who waits.
    fn act<T>(&self, act: impl FnOnce(&mut State, Now) -> T) -> T {
        let mut afterwards = Afterwards::default();
        let mut state = self.state.lock();
        let result = act(&mut state, self.clock.now());
        self.route(&mut state, &mut afterwards);
        drop(state);
        self.finish(afterwards);
        result
    }

    /// What a step has caused that the lock is not needed for.
    fn finish(&self, mut afterwards: Afterwards) {
        for peer in afterwards.links {
            self.drive(peer);
        }
        for writes in afterwards.spread {
            self.store.put_overlay(&writes);
        }
        afterwards.answers.deliver();
        afterwards.events.iter().for_each(events::log);
    }

    /// Writes to a peer what there is for it.
    fn drive(&self, peer: NodeId) {
        if let Some(link) = self.link(peer) {
            link.drive(|bytes_max| self.pull(peer, bytes_max));
        }
    }

    /// Asks for all of `requests` in one step, and tells `asked` of each, in their order. An
    /// answer that is not there at once goes to the asker's inbox; it may be there before this
    /// returns.
    pub fn ask(
        &self,
        requests: impl IntoIterator<Item = (Request, Asker)>,
        mut asked: impl FnMut(Asked),
    ) {
        self.act(|state, now| {
            for (request, asker) in requests {
                asked(state.ask(now, request, asker));
            }
        });
    }

    /// Asks for one thing and waits until `deadline`; the answer, and who has stamped eventual
    /// writes, as far as that is known.
    pub fn ask_and_wait(
        &self,
        request: Request,
        waiter: &Arc<Waiter>,
        deadline: Instant,
    ) -> (Answer, Option<NodeId>) {
        let asker = waiter.open(deadline);
        let Asked { open, stamper, stamped } = self.act(|state, now| {
            state.others_gather = state.writes.len() + state.reads.len() >= CROWD;
            state.ask(now, request, asker)
        });
        if let Some(writes) = stamped {
            return (Answer::Stamped(writes), stamper);
        }
        let answer = waiter.wait_until(deadline).or_else(|| self.cancel(open));
        let answer = answer.unwrap_or_else(|| waiter.wait());
        let stamper = self.stamped_by(&answer);
        (answer, stamper)
    }

    /// Which node has stamped the eventual writes of an answer.
    pub fn stamped_by(&self, answer: &Answer) -> Option<NodeId> {
        let Answer::Stamped(writes) = answer else { return None };
        let version = writes.first()?.version;
        self.state.lock().replica.origin(version)
    }

    /// Gives a request up: the answer instead. `None` if another one is on its way.
    pub fn cancel(&self, open: Open) -> Option<Answer> {
        match open {
            Open::Write(id) => {
                let mut state = self.state.lock();
                state.writes.remove(&id.seq)?;
                let cancelled = state.replica.cancel(id).unwrap_or(Cancelled::NotPending);
                Some(Answer::Unserved(cancelled.outcome(state.replica.leader())))
            }
            Open::Stamp(id) => {
                let mut state = self.state.lock();
                state.accepts.remove(&id.seq)?;
                let cancelled = state.replica.cancel_stamp(id).unwrap_or(Cancelled::NotPending);
                Some(Answer::Unserved(cancelled.outcome(state.replica.stamper())))
            }
            Open::Read(id) => {
                // A read that waits for apply is not known here any more, and may be answered late.
                self.act(|State { replica, effects, reads, .. }, now| {
                    if reads.remove(&id).is_some() {
                        replica.step(now, Input::CancelRead(id), effects);
                    }
                });
                Some(Answer::Unserved(Rejected::NoLeader.into()))
            }
        }
    }

    /// Whether an eventual write of this version may get into the log ahead of its turn.
    pub fn trust(&self, version: Version) -> Result<(), Rejected> {
        self.state.lock().replica.trust(self.clock.now(), version)
    }

    /// Entries of this node's own clients have been applied: wakes those who wait.
    pub fn answer(&self, outcomes: &mut Vec<(u64, Vec<Outcome>)>) {
        if outcomes.is_empty() {
            return;
        }
        let mut afterwards = Afterwards::default();
        let mut state = self.state.lock();
        for (seq, outcomes) in outcomes.drain(..) {
            if let Some(asker) = state.writes.remove(&seq) {
                afterwards.answers.push(asker, Answer::Outcomes(outcomes));
            }
        }
        drop(state);
        self.finish(afterwards);
    }

    /// A snapshot from the leader has taken the place of the store. Requests that `was_applied`
    /// finds in it are done, but their results are lost.
    pub fn restored(
        &self,
        node: NodeId,
        boot: u64,
        latest: Version,
        was_applied: impl Fn(RequestId) -> bool,
    ) {
        let mut afterwards = Afterwards::default();
        let mut state = self.state.lock();
        let State { replica, writes, .. } = &mut *state;
        replica.restored(latest);
        let ids = writes.keys().map(|&seq| RequestId { node, boot, seq });
        let lost: Vec<RequestId> = ids.filter(|id| was_applied(*id)).collect();
        for id in lost {
            replica.cancel(id);
            if let Some(asker) = writes.remove(&id.seq) {
                afterwards.answers.push(asker, Answer::Unserved(Unknown::ResultLost.into()));
            }
        }
        drop(state);
        self.finish(afterwards);
    }

    /// An image from a peer is durable and verified.
    pub fn snapshot_arrived(&self, from: NodeId, image: Box<Image>) {
        self.act(|State { replica, effects, arrived, .. }, now| {
            let meta = image.meta();
            *arrived = Some(image);
            replica.step(now, Input::SnapshotArrived { from, meta }, effects);
        });
    }

    /// See [`Replica::pull`].
    pub fn pull(&self, peer: NodeId, bytes_max: usize) -> Option<Pull> {
        let mut state = self.state.lock();
        state.replica.pull(self.clock.now(), peer, bytes_max)
    }

    /// When the alarm is due. The thread that asks is the one that waits for it.
    pub fn deadline(&self, alarm: Alarm) -> Instant {
        let mut state = self.state.lock();
        let at = state.replica.deadline(alarm);
        match alarm {
            Alarm::Heartbeat => {}
            Alarm::Election => state.election_at = at,
            Alarm::Drain => state.drain_at = at,
        }
        self.clock.instant(at)
    }

    /// A view of this moment.
    pub fn status(&self) -> Status {
        self.state.lock().replica.status()
    }

    /// Whom this node follows.
    pub fn leader(&self) -> Option<NodeId> {
        u32::try_from(self.leader.load(Ordering::Relaxed)).ok().map(NodeId)
    }

    /// The members that a node with an empty directory still has to hear of.
    pub fn unanswered(&self) -> Vec<NodeId> {
        self.state.lock().replica.unanswered()
    }

    /// True if this node leads nothing and nobody waits for anything.
    pub fn is_idle(&self) -> bool {
        let state = self.state.lock();
        let waiting = state.writes.len() + state.accepts.len() + state.reads.len();
        state.replica.is_idle() && waiting == 0
    }

    /// Whoever still waits when the node ends is told so.
    pub fn cancel_all(&self) {
        let mut afterwards = Afterwards::default();
        let mut state = self.state.lock();
        let writes = mem::take(&mut state.writes).into_values();
        for asker in writes.chain(mem::take(&mut state.accepts).into_values()) {
            afterwards.answers.push(asker, Answer::Unserved(Unknown::Stopped.into()));
        }
        for (_, asker) in mem::take(&mut state.reads) {
            afterwards.answers.push(asker, Answer::Unserved(Rejected::Stopping.into()));
        }
        let _ = self.queues.apply.send(ApplyWork::RefuseReads);
        drop(state);
        self.finish(afterwards);
    }

    /// Ends the threads behind the queues.
    pub fn stop_links(&self) {
        for link in self.queues.links.values() {
            link.note(LinkNote::Stop);
        }
    }

    /// Has the election and the drain thread look at their deadlines, and at whether the node has
    /// stopped.
    pub fn poke_alarms(&self) {
        let _ = self.queues.election.try_send(());
        let _ = self.queues.drain.try_send(());
    }

    /// Has the log's thread see whether it wants a spare segment.
    pub fn look_for_spare(&self) {
        let _ = self.queues.wal.send(WalWork::LookForSpare);
    }

    /// The snapshot that the log relies on, durably: waits until it does. `None` if the log ends
    /// before that.
    pub fn durable_snapshot(&self) -> Option<SnapshotMeta> {
        // Its mark was queued under the lock, and so before the barrier.
        let snapshot = self.state.lock().replica.snapshot();
        let (sender, durable) = bounded(1);
        let _ = self.queues.wal.send(WalWork::Barrier(sender));
        durable.recv().ok().map(|()| snapshot)
    }

    /// Ends the log's and the store's thread after what they have queued.
    pub fn stop_workers(&self) {
        let _ = self.queues.wal.send(WalWork::Stop);
        let _ = self.queues.apply.send(ApplyWork::Stop);
    }

    /// The way to `peer`.
    pub fn link(&self, peer: NodeId) -> Option<&Link> {
        self.queues.links.get(&peer)
    }

    /// Sends messages that waited for the log.
    pub fn release(&self, envelopes: impl IntoIterator<Item = Envelope>) {
        let mut links = BTreeSet::new();
        for envelope in envelopes {
            self.post(envelope, &mut links);
        }
        links.into_iter().for_each(|peer| self.drive(peer));
    }

    fn post(&self, envelope: Envelope, links: &mut BTreeSet<NodeId>) {
        if let Some(link) = self.queues.links.get(&envelope.to) {
            links.insert(envelope.to);
            link.post(envelope);
        }
    }

    /// Sends effects on their way, in the order that [`Effects`] demands.
    fn route(&self, state: &mut State, afterwards: &mut Afterwards) {
        let State { effects, arrived, others_gather, .. } = state;
        if effects.job != 0 {
            let records = mem::take(&mut effects.persist);
            let after = mem::take(&mut effects.after_persist);
            let _ = self.queues.wal.send(WalWork::Job { records, after, job: effects.job });
            effects.job = 0;
        }
        for envelope in effects.send.drain(..) {
            self.post(envelope, &mut afterwards.links);
        }
        let others_gather = mem::take(others_gather);
        while let Some(peer) = effects.pull.pop_first() {
            let Some(link) = self.queues.links.get(&peer) else { continue };
            link.want_pull();
            if others_gather {
                link.have_worked();
            } else {
                afterwards.links.insert(peer);
            }
        }
        for work in effects.apply.drain(..) {
            let work = match work {
                Apply::Entries(entries) => ApplyWork::Entries(entries),
                Apply::Snapshot(meta) => ApplyWork::Snapshot(meta),
                Apply::Restore(_) => match arrived.take() {
                    Some(image) => ApplyWork::Restore(image),
                    None => continue,
                },
            };
            let _ = self.queues.apply.send(work);
        }
        *arrived = None; // The replica had no use for it.
        self.route_answers(state, afterwards);
        self.route_news(state, afterwards);
    }

    /// What the sessions have waited for.
    fn route_answers(&self, state: &mut State, afterwards: &mut Afterwards) {
        let State { effects, writes, accepts, reads, .. } = state;
        let answers = &mut afterwards.answers;
        for (id, index) in effects.reads.drain(..) {
            let Some(asker) = reads.remove(&id) else { continue };
            if self.store.applied() >= index {
                answers.push(asker, Answer::MayRead);
            } else {
                let _ = self.queues.apply.send(ApplyWork::Read(index, asker));
            }
        }
        for (id, writes) in effects.stamped.drain(..) {
            match accepts.remove(&id.seq) {
                Some(asker) => answers.push(asker, Answer::Stamped(writes)),
                None => effects.spread.push(writes), // Nobody waits, but it is taken.
            }
        }
        if !effects.spread.is_empty() {
            afterwards.spread = mem::take(&mut effects.spread);
        }
        let refused = effects.refuse.drain(..).map(|(id, why)| (writes.remove(&id.seq), why));
        let not_taken =
            effects.refuse_stamps.drain(..).map(|(id, why)| (accepts.remove(&id.seq), why));
        let unread =
            effects.refuse_reads.drain(..).map(|(id, why)| (reads.remove(&id), why.into()));
        for (asker, unserved) in refused.chain(not_taken).chain(unread) {
            if let Some(asker) = asker {
                answers.push(asker, Answer::Unserved(unserved));
            }
        }
    }

    /// What has changed for the threads that wait for deadlines, for the log, and for good.
    fn route_news(&self, state: &mut State, afterwards: &mut Afterwards) {
        let State { replica, effects, election_at, drain_at, .. } = state;
        let leader = replica.leader().map_or(NO_LEADER, |leader| leader.0.into());
        if self.leader.load(Ordering::Relaxed) != leader {
            self.leader.store(leader, Ordering::Relaxed);
        }
        if replica.deadline(Alarm::Election) < *election_at {
            let _ = self.queues.election.try_send(());
        }
        if replica.deadline(Alarm::Drain) < *drain_at {
            *drain_at = replica.deadline(Alarm::Drain);
            let _ = self.queues.drain.try_send(());
        }
        afterwards.events.append(&mut effects.events);
        if let Some(broken) = effects.fatal.take() {
            self.stop.fail(Fatal::Bug(format!("broken invariant: {broken}")));
        }
        if let Some(index) = effects.diverged.take() {
            self.stop.fail(events::diverged(index));
        }
    }
}
