//! A connection before a front end has it, and the rules that both front ends share: admission, the
//! first byte, time-outs.

use std::io::{self, ErrorKind, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use super::registry::{Client, Counted};
use crate::node::peers::receiver;
use crate::node::shared::{PanicWatch, Shared};
use crate::protocol::Session;
use crate::service::SessionDriver;
use crate::wire::handshake;

/// The line for a client that comes when `--maxclients` are there.
pub const TOO_MANY_CLIENTS: &[u8] = b"-ERR max number of clients reached\r\n";

/// A client that takes nothing of what is written to it for this long is closed.
pub const WRITE_TIMEOUT: Duration = Duration::from_secs(60);

/// A connection beyond `--maxclients` must send its first byte within this time.
pub const FIRST_BYTE_TIMEOUT: Duration = Duration::from_secs(1);

/// A connection that is being closed is read from for this long, so that the client can still read
/// its last replies: if bytes of the client were left unread, the system would reset the connection
/// and discard those replies.
pub const LINGER: Duration = Duration::from_millis(200);

/// A new connection.
pub struct Connection {
    /// The socket.
    pub stream: TcpStream,
    /// The other end's address.
    pub address: SocketAddr,
    /// Counts it as long as it lives.
    pub counted: Counted,
}

/// Has a thread of the pool serve a connection. If that thread panics, the node stops.
///
/// # Errors
/// If the system gives no thread.
pub fn by_the_pool(
    shared: &Arc<Shared>,
    connection: Connection,
    serve: fn(&Shared, TcpStream, SocketAddr),
) -> io::Result<()> {
    let for_the_task = Arc::clone(shared);
    let task = move || {
        let watch = PanicWatch(&for_the_task);
        let Connection { stream, address, counted } = connection;
        serve(watch.0, stream, address);
        drop(counted);
    };
    shared.pool.run(Box::new(task))
}

/// Serves a peer until its stream ends.
pub fn serve_peer(shared: &Shared, stream: TcpStream, address: SocketAddr) {
    let stream = Arc::new(stream);
    let _registered = shared.stop.register(&stream);
    receiver::serve(shared, &stream, address);
}

/// Tells by the first byte whether the other end is a peer: `None` if it has gone. `peek` looks at
/// the bytes and leaves them there.
///
/// # Errors
/// Those of `peek`, such as `WouldBlock` while nothing has come.
pub fn is_peer(peek: impl Fn(&mut [u8]) -> io::Result<usize>) -> io::Result<Option<bool>> {
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

/// True if a new connection must not stay silent for long: silent connections beyond the clients'
/// places must not keep a peer from its own.
pub fn is_crowded(shared: &Shared) -> bool {
    shared.clients.connections() > shared.config.maxclients
}

/// Takes a client in, or tells it that there are too many.
pub fn admit(
    shared: &Shared,
    stream: &mut impl Write,
    address: SocketAddr,
) -> Option<(Arc<Client>, SessionDriver)> {
    let max = shared.config.maxclients;
    // The places beyond the clients' are for peers, each of which has two connections at times.
    // Once silent connections fill them, no further client is taken in.
    let full = shared.clients.connections() > max + 2 * shared.config.peers.len();
    let client = shared.clients.enter(address, if full { 0 } else { max });
    if client.is_none() {
        let _ = stream.write(TOO_MANY_CLIENTS);
    }
    client.map(|client| {
        let driver = new_driver(shared, &client);
        (client, driver)
    })
}

/// A driver with a new session for a client.
pub fn new_driver(shared: &Shared, client: &Client) -> SessionDriver {
    let session = Session::new(client.id, Arc::clone(&shared.server_info));
    SessionDriver::new(session, shared.config.request_timeout)
}
