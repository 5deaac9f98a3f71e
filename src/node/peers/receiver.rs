//! `reader-p`: the pool thread that turned out to serve a peer. Shakes hands, then decodes frames
//! and steps the core with all that one read has brought. Never writes after the handshake.
//!
//! When the stream ends it asks the peer's port at once: a refused connection means that the
//! process is gone, and nobody need wait for a time-out.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use crate::node::peers::detector::Sign;
use crate::node::peers::link::LinkNote;
use crate::node::peers::sender::{dial, nonce};
use crate::node::workers::snapshot::{Incoming, SnapshotWork};
use crate::node::{Shared, listener};
use crate::replica::{Envelope, Input};
use crate::types::NodeId;
use crate::wire::handshake::{self, Acceptor, HandshakeError};
use crate::wire::{Frame, FrameReader};

/// How long each of a handshake's two exchanges may take.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(2);

/// How long a peer whose stream has ended is given to refuse a connection.
const PROBE_TIMEOUT: Duration = Duration::from_millis(100);

/// Serves a peer's stream until it ends.
pub fn serve(shared: &Shared, mut stream: &TcpStream, address: SocketAddr) {
    let peer = match accept(shared, &mut stream) {
        Ok(peer) => peer,
        Err(error) => {
            log::warn!(target: "NodeSync", "Peer at {address} turned away: {error}");
            return;
        }
    };
    if let Some(link) = shared.core.link(peer) {
        link.note(LinkNote::Reconnect);
    }
    let _name = ThreadName::set(&format!("reader-{peer}"));
    if let Err(error) = read_frames(shared, &mut stream, peer)
        && !shared.stop.is_set()
    {
        log::warn!(target: "NodeSync", "Link from {peer} closed: {error}");
    }
    probe(shared, peer);
}

/// Renames the pool's thread while it reads for a peer (`ps -T` shows the design).
struct ThreadName;

impl ThreadName {
    fn set(name: &str) -> ThreadName {
        set_thread_name(name);
        ThreadName
    }
}

impl Drop for ThreadName {
    fn drop(&mut self) {
        set_thread_name(std::thread::current().name().unwrap_or("client"));
    }
}

/// Shows `name` in the system's list of threads, where a thread can be renamed after its start.
#[cfg(target_os = "linux")]
fn set_thread_name(name: &str) {
    if let Ok(name) = std::ffi::CString::new(name) {
        let _ = rustix::thread::set_name(&name);
    }
}

#[cfg(not(target_os = "linux"))]
fn set_thread_name(_name: &str) {}

fn accept(shared: &Shared, stream: &mut &TcpStream) -> io::Result<NodeId> {
    stream.set_write_timeout(Some(HANDSHAKE_TIMEOUT))?;
    let hello = read_message(stream)?;
    let members = shared.config.members();
    let accepted = Acceptor::hello(shared.handshake_identity(), &members, nonce()?, &hello);
    let (acceptor, welcome) = accepted.or_else(|error| turn_away(stream, error))?;
    stream.write_all(&welcome)?;
    let proof = read_message(stream)?;
    let accepted = acceptor.proof(&proof).or_else(|error| turn_away(stream, error))?;
    stream.write_all(&accepted)?;
    stream.set_read_timeout(None)?;
    Ok(acceptor.peer())
}

fn turn_away<T>(stream: &mut &TcpStream, error: HandshakeError) -> io::Result<T> {
    let _ = stream.write_all(&handshake::refusal(&error));
    Err(io::Error::new(ErrorKind::PermissionDenied, error))
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

/// Fills `bytes` until `deadline`, however slowly they trickle.
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

fn read_frames(shared: &Shared, stream: &mut &TcpStream, peer: NodeId) -> io::Result<()> {
    let invalid = |error| io::Error::new(ErrorKind::InvalidData, error);
    let mut frames = FrameReader::new(shared.frame_bytes_max(), &[]);
    let mut incoming: Option<Incoming> = None;
    let mut inputs = Vec::new();
    loop {
        let len = match stream.read(frames.space()) {
            Ok(0) => return Ok(()),
            Ok(len) => len,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        frames.filled(len);
        shared.contacts.heard(shared.clock.now(), peer);
        while let Some(frame) = frames.next().map_err(invalid)? {
            match frame {
                Frame::Message(term, message) => {
                    let envelope = Envelope { from: peer, to: shared.id, term, message };
                    inputs.push(Input::Message(envelope));
                }
                Frame::Chunk(chunk) => {
                    let taken = Incoming::take(&mut incoming, &shared.images, peer, &chunk);
                    let complete = taken.unwrap_or_else(|error| {
                        log::warn!(target: "NodeSync", "Cannot keep a snapshot: {error}");
                        incoming = None;
                        None
                    });
                    if let Some(part) = complete {
                        let work = SnapshotWork::Arrived { from: peer, meta: chunk.meta, part };
                        // The receiver is gone only when the node has stopped.
                        let _ = shared.snapshots.send(work);
                    }
                }
            }
        }
        if !inputs.is_empty() {
            shared.core.step(inputs.drain(..));
        }
    }
}

/// Finds out whether the peer's process is gone.
fn probe(shared: &Shared, peer: NodeId) {
    if shared.stop.is_set() {
        return;
    }
    let Some(peer) = shared.config.peers.iter().find(|known| known.id == peer) else { return };
    match dial(peer, PROBE_TIMEOUT) {
        Ok(stream) => drop(stream),
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => gone(shared, peer.id),
        Err(_) => {}
    }
}

/// Tells everyone that a peer's port refuses connections.
pub fn gone(shared: &Shared, peer: NodeId) {
    shared.contacts.tell(Sign::Refused(peer));
}

/// Connections beyond the clients' that the listener keeps room for: two for each peer are used.
const _: () = assert!(listener::RESERVED >= 2);
