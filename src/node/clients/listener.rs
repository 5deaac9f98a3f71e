//! The listener thread: accepts, hands the connection to the front end, and never reads or waits
//! for a client. Beyond the limit a connection gets one line and is closed.

use std::io::{self, ErrorKind, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};

use super::connection::{Connection, TOO_MANY_CLIENTS, by_the_pool};
use super::threads;
use crate::config::Io;
use crate::node::shared::Shared;

const BACKLOG: i32 = 1024;

/// How long a connection may be silent before the system asks whether the other end still exists.
const KEEPALIVE: Duration = Duration::from_secs(300);

/// Connections that are served beyond `maxclients`, so that peers, which are told apart only by
/// their first byte, and a client that shall read why it is refused, find a thread.
pub const RESERVED: usize = 64;

/// Binds without accepting yet. The address may be reused at once after an earlier process.
pub fn bind(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Descriptors that a node needs beside its clients': files, links, the listener.
const OTHER_DESCRIPTORS: usize = 256;

/// Raises the process's limit on open descriptors as far as `maxclients` needs and the system lets
/// it; says so if that is not enough.
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
            Ok((stream, _)) if shared.stop.is_set() => drop(stream),
            Ok((stream, address)) => admit(shared, stream, address),
            Err(error) if is_about_one_connection(error.kind()) => {}
            Err(error) => {
                // Mostly: no descriptor left. Others will be closed; until then, accept no faster.
                log::warn!(target: "NodeSync", "Cannot accept: {error}");
                if shared.stop.wait_for(Duration::from_millis(100)) {
                    return;
                }
            }
        }
    }
}

fn is_about_one_connection(kind: ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset | ErrorKind::Interrupted
    )
}

fn admit(shared: &Arc<Shared>, stream: TcpStream, address: SocketAddr) {
    if shared.clients.connections() >= shared.config.maxclients + RESERVED {
        return refuse(&stream);
    }
    let _ = stream.set_nodelay(true);
    let keepalive = TcpKeepalive::new().with_time(KEEPALIVE);
    let _ = SockRef::from(&stream).set_tcp_keepalive(&keepalive);
    if let Err(error) = hand_over(shared, stream, address) {
        log::warn!(target: "NodeSync", "Cannot serve {address}: {error}");
    }
}

/// Hands a new connection to the front end.
///
/// # Errors
/// If there is no thread for it.
pub fn hand_over(shared: &Arc<Shared>, stream: TcpStream, address: SocketAddr) -> io::Result<()> {
    let connection = Connection { stream, address, counted: shared.clients.connect() };
    match shared.config.io {
        Io::Threads => by_the_pool(shared, connection, threads::serve),
        Io::Poll => shared.loops.take(connection),
    }
}

/// Says why and closes, without waiting for anyone.
fn refuse(stream: &TcpStream) {
    let _ = stream.set_nonblocking(true);
    let _ = (&*stream).write(TOO_MANY_CLIENTS);
}
