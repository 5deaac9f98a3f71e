//! The state that all threads of a node share.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;

use super::clients::{Clients, Loops, Pool};
use super::core::Core;
use super::files::FileImages;
use super::peers::contacts::Contacts;
use super::queues::SnapshotWork;
use super::stop::{Fatal, Stop};
use crate::clock::Clock;
use crate::config::Config;
use crate::protocol::ServerInfo;
use crate::store::Store;
use crate::types::NodeId;
use crate::wire::handshake;

/// Room in a frame beside the longest request and the longest batch: heads, ids, lengths.
const FRAME_SLACK_BYTES: usize = 4 << 20;

/// A node, as its threads see it.
pub(crate) struct Shared {
    pub config: Config,
    pub id: NodeId,
    pub boot: u64,
    /// The port that the node listens on.
    pub port: u16,
    pub clock: Clock,
    pub started: Instant,
    /// The time that recovery took.
    pub recovery: Duration,
    pub core: Core,
    pub store: Arc<Store>,
    pub images: FileImages,
    pub snapshots: Sender<SnapshotWork>,
    pub contacts: Contacts,
    pub clients: Clients,
    pub server_info: Arc<ServerInfo>,
    pub pool: Pool,
    /// The loops that serve clients with `--io poll`.
    pub loops: Loops,
    pub stop: Arc<Stop>,
}

impl Shared {
    /// This node's introduction to its peers.
    pub fn handshake_identity(&self) -> handshake::Credentials {
        handshake::Credentials {
            cluster: handshake::cluster_id(&self.config.cluster, &self.config.members()),
            node: self.id,
            boot: self.boot,
            password: self.config.password.clone().unwrap_or_default().into_bytes(),
        }
    }

    /// The longest frame that a peer may send: a full batch, and one proposal of the greatest
    /// length on top.
    pub fn frame_bytes_max(&self) -> usize {
        let limits = &self.server_info.limits;
        limits.request_bytes_max + limits.batch_bytes_max + FRAME_SLACK_BYTES
    }
}

/// Stops the node when the thread that owns this value panics. Without that thread the node could
/// only seem alive: a node without its wal thread, for example, would never acknowledge a write.
pub(crate) struct PanicWatch<'a>(pub &'a Arc<Shared>);

impl Drop for PanicWatch<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let thread = std::thread::current();
            let name = thread.name().unwrap_or("?");
            self.0.stop.fail(Fatal::Bug(format!("thread {name} has panicked")));
        }
    }
}
