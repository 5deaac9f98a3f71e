//! The driver of a session: a pool thread that reads from one client, does what the session asks
//! for, and writes the replies. It waits for its client, then for its outcomes, and owns nothing
//! else.
//!
//! A client that does not read its replies stops being read (the write blocks), and is closed when
//! it has taken nothing for a while. Whoever turns out to be a peer, by its first byte, is passed
//! on to the reader.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;

use super::waiters::Waiter;
use super::{Shared, info, reader};
use crate::protocol::{Profile, Session, Work};
use crate::types::{self, NodeId, Rejected, Unknown, Unserved};
use crate::wire::handshake;

/// What a client reads that comes when `--maxclients` are there.
pub const TOO_MANY_CLIENTS: &[u8] = b"-ERR max number of clients reached\r\n";

/// How long a client may take nothing of what is written to it.
const WRITE_TIMEOUT: Duration = Duration::from_secs(60);

/// How long a connection beyond `--maxclients` may be silent at first.
const FIRST_BYTE_TIMEOUT: Duration = Duration::from_secs(1);

/// Eventual writes that are stamped in one go.
const ACCEPT_WRITES_MAX: usize = 1024;

/// Replies are written when this much has gathered, even within a pipeline.
const OUTPUT_BYTES: usize = 64 << 10;

/// Who is connected, for CLIENT LIST and INFO.
#[derive(Default)]
pub struct Clients {
    connections: Arc<AtomicUsize>,
    /// Clients whose requests are being executed or answered.
    busy: Arc<AtomicUsize>,
    next_id: AtomicU64,
    table: Mutex<BTreeMap<u64, Client>>,
    /// Clients accepted since the start.
    pub accepted: AtomicU64,
    /// Clients refused since the start because there were too many.
    pub refused: AtomicU64,
    /// Commands executed since the start by clients that have gone.
    pub commands: AtomicU64,
    /// Batches proposed, and reads served, since the start.
    pub writes: AtomicU64,
    /// See [`Clients::writes`].
    pub reads: AtomicU64,
    /// Batches of eventual writes taken, and eventual reads served, since the start.
    pub accepts: AtomicU64,
    /// See [`Clients::accepts`].
    pub looks: AtomicU64,
}

/// One client.
#[derive(Clone)]
pub struct Client {
    /// Its address.
    pub address: SocketAddr,
    /// When it connected.
    pub since: Instant,
    /// When it last sent something.
    pub active: Instant,
    /// What it tells of itself.
    pub profile: Profile,
}

/// Something that counts as long as it lives.
pub struct Counted(Arc<AtomicUsize>);

impl Counted {
    fn new(counter: &Arc<AtomicUsize>) -> Counted {
        counter.fetch_add(1, Ordering::Relaxed);
        Counted(Arc::clone(counter))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Clients {
    /// Connections that have a thread, peers included.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    /// Counts a connection.
    pub fn connect(&self) -> Counted {
        Counted::new(&self.connections)
    }

    fn busy(&self) -> Counted {
        Counted::new(&self.busy)
    }

    /// True if no client waits for an answer.
    pub fn are_idle(&self) -> bool {
        self.busy.load(Ordering::Relaxed) == 0
    }

    /// A view of all clients, by id.
    pub fn list(&self) -> Vec<(u64, Client)> {
        self.table.lock().iter().map(|(id, client)| (*id, client.clone())).collect()
    }

    /// How many clients there are.
    pub fn count(&self) -> usize {
        self.table.lock().len()
    }

    /// Takes a client in, unless there are `max` already.
    fn enter(&self, address: SocketAddr, max: usize) -> Option<u64> {
        let mut table = self.table.lock();
        if table.len() >= max {
            self.refused.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        self.accepted.fetch_add(1, Ordering::Relaxed);
        let id = self.next_id.fetch_add(1, Ordering::Relaxed) + 1;
        let now = Instant::now();
        let profile = Profile::default();
        table.insert(id, Client { address, since: now, active: now, profile });
        Some(id)
    }

    fn leave(&self, id: u64) {
        if let Some(client) = self.table.lock().remove(&id) {
            self.commands.fetch_add(client.profile.commands, Ordering::Relaxed);
        }
    }

    fn publish(&self, id: u64, profile: &Profile) {
        let mut table = self.table.lock();
        let Some(client) = table.get_mut(&id) else { return };
        client.active = Instant::now();
        if client.profile.revision == profile.revision {
            client.profile.last_command = profile.last_command;
            client.profile.commands = profile.commands;
        } else {
            client.profile = profile.clone();
        }
    }
}

/// Serves whoever has connected, until either side has had enough.
pub fn serve(shared: &Shared, stream: TcpStream, address: SocketAddr) {
    let stream = Arc::new(stream);
    let _registered = shared.stop.register(&stream);
    let mut stream = &*stream;
    // What is silent beyond the clients' places must not keep a peer from its own.
    if shared.clients.connections() > shared.config.maxclients {
        let _ = stream.set_read_timeout(Some(FIRST_BYTE_TIMEOUT));
    }
    let mut first = [0];
    let is_peer = match peek(stream, &mut first) {
        Ok(0) | Err(_) => return,
        Ok(_) => first[0] == handshake::MAGIC_BYTE,
    };
    if is_peer {
        return reader::serve(shared, stream, address);
    }
    // The places beyond the clients' are for peers, even where silent connections hold clients'.
    let max = shared.config.maxclients;
    let crowded = shared.clients.connections() > max + 2 * shared.config.peers.len();
    let Some(id) = shared.clients.enter(address, if crowded { 0 } else { max }) else {
        let _ = stream.write_all(TOO_MANY_CLIENTS).and_then(|()| close_gently(&mut stream));
        return;
    };
    let ready = stream.set_read_timeout(None);
    let mut driver = Driver {
        shared,
        id,
        session: Session::new(id, Arc::clone(&shared.facts)),
        waiter: Arc::default(),
        acceptor: None,
    };
    let ready = ready.and_then(|()| stream.set_write_timeout(Some(WRITE_TIMEOUT)));
    if let Err(error) = ready.and_then(|()| driver.run(&mut stream)) {
        log::debug!(target: "NodeSync", "Client {address}: {error}");
    }
    shared.clients.leave(id);
}

fn peek(stream: &TcpStream, first: &mut [u8; 1]) -> io::Result<usize> {
    loop {
        match stream.peek(first) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

/// A session with the thread that drives it.
pub struct Driver<'a> {
    pub(super) shared: &'a Shared,
    pub(super) id: u64,
    session: Session,
    waiter: Arc<Waiter>,
    /// Who stamped this client's latest eventual writes.
    acceptor: Option<NodeId>,
}

impl Driver<'_> {
    fn run(&mut self, stream: &mut &TcpStream) -> io::Result<()> {
        loop {
            let len = match stream.read(self.session.space()) {
                Ok(0) => return Ok(()),
                Ok(len) => len,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            self.session.filled(len);
            let busy = self.shared.clients.busy();
            let open = self.work_off(stream)?;
            self.flush(stream)?;
            drop(busy);
            self.shared.clients.publish(self.id, self.session.profile());
            if !open {
                return close_gently(stream);
            }
        }
    }

    /// Does all that the bytes at hand ask for. False if the connection is to be closed.
    fn work_off(&mut self, stream: &mut &TcpStream) -> io::Result<bool> {
        loop {
            let deadline = || Instant::now() + self.shared.config.request_timeout;
            match self.session.next() {
                Work::Wait => return Ok(true),
                Work::Close => return Ok(false),
                Work::Flush => self.flush(stream)?,
                Work::Write { commands, eventual } => {
                    self.shared.clients.writes.fetch_add(1, Ordering::Relaxed);
                    let commands =
                        if eventual { self.with_undrained(commands) } else { Ok(commands) };
                    let result = commands.and_then(|commands| {
                        self.shared.core.propose(commands, &self.waiter, deadline())
                    });
                    self.session.finish_write(result, self.shared.core.leader());
                }
                Work::Accept { writes } => {
                    self.shared.clients.accepts.fetch_add(1, Ordering::Relaxed);
                    let existed = self.accept(writes, deadline());
                    self.session.finish_accept(existed, self.acceptor);
                }
                Work::Look => {
                    self.shared.clients.looks.fetch_add(1, Ordering::Relaxed);
                    let store = &self.shared.store;
                    self.session.finish_read(Ok(&mut |command| store.read_newest(command)));
                }
                Work::Read => {
                    self.shared.clients.reads.fetch_add(1, Ordering::Relaxed);
                    match self.shared.core.may_read(&self.waiter, deadline()) {
                        Ok(()) => {
                            let store = &self.shared.store;
                            self.session.finish_read(Ok(&mut |command| store.read(command)));
                        }
                        Err(unserved) => {
                            self.waiter = Arc::default();
                            self.session.finish_read(Err(unserved));
                        }
                    }
                }
                Work::Ask(question) => {
                    self.shared.clients.publish(self.id, self.session.profile());
                    let reply = info::answer(self, &question);
                    self.session.finish_ask(reply);
                }
            }
            if self.session.output().len() >= OUTPUT_BYTES {
                self.flush(stream)?;
            }
        }
    }

    /// Has eventual writes stamped and makes them visible here, part after part, so that a command
    /// with a million keys does not keep the core's lock. For each write: whether its key existed.
    fn accept(
        &mut self,
        writes: Vec<types::Write>,
        deadline: Instant,
    ) -> Result<Vec<bool>, Unserved> {
        let mut existed = Vec::with_capacity(writes.len());
        let mut rest = writes.into_iter();
        while !rest.as_slice().is_empty() {
            let part = rest.by_ref().take(ACCEPT_WRITES_MAX).collect();
            let (result, acceptor) = self.shared.core.accept(part, &self.waiter, deadline);
            self.acceptor = acceptor;
            match result {
                Ok(stamped) => existed.extend(self.shared.store.accept(&stamped)),
                Err(unserved) if existed.is_empty() => return Err(unserved),
                Err(_) => return Err(Unknown::Partly.into()),
            }
        }
        Ok(existed)
    }

    /// Commands of an eventual session that go through the log take along what the log may not
    /// have yet of the keys concerned, so that they see what the session has seen. If that is more
    /// than a request may be long, they have to come again when it is in the log.
    fn with_undrained(&self, commands: Bytes) -> Result<Bytes, Unserved> {
        let (mut undrained, newest) = self.shared.store.undrained(&commands);
        if undrained.is_empty() {
            return Ok(commands);
        }
        self.shared.core.trust(newest)?;
        if undrained.len() + commands.len() > self.shared.facts.limits.request_bytes_max {
            return Err(Rejected::Busy.into());
        }
        undrained.extend_from_slice(&commands);
        Ok(undrained.into())
    }

    fn flush(&mut self, stream: &mut &TcpStream) -> io::Result<()> {
        let output = self.session.output();
        if !output.is_empty() {
            stream.write_all(output)?;
            output.clear();
        }
        Ok(())
    }
}

/// Closes so that the client can still read what was written: what it has sent and nobody will read
/// would otherwise make the system reset the connection and discard the last reply.
fn close_gently(stream: &mut &TcpStream) -> io::Result<()> {
    stream.shutdown(std::net::Shutdown::Write)?;
    stream.set_read_timeout(Some(Duration::from_millis(200)))?;
    let (mut rest, mut left) = ([0; 4096], 64);
    while left > 0 && matches!(stream.read(&mut rest), Ok(len) if len > 0) {
        left -= 1;
    }
    Ok(())
}
