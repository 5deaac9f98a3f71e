//! The connected clients, for CLIENT LIST and INFO, and the number of connections.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

use parking_lot::Mutex;

use crate::protocol::Profile;

/// The clients of a node, and its counters for INFO.
#[derive(Default)]
pub struct Clients {
    /// Connections that are served, peers included.
    connections: Arc<AtomicUsize>,
    /// Clients that wait for a reply.
    busy: Arc<AtomicUsize>,
    next_id: AtomicU64,
    table: Mutex<BTreeMap<u64, Arc<ConnectedClient>>>,
    /// Clients accepted since the start.
    pub accepted: AtomicU64,
    /// Clients refused since the start because there were too many.
    pub refused: AtomicU64,
    /// Commands executed since the start by clients that have left.
    pub commands: AtomicU64,
    /// Batches of strong writes since the start.
    pub writes: AtomicU64,
    /// Batches of strong reads since the start.
    pub reads: AtomicU64,
    /// Batches of eventual writes since the start.
    pub stamps: AtomicU64,
    /// Batches of eventual reads since the start.
    pub local_reads: AtomicU64,
}

/// One client.
pub struct ConnectedClient {
    /// Its number.
    pub id: u64,
    /// Its address.
    pub address: SocketAddr,
    /// The time at which it connected.
    pub since: Instant,
    /// See [`ConnectedClient::latest`].
    latest: Mutex<(Instant, Profile)>,
}

impl ConnectedClient {
    /// The time of its latest command, and its profile then.
    pub fn latest(&self) -> (Instant, Profile) {
        self.latest.lock().clone()
    }

    /// Records its profile, as of now.
    pub fn publish(&self, profile: &Profile) {
        let mut latest = self.latest.lock();
        latest.0 = Instant::now();
        // This runs for every pipeline: names are copied only if they have changed.
        if latest.1.revision == profile.revision {
            latest.1.last_command = profile.last_command;
            latest.1.commands = profile.commands;
        } else {
            latest.1 = profile.clone();
        }
    }
}

/// A new connection, on its way to a front end.
pub struct NewConnection {
    /// The socket.
    pub stream: TcpStream,
    /// The other end's address.
    pub address: SocketAddr,
    /// Counts the connection as long as it is served.
    pub counted: Counted,
}

/// One in a counter, for as long as this value lives.
pub struct Counted(Arc<AtomicUsize>);

impl Counted {
    fn new(counter: &Arc<AtomicUsize>) -> Counted {
        counter.fetch_add(1, Ordering::Relaxed);
        Counted(Arc::clone(counter))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Clients {
    /// The number of connections that are served, peers included.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    /// Counts a connection.
    pub fn connect(&self) -> Counted {
        Counted::new(&self.connections)
    }

    /// Counts a client that waits for an answer.
    pub fn busy(&self) -> Counted {
        Counted::new(&self.busy)
    }

    /// True if no client waits for an answer.
    pub fn are_idle(&self) -> bool {
        self.busy.load(Ordering::Relaxed) == 0
    }

    /// All clients, by id.
    pub fn list(&self) -> Vec<Arc<ConnectedClient>> {
        self.table.lock().values().cloned().collect()
    }

    /// The number of clients.
    pub fn count(&self) -> usize {
        self.table.lock().len()
    }

    /// Registers a client; `None` if there are `max` already.
    pub fn enter(&self, address: SocketAddr, max: usize) -> Option<Arc<ConnectedClient>> {
        let mut table = self.table.lock();
        if table.len() >= max {
            self.refused.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        self.accepted.fetch_add(1, Ordering::Relaxed);
        let id = self.next_id.fetch_add(1, Ordering::Relaxed) + 1;
        let since = Instant::now();
        let latest = Mutex::new((since, Profile::default()));
        let client = Arc::new(ConnectedClient { id, address, since, latest });
        table.insert(id, Arc::clone(&client));
        Some(client)
    }

    /// Removes a client that has left.
    pub fn leave(&self, id: u64) {
        let left = self.table.lock().remove(&id);
        if let Some(client) = left {
            self.commands.fetch_add(client.latest().1.commands, Ordering::Relaxed);
        }
    }
}
