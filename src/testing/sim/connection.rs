//! The server's end of a client's connection.

use std::fmt;

use crate::clock::Now;
use crate::service::SessionDriver;
use crate::testing::sim::promises::Versions;
use crate::types::Key;

/// The event without which a connection does not go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaitsFor {
    /// Bytes from the client.
    Bytes,
    /// The answer to a request. Until then the client's bytes stay in the socket.
    Answer,
    /// Room for replies: the client takes them slowly.
    Room,
}

/// A client's connection.
pub struct SimConnection {
    pub client: usize,
    pub node: usize,
    /// The process at the server's end.
    pub life: u64,
    /// The loop that serves it, by its place in the process.
    pub client_loop: usize,
    /// `None` once the connection is closed.
    pub driver: Option<Box<SessionDriver>>,
    pub waits_for: WaitsFor,
    /// Bytes that the session has not taken yet.
    pub inbox: Vec<u8>,
    /// The time at which the latest bytes arrive, to and from the node.
    pub latest: [Now; 2],
    /// The key that an eventual session increments, while that is under way.
    pub incremented: Option<Key>,
    /// The newest eventual writes that were acknowledged on this connection.
    pub written: Versions,
}

impl fmt::Debug for SimConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "client {} at #{}: {:?}", self.client, self.node, self.waits_for)
    }
}

impl SimConnection {
    /// True while both ends have it open.
    pub fn is_open(&self) -> bool {
        self.driver.is_some()
    }
}
