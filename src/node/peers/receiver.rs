//! `reader-p`: a pool thread that serves the stream from peer p. It shakes hands, then decodes
//! frames and steps the core with all messages of one read. It never writes after the handshake.
//!
//! When the stream ends, it connects to the peer's port at once. If that is refused, the peer's
//! process is gone, and the election need not wait for the detector's time-out.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use super::dial::{HANDSHAKE_TIMEOUT, dial, gone, nonce, read_message};
use super::link::LinkNote;
use crate::node::files::IncomingImage;
use crate::node::queues::SnapshotWork;
use crate::node::shared::Shared;
use crate::replica::{Envelope, Input};
use crate::types::NodeId;
use crate::wire::handshake::{self, Acceptor, HandshakeError};
use crate::wire::{Frame, FrameReader};

/// The time that a peer has, after its stream has ended, to refuse a connection.
const PROBE_TIMEOUT: Duration = Duration::from_millis(100);

/// Serves a peer's stream until it ends.
pub fn serve(shared: &Shared, mut stream: &TcpStream, address: SocketAddr) {
    let peer = match accept(shared, &mut stream) {
        Ok(peer) => peer,
        Err(error) => {
            log::warn!(target: "NodeSync", "Peer at {address} refused: {error}");
            return;
        }
    };
    // The peer is there: this node's own link to it need not wait for its back-off to pass.
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

/// Renames the pool's thread while it reads from a peer, so that `ps -T` shows the thread map.
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

/// Shakes hands, and returns the peer's id.
fn accept(shared: &Shared, stream: &mut &TcpStream) -> io::Result<NodeId> {
    stream.set_write_timeout(Some(HANDSHAKE_TIMEOUT))?;
    let hello = read_message(stream)?;
    let members = shared.config.members();
    let accepted = Acceptor::hello(shared.handshake_identity(), &members, nonce()?, &hello);
    let (acceptor, welcome) = accepted.or_else(|error| refuse(stream, error))?;
    stream.write_all(&welcome)?;
    let proof = read_message(stream)?;
    let accepted = acceptor.proof(&proof).or_else(|error| refuse(stream, error))?;
    stream.write_all(&accepted)?;
    // From here on silence is the detector's to judge, not the socket's.
    stream.set_read_timeout(None)?;
    Ok(acceptor.peer())
}

/// Tells the peer why its handshake fails.
fn refuse<T>(stream: &mut &TcpStream, error: HandshakeError) -> io::Result<T> {
    let _ = stream.write_all(&handshake::refusal(&error));
    Err(io::Error::new(ErrorKind::PermissionDenied, error))
}

/// Reads until the stream ends. A frame that cannot be decoded closes this link: its bytes cannot
/// be trusted, nor can the place where the next frame begins.
fn read_frames(shared: &Shared, stream: &mut &TcpStream, peer: NodeId) -> io::Result<()> {
    let invalid = |error| io::Error::new(ErrorKind::InvalidData, error);
    let mut frames = FrameReader::new(shared.frame_bytes_max(), &[]);
    let mut incoming: Option<IncomingImage> = None;
    let mut inputs = Vec::new();
    loop {
        let len = match stream.read(frames.space()) {
            Ok(0) => return Ok(()),
            Ok(len) => len,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        frames.filled(len);
        // Any byte proves that the peer lives, also the middle of a long frame.
        shared.contacts.heard(shared.clock.now(), peer);
        while let Some(frame) = frames.next().map_err(invalid)? {
            match frame {
                Frame::Message(term, message) => {
                    let envelope = Envelope { from: peer, to: shared.id, term, message };
                    inputs.push(Input::Message(envelope));
                }
                Frame::Chunk(chunk) => {
                    let taken = IncomingImage::take(&mut incoming, &shared.images, peer, &chunk);
                    // A snapshot can be sent again: a failed write, on a full disk for example,
                    // costs this attempt and not the link.
                    let complete = taken.unwrap_or_else(|error| {
                        log::warn!(target: "NodeSync", "Cannot store a snapshot's chunk: {error}");
                        incoming = None;
                        None
                    });
                    if let Some(part) = complete {
                        let work = SnapshotWork::Arrived { from: peer, meta: chunk.meta, part };
                        // Fails only if the snapshot thread has ended, and then the node stops.
                        let _ = shared.snapshots.send(work);
                    }
                }
            }
        }
        // One turn for all messages of a read: the core's lock is taken once.
        if !inputs.is_empty() {
            shared.core.step(inputs.drain(..));
        }
    }
}

/// Tests whether the peer's process is gone. Only a refusal proves that; a time-out or another
/// error may be the network.
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
