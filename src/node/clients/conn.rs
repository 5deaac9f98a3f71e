//! One connection of a loop: its stage of life, and the thing that its client waits for.

use std::io::{self, ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use mio::Registry;
use mio::event::Event;
use mio::net::TcpStream;

use super::connection::{WRITE_TIMEOUT, by_the_pool, serve_peer};
use super::registry::{ConnectedClient, Counted, NewConnection};
use crate::node::shared::Shared;
use crate::service::{SessionDriver, Wait};

/// A connection of a loop.
pub struct Conn {
    pub stream: TcpStream,
    pub address: SocketAddr,
    pub counted: Counted,
    /// There may be bytes to read.
    pub is_readable: bool,
    /// The other end has closed, or sends no more: once all is read, the connection ends.
    pub has_hung_up: bool,
    pub stage: Stage,
}

/// The stages of a connection's life.
pub enum Stage {
    /// The first byte, which tells a peer from a client, has not come. If there is a time, it must
    /// come by then.
    New(Option<Instant>),
    Client(Box<ConnClient>),
    /// The connection is closing, see [`LINGER`](super::connection::LINGER).
    Lingering {
        until: Instant,
        reads_left: u32,
    },
}

/// A client of a loop.
pub struct ConnClient {
    pub client: Arc<ConnectedClient>,
    pub driver: SessionDriver,
    pub awaits: Awaits,
    /// Bytes of the driver's output that are written.
    written: usize,
    /// Counts the client as busy from its first command to its last reply.
    pub busy: Option<Counted>,
}

/// The thing that a client waits for.
pub enum Awaits {
    /// Bytes from the client.
    Bytes,
    /// Its next turn in the loop: this one has taken long.
    Turn,
    /// The answer to its request.
    Answer,
    /// The result of WAIT.
    Replicas(Wait),
    /// Room in the socket for its replies, since that time. After that the connection is closed, or
    /// the client goes on.
    Room { since: Instant, is_closing: bool },
}

/// The result of writing to a client.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Flushed {
    All,
    /// The socket is full.
    Blocked,
}

impl Conn {
    /// A connection that has not sent a byte. If `until` is given, the first byte must come by
    /// then.
    pub fn new(
        stream: TcpStream,
        address: SocketAddr,
        counted: Counted,
        until: Option<Instant>,
    ) -> Conn {
        let (is_readable, has_hung_up) = (false, false);
        Conn { stream, address, counted, is_readable, has_hung_up, stage: Stage::New(until) }
    }

    /// Records what the system reports of the socket. True if the report means the end of the
    /// stream, in one direction or both.
    pub fn note(&mut self, event: &Event) -> bool {
        let has_ended = event.is_read_closed() || event.is_write_closed() || event.is_error();
        self.has_hung_up |= has_ended;
        self.is_readable |= has_ended || event.is_readable();
        has_ended
    }

    /// The time at which this connection is to be closed, if it has one.
    pub fn close_at(&self) -> Option<Instant> {
        match &self.stage {
            Stage::New(until) => *until,
            Stage::Lingering { until, .. } => Some(*until),
            Stage::Client(client) => match client.awaits {
                Awaits::Room { since, .. } => Some(since + WRITE_TIMEOUT),
                Awaits::Bytes | Awaits::Turn | Awaits::Answer | Awaits::Replicas(_) => None,
            },
        }
    }

    /// Reads from a closing connection and discards the bytes. `None` once it may be removed; else
    /// true if there may be more.
    pub fn linger_on(&mut self) -> Option<bool> {
        let Stage::Lingering { reads_left, .. } = &mut self.stage else { return None };
        *reads_left = reads_left.saturating_sub(1);
        match self.stream.read(&mut [0; 4096]) {
            Ok(len) if len > 0 && *reads_left > 0 => Some(true),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Some(false),
            _ => None,
        }
    }

    /// Gives a peer's connection to a thread of the pool, which blocks.
    ///
    /// # Errors
    /// If the system has no thread for it.
    pub fn hand_to_the_pool(self, shared: &Arc<Shared>, registry: &Registry) -> io::Result<()> {
        let Conn { mut stream, address, counted, .. } = self;
        registry.deregister(&mut stream)?;
        let stream = std::net::TcpStream::from(stream);
        stream.set_nonblocking(false)?;
        by_the_pool(shared, NewConnection { stream, address, counted }, serve_peer)
    }
}

impl ConnClient {
    /// A client that has just been admitted.
    pub fn new(client: Arc<ConnectedClient>, driver: SessionDriver) -> ConnClient {
        ConnClient { client, driver, awaits: Awaits::Bytes, written: 0, busy: None }
    }

    /// Records the client's profile for CLIENT LIST.
    pub fn publish(&self) {
        self.client.publish(self.driver.profile());
    }

    /// Writes as much of the output as the socket takes.
    ///
    /// # Errors
    /// The socket's: then the connection is to be closed.
    pub fn flush(&mut self, stream: &mut TcpStream) -> io::Result<Flushed> {
        let output = self.driver.output();
        while self.written < output.len() {
            match stream.write(&output[self.written..]) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(len) => self.written += len,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(Flushed::Blocked),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        output.clear();
        self.written = 0;
        Ok(Flushed::All)
    }
}
