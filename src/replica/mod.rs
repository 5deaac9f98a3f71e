//! The pure core: one node's part in the consensus, as a value.
//!
//! A [`Replica`] never waits, never asks the time, touches no disk and no socket. It is told what
//! happened ([`Input`]) and when ([`Now`]), and says what shall be done ([`Effects`]). The node's
//! threads step it under one lock; the simulator steps it under virtual time. Same inputs, same
//! effects, always: no hash-map order, no global randomness.
//!
//! | room | what lives there |
//! |---|---|
//! | [`raft`] | elections, replication, reads, transfer: the essay on Raft as it is done here |
//! | [`joining`] | what a node with an empty directory may do |
//! | [`pending`] | the requests of this node's own clients, until they are committed |
//! | [`eventual`] | writes that are answered first and brought into the log later |
//! | [`log`], [`progress`], [`quorum`] | the parts that Raft is made of |
//! | [`detector`] | who is alive; owned by the detector thread, not by the replica |
//! | `contract` | what a replica is told, and what it asks to be done |
//! | `message` | what replicas say to each other and keep on disk |
//!
//! Rules: nothing a peer says can panic a replica. What must be durable before it is said rides in
//! [`Effects::after_persist`]. A broken invariant is reported as [`Effects::fatal`], and the node
//! stops.

mod contract;
pub mod detector;
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
use eventual::Eventual;
use joining::Joining;
use log::Log;
pub use message::*;
use pending::Pending;
use raft::read::FollowerReads;
use raft::{Leader, Role};
pub use settings::{Mutant, Settings};
pub use status::{PeerStatus, RoleName, Status};

/// What this replica has learned of a peer from its beats and from the detector.
#[derive(Clone, Debug)]
pub(crate) struct Peer {
    liveness: Liveness,
    /// The latest beat, whatever its term, …
    heartbeat: Option<Heartbeat>,
    /// … and when it came.
    heard: Now,
}

/// See the module.
#[derive(Debug)]
pub struct Replica {
    settings: Settings,
    rng: Rng,
    hard: HardState,
    log: Log,
    role: Role,
    peers: BTreeMap<NodeId, Peer>,
    pending: Pending,
    eventual: Eventual,
    follower_reads: FollowerReads,
    next_read: u64,
    joining: Joining,
    /// Entries up to here are committed and have been handed to apply.
    commit: Index,
    /// The log up to here is durable on this node.
    durable: Index,
    /// Asked to be durable, not reported yet: the job, the last index as of it, when it was asked.
    jobs: VecDeque<(JobNo, Index, Now)>,
    last_job: JobNo,
    /// In this term, the log is known to equal the leader's up to here.
    verified: Index,
    /// In this term, the leader's latest round of reads that was seen.
    round: u64,
    heartbeat_at: Now,
    election_at: Now,
    /// Random part of this node's patience, so that equals do not stand at once.
    jitter: Duration,
    /// The leader's process is known to be gone: stand at once, ask again soon.
    urgent: bool,
    /// Bytes of entries applied since the last image was asked for.
    bytes_since_snapshot: usize,
    /// How long the image is that this process took last.
    image_bytes: u64,
    snapshot_under_way: bool,
    disk_full: bool,
    stopping: bool,
    /// Not to be handed the leadership before this moment.
    unfit_until: Now,
    last_cause: Option<Cause>,
    /// The latest ballot that was told of: in which term it would be, and why.
    stood: Option<(Term, Cause)>,
}

impl Replica {
    /// A replica that goes on from what its disk holds.
    pub fn new(now: Now, settings: Settings, recovered: Recovered, rng: Rng) -> Replica {
        let Recovered { hard, snapshot, entries, held, clock } = recovered;
        let seed = rng.clone().fork().bits();
        let mut eventual = Eventual::new(now, &settings, &held, clock, seed);
        entries.iter().for_each(|entry| eventual.observe(&entry.payload));
        let log = Log::new(snapshot, entries);
        let peer = Peer { liveness: Liveness::Alive, heartbeat: None, heard: now };
        let mut replica = Replica {
            durable: log.last_index(),
            commit: snapshot.index,
            peers: settings.peers().map(|id| (id, peer.clone())).collect(),
            pending: Pending::new(settings.id, settings.boot),
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
            round: 0,
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
            stood: None,
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

    /// Names a read, to be asked for under the same lock.
    pub fn next_read(&mut self) -> ReadId {
        self.next_read += 1;
        ReadId(self.next_read)
    }

    /// When the alarm should be raised next.
    pub fn deadline(&self, alarm: Alarm) -> Now {
        match alarm {
            Alarm::Heartbeat => self.heartbeat_at,
            Alarm::Election => self.election_at,
            Alarm::Drain => self.eventual.drain_at(),
        }
    }

    /// Takes in what happened at `now` and adds to `effects` what follows from it.
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
            Input::Stamp { id, writes } => self.accept(id, writes, effects),
            Input::Clock(wall) => self.wall_clock(now, wall, effects),
            Input::CheckpointApplied { index, digest } => self.checkpoint_applied(index, digest),
            Input::Stop => self.stop(now, effects),
        }
        self.look_after_eventual(now, effects);
        if effects.persist.len() != before.0 {
            self.back_claim(now, effects);
        }
        if (effects.persist.len(), effects.after_persist.len()) != before {
            self.last_job += 1;
            self.jobs.push_back((self.last_job, self.log.last_index(), now));
            effects.job = self.last_job;
        }
        if let Err(broken) = self.check() {
            effects.fatal.get_or_insert(broken);
        }
    }

    /// The next thing to send to `peer`, with at most about `bytes_max` of entries or proposals. To
    /// be called until `None` whenever [`Effects::pull`] names the peer, by the thread that owns
    /// the link.
    pub fn pull(&mut self, now: Now, peer: NodeId, bytes_max: usize) -> Option<Pull> {
        if self.is_leader() {
            return self.pull_append(now, peer, bytes_max);
        }
        let follows = self.leader() == Some(peer);
        let envelope = if follows && self.pending.has_unsent() {
            let proposals = self.pending.take_unsent(now, bytes_max);
            Some(self.envelope(peer, Message::Forward(proposals)))
        } else {
            self.pull_stamp(now, peer).or_else(|| self.pull_spread(now, peer)).or_else(|| {
                let position = if follows { self.follower_reads.ask(now) } else { None };
                position.map(|position| self.envelope(peer, Message::ReadIndex { position }))
            })
        };
        envelope.map(Pull::Message)
    }

    /// Gives a request up. `None` if it is not pending: it has its answer, or is about to.
    pub fn cancel(&mut self, id: RequestId) -> Option<pending::Cancelled> {
        match self.pending.cancel(id.seq) {
            pending::Cancelled::Unknown => None,
            known => Some(known),
        }
    }

    /// The store has taken in an image whose latest version is this.
    pub fn restored(&mut self, latest: Version) {
        self.eventual.restored(latest);
    }

    /// The snapshot that the log relies on, once what was decided so far is durable.
    pub fn snapshot(&self) -> SnapshotMeta {
        self.log.snapshot()
    }

    /// Whom this node follows (itself, if it leads).
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

    /// True if a leader that is about to stop has nothing left to finish.
    pub fn is_idle(&self) -> bool {
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

    /// True if so many nodes are alive that a majority can agree.
    fn quorum_is_alive(&self) -> bool {
        let alive = self.peers.values().filter(|peer| peer.liveness == Liveness::Alive).count();
        alive + 1 >= quorum::majority(self.settings.members.len())
    }

    /// True while the disk has kept a job waiting for too long.
    fn disk_is_stalled(&self, now: Now) -> bool {
        let oldest = self.jobs.front();
        oldest.is_some_and(|(_, _, asked)| now.since(*asked) > self.settings.disk_timeout)
    }

    /// True if this node may be handed the leadership.
    fn is_fit(&self, now: Now) -> bool {
        self.is_voter()
            && !self.stopping
            && !self.disk_full
            && now >= self.unfit_until
            && !self.eventual.doubts_clock()
            && !self.disk_is_stalled(now)
    }

    fn propose(&mut self, now: Now, id: RequestId, commands: Bytes, effects: &mut Effects) {
        let refused = if self.stopping {
            Some(Rejected::Stopping)
        } else if !self.is_voter() {
            Some(Rejected::Joining)
        } else if !self.quorum_is_alive() {
            Some(Rejected::NoQuorum)
        } else if let Some(reason) = self.refusal() {
            Some(reason)
        } else if !self.pending.is_empty()
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
        self.hand_over_pending(now, effects);
    }

    /// Brings pending requests that the present leader has not had on their way to it.
    fn hand_over_pending(&mut self, now: Now, effects: &mut Effects) {
        match &self.role {
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
        self.note_quorum(effects);
        self.reset_election_alarm(now);
    }

    fn link_up(&mut self, now: Now, peer: NodeId, effects: &mut Effects) {
        let last = self.log.last_index();
        if let Some(leader) = self.leader_state() {
            if let Some(progress) = leader.progress.get_mut(&peer) {
                progress.link_is_new(now, last);
            }
        } else if self.leader() == Some(peer) {
            self.pending.send_again();
            self.follower_reads.ask_again();
        }
        self.eventual.link_is_new(peer);
        effects.pull.insert(peer);
        effects.send.push(self.heartbeat(now, peer));
    }

    fn persisted(&mut self, now: Now, upto: JobNo, effects: &mut Effects) {
        while let Some((_, last, _)) = self.jobs.pop_front_if(|(job, _, _)| *job <= upto) {
            self.durable = self.durable.max(last);
        }
        self.eventual_persisted(now, upto, effects);
        self.try_to_finish_catching_up(effects);
        self.advance_commit(now, effects);
    }

    /// Entries from `first` on were removed: what is reported durable of them later is about
    /// entries that no longer count.
    fn forget_durable_from(&mut self, first: Index) {
        if self.settings.has(Mutant::StalePersisted) {
            return;
        }
        let last = first.saturating_sub(1);
        self.durable = self.durable.min(last);
        for (_, job_last, _) in &mut self.jobs {
            *job_last = (*job_last).min(last);
        }
    }

    /// A leader without room hands over to one who has it.
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

    /// What must hold after each step, whatever happened. `Err` says what does not.
    pub fn check(&self) -> Result<(), String> {
        let (first, last) = (self.log.base_index(), self.log.last_index());
        let snapshot = self.log.snapshot().index;
        let broken = if first > snapshot {
            "entries after the snapshot are missing"
        } else if self.commit < snapshot {
            "the snapshot holds what is not committed"
        } else if self.commit > last {
            "the commit index lies beyond the log"
        } else if self.durable > last {
            "the durable checkpoint lies beyond the log"
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
