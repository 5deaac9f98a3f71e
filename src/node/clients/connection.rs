//! The rules for a connection that both front ends share: admission, the first byte, time-outs.

use std::io::{self, ErrorKind, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use super::registry::{ConnectedClient, NewConnection};
use crate::node::peers::receiver;
use crate::node::shared::{PanicWatch, Shared};
use crate::protocol::Session;
use crate::service::SessionDriver;
use crate::wire::handshake;

/// The line for a client beyond `--maxclients` (Redis's text).
pub const TOO_MANY_CLIENTS: &[u8] = b"-ERR max number of clients reached\r\n";

/// A client that has taken no byte of its replies for this long is closed.
pub const WRITE_TIMEOUT: Duration = Duration::from_secs(60);

/// A connection beyond `--maxclients` must send its first byte within this time.
pub const FIRST_BYTE_TIMEOUT: Duration = Duration::from_secs(1);

/// A connection that is being closed is read from for this long. If bytes of the client were left
/// unread, the system would reset the connection, and the client would lose its last replies (RFC
/// 9293, §3.6.1; RFC 2525, §2.17).
pub const LINGER: Duration = Duration::from_millis(200);

/// Lets a thread of the pool serve a connection. If that thread panics, the node stops.
///
/// # Errors
/// If the system gives no thread.
pub fn by_the_pool(
    shared: &Arc<Shared>,
    connection: NewConnection,
    serve: fn(&Shared, TcpStream, SocketAddr),
) -> io::Result<()> {
    let for_the_task = Arc::clone(shared);
    let task = move || {
        let watch = PanicWatch(&for_the_task);
        let NewConnection { stream, address, counted } = connection;
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

/// Tells by the first byte whether the other end is a peer; `None` if it has closed. `peek` reads
/// the byte and leaves it in the socket.
///
/// # Errors
/// Those of `peek`: `WouldBlock`, for example, before the first byte has come.
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

/// True if a new connection must send its first byte soon. Beyond `--maxclients` the places are
/// kept for peers, and silent connections must not take them.
pub fn is_crowded(shared: &Shared) -> bool {
    shared.clients.connections() > shared.config.maxclients
}

/// Registers a client and gives it a driver. Tells the client if there are too many.
pub fn admit(
    shared: &Shared,
    stream: &mut impl Write,
    address: SocketAddr,
) -> Option<(Arc<ConnectedClient>, SessionDriver)> {
    let max = shared.config.maxclients;
    // Places beyond `max` are for peers, which have up to two connections each. Once more than that
    // are taken, connections that have not shown whether they are peers fill them. Then no client
    // is admitted, even if fewer than `max` clients are registered.
    let is_full = shared.clients.connections() > max + 2 * shared.config.peers.len();
    let client = shared.clients.enter(address, if is_full { 0 } else { max });
    if client.is_none() {
        let _ = stream.write(TOO_MANY_CLIENTS);
    }
    client.map(|client| {
        let driver = new_driver(shared, &client);
        (client, driver)
    })
}

/// A driver with a new session, for a client that is registered.
pub fn new_driver(shared: &Shared, client: &ConnectedClient) -> SessionDriver {
    let session = Session::new(client.id, Arc::clone(&shared.server_info));
    SessionDriver::new(session, shared.config.request_timeout)
}
