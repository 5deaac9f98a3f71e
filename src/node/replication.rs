//! `replicate-p`: owns the stream to peer p. Connects and backs off, sends what the core has
//! queued, then whatever the core has gathered for the peer, in as few writes as possible. Beats
//! and votes go before bulk, and a snapshot goes in small chunks with everything else in between.

use std::io::{self, ErrorKind, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError};

use super::Shared;
use super::queues::{LinkQueue, LinkWork};
use super::reader::{gone, read_message};
use super::snapshot::Outgoing;
use crate::config::Peer;
use crate::replica::{Envelope, Input, Pull};
use crate::wire::handshake::Dialer;
use crate::wire::{encode, encode_chunk};

/// Bytes of entries or proposals in one message.
const MESSAGE_BYTES: usize = 1 << 20;

/// Bytes that are gathered for one write.
const WRITE_BYTES: usize = 1 << 20;

/// The first and the longest wait between attempts to connect.
const BACK_OFF_MIN: Duration = Duration::from_millis(10);
const BACK_OFF_MAX: Duration = Duration::from_millis(500);

const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);

/// How long a peer may take nothing of what is written to it before the link is given up.
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);

/// What ends a link for good.
struct Stopped;

/// Keeps the peer supplied until the node ends.
pub fn run(shared: &Shared, peer: &Peer, work: &Receiver<LinkWork>) {
    let Some(queue) = shared.core.link(peer.id) else { return };
    let mut back_off = BACK_OFF_MIN;
    let mut told: Option<String> = None;
    while !shared.stop.is_set() {
        match connect(shared, peer) {
            Ok(stream) => {
                (back_off, told) = (BACK_OFF_MIN, None);
                log::debug!(target: "NodeSync", "Connected to {}", peer.id);
                let mut link = Link { shared, peer, queue, stream, out: Vec::new(), image: None };
                match link.serve(work) {
                    Ok(Stopped) => return,
                    Err(error) => {
                        log::debug!(target: "NodeSync", "Link to {} lost: {error}", peer.id);
                        link.abandon_image();
                    }
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
        if wait(work, back_off).is_err() {
            return;
        }
        back_off = (back_off * 2).min(BACK_OFF_MAX);
    }
}

/// Lets `duration` pass, or less if the peer itself has connected; what else is queued meanwhile
/// has no link to go by, and is dropped.
fn wait(work: &Receiver<LinkWork>, duration: Duration) -> Result<(), Stopped> {
    let deadline = Instant::now() + duration;
    loop {
        match work.recv_deadline(deadline) {
            Ok(LinkWork::Stop) | Err(RecvTimeoutError::Disconnected) => return Err(Stopped),
            Ok(LinkWork::Reconnect) => return Ok(()),
            Ok(_) => {}
            Err(RecvTimeoutError::Timeout) => return Ok(()),
        }
    }
}

/// Connects to a peer: to each address that its name has, until one answers.
pub fn dial(peer: &Peer, timeout: Duration) -> io::Result<TcpStream> {
    let mut last = io::Error::new(ErrorKind::NotFound, "the name has no address");
    for address in peer.address().to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, timeout) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Random bytes that are used once.
pub fn nonce() -> io::Result<[u8; 16]> {
    let mut nonce = [0; 16];
    getrandom::fill(&mut nonce).map_err(io::Error::other)?;
    Ok(nonce)
}

fn connect(shared: &Shared, peer: &Peer) -> io::Result<Arc<TcpStream>> {
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

/// An established link.
struct Link<'a> {
    shared: &'a Shared,
    peer: &'a Peer,
    queue: &'a LinkQueue,
    stream: Arc<TcpStream>,
    out: Vec<u8>,
    /// The snapshot that is being sent, in the term in which that began.
    image: Option<(u64, Outgoing)>,
}

impl Link<'_> {
    fn serve(&mut self, work: &Receiver<LinkWork>) -> io::Result<Stopped> {
        let stream = Arc::clone(&self.stream);
        let _registered = self.shared.stop.register(&stream);
        while work.try_recv().is_ok() {} // Said on an earlier link: out of date.
        self.shared.core.step([Input::LinkUp(self.peer.id)]);
        // A note to pull may have been among what was dropped.
        let mut pull = true;
        loop {
            let mut next = if pull || self.image.is_some() {
                work.try_recv().ok()
            } else {
                Some(work.recv().unwrap_or(LinkWork::Stop))
            };
            while let Some(now) = next {
                match now {
                    LinkWork::Message(envelope) => self.put(&envelope),
                    LinkWork::Pull => pull = true,
                    LinkWork::Reconnect => {}
                    LinkWork::Stop => return Ok(Stopped),
                }
                next = work.try_recv().ok();
            }
            if std::mem::take(&mut pull) {
                self.queue.begin_pull();
                self.pull()?;
            }
            self.put_chunk()?;
            self.write()?;
        }
    }

    fn put(&mut self, envelope: &Envelope) {
        encode(envelope, &mut self.out);
    }

    /// Takes all that the core has for the peer.
    fn pull(&mut self) -> io::Result<()> {
        while let Some(pulled) = self.shared.core.pull(self.peer.id, MESSAGE_BYTES) {
            match pulled {
                Pull::Message(envelope) => {
                    self.put(&envelope);
                    if self.out.len() >= WRITE_BYTES {
                        self.write()?;
                    }
                }
                Pull::Snapshot(meta) => {
                    match self.shared.images.open_to_send(meta, Outgoing::CHUNK_BYTES) {
                        Ok(image) => {
                            log::info!(
                                target: "NodeSync",
                                "Sending the snapshot at index {} to {}", meta.index, self.peer.id
                            );
                            self.image = Some((self.shared.core.status().term, image));
                        }
                        Err(error) => {
                            // A newer one has taken its place: the next attempt finds that.
                            log::debug!(target: "NodeSync", "Cannot send a snapshot: {error}");
                            self.image_ended(false);
                        }
                    }
                }
            }
        }
        Ok(())
    }

    fn put_chunk(&mut self) -> io::Result<()> {
        let Some((term, image)) = &mut self.image else { return Ok(()) };
        match image.next(*term)? {
            Some(chunk) => encode_chunk(&chunk, &mut self.out),
            None => {
                self.image = None;
                self.image_ended(true);
            }
        }
        Ok(())
    }

    fn write(&mut self) -> io::Result<()> {
        if !self.out.is_empty() {
            (&*self.stream).write_all(&self.out)?;
            self.out.clear();
            self.out.shrink_to(2 * WRITE_BYTES);
        }
        Ok(())
    }

    /// The link is lost in the middle of a snapshot.
    fn abandon_image(&mut self) {
        if self.image.take().is_some() {
            self.image_ended(false);
        }
    }

    fn image_ended(&self, sent: bool) {
        self.shared.core.step([Input::SnapshotSent { to: self.peer.id, sent }]);
    }
}
