//! The pure replica: one node's part in the consensus, as a value.
//!
//! A [`Replica`] never waits, never reads a clock, touches no disk and no socket. It receives an
//! [`Input`] and the current time ([`Now`]), and returns the resulting work as [`Effects`]. The
//! node's threads step it under one lock; the simulator steps it under virtual time. The same
//! inputs always give the same effects: no iteration over hash maps, no global randomness.
//!
//! | room | contents |
//! |---|---|
//! | [`raft`] | elections, replication, reads, transfer: the essay on Raft as it is done here |
//! | [`joining`] | the rights of a node with an empty directory |
//! | [`pending`] | the proposals of this node's own clients, until they are committed |
//! | [`eventual`] | writes that are answered first and enter the log later |
//! | [`log`], [`progress`], [`quorum`] | the parts that Raft is made of |
//! | [`detector`] | the failure detector; owned by its own thread, not by the replica |
//! | `durability` | disk jobs: which part of the log is durable here |
//! | `contract` | inputs and effects: the interface to the node's threads |
//! | `message` | messages between replicas, and their persistent state |
//!
//! Rules: no message from a peer can panic a replica. A message that promises durability rides in
//! [`Effects::after_persist`]. A broken invariant is reported as [`Effects::fatal`], and the node
//! stops.

mod contract;
pub mod detector;
mod durability;
pub mod eventual;
pub mod joining;
pub mod log;
mod message;
pub mod pending;
pub mod progress;
pub mod quorum;
pub mod raft;
mod settings;
mod status;

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use bytes::Bytes;

use crate::clock::Now;
use crate::rng::Rng;
use crate::types::{Index, NodeId, Rejected, RequestId, SnapshotMeta, Term, Version};
pub use contract::*;
use detector::Liveness;
use durability::DiskJob;
use eventual::Eventual;
use joining::Joining;
use log::Log;
pub use message::*;
use pending::{Cancelled, PendingProposals};
use raft::read::FollowerReads;
use raft::{Leader, Role};
pub use settings::Settings;
pub use status::{PeerStatus, RoleName, Status};

/// The latest news of a peer, from its heartbeats and from the detector.
#[derive(Clone, Debug)]
pub(crate) struct PeerState {
    liveness: Liveness,
    /// The latest heartbeat, whatever its term, …
    heartbeat: Option<Heartbeat>,
    /// … and its arrival.
    heard_at: Now,
}

/// One node's consensus state.
///
/// Every decision is made in [`step`](Self::step): roles, terms, log and commits change only there.
/// The other `&mut` methods keep books: [`pull`](Self::pull) builds a link's next message and notes
/// it as sent, [`cancel`](Self::cancel) and `cancel_stamp` drop a request, `restored` raises the
/// clock above an image, and the `next_*` methods name requests.
#[derive(Debug)]
pub struct Replica {
    settings: Settings,
    rng: Rng,
    hard: HardState,
    log: Log,
    role: Role,
    peers: BTreeMap<NodeId, PeerState>,
    pending: PendingProposals,
    eventual: Eventual,
    follower_reads: FollowerReads,
    next_read: u64,
    joining: Joining,
    /// Entries up to here are committed and have been handed to apply.
    commit: Index,
    /// The log up to here is durable on this node.
    durable: Index,
    /// Jobs that are not reported as durable yet, oldest first.
    jobs: VecDeque<DiskJob>,
    last_job: JobNo,
    /// In this term, the log is known to equal the leader's up to here.
    verified: Index,
    /// The leader's latest read round that was seen in this term.
    read_round: u64,
    heartbeat_at: Now,
    election_at: Now,
    /// The random part of this node's patience: keeps nodes of equal rank from campaigning at once.
    jitter: Duration,
    /// The leader's process is known to be gone: campaign at once, and repeat soon.
    urgent: bool,
    /// Bytes of entries that were committed since the last image was requested.
    bytes_since_snapshot: usize,
    /// The length of the last image that this process took.
    image_bytes: u64,
    snapshot_under_way: bool,
    disk_full: bool,
    stopping: bool,
    /// This node declines the leadership until this moment.
    unfit_until: Now,
    last_cause: Option<Cause>,
    /// The term and cause of the latest campaign that was reported as an event.
    reported_campaign: Option<(Term, Cause)>,
}

impl Replica {
    /// A replica that continues from its recovered state.
    pub fn new(now: Now, settings: Settings, recovered: Recovered, rng: Rng) -> Replica {
        let Recovered { hard, snapshot, entries, held, clock } = recovered;
        let seed = rng.clone().fork().bits();
        let mut eventual = Eventual::new(now, &settings, &held, clock, seed);
        entries.iter().for_each(|entry| eventual.observe(&entry.payload));
        let log = Log::new(snapshot, entries);
        let peer = PeerState { liveness: Liveness::Alive, heartbeat: None, heard_at: now };
        let mut replica = Replica {
            durable: log.last_index(),
            commit: snapshot.index,
            peers: settings.peers().map(|id| (id, peer.clone())).collect(),
            pending: PendingProposals::new(settings.id, settings.boot),
            role: Role::follower(now),
            eventual,
            follower_reads: FollowerReads::new(settings.boot << 20),
            rng,
            hard,
            log,
            next_read: 0,
            joining: Joining::default(),
            jobs: VecDeque::new(),
            last_job: 0,
            verified: 0,
            read_round: 0,
            heartbeat_at: now,
            election_at: now,
            jitter: Duration::ZERO,
            urgent: false,
            bytes_since_snapshot: 0,
            image_bytes: 0,
            snapshot_under_way: false,
            disk_full: false,
            stopping: false,
            unfit_until: now,
            last_cause: None,
            reported_campaign: None,
            settings,
        };
        replica.draw_jitter();
        replica.election_at = now + replica.patience(now);
        replica
    }

    /// Names a request, to be proposed under the same lock.
    pub fn next_request(&mut self) -> RequestId {
        self.pending.next_id()
    }

    /// Names a read, to be requested under the same lock.
    pub fn next_read(&mut self) -> ReadId {
        self.next_read += 1;
        ReadId(self.next_read)
    }

    /// The moment at which `alarm` should be raised next.
    pub fn deadline(&self, alarm: Alarm) -> Now {
        match alarm {
            Alarm::Heartbeat => self.heartbeat_at,
            Alarm::Election => self.election_at,
            Alarm::Drain => self.eventual.drain_at(),
        }
    }

    /// Takes in an event that happened at `now` and adds the resulting work to `effects`.
    pub fn step(&mut self, now: Now, input: Input, effects: &mut Effects) {
        let before = (effects.persist.len(), effects.after_persist.len());
        match input {
            Input::Propose { id, commands } => self.propose(now, id, commands, effects),
            Input::Read(id) => self.read(now, id, effects),
            Input::CancelRead(id) => self.cancel_read(id),
            Input::Message(envelope) => self.receive(now, envelope, effects),
            Input::Alarm(Alarm::Heartbeat) => self.heartbeat_alarm(now, effects),
            Input::Alarm(Alarm::Election) => self.election_alarm(now, effects),
            Input::Peer { peer, liveness } => self.peer_changed(now, peer, liveness, effects),
            Input::PeerGone(peer) => self.peer_gone(now, peer, effects),
            Input::LinkUp(peer) => self.link_up(now, peer, effects),
            Input::Persisted(job) => self.persisted(now, job, effects),
            Input::SnapshotTaken { meta, bytes } => self.snapshot_taken(meta, bytes, effects),
            Input::SnapshotFailed => self.snapshot_under_way = false,
            Input::SnapshotArrived { from, meta } => {
                self.snapshot_arrived(now, from, meta, effects);
            }
            Input::SnapshotSent { to, sent } => self.snapshot_sent(now, to, sent, effects),
            Input::DiskFull(full) => self.disk_changed(now, full, effects),
            Input::Alarm(Alarm::Drain) => self.drain(now, effects),
            Input::Stamp { id, writes } => self.request_stamp(id, writes, effects),
            Input::Clock(wall) => self.wall_clock(now, wall, effects),
            Input::CheckpointApplied { index, digest } => self.checkpoint_applied(index, digest),
            Input::Stop => self.stop(now, effects),
        }
        self.serve_eventual(now, effects);
        // The disk syncs anyway, so a drained claim can ride along at no cost.
        if effects.persist.len() != before.0 {
            self.persist_drained_claim(now, effects);
        }
        // A message that waits for earlier jobs needs a job number too, even with nothing to write.
        if (effects.persist.len(), effects.after_persist.len()) != before {
            self.start_disk_job(now, effects);
        }
        if let Err(broken) = self.check() {
            effects.fatal.get_or_insert(broken);
        }
    }

    /// The next message or snapshot for `peer`, with at most about `bytes_max` of entries or
    /// proposals. The thread that owns the link calls it, until `None`, whenever [`Effects::pull`]
    /// names the peer and the link can write (`contract.rs` says why these are pulled).
    pub fn pull(&mut self, now: Now, peer: NodeId, bytes_max: usize) -> Option<Pull> {
        if self.is_leader() {
            return self.pull_append(now, peer, bytes_max);
        }
        // A follower's proposals first, then eventual writes, then the index for its reads.
        let follows = self.leader() == Some(peer);
        let envelope = if follows && self.pending.has_unsent() {
            let proposals = self.pending.take_unsent(now, bytes_max);
            Some(self.envelope(peer, Message::Forward(proposals)))
        } else {
            self.pull_stamp(now, peer).or_else(|| self.pull_spread(now, peer)).or_else(|| {
                let position = if follows { self.follower_reads.request(now) } else { None };
                position.map(|position| self.envelope(peer, Message::ReadIndex { position }))
            })
        };
        envelope.map(Pull::Message)
    }

    /// Cancels a request, and says whether it may still be done.
    pub fn cancel(&mut self, id: RequestId) -> Cancelled {
        self.pending.cancel(id.seq)
    }

    /// The store has restored an image whose latest version is this.
    pub fn restored(&mut self, latest: Version) {
        self.eventual.restored(latest);
    }

    /// The snapshot that the log builds on, once all jobs so far are durable.
    pub fn snapshot(&self) -> SnapshotMeta {
        self.log.snapshot()
    }

    /// The node that this node follows (itself, if it leads).
    pub fn leader(&self) -> Option<NodeId> {
        match &self.role {
            Role::Leader(_) => Some(self.settings.id),
            Role::Follower(follower) => follower.leader,
            Role::PreCandidate(_) | Role::Candidate(_) => None,
        }
    }

    /// True if this node leads.
    pub fn is_leader(&self) -> bool {
        matches!(self.role, Role::Leader(_))
    }

    /// True if a stopping node has nothing left to finish: its clients' requests are answered, its
    /// eventual writes are in the log, and another node leads.
    pub fn is_idle(&self) -> bool {
        // Without a leader nothing drains; the writes held are on this node's disk by then.
        let drained = self.leader().is_none() || self.eventual.is_idle();
        self.pending.is_empty()
            && drained
            && (!self.is_leader() || self.settings.members.len() == 1)
    }

    fn leader_state(&mut self) -> Option<&mut Leader> {
        match &mut self.role {
            Role::Leader(leader) => Some(leader),
            _ => None,
        }
    }

    fn envelope(&self, to: NodeId, message: Message) -> Envelope {
        Envelope { from: self.settings.id, to, term: self.hard.term, message }
    }

    fn is_voter(&self) -> bool {
        matches!(self.hard.standing, Standing::Voter { .. })
    }

    /// True if a majority of the members is alive, this node included.
    fn quorum_is_alive(&self) -> bool {
        let alive = self.peers.values().filter(|peer| peer.liveness == Liveness::Alive).count();
        alive + 1 >= quorum::majority(self.settings.members.len())
    }

    /// True if this node would make a good leader.
    fn is_fit(&self, now: Now) -> bool {
        self.is_voter()
            && !self.stopping
            && !self.disk_full
            && now >= self.unfit_until
            && !self.eventual.doubts_clock()
            && !self.disk_is_stalled(now)
    }

    fn propose(&mut self, now: Now, id: RequestId, commands: Bytes, effects: &mut Effects) {
        // A refusal here means: certainly not done. With a quorum but no leader the request is
        // taken and waits, because an election is near.
        let refused = if self.stopping {
            Some(Rejected::Stopping)
        } else if !self.is_voter() {
            Some(Rejected::Joining)
        } else if !self.quorum_is_alive() {
            Some(Rejected::NoQuorum)
        } else if let Some(reason) = self.append_refusal() {
            Some(reason)
        } else if !self.pending.is_empty()
            // A single request always fits, however large it is.
            && self.pending.bytes() + commands.len() > self.settings.pending_bytes_max
        {
            Some(Rejected::Busy)
        } else {
            None
        };
        if let Some(reason) = refused {
            effects.refuse.push((id, reason.into()));
            return;
        }
        self.pending.insert(id, commands);
        self.submit_pending(now, effects);
    }

    /// Submits the pending proposals that the present leader has not had: a leader appends them
    /// itself, a follower forwards them.
    fn submit_pending(&mut self, now: Now, effects: &mut Effects) {
        match &self.role {
            // During a transfer they stay pending: the target must be able to catch up with the
            // log.
            Role::Leader(leader) if leader.transfer.is_none() => {
                for proposal in self.pending.take_unsent(now, usize::MAX) {
                    self.append_batch(now, proposal, effects);
                }
                self.advance_commit(now, effects);
            }
            Role::Follower(raft::Follower { leader: Some(leader), .. }) => {
                effects.pull.insert(*leader);
            }
            _ => {}
        }
    }

    fn peer_changed(&mut self, now: Now, peer: NodeId, liveness: Liveness, effects: &mut Effects) {
        if let Some(known) = self.peers.get_mut(&peer) {
            known.liveness = liveness;
        }
        self.report_quorum(effects);
        // The peer may have ranked above this node, so this node's patience changes.
        self.reset_election_alarm(now);
    }

    fn link_up(&mut self, now: Now, peer: NodeId, effects: &mut Effects) {
        let last = self.log.last_index();
        // Messages on the old link may be lost, and the peer may be another process: a leader looks
        // for agreement anew, a follower sends its requests again.
        if let Some(leader) = self.leader_state() {
            if let Some(progress) = leader.progress.get_mut(&peer) {
                progress.link_is_new(now, last);
            }
        } else if self.leader() == Some(peer) {
            self.pending.send_again();
            self.follower_reads.send_again();
        }
        self.eventual.link_is_new(peer);
        effects.pull.insert(peer);
        effects.send.push(self.heartbeat(now, peer));
    }

    /// A leader without room for its log hands over to a node that has some.
    fn disk_changed(&mut self, now: Now, full: bool, effects: &mut Effects) {
        self.disk_full = full;
        if full {
            self.start_transfer_to_best(now, effects);
        }
    }

    fn stop(&mut self, now: Now, effects: &mut Effects) {
        self.stopping = true;
        self.write_outbox(now, effects);
        self.start_transfer_to_best(now, effects);
    }

    /// Checks the invariants that hold after every step. `Err` names the broken one.
    pub fn check(&self) -> Result<(), String> {
        let (first, last) = (self.log.base_index(), self.log.last_index());
        let snapshot = self.log.snapshot().index;
        let broken = if first > snapshot {
            "entries after the snapshot are missing"
        } else if self.commit < snapshot {
            "the snapshot holds uncommitted entries"
        } else if self.commit > last {
            "the commit index lies beyond the log"
        } else if self.durable > last {
            "the durable index lies beyond the log"
        } else if self.log.last_term() > self.hard.term {
            "the log holds a term that has not begun"
        } else if self.is_leader() && !self.is_voter() {
            "a node leads that may not vote"
        } else {
            return Ok(());
        };
        let (term, commit, durable) = (self.hard.term, self.commit, self.durable);
        Err(format!(
            "{broken} (term {term}, base {first}, snapshot {snapshot}, commit {commit}, \
             durable {durable}, last {last})"
        ))
    }
}
