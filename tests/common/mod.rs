//! Shared parts of the tests that use real sockets, files and processes: clusters of real processes
//! on free ports ([`cluster`]), two small blocking clients ([`client`]), a load that checks every
//! reply ([`load`]), misbehaving clients ([`rude`]), and the program's tools ([`tool`]).
//!
//! Rules: a test first says whether other tests may run beside it ([`alone`], [`shared`]). It waits
//! by polling with a deadline ([`eventually`]); it never sleeps for a fixed time in the hope that
//! the time suffices. The operating system chooses the ports, and each stays reserved as long as it
//! is needed. A test ends only processes that it started, by their handles.

#![allow(dead_code, reason = "each test uses its own part of this")]

pub mod client;
pub mod cluster;
pub mod load;
pub mod rude;
pub mod tool;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use parking_lot::{RwLock, RwLockReadGuard, RwLockWriteGuard};
use socket2::{Domain, Socket, Type};

/// Deadline for events that take moments on an idle machine; generous, because machines are not
/// idle.
pub const SOON: Duration = Duration::from_secs(30);

/// Polls until there is a value, and returns it.
///
/// # Panics
/// If there is none within `limit`.
pub fn eventually<T>(what: &str, limit: Duration, mut poll: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(value) = poll() {
            return value;
        }
        assert!(started.elapsed() < limit, "not within {limit:?}: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Lock on the machine, shared by the tests of one binary. Cargo runs the binaries one after the
/// other.
static MACHINE: RwLock<()> = RwLock::new(());

/// Reserves the machine for a test that measures time or loads all processors: no other test of
/// the binary runs beside it.
pub fn alone() -> RwLockWriteGuard<'static, ()> {
    MACHINE.write()
}

/// Lets a test run beside others that call `shared`, and beside none that calls [`alone`].
pub fn shared() -> RwLockReadGuard<'static, ()> {
    MACHINE.read()
}

/// Path of the program under test. Cargo builds it for the tests of its own package; the benches
/// are a package of their own and build it here, once.
///
/// # Panics
/// If it cannot be built.
pub fn binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| match option_env!("CARGO_BIN_EXE_nodesync") {
        Some(path) => path.into(),
        None => built(),
    })
}

/// Builds the release program. It lies beside the directory `deps`, which holds this executable.
fn built() -> PathBuf {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["build", "--release", "--package", "nodesync"]);
    let status = cargo.current_dir(env!("CARGO_MANIFEST_DIR")).status().unwrap();
    assert!(status.success(), "nodesync cannot be built");
    let this = std::env::current_exe().unwrap();
    this.ancestors().nth(2).unwrap().join("nodesync")
}

/// True if `NODESYNC_LONG=1` selects the long version of a test.
pub fn long() -> bool {
    std::env::var("NODESYNC_LONG").is_ok_and(|value| value == "1")
}

/// Free port of 127.0.0.1, reserved while the value lives.
///
/// A socket holds the port: it is bound and does not listen. A server that reuses addresses, as
/// ours does, can bind beside it and listen. The system gives the port to no other process, neither
/// as a free port nor as the source of a connection. A connection to it is refused while no server
/// listens.
#[derive(Debug)]
pub struct Port {
    /// Port number.
    pub number: u16,
    _hold: Socket,
}

impl Port {
    /// Reserves one port.
    pub fn take() -> Port {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.set_reuse_address(true).unwrap();
        let any: std::net::SocketAddr = ([127, 0, 0, 1], 0).into();
        socket.bind(&any.into()).unwrap();
        let number = socket.local_addr().unwrap().as_socket().unwrap().port();
        Port { number, _hold: socket }
    }

    /// Reserves `count` ports, in ascending order.
    pub fn take_many(count: usize) -> Vec<Port> {
        let mut ports: Vec<Port> = (0..count).map(|_| Port::take()).collect();
        ports.sort_by_key(|port| port.number);
        ports
    }
}
