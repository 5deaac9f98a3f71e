//! One node: the only place with threads, channels and sockets.
//!
//! # Thread map
//!
//! | thread | waits for | does | file |
//! |---|---|---|---|
//! | `listener` | a connection | gives it to a front end | `clients/listener.rs` |
//! | `poll-i` | clients, answers | serves many clients (`--io poll`) | `clients/loops.rs` |
//! | `client-i` | its client, its answer | serves one (`--io threads`) | `clients/threads.rs` |
//! | `reader-p` | frames of peer p | decodes them, steps the core | `peers/receiver.rs` |
//! | `replicate-p` | notes of its link | owns the stream to peer p | `peers/sender.rs` |
//! | `detector` | signs, silence | says which peers are alive | `peers/detector.rs` |
//! | `heartbeat` | its deadline | raises the alarm, tells the time | `workers/timers.rs` |
//! | `election` | its deadline | raises the alarm | `workers/timers.rs` |
//! | `drain` | its deadline | raises the alarm | `workers/timers.rs` |
//! | `wal` | jobs | writes, syncs, releases messages | `workers/wal.rs` |
//! | `apply` | committed entries | writes the store's base, answers clients | `workers/apply.rs` |
//! | `snapshot` | jobs | image files, spare log segments | `workers/snapshot.rs` |
//!
//! `client-i` and `reader-p` are threads of one pool (`clients/pool.rs`); all others are spawned by
//! `startup.rs`. The thread that calls [`Node::run_until_stopped`] waits for the end.
//!
//! ```text
//!   poll-i, client-i ──┐                    ┌──▶ wal ──────┐ released messages
//!   reader-p ──────────┤                    │              ▼
//!   heartbeat ─────────┼──▶ core (a lock) ──┼──▶ replicate-p ──▶ peer p
//!   election, drain ───┤                    │
//!   detector ──────────┘                    └──▶ apply ──▶ poll-i, client-i woken
//! ```
//!
//! The waits have no cycle. Clients wait for `apply`, `snapshot` waits for `wal` (by
//! `durable_snapshot` in `core.rs`), and `wal` and `apply` wait for no other thread. Queues are
//! unbounded, so no send blocks (`queues.rs`).
//!
//! # Lock order
//!
//! A thread that holds a lock takes only locks further down:
//!
//! 1. a link's output (`peers/link.rs`): only the link's thread waits for it, all others try it;
//! 2. the core's shell (`core.rs`);
//! 3. a link's posted messages;
//! 4. the rest, each of them alone: inboxes, the store's slots (several in ascending order), the
//!    tables of clients, contacts and pool threads, the log's spare segments (`wal/spare.rs`), and
//!    the cause, the request and the sockets of [`Stop`] (`stop.rs`).
//!
//! No lock is held across blocking I/O, but for a link's output. Its thread holds that while it
//! writes to the peer, and while it reads the chunks of a snapshot from the disk; all other threads
//! pass by.
//!
//! # How it ends
//!
//! [`Stop`] is the one way: a signal asks for it, a failure anywhere asks for it and leaves its
//! cause. [`Node::run_until_stopped`] hands the leadership over and lets requests in flight finish.
//! Then it shuts down the sockets and answers every request that is left. The answer frees the
//! thread that waits for it; its client sees the answer only if its connection is still open. After
//! that come the ends of the clients and the readers, the listener and the loops, the timers and
//! the detector, the links, and at last of `apply`, `wal` and `snapshot`. All threads are joined.
//!
//! # Import order
//!
//! A file imports only files of the lines above its own, so no two files need each other. (Only
//! `startup` builds the [`Node`] of this file.)
//!
//! ```text
//!   clients/{registry pool waiter watched}   peers/contacts   files   stop
//!   clients/mailbox   peers/output   events   recovery
//!   peers/link
//!   queues
//!   core
//!   shared
//!   info   workers/*   peers/{dial detector}
//!   clients/view   peers/{sender receiver}
//!   clients/connection
//!   clients/{conn threads external}
//!   clients/{loops listener}
//!   startup
//! ```

pub(crate) mod clients;
mod core;
mod events;
mod files;
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
pub use clients::{ExternalClient, ExternalNext};
use peers::contacts::Sign;
use queues::SnapshotWork;
use shared::Shared;
pub use stop::{Fatal, Stop};

/// The longest time that an orderly stop waits for the hand-over of the leadership and for requests
/// in flight.
const FINISH_MAX: Duration = Duration::from_millis(600);

/// A running node.
pub struct Node {
    shared: Arc<Shared>,
    /// The dedicated threads, in the order in which they are joined.
    threads: Vec<JoinHandle<()>>,
    signs: Sender<Sign>,
    /// Wakes the heartbeat thread, to end it.
    heartbeat: Sender<()>,
    /// The directory's lock, held until the end.
    _data_dir: DataDir,
}

impl Node {
    /// Starts a node on the address in `config`. From now on, `stop` stops it.
    ///
    /// # Errors
    /// [`Fatal`], and nothing has been written, if the port is taken or the directory belongs to
    /// another node or cluster, is in use, or holds data that cannot be trusted.
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

    /// A client of a front end outside this crate; `None` if there are too many clients.
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

    /// Hands the leadership over and lets requests in flight finish.
    fn finish(&self) {
        let shared = &self.shared;
        // A leader transfers its leadership (thesis §3.10), so that the others need no time-out.
        shared.core.step([Input::Stop]);
        let deadline = Instant::now() + FINISH_MAX;
        let idle = || shared.core.is_idle() && shared.clients.are_idle();
        // A node that has failed may never become idle: its disk may be the cause.
        while !idle() && Instant::now() < deadline && !shared.stop.has_failed() {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Ends all threads, each after those that feed it.
    fn end(self) -> Result<(), Fatal> {
        let Node { shared, threads, signs, heartbeat, _data_dir } = self;
        // The sockets are shut down first, so that no thread stays in a read or a write. Then all
        // waiting requests are answered, so that no thread of the pool stays with one.
        shared.stop.set();
        shared.core.cancel_all();
        shared.loops.wake();
        shared.pool.join();
        wake_listener(&shared);
        let _ = signs.send(Sign::Stop);
        let _ = heartbeat.try_send(());
        shared.core.stop_links();
        shared.core.poke_alarms();
        // Last the workers: no thread that is left gives them work, and they finish their queues.
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

/// Frees the listener from `accept` by connecting to it, over loopback if it listens on all
/// addresses.
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
