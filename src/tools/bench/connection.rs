//! One non-blocking connection of the load generator, with buffers that it keeps for its whole
//! life.
//!
//! It sends bytes and knows the operations that wait for replies; the caller evaluates the replies.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsFd;

use rustix::event::epoll::{self, EventData, EventFlags};
use socket2::{Domain, Socket, Type};

use crate::tools::bench::request::Greeting;
use crate::tools::bench::scan::{Scanner, WireProtocol};

/// An operation in flight.
#[derive(Clone, Copy, Debug)]
pub struct InFlight {
    /// Its start; in an open loop its intended start.
    pub start: u64,
    /// True for a GET.
    pub read: bool,
}

/// A client's connection, open or not.
#[derive(Debug)]
pub struct LoadConnection {
    stream: Option<TcpStream>,
    /// The node at its other end, by its place in the list.
    pub node: usize,
    /// Bytes to send, of which `sent` have left.
    pub out: Vec<u8>,
    sent: usize,
    /// True while epoll watches for room to write.
    watches_room: bool,
    /// The place in the stream of replies.
    pub scanner: Scanner,
    /// Number of missing replies to the greeting.
    pub greeting: usize,
    /// The batch in flight.
    pub operations: Vec<InFlight>,
    /// Number of answered operations of the batch.
    pub answered: usize,
    /// The time of its last answer, since when it has nothing in flight.
    pub idle_since: u64,
    /// Number of attempts to connect.
    pub attempts: usize,
    /// True once its greeting was answered for the first time.
    pub was_ready: bool,
}

impl LoadConnection {
    /// A closed connection.
    pub fn new(protocol: WireProtocol, pipeline: usize) -> LoadConnection {
        LoadConnection {
            stream: None,
            node: 0,
            out: Vec::new(),
            sent: 0,
            watches_room: false,
            scanner: Scanner::new(protocol),
            greeting: 0,
            operations: Vec::with_capacity(pipeline),
            answered: 0,
            idle_since: 0,
            attempts: 0,
            was_ready: false,
        }
    }

    /// Starts to connect. Its epoll events carry `token`.
    pub fn open(
        &mut self,
        epoll: impl AsFd,
        token: u64,
        (node, address): (usize, SocketAddr),
        (protocol, greeting): (WireProtocol, &Greeting),
    ) -> io::Result<()> {
        self.close();
        self.node = node;
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        socket.set_tcp_nodelay(true)?;
        match socket.connect(&address.into()) {
            Err(error) if !is_under_way(&error) => return Err(error),
            _ => {}
        }
        let stream = TcpStream::from(socket);
        let both = EventFlags::IN | EventFlags::OUT;
        epoll::add(epoll, &stream, EventData::new_u64(token), both)?;
        self.stream = Some(stream);
        self.scanner = Scanner::new(protocol);
        self.out.extend_from_slice(&greeting.bytes);
        self.greeting = greeting.replies;
        self.watches_room = true;
        Ok(())
    }

    /// Closes the connection and forgets the operations in flight.
    pub fn close(&mut self) {
        // A closed socket leaves the epoll set without a call.
        self.stream = None;
        self.out.clear();
        self.sent = 0;
        self.operations.clear();
        self.answered = 0;
        self.greeting = 0;
    }

    /// True if there is a socket, connected or still connecting.
    pub fn is_open(&self) -> bool {
        self.stream.is_some()
    }

    /// Operations that wait for a reply.
    pub fn waiting(&self) -> &[InFlight] {
        &self.operations[self.answered..]
    }

    /// Sends as many bytes as the socket takes, and watches for room if some are left.
    pub fn flush(&mut self, epoll: impl AsFd, token: u64) -> io::Result<()> {
        let Some(stream) = &mut self.stream else { return Ok(()) };
        while self.sent < self.out.len() {
            match stream.write(&self.out[self.sent..]) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(len) => self.sent += len,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        let full = self.sent < self.out.len();
        if full != self.watches_room {
            let room = if full { EventFlags::OUT } else { EventFlags::empty() };
            epoll::modify(epoll, &*stream, EventData::new_u64(token), EventFlags::IN | room)?;
            self.watches_room = full;
        }
        if !full {
            self.out.clear();
            self.sent = 0;
        }
        Ok(())
    }

    /// True while bytes wait for room, or for the connection.
    pub fn is_blocked(&self) -> bool {
        self.watches_room
    }

    /// Reads received bytes into `buffer`. Returns their number, 0 if there are none.
    pub fn receive(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Some(stream) = &mut self.stream else { return Ok(0) };
        loop {
            match stream.read(buffer) {
                Ok(0) => return Err(io::Error::new(ErrorKind::UnexpectedEof, "closed")),
                Ok(len) => return Ok(len),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(0),
                Err(error) => return Err(error),
            }
        }
    }
}

fn is_under_way(error: &io::Error) -> bool {
    error.kind() == ErrorKind::WouldBlock
        || error.raw_os_error() == Some(rustix::io::Errno::INPROGRESS.raw_os_error())
}
