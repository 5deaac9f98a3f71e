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
mod core;
mod events;
mod info;
mod peers;
mod queues;
mod recovery;
mod shared;
mod startup;
mod stop;
#[cfg(test)]
mod tests;
mod workers;

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;

use crate::config::Config;
use crate::replica::Input;
use crate::wal::DataDir;
use clients::listener;
#[doc(hidden)] // For front ends outside this crate: one benchmark has one.
pub use clients::{ExternalClient, Step};
use peers::contacts::Sign;
use queues::SnapshotWork;
use shared::Shared;
pub use stop::{Fatal, Stop};

/// The longest time that an orderly stop waits for the leadership to be handed over and for
/// requests in flight.
const FINISH_MAX: Duration = Duration::from_millis(600);

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
        startup::start_on(listener, config, stop)
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
