//! `replicate-p`: the thread that owns the link to peer p. It connects, backs off, and does the
//! part of sending that may block (`link.rs`): it waits for a slow peer, and it sends bulk.
//! Heartbeats and votes go before bulk: a snapshot goes in small chunks, with all other messages in
//! between.

use std::io::{self, ErrorKind, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError};

use super::dial::{dial, gone, nonce, read_message};
use super::link::{LinkNote, PeerLink};
use super::output::LinkOutput;
use crate::config::PeerAddress;
use crate::node::files::OutgoingImage;
use crate::node::shared::Shared;
use crate::replica::Input;
use crate::types::{NodeId, SnapshotMeta};
use crate::wire::encode_chunk;
use crate::wire::handshake::Dialer;

/// The first wait between attempts to connect. Each wait is twice as long as the one before.
const BACK_OFF_MIN: Duration = Duration::from_millis(10);

/// The longest wait between attempts to connect.
const BACK_OFF_MAX: Duration = Duration::from_millis(500);

/// The longest time that one attempt to connect may take.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);

/// A link is closed when its peer has taken no byte for this long. The messages in it are lost, as
/// messages may be: the replica sends again.
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);

/// The node has stopped.
struct Stopped;

/// Keeps a link to the peer until the node ends.
pub fn run(shared: &Shared, peer: &PeerAddress, notes: &Receiver<LinkNote>) {
    let Some(link) = shared.core.link(peer.id) else { return };
    let mut back_off = BACK_OFF_MIN;
    let mut logged: Option<String> = None;
    while !shared.stop.is_set() {
        match connect(shared, peer) {
            Ok(stream) => {
                (back_off, logged) = (BACK_OFF_MIN, None);
                log::debug!(target: "NodeSync", "Connected to {}", peer.id);
                let served = ServingLink { shared, peer: peer.id, link }.run(&stream, notes);
                let image_lost = link.lost();
                match served {
                    Ok(Stopped) => return,
                    Err(error) => {
                        log::debug!(target: "NodeSync", "Link to {} lost: {error}", peer.id);
                    }
                }
                // The leader waits for the end of a snapshot before it sends entries again.
                if image_lost {
                    shared.core.step([Input::SnapshotSent { to: peer.id, sent: false }]);
                }
            }
            // A refusal is the one certain sign: the machine is up, and no process listens.
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => gone(shared, peer.id),
            Err(error) => {
                // The same error repeats at every attempt; log it once. A time-out is silence, and
                // silence is the detector's to log.
                let text = error.to_string();
                if error.kind() != ErrorKind::TimedOut && logged.as_ref() != Some(&text) {
                    log::warn!(target: "NodeSync", "No link to {}: {text}", peer.address());
                    logged = Some(text);
                }
            }
        }
        if wait(notes, back_off).is_err() {
            return;
        }
        back_off = (back_off * 2).min(BACK_OFF_MAX);
    }
}

/// Waits for `duration`, or until the peer has connected to this node.
fn wait(notes: &Receiver<LinkNote>, duration: Duration) -> Result<(), Stopped> {
    let deadline = Instant::now() + duration;
    loop {
        match notes.recv_deadline(deadline) {
            Ok(LinkNote::Stop) | Err(RecvTimeoutError::Disconnected) => return Err(Stopped),
            Ok(LinkNote::Reconnect) => return Ok(()),
            // Without a stream there is no work to do.
            Ok(LinkNote::Work) => {}
            Err(RecvTimeoutError::Timeout) => return Ok(()),
        }
    }
}

/// Connects to the peer and shakes hands.
fn connect(shared: &Shared, peer: &PeerAddress) -> io::Result<Arc<TcpStream>> {
    let refused = |error| io::Error::new(ErrorKind::PermissionDenied, error);
    let connected = Arc::new(dial(peer, CONNECT_TIMEOUT)?);
    // So that a stop does not wait for the handshake's time-out.
    let _registered = shared.stop.register(&connected);
    let mut stream = &*connected;
    stream.set_nodelay(true)?;
    stream.set_write_timeout(Some(WRITE_TIMEOUT))?;
    let (dialer, hello) = Dialer::hello(shared.handshake_identity(), peer.id, nonce()?);
    stream.write_all(&hello)?;
    let (_, proof) = dialer.welcome(&read_message(&mut stream)?).map_err(refused)?;
    stream.write_all(&proof)?;
    Dialer::finish(&read_message(&mut stream)?).map_err(refused)?;
    Ok(connected)
}

/// A link with a stream.
struct ServingLink<'a> {
    shared: &'a Shared,
    peer: NodeId,
    link: &'a PeerLink,
}

impl ServingLink<'_> {
    /// Sends to the peer until the stream fails or the node ends.
    fn run(&self, stream: &Arc<TcpStream>, notes: &Receiver<LinkNote>) -> io::Result<Stopped> {
        let core = &self.shared.core;
        let _registered = self.shared.stop.register(stream);
        self.link.connected(stream);
        core.step([Input::LinkUp(self.peer)]);
        loop {
            let pull = |bytes_max| core.pull(self.peer, bytes_max);
            self.link.work(pull, |output| self.write(output))?;
            match notes.recv() {
                // The peer may have reconnected because this stream is broken. Then the next write
                // to it fails.
                Ok(LinkNote::Work | LinkNote::Reconnect) => {}
                Ok(LinkNote::Stop) | Err(_) => return Ok(Stopped),
            }
        }
    }

    /// Writes the output, with the next chunk of a snapshot behind it. One chunk at a time: the
    /// caller gathers new messages before the next one.
    fn write(&self, output: &mut LinkOutput) -> io::Result<()> {
        if let Some(meta) = output.image_wanted.take() {
            self.open_image(output, meta);
        }
        if let Some((term, image)) = &mut output.image {
            match image.next(*term)? {
                Some(chunk) => encode_chunk(&chunk, &mut output.out),
                None => {
                    output.image = None;
                    self.image_ended(true);
                }
            }
        }
        output.write()
    }

    fn open_image(&self, output: &mut LinkOutput, meta: SnapshotMeta) {
        match self.shared.images.open_to_send(meta, OutgoingImage::CHUNK_BYTES) {
            Ok(image) => {
                let (index, peer) = (meta.index, self.peer);
                log::info!(target: "NodeSync", "Sending the snapshot at index {index} to {peer}");
                output.image = Some((self.shared.core.status().term, image));
            }
            Err(error) => {
                // A newer snapshot has replaced this one since it was pulled. Once the replica
                // knows that the sending has failed, it asks for the newer one.
                log::debug!(target: "NodeSync", "Cannot send a snapshot: {error}");
                self.image_ended(false);
            }
        }
    }

    /// Tells the replica. It is safe to step the core with the output locked: see the lock order.
    fn image_ended(&self, sent: bool) {
        self.shared.core.step([Input::SnapshotSent { to: self.peer, sent }]);
    }
}
