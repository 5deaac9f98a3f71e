//! Who is connected, for CLIENT LIST and INFO, and how many may be.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

use parking_lot::Mutex;

use crate::protocol::Profile;

/// See the module.
#[derive(Default)]
pub struct Clients {
    connections: Arc<AtomicUsize>,
    /// Clients whose requests are being executed or answered.
    busy: Arc<AtomicUsize>,
    next_id: AtomicU64,
    table: Mutex<BTreeMap<u64, Arc<Client>>>,
    /// Clients accepted since the start.
    pub accepted: AtomicU64,
    /// Clients refused since the start because there were too many.
    pub refused: AtomicU64,
    /// Commands executed since the start by clients that have gone.
    pub commands: AtomicU64,
    /// Batches proposed, and reads served, since the start.
    pub writes: AtomicU64,
    /// See [`Clients::writes`].
    pub reads: AtomicU64,
    /// Batches of eventual writes taken, and eventual reads served, since the start.
    pub stamps: AtomicU64,
    /// See [`Clients::stamps`].
    pub local_reads: AtomicU64,
}

/// One client.
pub struct Client {
    /// Its number.
    pub id: u64,
    /// Its address.
    pub address: SocketAddr,
    /// When it connected.
    pub since: Instant,
    /// When it last sent something, and what it tells of itself.
    latest: Mutex<(Instant, Profile)>,
}

impl Client {
    /// When it last sent something, and what it tells of itself.
    pub fn latest(&self) -> (Instant, Profile) {
        self.latest.lock().clone()
    }

    /// Takes note of what it tells of itself.
    pub fn publish(&self, profile: &Profile) {
        let mut latest = self.latest.lock();
        latest.0 = Instant::now();
        if latest.1.revision == profile.revision {
            latest.1.last_command = profile.last_command;
            latest.1.commands = profile.commands;
        } else {
            latest.1 = profile.clone();
        }
    }
}

/// Something that counts as long as it lives.
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
    /// Connections that are served, peers included.
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

    /// A view of all clients, by id.
    pub fn list(&self) -> Vec<Arc<Client>> {
        self.table.lock().values().cloned().collect()
    }

    /// How many clients there are.
    pub fn count(&self) -> usize {
        self.table.lock().len()
    }

    /// Takes a client in, unless there are `max` already.
    pub fn enter(&self, address: SocketAddr, max: usize) -> Option<Arc<Client>> {
        let mut table = self.table.lock();
        if table.len() >= max {
            self.refused.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        self.accepted.fetch_add(1, Ordering::Relaxed);
        let id = self.next_id.fetch_add(1, Ordering::Relaxed) + 1;
        let since = Instant::now();
        let latest = Mutex::new((since, Profile::default()));
        let client = Arc::new(Client { id, address, since, latest });
        table.insert(id, Arc::clone(&client));
        Some(client)
    }

    /// A client has gone.
    pub fn leave(&self, id: u64) {
        let gone = self.table.lock().remove(&id);
        if let Some(client) = gone {
            self.commands.fetch_add(client.latest().1.commands, Ordering::Relaxed);
        }
    }
}
