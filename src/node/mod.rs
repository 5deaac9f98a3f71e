//! One node: the only place with threads, channels and sockets.
//!
//! # Thread map
//!
//! | thread | waits for | does |
//! |---|---|---|
//! | `listener` | a connection | hands it to the front end; never reads |
//! | `client-i` | its client, then its outcomes | serves it (`front/threads.rs`) |
//! | `poll-i` | clients, answers | serves many clients (`front/poll.rs`), with `--io poll` |
//! | `reader-p` | the stream of peer p | decodes frames, steps the core (`reader.rs`) |
//! | `heartbeat` | the heartbeat deadline | raises the alarm (`alarm.rs`) |
//! | `election` | the election deadline | raises the alarm (`alarm.rs`) |
//! | `drain` | the drain deadline | raises the alarm: eventual writes go into the log |
//! | `detector` | a sign, or the next suspicion | says who is alive (`detector.rs`) |
//! | `replicate-p` | its queue | owns the stream to peer p (`replication.rs`) |
//! | `wal` | jobs | writes, syncs, releases what waited for it (`wal.rs`) |
//! | `apply` | committed entries | writes the store, wakes sessions (`apply.rs`) |
//! | `snapshot` | jobs | image files, spare log segments (`snapshot.rs`) |
//!
//! ```text
//!   client-i ──┐                    ┌──▶ wal ──────┐ released messages
//!   reader-p ──┤                    │              ▼
//!   heartbeat ─┼──▶ core (a lock) ──┼──▶ replicate-p ──▶ peer p
//!   election ──┤                    │
//!   drain ─────┤                    │
//!   detector ──┘                    └──▶ apply ──▶ client-i woken
//! ```
//! Readers and clients are threads of one pool. The arrows have no cycle of waiting: nobody blocks
//! on a queue that it feeds. Nobody holds two locks at once but the store's slots, in ascending
//! order, and nobody holds a lock across I/O. Queues are bounded by what the replica admits.
//!
//! # How it ends
//!
//! [`Stop`] is the one way: a signal asks, a failure anywhere asks and leaves its cause.
//! [`Node::run_until_stopped`] then hands the leadership over, lets what is in flight finish, ends
//! the sessions, the links, the alarms, and at last apply and wal, and joins them all.

pub(crate) mod clients;
pub(crate) mod core;
mod events;
pub(crate) mod info;
mod peers;
mod queues;
mod startup;
mod stop;
#[cfg(test)]
mod tests;
mod workers;

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread::{Builder, JoinHandle, available_parallelism};
use std::time::{Duration, Instant};

use crossbeam_channel::{Sender, bounded, unbounded};

use crate::clock::{Clock, wall_micros};
use crate::config::{Config, Io, Peer};
use crate::protocol::{Limits, Password, ServerInfo};
use crate::replica::detector::FailureDetector;
use crate::replica::{Alarm, Input, Replica, Settings};
use crate::rng::Rng;
use crate::store::{Store, Writer};
use crate::types::NodeId;
use crate::wal::{DataDir, FileDisk, Identity, Options, Wal};
use crate::wire::handshake;
#[cfg_attr(not(house), doc(hidden))]
pub use clients::waiter::{Answer, Inbox, Ticket};
use clients::{Clients, Loops, Pool, listener};
#[cfg_attr(not(house), doc(hidden))]
pub use clients::{ExternalClient, Step};
use core::Core;
use peers::detector::{Contacts, Sign};
use peers::link::Link;
use peers::{detector, sender};
use queues::Queues;
use startup::{data_dir_error, incarnation, wal_error};
pub use stop::{Fatal, Stop};
use workers::snapshot::{Images, SnapshotWork};
use workers::{apply, snapshot, timers, wal};

/// The log as a node keeps it.
type Log = Wal<FileDisk>;

/// How long an orderly stop waits for the leadership to be handed over and for requests in flight.
const FINISH_MAX: Duration = Duration::from_millis(600);

/// What the threads of a node share.
pub(crate) struct Shared {
    pub(crate) config: Config,
    pub(crate) id: NodeId,
    pub(crate) boot: u64,
    /// The port that is listened on.
    pub(crate) port: u16,
    pub(crate) clock: Clock,
    pub(crate) started: Instant,
    /// How long it took to load the snapshot and the log.
    pub(crate) recovery: Duration,
    pub(crate) core: Core,
    pub(crate) store: Arc<Store>,
    pub(crate) images: Images,
    pub(crate) snapshots: Sender<SnapshotWork>,
    pub(crate) contacts: Contacts,
    pub(crate) clients: Clients,
    pub(crate) server_info: Arc<ServerInfo>,
    pub(crate) pool: Pool,
    /// The way into the loops that serve clients, with `--io poll`.
    pub(crate) loops: Loops,
    pub(crate) stop: Arc<Stop>,
}

impl Shared {
    /// What this node says of itself to peers.
    fn handshake_identity(&self) -> handshake::Identity {
        handshake::Identity {
            cluster: handshake::cluster_id(&self.config.cluster, &self.config.members()),
            node: self.id,
            boot: self.boot,
            password: self.config.password.clone().unwrap_or_default().into_bytes(),
        }
    }

    /// The longest frame: one message's worth, with one proposal of the greatest length on top.
    fn frame_bytes_max(&self) -> usize {
        self.server_info.limits.request_bytes_max
            + self.server_info.limits.batch_bytes_max
            + (4 << 20)
    }
}

/// A running node.
pub struct Node {
    shared: Arc<Shared>,
    /// The dedicated threads, in the order in which they are joined.
    threads: Vec<JoinHandle<()>>,
    signs: Sender<Sign>,
    /// Ends the heartbeat thread's wait.
    heartbeat: Sender<()>,
    /// Held until the end: the directory's lock.
    _data_dir: DataDir,
}

impl Node {
    /// Starts a node on the address in `config`. `stop` can be asked to stop it, at any time from
    /// now on.
    ///
    /// # Errors
    /// [`Fatal`], and nothing has been written, if the port is taken or the directory belongs to
    /// another node or cluster, is in use, or holds what cannot be trusted.
    pub fn start(config: Config, stop: Arc<Stop>) -> Result<Node, Fatal> {
        let address = SocketAddr::new(config.bind, config.port);
        let listener = listener::bind(address)
            .map_err(|error| Fatal::Io(format!("cannot listen on {address}: {error}")))?;
        Node::start_on(listener, config, stop)
    }

    /// Starts a node on a socket that is bound and listening.
    ///
    /// # Errors
    /// See [`Node::start`].
    pub fn start_on(listener: TcpListener, config: Config, stop: Arc<Stop>) -> Result<Node, Fatal> {
        let started = Instant::now();
        listener::raise_descriptor_limit(config.maxclients);
        let port = listener.local_addr().map_err(|e| Fatal::Io(e.to_string()))?.port();
        let identity = Identity {
            cluster: config.cluster.clone(),
            members: config.members(),
            node: config.id,
        };
        let mut data_dir = DataDir::open(&config.dir, &identity, wall_micros() / 1000)
            .map_err(|e| data_dir_error(&e))?;
        let options = Options {
            segment_bytes: config.segment_bytes as u64,
            ..Options::new(data_dir.incarnation())
        };
        let disk = Arc::new(FileDisk::new(&config.dir));
        let (mut log, mut recovered) =
            Wal::open(Arc::clone(&disk), options).map_err(|e| wal_error(&config, &e))?;
        let images = Images::new(Arc::clone(&disk));
        let mut writer = Writer::new();
        if recovered.snapshot.index > 0 {
            writer.restore(snapshot::load(&images, &config, recovered.snapshot)?);
        }
        writer.store().put_overlay(&recovered.held);
        recovered.clock = recovered.clock.max(writer.latest());
        // All that is there is sound: from here on the directory is written to.
        data_dir.claim().map_err(|e| data_dir_error(&e))?;
        images.remove_unfinished().map_err(|e| Fatal::Io(e.to_string()))?;
        let incarnation = incarnation(&data_dir, &mut log).map_err(|e| wal_error(&config, &e))?;
        if !data_dir.has_begun() {
            data_dir.begin().map_err(|e| data_dir_error(&e))?;
        }
        let recovery = started.elapsed();
        let last = recovered.entries.last().map_or(recovered.snapshot.index, |entry| entry.index);
        let settings = settings(&config, data_dir.boot(), incarnation);
        let clock = Clock::start();
        let seed = getrandom::u64().map_err(|e| Fatal::Io(format!("no random numbers: {e}")))?;
        let replica = Replica::new(clock.now(), settings, recovered, Rng::new(seed));

        let (wal_sender, wal_work) = unbounded();
        let (apply_sender, apply_work) = unbounded();
        let (snapshots, snapshot_work) = unbounded();
        let (election, election_notes) = bounded(1);
        let (drain, drain_notes) = bounded(1);
        let (heartbeat, heartbeat_stop) = bounded(1);
        let (signs, sign_queue) = unbounded();
        let mut links = BTreeMap::new();
        let mut link_work = Vec::new();
        for peer in &config.peers {
            let (sender, work) = unbounded();
            links.insert(peer.id, Link::new(sender));
            link_work.push((peer.clone(), work));
        }
        let (loops, loops_at_rest) = Loops::new(io_loops(&config))
            .map_err(|e| Fatal::Io(format!("cannot wait for clients: {e}")))?;
        let queues = Queues { wal: wal_sender, apply: apply_sender, links, election, drain };
        let store = writer.store();
        let core = Core::new(replica, queues, clock, Arc::clone(&store), Arc::clone(&stop));
        let peers = || config.peers.iter().map(|peer| peer.id);
        let shared = Arc::new(Shared {
            id: config.id,
            boot: data_dir.boot(),
            port,
            clock,
            started,
            recovery,
            core,
            store,
            images,
            snapshots: snapshots.clone(),
            contacts: Contacts::new(clock.now(), peers(), signs.clone()),
            clients: Clients::default(),
            server_info: Arc::new(server_info(&config, port)),
            pool: Pool::default(),
            loops,
            stop,
            config,
        });
        announce(&shared, last);

        let mut threads = Threads { shared: &shared, handles: Vec::new() };
        let timeout = shared.config.election_timeout;
        let ids = shared.config.peers.iter().map(|peer| peer.id);
        let failure_detector = FailureDetector::new(clock.now(), timeout, ids);
        threads.spawn("listener", move |shared| listener::run(shared, &listener))?;
        for (number, idle) in loops_at_rest.into_iter().enumerate() {
            threads.spawn(&format!("poll-{number}"), move |shared| idle.run(shared))?;
        }
        threads.spawn("heartbeat", move |shared| {
            timers::run_heartbeat(shared, &heartbeat_stop);
        })?;
        threads.spawn("election", move |shared| {
            timers::run(shared, Alarm::Election, &election_notes);
        })?;
        threads.spawn("drain", move |shared| timers::run(shared, Alarm::Drain, &drain_notes))?;
        threads.spawn("detector", move |shared| {
            detector::run(shared, failure_detector, &sign_queue);
        })?;
        for (peer, work) in link_work {
            threads.spawn(&format!("replicate-{}", peer.id), move |shared| {
                sender::run(shared, &peer, &work);
            })?;
        }
        let for_apply = snapshots.clone();
        threads.spawn("apply", move |shared| {
            apply::run(shared, writer, &apply_work, &for_apply);
        })?;
        threads.spawn("wal", move |shared| wal::run(shared, log, &wal_work, &snapshots))?;
        threads.spawn("snapshot", move |shared| snapshot::run(shared, &snapshot_work))?;
        let threads = threads.handles;
        shared.core.look_for_spare();
        Ok(Node { shared, threads, signs, heartbeat, _data_dir: data_dir })
    }

    /// The port that the node listens on.
    pub fn port(&self) -> u16 {
        self.shared.port
    }

    /// A client that another front end than the node's own serves; `None` if there are too many.
    pub fn external_client(&self, address: SocketAddr) -> Option<ExternalClient> {
        ExternalClient::new(&self.shared, address)
    }

    /// Blocks until the node is asked to stop or fails, then ends it.
    ///
    /// # Errors
    /// The first failure, if there was one.
    pub fn run_until_stopped(self) -> Result<(), Fatal> {
        self.shared.stop.wait();
        self.finish();
        self.end()
    }

    /// Stops and ends the node.
    ///
    /// # Errors
    /// The first failure, if there was one.
    pub fn stop(self) -> Result<(), Fatal> {
        self.shared.stop.ask();
        self.run_until_stopped()
    }

    /// Hands the leadership over and lets what is in flight finish.
    fn finish(&self) {
        let shared = &self.shared;
        shared.core.step([Input::Stop]);
        let deadline = Instant::now() + FINISH_MAX;
        let idle = || shared.core.is_idle() && shared.clients.are_idle();
        while !idle() && Instant::now() < deadline && !shared.stop.has_failed() {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Ends all threads, each after those that feed it.
    fn end(self) -> Result<(), Fatal> {
        let Node { shared, threads, signs, heartbeat, _data_dir } = self;
        shared.stop.set();
        shared.core.cancel_all();
        shared.loops.wake();
        shared.pool.join();
        wake_listener(&shared);
        let _ = signs.send(Sign::Stop);
        let _ = heartbeat.try_send(());
        shared.core.stop_links();
        shared.core.poke_alarms();
        shared.core.stop_workers();
        let _ = shared.snapshots.send(SnapshotWork::Stop);
        for thread in threads {
            if thread.join().is_err() {
                shared.stop.fail(Fatal::Bug("a thread has panicked".into()));
            }
        }
        match shared.stop.take_cause() {
            Some(cause) => Err(cause),
            None => {
                log::info!(target: "NodeSync", "Stopped");
                Ok(())
            }
        }
    }
}

/// Spawns the dedicated threads. A thread that panics stops the node.
struct Threads<'a> {
    shared: &'a Arc<Shared>,
    handles: Vec<JoinHandle<()>>,
}

impl Threads<'_> {
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

/// Stops the node when the thread that owns it panics.
struct PanicWatch<'a>(&'a Arc<Shared>);

impl Drop for PanicWatch<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let thread = std::thread::current();
            let name = thread.name().unwrap_or("?");
            self.0.stop.fail(Fatal::Bug(format!("thread {name} has panicked")));
        }
    }
}

/// Frees the listener from `accept`: connects to it, by loopback if it listens everywhere.
fn wake_listener(shared: &Shared) {
    let bind = shared.config.bind;
    let ip = match bind {
        _ if !bind.is_unspecified() => bind,
        std::net::IpAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
        std::net::IpAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
    };
    let address = SocketAddr::new(ip, shared.port);
    let _ = TcpStream::connect_timeout(&address, Duration::from_millis(200));
}

fn settings(config: &Config, boot: u64, incarnation: u64) -> Settings {
    Settings {
        boot,
        incarnation,
        heartbeat_interval: config.heartbeat_interval,
        election_timeout: config.election_timeout,
        disk_timeout: config.disk_timeout,
        takeover_delay: 2 * config.election_timeout,
        pending_bytes_max: config.pending_bytes_max,
        wall_micros: wall_micros(),
        clock_offset_max: config.clock_offset_max,
        backlog_bytes_max: config.backlog_bytes_max,
        tombstone_horizon: config.tombstone_horizon,
        snapshot_log_bytes: config.snapshot_log_bytes,
        log_retain_bytes: config.snapshot_log_bytes / 4,
        ..Settings::new(config.id, config.members())
    }
}

/// How many loops serve clients. By itself one for every two cores: the log, the store and the
/// links need the others. (On two cores one loop served 20 to 30 % more small requests than two.)
fn io_loops(config: &Config) -> usize {
    match (config.io, config.io_loops) {
        (Io::Threads, _) => 0,
        (Io::Poll, 0) => available_parallelism().map_or(1, |cores| (cores.get() / 2).clamp(1, 4)),
        (Io::Poll, loops) => loops,
    }
}

fn server_info(config: &Config, port: u16) -> ServerInfo {
    let limits = Limits {
        key_bytes_max: config.key_bytes_max,
        value_bytes_max: config.value_bytes_max,
        ..Limits::default()
    };
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

fn announce(shared: &Shared, last: u64) {
    let config = &shared.config;
    let peers: Vec<String> = config.peers.iter().map(Peer::address).collect();
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
