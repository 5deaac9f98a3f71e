//! Connecting to a peer and the handshake's bytes, for the sender and the receiver.

use std::io::{self, ErrorKind, Read};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

use super::contacts::Sign;
use crate::config::PeerAddress;
use crate::node::shared::Shared;
use crate::types::NodeId;
use crate::wire::handshake;

/// The longest time that one message of a handshake may take.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(2);

/// Connects to a peer. Tries each address of its name until one answers, for `timeout` each.
pub fn dial(peer: &PeerAddress, timeout: Duration) -> io::Result<TcpStream> {
    let mut last = io::Error::new(ErrorKind::NotFound, "the name has no address");
    for address in peer.address().to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, timeout) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Random bytes for one handshake, so that a recorded handshake cannot be replayed.
pub fn nonce() -> io::Result<[u8; 16]> {
    let mut nonce = [0; 16];
    getrandom::fill(&mut nonce).map_err(io::Error::other)?;
    Ok(nonce)
}

/// Reads one message of a handshake, all of it within [`HANDSHAKE_TIMEOUT`].
pub fn read_message(stream: &mut &TcpStream) -> io::Result<Vec<u8>> {
    let deadline = Instant::now() + HANDSHAKE_TIMEOUT;
    let mut head = [0; handshake::HEAD_LEN];
    read_by(stream, &mut head, deadline)?;
    let invalid = |error| io::Error::new(ErrorKind::InvalidData, error);
    let len = handshake::message_len(&head).map_err(invalid)?;
    let mut message = head.to_vec();
    message.resize(len, 0);
    read_by(stream, &mut message[handshake::HEAD_LEN..], deadline)?;
    Ok(message)
}

/// Fills `bytes` before `deadline`. The time for each read shrinks with what is left, so a peer
/// that sends byte by byte gains no time.
fn read_by(stream: &mut &TcpStream, mut bytes: &mut [u8], deadline: Instant) -> io::Result<()> {
    while !bytes.is_empty() {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(bytes) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(len) => bytes = &mut bytes[len..],
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Reports to the detector that a peer's port refuses connections.
pub fn gone(shared: &Shared, peer: NodeId) {
    shared.contacts.tell(Sign::Refused(peer));
}
