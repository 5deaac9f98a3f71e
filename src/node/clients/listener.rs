//! The listener thread: accepts a connection and gives it to the front end. It never reads and
//! never waits for a client. A connection beyond the limit gets one line and is closed.

use std::io::{self, ErrorKind, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};

use super::connection::{TOO_MANY_CLIENTS, by_the_pool};
use super::registry::NewConnection;
use super::threads;
use crate::config::Io;
use crate::node::shared::Shared;

/// Connections that the system keeps for the next `accept`.
const BACKLOG: i32 = 1024;

/// After this long a silence, the system probes whether the other end still exists.
const KEEPALIVE: Duration = Duration::from_secs(300);

/// Connections that are served beyond `maxclients`. Only its first byte tells a peer from a client,
/// so a peer must be accepted first; and a client that is refused must be able to read why.
const RESERVED: usize = 64;

/// Binds and listens, but does not accept yet. The address may have been in use a moment ago, by an
/// earlier process.
///
/// # Errors
/// The system's: the address may be in use.
pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Descriptors that a node needs beside its clients': files, links, the listener.
const OTHER_DESCRIPTORS: usize = 256;

/// Raises the process's limit on open descriptors as far as `maxclients` needs and the system
/// allows. Logs a warning if that is not enough.
pub fn raise_descriptor_limit(maxclients: usize) {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let needed = (maxclients + RESERVED + OTHER_DESCRIPTORS) as u64;
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current.is_none_or(|current| current >= needed) {
        return;
    }
    let wanted = maximum.map_or(needed, |maximum| maximum.min(needed));
    let raised = setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum });
    if raised.is_err() || wanted < needed {
        log::warn!(
            target: "NodeSync",
            "--maxclients {maxclients} needs {needed} descriptors, the system gives {wanted}: \
             raise the limit (ulimit -n) or lower --maxclients"
        );
    }
}

/// Accepts until the node ends.
pub fn run(shared: &Arc<Shared>, listener: &TcpListener) {
    while !shared.stop.is_set() {
        match listener.accept() {
            // The connection by which the node wakes this thread, or one that came too late.
            Ok((stream, _)) if shared.stop.is_set() => drop(stream),
            Ok((stream, address)) => admit(shared, stream, address),
            Err(error) if is_about_one_connection(error.kind()) => {}
            Err(error) => {
                // Most likely no descriptor is left. The connection stays in the backlog, and a
                // retry without a pause would use up a processor. Clients that leave give
                // descriptors back.
                log::warn!(target: "NodeSync", "Cannot accept: {error}");
                if shared.stop.wait_for(Duration::from_millis(100)) {
                    return;
                }
            }
        }
    }
}

/// True if this connection has failed, and not the listener.
fn is_about_one_connection(kind: ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset | ErrorKind::Interrupted
    )
}

/// Gives a new connection to the front end, or refuses it.
fn admit(shared: &Arc<Shared>, stream: TcpStream, address: SocketAddr) {
    if shared.clients.connections() >= shared.config.maxclients + RESERVED {
        return refuse(&stream);
    }
    // Replies are written when they are complete, so Nagle's algorithm (RFC 896) would only delay.
    let _ = stream.set_nodelay(true);
    let keepalive = TcpKeepalive::new().with_time(KEEPALIVE);
    let _ = SockRef::from(&stream).set_tcp_keepalive(&keepalive);
    if let Err(error) = hand_over(shared, stream, address) {
        log::warn!(target: "NodeSync", "Cannot serve {address}: {error}");
    }
}

/// Gives a new connection to the front end of `--io`.
///
/// # Errors
/// If the system has no thread for it.
pub fn hand_over(shared: &Arc<Shared>, stream: TcpStream, address: SocketAddr) -> io::Result<()> {
    let connection = NewConnection { stream, address, counted: shared.clients.connect() };
    match shared.config.io {
        Io::Threads => by_the_pool(shared, connection, threads::serve),
        Io::Poll => shared.loops.take(connection),
    }
}

/// Tells the client why it is refused, and closes. Never waits: the listener serves all
/// connections.
fn refuse(stream: &TcpStream) {
    let _ = stream.set_nonblocking(true);
    let _ = (&*stream).write(TOO_MANY_CLIENTS);
}
