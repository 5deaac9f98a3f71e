//! The fixed parameters of a replica.

use std::time::Duration;

use super::progress::Window;
use crate::types::NodeId;

/// A replica's parameters. All members must have the same timeouts, or rank does not decide who
/// campaigns first.
#[derive(Clone, Debug)]
pub struct Settings {
    /// This node.
    pub id: NodeId,
    /// All members, this node among them, ascending.
    pub members: Vec<NodeId>,
    /// The number of this process lifetime; larger than any earlier one of this node.
    pub boot: u64,
    /// The random number that this node's data directory was created with.
    pub incarnation: u64,
    /// The interval between two heartbeats of a node.
    pub heartbeat_interval: Duration,
    /// The silence after which followers replace a leader, and a leader without a majority steps
    /// down.
    pub election_timeout: Duration,
    /// A leader whose disk has not answered for this long steps down. Longer than an election
    /// timeout, so that a slow sync alone deposes no leader.
    pub disk_timeout: Duration,
    /// The time that a node of higher rank must have been caught up before it gets the leadership.
    pub takeover_delay: Duration,
    /// The bound on appends under way to one follower.
    pub window: Window,
    /// The bound on pending requests of this node's clients, in bytes; beyond it they are refused
    /// with `Rejected::Busy`.
    pub pending_bytes_max: usize,
    /// The machine's wall clock at the start, in microseconds since 1970.
    pub wall_micros: u64,
    /// The largest tolerated difference between the clocks of two nodes.
    pub clock_offset_max: Duration,
    /// The time that eventual writes gather before the leader appends them to the log.
    pub drain_interval: Duration,
    /// The age at which eventual writes that are not in the log yet are written to the disk: half
    /// of the second within which they must be durable.
    pub sync_interval: Duration,
    /// The bound on eventual writes that this node holds, in bytes; beyond it sessions wait.
    pub backlog_bytes_max: usize,
    /// The interval between two checkpoints in the log, if anything has happened.
    pub checkpoint_interval: Duration,
    /// The time that a tombstone is kept while a member may hold older writes to its key.
    pub tombstone_horizon: Duration,
    /// The bytes of entries after which an image is taken. With a large state it is a quarter of
    /// the last image's length, up to eight times this setting.
    pub snapshot_log_bytes: usize,
    /// The bytes of entries before the snapshot that stay in memory for followers a little behind.
    pub log_retain_bytes: usize,
}

impl Settings {
    /// The default settings for member `id` of a cluster.
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
            checkpoint_interval: Duration::from_secs(5),
            tombstone_horizon: Duration::from_secs(24 * 3600),
            snapshot_log_bytes: 64 << 20,
            log_retain_bytes: 16 << 20,
        }
    }

    /// All members but this node.
    pub fn peers(&self) -> impl Iterator<Item = NodeId> {
        self.members.iter().copied().filter(|&member| member != self.id)
    }
}
