//! The stream of a link, and the bytes and the snapshot on their way into it.

use std::io::{self, ErrorKind, Write};
use std::net::TcpStream;
use std::sync::Arc;

use rustix::net::{SendFlags, send};

use crate::node::files::OutgoingImage;
use crate::replica::Pull;
use crate::types::SnapshotMeta;
use crate::wire::encode;

/// A send that neither waits nor raises a signal. Apple's systems have no such flag; there the Rust
/// runtime ignores SIGPIPE.
#[cfg(not(target_vendor = "apple"))]
const AT_ONCE: SendFlags = SendFlags::DONTWAIT.union(SendFlags::NOSIGNAL);
#[cfg(target_vendor = "apple")]
const AT_ONCE: SendFlags = SendFlags::DONTWAIT;

/// The size up to which the buffer is kept.
const KEEP_BYTES: usize = 2 << 20;

/// The stream, and the bytes on their way into it. The holder of its lock has the right to write.
#[derive(Default)]
pub struct LinkOutput {
    stream: Option<Arc<TcpStream>>,
    /// The bytes to be written.
    pub out: Vec<u8>,
    /// The snapshot to be sent next.
    pub image_wanted: Option<SnapshotMeta>,
    /// The snapshot that is being sent, and the term in which that began.
    pub image: Option<(u64, OutgoingImage)>,
}

impl LinkOutput {
    /// An output with a stream, and nothing to write.
    pub fn new(stream: &Arc<TcpStream>) -> LinkOutput {
        LinkOutput { stream: Some(Arc::clone(stream)), ..LinkOutput::default() }
    }

    /// False while the link has no stream.
    pub fn has_stream(&self) -> bool {
        self.stream.is_some()
    }

    /// True if a snapshot is to be sent, or is being sent.
    pub fn has_image(&self) -> bool {
        self.image.is_some() || self.image_wanted.is_some()
    }

    /// True if the link's own thread has to go on.
    pub fn needs_thread(&self) -> bool {
        !self.out.is_empty() || self.has_image()
    }

    /// Takes in a message or a snapshot that was pulled from the core.
    pub fn put(&mut self, pulled: Pull) {
        match pulled {
            Pull::Message(envelope) => encode(&envelope, &mut self.out),
            Pull::Snapshot(meta) => self.image_wanted = Some(meta),
        }
    }

    /// Writes all bytes, and waits for the peer to take them.
    ///
    /// # Errors
    /// Those of the socket, a write time-out among them.
    pub fn write(&mut self) -> io::Result<()> {
        if let Some(stream) = self.stream.as_ref().filter(|_| !self.out.is_empty()) {
            (&**stream).write_all(&self.out)?;
        }
        self.written();
        Ok(())
    }

    /// Writes the bytes that the socket takes at once.
    pub fn write_at_once(&mut self) {
        let Some(stream) = &self.stream else { return };
        let mut at = 0;
        while at < self.out.len() {
            match send(stream, &self.out[at..], AT_ONCE) {
                Ok(len) => at += len,
                Err(error) if io::Error::from(error).kind() == ErrorKind::Interrupted => {}
                // The socket is full or broken. The bytes stay, so the link's thread will go on,
                // and find out which: only that thread ends a link.
                Err(_) => {
                    self.out.drain(..at);
                    return;
                }
            }
        }
        self.written();
    }

    fn written(&mut self) {
        self.out.clear();
        self.out.shrink_to(KEEP_BYTES);
    }
}
