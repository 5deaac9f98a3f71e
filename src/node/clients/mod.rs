//! The front ends: how clients' bytes come in and replies go out. Both drive the same [`Desk`]s.
//!
//! - `threads.rs`: a blocking pool thread for each live client (`--io threads`);
//! - `poll.rs`: a few loops, each of which serves many clients through readiness, and asks the core
//!   once for all that a round of them has brought (`--io poll`).
//!
//! The listener hands each connection to [`serve`]. Who is at the other end, its first byte tells.
//! A peer always gets a thread of the pool (`reader.rs`).

mod external;
pub mod listener;
mod loops;
mod mailbox;
mod pool;
pub mod registry;
#[cfg(test)]
mod tests;
mod threads;
pub mod waiter;

use std::io::{self, ErrorKind, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use crate::config::Io;
use crate::node::peers::receiver;
use crate::node::{PanicWatch, Shared};
use crate::service::driver::Desk;
use crate::wire::handshake;
pub use external::{ExternalClient, Step};
pub use mailbox::Loops;
pub use pool::Pool;
use registry::Counted;
pub use registry::{Client, Clients};

/// What a client reads that comes when `--maxclients` are there.
pub const TOO_MANY_CLIENTS: &[u8] = b"-ERR max number of clients reached\r\n";

/// How long a client may take nothing of what is written to it.
const WRITE_TIMEOUT: Duration = Duration::from_secs(60);

/// How long a connection beyond `--maxclients` may be silent at first.
const FIRST_BYTE_TIMEOUT: Duration = Duration::from_secs(1);

/// How long a connection that is being closed is read from, so that the client can still read what
/// was written: what it has sent and nobody reads would make the system reset the connection and
/// discard the last reply.
const LINGER: Duration = Duration::from_millis(200);

/// A new connection.
pub struct Connection {
    stream: TcpStream,
    address: SocketAddr,
    /// Counts it.
    counted: Counted,
}

/// Serves a new connection by a thread of the pool or by a loop.
///
/// # Errors
/// If there is no thread for it.
pub fn serve(shared: &Arc<Shared>, stream: TcpStream, address: SocketAddr) -> io::Result<()> {
    let connection = Connection { stream, address, counted: shared.clients.connect() };
    match shared.config.io {
        Io::Threads => by_the_pool(shared, connection, threads::serve),
        Io::Poll => shared.loops.take(connection),
    }
}

/// Has a thread of the pool serve a connection. If that thread panics, the node stops.
fn by_the_pool(
    shared: &Arc<Shared>,
    connection: Connection,
    serve: fn(&Shared, TcpStream, SocketAddr),
) -> io::Result<()> {
    let shared_too = Arc::clone(shared);
    let task = move || {
        let watch = PanicWatch(&shared_too);
        let Connection { stream, address, counted } = connection;
        serve(watch.0, stream, address);
        drop(counted);
    };
    shared.pool.run(Box::new(task))
}

/// Serves a peer until its stream ends.
fn serve_peer(shared: &Shared, stream: TcpStream, address: SocketAddr) {
    let stream = Arc::new(stream);
    let _registered = shared.stop.register(&stream);
    receiver::serve(shared, &stream, address);
}

/// Whether the other end is a peer; `None` if it has gone, or an error if it has said nothing yet.
/// `peek` looks at what has come and leaves it there.
fn is_peer(peek: impl Fn(&mut [u8]) -> io::Result<usize>) -> io::Result<Option<bool>> {
    let mut first = [0];
    loop {
        match peek(&mut first) {
            Ok(0) => return Ok(None),
            Ok(_) => return Ok(Some(first[0] == handshake::MAGIC_BYTE)),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// True if a new connection must not be silent for long: what is silent beyond the clients' places
/// must not keep a peer from its own.
fn is_crowded(shared: &Shared) -> bool {
    shared.clients.connections() > shared.config.maxclients
}

/// Takes a client in, unless there are too many: then it is told so. The places beyond the clients'
/// are for peers, even where silent connections hold clients'.
fn admit(shared: &Shared, stream: &mut impl Write, address: SocketAddr) -> Option<Desk> {
    let max = shared.config.maxclients;
    let full = shared.clients.connections() > max + 2 * shared.config.peers.len();
    let client = shared.clients.enter(address, if full { 0 } else { max });
    if client.is_none() {
        let _ = stream.write(TOO_MANY_CLIENTS);
    }
    client.map(|client| Desk::new(shared, client))
}
