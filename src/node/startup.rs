//! Startup: recovers a node, builds what its threads share, and spawns them.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::thread::{Builder, JoinHandle, available_parallelism};
use std::time::Instant;

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};

use super::Node;
use super::clients::{Clients, Loops, PollLoop, Pool, listener};
use super::core::Core;
use super::files::FileWal;
use super::peers::contacts::{Contacts, Sign};
use super::peers::link::{LinkNote, PeerLink};
use super::peers::{detector, sender};
use super::queues::{ApplyJob, Queues, SnapshotWork, WalWork};
use super::recovery::Recovery;
use super::shared::{PanicWatch, Shared};
use super::stop::{Fatal, Stop};
use super::workers::{apply, snapshot, timers, wal};
use crate::clock::{Clock, wall_micros};
use crate::config::{Config, Io, PeerAddress};
use crate::protocol::{Limits, Password, ServerInfo};
use crate::replica::detector::FailureDetector;
use crate::replica::{Alarm, Replica, Settings};
use crate::rng::Rng;
use crate::service::Shell;
use crate::store::Writer;
use crate::types::Index;

/// Starts a node on a socket that is bound and listening.
///
/// # Errors
/// See [`Node::start`].
pub fn start_on(listener: TcpListener, config: Config, stop: Arc<Stop>) -> Result<Node, Fatal> {
    let started = Instant::now();
    listener::raise_descriptor_limit(config.maxclients);
    let port = listener.local_addr().map_err(|e| Fatal::Io(e.to_string()))?.port();
    // Clients that connect from now on wait in the listener's backlog until recovery is over.
    let recovery = Recovery::open(&config)?;
    let (queues, queue_ends) = queues(&config.peers);
    let (loops, idle_loops) = loops(&config)?;
    let clock = Clock::start();
    let settings = settings(&config, recovery.data_dir.boot(), recovery.incarnation);
    let seed = getrandom::u64().map_err(|e| Fatal::Io(format!("no random numbers: {e}")))?;
    let Recovery { data_dir, log, images, writer, recovered, last, took, .. } = recovery;
    let replica = Replica::new(clock.now(), settings, recovered, Rng::new(seed));
    let store = writer.store();
    let shell = Shell::new(replica, Arc::clone(&store));
    let (signs, sign_queue) = unbounded();
    let (snapshots, snapshot_work) = unbounded();
    let core = Core::new(shell, queues, clock, Arc::clone(&store), Arc::clone(&stop));
    let peers = config.peers.iter().map(|peer| peer.id);
    let shared = Arc::new(Shared {
        id: config.id,
        boot: data_dir.boot(),
        port,
        clock,
        started,
        recovery: took,
        core,
        store,
        images,
        snapshots,
        contacts: Contacts::new(clock.now(), peers, signs.clone()),
        clients: Clients::default(),
        server_info: Arc::new(server_info(&config, port)),
        pool: Pool::default(),
        loops,
        stop,
        config,
    });
    announce(&shared, last);
    let (heartbeat, heartbeat_stop) = bounded(1);
    let owned = Owned {
        listener,
        idle_loops,
        heartbeat_stop,
        sign_queue,
        snapshot_work,
        queue_ends,
        log,
        writer,
    };
    let threads = spawn_all(&shared, owned)?;
    shared.core.check_spare();
    Ok(Node { shared, threads, signs, heartbeat, _data_dir: data_dir })
}

/// The receiving ends of [`Queues`].
struct QueueEnds {
    wal: Receiver<WalWork>,
    apply: Receiver<ApplyJob>,
    links: Vec<(PeerAddress, Receiver<LinkNote>)>,
    election: Receiver<()>,
    drain: Receiver<()>,
}

/// Values that one thread each will own, until that thread is spawned.
struct Owned {
    listener: TcpListener,
    idle_loops: Vec<PollLoop>,
    heartbeat_stop: Receiver<()>,
    sign_queue: Receiver<Sign>,
    snapshot_work: Receiver<SnapshotWork>,
    queue_ends: QueueEnds,
    log: FileWal,
    writer: Writer,
}

/// The queues and their receiving ends.
fn queues(peers: &[PeerAddress]) -> (Queues, QueueEnds) {
    let (wal_sender, wal) = unbounded();
    let (apply_sender, apply) = unbounded();
    // One note is enough, see `Queues::poke`.
    let (election_sender, election) = bounded(1);
    let (drain_sender, drain) = bounded(1);
    let mut links = BTreeMap::new();
    let mut link_work = Vec::new();
    for peer in peers {
        let (notes, work) = unbounded();
        links.insert(peer.id, PeerLink::new(notes));
        link_work.push((peer.clone(), work));
    }
    let queues = Queues {
        wal: wal_sender,
        apply: apply_sender,
        links,
        election: election_sender,
        drain: drain_sender,
    };
    (queues, QueueEnds { wal, apply, links: link_work, election, drain })
}

/// The loops that serve clients, none with `--io threads`.
fn loops(config: &Config) -> Result<(Loops, Vec<PollLoop>), Fatal> {
    let (mut idle, mut mailboxes) = (Vec::new(), Vec::new());
    for _ in 0..io_loops(config) {
        let made = PollLoop::new();
        let (poll_loop, mailbox) =
            made.map_err(|e| Fatal::Io(format!("cannot wait for clients: {e}")))?;
        idle.push(poll_loop);
        mailboxes.push(mailbox);
    }
    Ok((Loops::new(mailboxes), idle))
}

/// Spawns the dedicated threads. They are joined in this order at the end, each after those that
/// feed it.
fn spawn_all(shared: &Arc<Shared>, owned: Owned) -> Result<Vec<JoinHandle<()>>, Fatal> {
    let Owned { listener, idle_loops, heartbeat_stop, sign_queue, snapshot_work, .. } = owned;
    let Owned { queue_ends, log, writer, .. } = owned;
    let mut threads = Spawner { shared, handles: Vec::new() };
    threads.spawn("listener", move |shared| listener::run(shared, &listener))?;
    for (number, poll_loop) in idle_loops.into_iter().enumerate() {
        threads.spawn(&format!("poll-{number}"), move |shared| poll_loop.run(shared))?;
    }
    threads.spawn("heartbeat", move |shared| timers::run_heartbeat(shared, &heartbeat_stop))?;
    for (name, alarm, sooner) in [
        ("election", Alarm::Election, queue_ends.election),
        ("drain", Alarm::Drain, queue_ends.drain),
    ] {
        threads.spawn(name, move |shared| timers::run(shared, alarm, &sooner))?;
    }
    let timeout = shared.config.election_timeout;
    let peers = shared.config.peers.iter().map(|peer| peer.id);
    let failures = FailureDetector::new(shared.clock.now(), timeout, peers);
    threads.spawn("detector", move |shared| detector::run(shared, failures, &sign_queue))?;
    for (peer, notes) in queue_ends.links {
        let name = format!("replicate-{}", peer.id);
        threads.spawn(&name, move |shared| sender::run(shared, &peer, &notes))?;
    }
    let (for_apply, for_wal): (Sender<SnapshotWork>, Sender<SnapshotWork>) =
        (shared.snapshots.clone(), shared.snapshots.clone());
    threads
        .spawn("apply", move |shared| apply::run(shared, writer, &queue_ends.apply, &for_apply))?;
    threads.spawn("wal", move |shared| wal::run(shared, log, &queue_ends.wal, &for_wal))?;
    threads.spawn("snapshot", move |shared| snapshot::run(shared, &snapshot_work))?;
    Ok(threads.handles)
}

/// Spawns threads and keeps their handles. A thread that panics stops the node.
struct Spawner<'a> {
    shared: &'a Arc<Shared>,
    handles: Vec<JoinHandle<()>>,
}

impl Spawner<'_> {
    fn spawn(
        &mut self,
        name: &str,
        run: impl FnOnce(&Arc<Shared>) + Send + 'static,
    ) -> Result<(), Fatal> {
        let shared = Arc::clone(self.shared);
        let work = move || {
            let watch = PanicWatch(&shared);
            run(watch.0);
        };
        let spawned = Builder::new().name(name.into()).spawn(work);
        let handle = spawned.map_err(|e| Fatal::Io(format!("cannot start a thread: {e}")))?;
        self.handles.push(handle);
        Ok(())
    }
}

/// The replica's settings.
fn settings(config: &Config, boot: u64, incarnation: u64) -> Settings {
    Settings {
        boot,
        incarnation,
        heartbeat_interval: config.heartbeat_interval,
        election_timeout: config.election_timeout,
        disk_timeout: config.disk_timeout,
        // A follower of higher rank must have kept up for this long before it gets the leadership.
        takeover_delay: 2 * config.election_timeout,
        pending_bytes_max: config.pending_bytes_max,
        wall_micros: wall_micros(),
        clock_offset_max: config.clock_offset_max,
        backlog_bytes_max: config.backlog_bytes_max,
        tombstone_horizon: config.tombstone_horizon,
        snapshot_log_bytes: config.snapshot_log_bytes,
        // Entries kept behind a snapshot, so that a peer that lags a little needs no image.
        log_retain_bytes: config.snapshot_log_bytes / 4,
        ..Settings::new(config.id, config.members())
    }
}

/// The number of loops that serve clients. The default is one loop for two cores: the log, the
/// store and the links need the other. (On two cores one loop served 20 to 30 % more small requests
/// than two.)
fn io_loops(config: &Config) -> usize {
    match (config.io, config.io_loops) {
        (Io::Threads, _) => 0,
        (Io::Poll, 0) => available_parallelism().map_or(1, |cores| (cores.get() / 2).clamp(1, 4)),
        (Io::Poll, loops) => loops,
    }
}

/// The identity, limits and settings of this node that all its sessions share.
fn server_info(config: &Config, port: u16) -> ServerInfo {
    let limits = Limits {
        key_bytes_max: config.key_bytes_max,
        value_bytes_max: config.value_bytes_max,
        ..Limits::default()
    };
    // With port 0 the system has chosen the port.
    let mut described = config.describe();
    for (name, value) in &mut described {
        if *name == "port" {
            *value = port.to_string();
        }
    }
    ServerInfo {
        node: config.id,
        version: env!("CARGO_PKG_VERSION"),
        password: config.password.as_ref().map(|password| Password::new(password.as_bytes())),
        limits,
        consistency: config.consistency,
        config: described,
    }
}

/// Logs that the node is ready, which is after recovery.
fn announce(shared: &Shared, last: Index) {
    let config = &shared.config;
    let peers: Vec<String> = config.peers.iter().map(PeerAddress::address).collect();
    let peers = if peers.is_empty() { "none".into() } else { peers.join(", ") };
    let address = SocketAddr::new(config.bind, shared.port);
    log::info!(target: "NodeSync", "Node {} listening on {address}, peers: {peers}", shared.id);
    log::info!(
        target: "NodeSync",
        "Recovered up to index {last} from {} in {} ms",
        config.dir.display(),
        shared.recovery.as_millis()
    );
}
