//! One connection of the generator: non-blocking, with buffers that it keeps. It knows how to get
//! bytes out and which operations wait for replies; what the replies mean for the run is the
//! caller's.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsFd;

use rustix::event::epoll::{self, EventData, EventFlags};
use socket2::{Domain, Socket, Type};

use crate::tools::bench::request::Greeting;
use crate::tools::bench::scan::{Scanner, WireProtocol};

/// An operation under way.
#[derive(Clone, Copy, Debug)]
pub struct InFlight {
    /// Its start, or in an open loop its intended one.
    pub start: u64,
    /// A GET.
    pub read: bool,
}

/// A connection, or the place of one.
#[derive(Debug)]
pub struct LoadConnection {
    stream: Option<TcpStream>,
    /// The node that it leads to, by its place in the list.
    pub node: usize,
    /// Bytes to send, of which `sent` have left.
    pub out: Vec<u8>,
    sent: usize,
    /// Told when there is room for more bytes.
    watches_room: bool,
    /// Where in the replies it is.
    pub scanner: Scanner,
    /// Replies to the greeting that have not come.
    pub greeting: usize,
    /// The batch under way.
    pub operations: Vec<InFlight>,
    /// How many of it are answered.
    pub answered: usize,
    /// Since when it has nothing under way.
    pub idle_since: u64,
    /// Attempts so far.
    pub attempts: usize,
    /// It has stood at least once.
    pub has_stood: bool,
}

impl LoadConnection {
    /// A place without a connection.
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
            has_stood: false,
        }
    }

    /// Begins to connect. Events will carry `token`.
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

    /// Ends it, and forgets what was under way.
    pub fn close(&mut self) {
        // A closed socket leaves the epoll set by itself.
        self.stream = None;
        self.out.clear();
        self.sent = 0;
        self.operations.clear();
        self.answered = 0;
        self.greeting = 0;
    }

    /// True if a socket is there, connected or not yet.
    pub fn is_open(&self) -> bool {
        self.stream.is_some()
    }

    /// Operations that wait for a reply.
    pub fn waiting(&self) -> &[InFlight] {
        &self.operations[self.answered..]
    }

    /// Sends as much as there is room for, and watches for more room if it must.
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

    /// True if bytes wait for room, or for the connection.
    pub fn is_blocked(&self) -> bool {
        self.watches_room
    }

    /// Takes in what has come; 0 if nothing has.
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
