//! What a replica is told once and for all.

use std::time::Duration;

use super::progress::Window;
use crate::types::NodeId;

/// See the module. Every member must have the same timeouts, or elections lose their order.
#[derive(Clone, Debug)]
pub struct Settings {
    /// This node.
    pub id: NodeId,
    /// All members, this node among them, ascending.
    pub members: Vec<NodeId>,
    /// This process lifetime; larger than any earlier one of this node.
    pub boot: u64,
    /// The random number this node's data directory was created with.
    pub incarnation: u64,
    /// How often each node tells the others that it is alive.
    pub heartbeat_interval: Duration,
    /// After this much silence a leader is given up, by its followers and by itself.
    pub election_timeout: Duration,
    /// A leader whose disk has not answered for this long steps down. Longer than an election
    /// timeout, so that a slow sync alone deposes nobody.
    pub disk_timeout: Duration,
    /// How long a higher-ranked node must have been caught up before it is handed the leadership.
    pub takeover_delay: Duration,
    /// What may be under way to one follower.
    pub window: Window,
    /// Bytes of this node's own clients' requests that may be pending; beyond, `Rejected::Busy`.
    pub pending_bytes_max: usize,
    /// The machine's wall clock at the start, in microseconds since 1970.
    pub wall_micros: u64,
    /// How far the clocks of two nodes may lie apart.
    pub clock_offset_max: Duration,
    /// How long eventual writes gather before they are brought into the log.
    pub drain_interval: Duration,
    /// After this time, eventual writes that are not in the log yet are written to the disk. Half
    /// of the second within which they must be durable.
    pub sync_interval: Duration,
    /// Bytes of eventual writes that this node holds at most before sessions have to wait.
    pub backlog_bytes_max: usize,
    /// How often the leader marks the log, if anything has happened.
    pub mark_interval: Duration,
    /// How long a deletion is remembered while a member may hold older writes to the key.
    pub tombstone_horizon: Duration,
    /// Bytes of applied entries after which an image is taken; or a quarter of the last image's
    /// length, if that is more, up to eight times as many.
    pub snapshot_log_bytes: usize,
    /// Bytes of entries before the snapshot that are kept for followers that are a little behind.
    pub log_retain_bytes: usize,
    /// A deliberate bug; without effect unless the feature `mutants` is on.
    pub mutant: Option<Mutant>,
}

/// A promise that the replica itself breaks, for the simulator to find. Nothing of it is in a
/// program that was built without the feature `mutants`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutant {
    /// A vote is given to everybody who asks.
    VoteTwice,
    /// A candidate's log may be behind.
    SkipLogCheck,
    /// An entry of a former term is committed because a majority holds it (Raft §5.4.2, Figure 8).
    CommitByCounting,
    /// What is reported durable counts for entries that have taken its place.
    StalePersisted,
}

impl Settings {
    /// Settings with the defaults for a member of a cluster.
    pub fn new(id: NodeId, members: Vec<NodeId>) -> Settings {
        let election_timeout = Duration::from_millis(300);
        Settings {
            id,
            members,
            boot: 1,
            incarnation: 0,
            heartbeat_interval: Duration::from_millis(50),
            election_timeout,
            disk_timeout: Duration::from_secs(1),
            takeover_delay: 2 * election_timeout,
            window: Window { messages_max: 256, bytes_max: 16 << 20 },
            pending_bytes_max: 256 << 20,
            wall_micros: 0,
            clock_offset_max: Duration::from_millis(500),
            drain_interval: Duration::from_millis(10),
            sync_interval: Duration::from_millis(500),
            backlog_bytes_max: 64 << 20,
            mark_interval: Duration::from_secs(5),
            tombstone_horizon: Duration::from_secs(24 * 3600),
            snapshot_log_bytes: 64 << 20,
            log_retain_bytes: 16 << 20,
            mutant: None,
        }
    }

    /// True if the replica shall do this wrong.
    pub fn has(&self, mutant: Mutant) -> bool {
        cfg!(feature = "mutants") && self.mutant == Some(mutant)
    }

    /// All members but this node.
    pub fn peers(&self) -> impl Iterator<Item = NodeId> {
        self.members.iter().copied().filter(|&member| member != self.id)
    }
}
