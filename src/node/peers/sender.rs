//! `replicate-p`: owns the link to peer p. Connects and backs off, and does what those who post
//! messages (`link.rs`) must not: it waits for a peer that takes its time, and sends what is bulk.
//! Beats and votes go before bulk, and a snapshot goes in small chunks with everything else in
//! between.

use std::io::{self, ErrorKind, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError};

use super::dial::{dial, gone, nonce, read_message};
use super::link::{Line, Link, LinkNote};
use crate::config::PeerAddress;
use crate::node::queues::Outgoing;
use crate::node::shared::Shared;
use crate::replica::Input;
use crate::types::{NodeId, SnapshotMeta};
use crate::wire::encode_chunk;
use crate::wire::handshake::Dialer;

/// The first and the longest wait between attempts to connect.
const BACK_OFF_MIN: Duration = Duration::from_millis(10);
const BACK_OFF_MAX: Duration = Duration::from_millis(500);

const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);

/// How long a peer may take nothing of what is written to it before the link is given up.
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);

/// What ends a link for good.
struct Stopped;

/// Keeps the peer supplied until the node ends.
pub fn run(shared: &Shared, peer: &PeerAddress, notes: &Receiver<LinkNote>) {
    let Some(link) = shared.core.link(peer.id) else { return };
    let mut back_off = BACK_OFF_MIN;
    let mut told: Option<String> = None;
    while !shared.stop.is_set() {
        match connect(shared, peer) {
            Ok(stream) => {
                (back_off, told) = (BACK_OFF_MIN, None);
                log::debug!(target: "NodeSync", "Connected to {}", peer.id);
                let served = Serving { shared, peer: peer.id, link }.run(&stream, notes);
                let image_lost = link.lost();
                match served {
                    Ok(Stopped) => return,
                    Err(error) => {
                        log::debug!(target: "NodeSync", "Link to {} lost: {error}", peer.id);
                    }
                }
                if image_lost {
                    shared.core.step([Input::SnapshotSent { to: peer.id, sent: false }]);
                }
            }
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => gone(shared, peer.id),
            Err(error) => {
                // Said once, not twice a second.
                let text = error.to_string();
                if error.kind() != ErrorKind::TimedOut && told.as_ref() != Some(&text) {
                    log::warn!(target: "NodeSync", "No link to {}: {text}", peer.address());
                    told = Some(text);
                }
            }
        }
        if wait(notes, back_off).is_err() {
            return;
        }
        back_off = (back_off * 2).min(BACK_OFF_MAX);
    }
}

/// Lets `duration` pass, or less if the peer itself has connected.
fn wait(notes: &Receiver<LinkNote>, duration: Duration) -> Result<(), Stopped> {
    let deadline = Instant::now() + duration;
    loop {
        match notes.recv_deadline(deadline) {
            Ok(LinkNote::Stop) | Err(RecvTimeoutError::Disconnected) => return Err(Stopped),
            Ok(LinkNote::Reconnect) => return Ok(()),
            Ok(_) => {}
            Err(RecvTimeoutError::Timeout) => return Ok(()),
        }
    }
}

fn connect(shared: &Shared, peer: &PeerAddress) -> io::Result<Arc<TcpStream>> {
    let refused = |error| io::Error::new(ErrorKind::PermissionDenied, error);
    let connected = Arc::new(dial(peer, CONNECT_TIMEOUT)?);
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

/// A link that is established.
struct Serving<'a> {
    shared: &'a Shared,
    peer: NodeId,
    link: &'a Link,
}

impl Serving<'_> {
    fn run(&self, stream: &Arc<TcpStream>, notes: &Receiver<LinkNote>) -> io::Result<Stopped> {
        let core = &self.shared.core;
        let _registered = self.shared.stop.register(stream);
        self.link.connected(stream);
        core.step([Input::LinkUp(self.peer)]);
        loop {
            let pull = |bytes_max| core.pull(self.peer, bytes_max);
            self.link.work(pull, |line| self.write(line))?;
            match notes.recv() {
                Ok(LinkNote::Work | LinkNote::Reconnect) => {}
                Ok(LinkNote::Stop) | Err(_) => return Ok(Stopped),
            }
        }
    }

    /// Writes what is in the line, and the next chunk of a snapshot.
    fn write(&self, line: &mut Line) -> io::Result<()> {
        if let Some(meta) = line.image_wanted.take() {
            self.open_image(line, meta);
        }
        if let Some((term, image)) = &mut line.image {
            match image.next(*term)? {
                Some(chunk) => encode_chunk(&chunk, &mut line.out),
                None => {
                    line.image = None;
                    self.image_ended(true);
                }
            }
        }
        line.write()
    }

    fn open_image(&self, line: &mut Line, meta: SnapshotMeta) {
        match self.shared.images.open_to_send(meta, Outgoing::CHUNK_BYTES) {
            Ok(image) => {
                let (index, peer) = (meta.index, self.peer);
                log::info!(target: "NodeSync", "Sending the snapshot at index {index} to {peer}");
                line.image = Some((self.shared.core.status().term, image));
            }
            Err(error) => {
                // A newer one has taken its place: the next attempt finds that.
                log::debug!(target: "NodeSync", "Cannot send a snapshot: {error}");
                self.image_ended(false);
            }
        }
    }

    fn image_ended(&self, sent: bool) {
        self.shared.core.step([Input::SnapshotSent { to: self.peer, sent }]);
    }
}
