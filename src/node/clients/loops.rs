//! `--io poll`: a few loops, each of which serves many clients through readiness. A loop sleeps
//! until clients have sent something or answers have come, reads from all clients that are ready,
//! asks the core once for everything that they brought (`service/rounds.rs`), and writes the
//! replies. However many answers come at once, it is woken once.
//!
//! Readiness is reported at its edge: once, when something changes. So a connection remembers that
//! there may be more to read, and nothing has to be registered again. A client that does not read
//! its replies is not read from either.
//!
//! A connection lives while its request is open, even if the other end has gone.

use std::io::{self, ErrorKind, Read, Write};
use std::mem;
use std::net::{Shutdown, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mio::event::Event;
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Registry, Token, Waker};
use slab::Slab;

use super::connection::{
    Connection, FIRST_BYTE_TIMEOUT, LINGER, WRITE_TIMEOUT, admit, by_the_pool, is_crowded, is_peer,
    serve_peer,
};
use super::mailbox::{Mail, Mailbox};
use super::registry::{Client, Counted};
use super::view::View;
use crate::node::shared::Shared;
use crate::node::stop::Fatal;
use crate::service::{
    Inbox, Next, NodeView, Rounds, SessionDriver, Settled, Share, WAIT_STEP, Wait,
};

/// The waker's token; no connection has it.
const WAKER: Token = Token(usize::MAX);

/// The interval at which watched connections are looked at.
const WATCH_INTERVAL: Duration = Duration::from_millis(100);

/// Events that are taken from the system at once.
const EVENTS: usize = 256;

/// Times that the core is asked in one turn, at most.
const ASKS_MAX: usize = 4;

/// Reads of a closing connection, at most.
const LINGER_READS: u32 = 64;

/// A connection of a loop.
struct Conn {
    stream: TcpStream,
    address: SocketAddr,
    counted: Counted,
    /// There may be something to read.
    readable: bool,
    /// The other end has gone, or sends nothing more: once all is read, the connection ends.
    hung_up: bool,
    stage: Stage,
}

/// The stages of a connection's life.
enum Stage {
    /// No byte has come that tells a peer from a client. If there is a time, it must come by then.
    New(Option<Instant>),
    Client(Box<ClientConn>),
    /// Closing, see [`LINGER`]: until this time, and for this many reads.
    Lingering(Instant, u32),
}

/// A client of a loop.
struct ClientConn {
    client: Arc<Client>,
    driver: SessionDriver,
    state: State,
    /// Bytes of the output that are written.
    written: usize,
    /// While the client waits for replies.
    busy: Option<Counted>,
}

enum State {
    /// Waits for the client.
    Reading,
    /// Waits for its next turn: this one was long.
    Yielding,
    /// Waits for the core.
    Asking,
    /// WAIT waits for time to pass.
    Waiting(Wait),
    /// Waits, since then, for the client to take its replies; closes the connection after that, or
    /// goes on.
    Writing { since: Instant, closing: bool },
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Flushed {
    All,
    Blocked,
}

/// A loop that has not begun to serve.
pub struct PollLoop {
    pub(super) poll: Poll,
    pub(super) mailbox: Arc<Mailbox>,
}

impl PollLoop {
    /// A loop, and the way into it.
    ///
    /// # Errors
    /// If the system has no descriptors for it.
    pub fn new() -> io::Result<(PollLoop, Arc<Mailbox>)> {
        let poll = Poll::new()?;
        let mailbox = Arc::new(Mailbox::new(Waker::new(poll.registry(), WAKER)?));
        Ok((PollLoop { poll, mailbox: Arc::clone(&mailbox) }, mailbox))
    }

    /// Serves clients until the node stops.
    pub fn run(self, shared: &Arc<Shared>) {
        let PollLoop { mut poll, mailbox } = self;
        let inbox = Arc::clone(&mailbox) as Arc<dyn Inbox>;
        let rounds = Rounds::new(inbox, shared.config.request_timeout, &shared.server_info.limits);
        let mut serving = Serving {
            shared,
            mailbox: &mailbox,
            mail: Mail::default(),
            conns: Slab::new(),
            rounds,
            ready: Vec::new(),
            watched: Vec::new(),
            watch_at: Instant::now(),
        };
        let mut events = Events::with_capacity(EVENTS);
        while !shared.stop.is_set() {
            match poll.poll(&mut events, serving.timeout()) {
                Err(error) if error.kind() != ErrorKind::Interrupted => {
                    shared.stop.fail(Fatal::Io(format!("cannot wait for clients: {error}")));
                    break;
                }
                _ => {}
            }
            serving.open_mail(poll.registry());
            events.iter().for_each(|event| serving.note(event));
            serving.look_after_watched();
            serving.serve(poll.registry());
        }
        mailbox.close();
        serving.end();
    }
}

/// A loop at work.
struct Serving<'a> {
    shared: &'a Arc<Shared>,
    mailbox: &'a Mailbox,
    mail: Mail,
    conns: Slab<Conn>,
    rounds: Rounds,
    /// Connections that may have something to read, for the next turn.
    ready: Vec<usize>,
    /// Connections that have a deadline, or had one when they were last looked at; and the time of
    /// the next look.
    watched: Vec<usize>,
    watch_at: Instant,
}

impl Serving<'_> {
    /// The longest time to sleep.
    fn timeout(&self) -> Option<Duration> {
        if !self.ready.is_empty() || self.rounds.has_gathered() || !self.mailbox.may_sleep() {
            return Some(Duration::ZERO);
        }
        let watch_at = (!self.watched.is_empty()).then_some(self.watch_at);
        let deadline = self.rounds.deadline().map(|at| self.shared.clock.instant(at));
        let next = deadline.into_iter().chain(watch_at).min()?;
        // epoll_wait counts in milliseconds, rounded down: one more, or it would wake too early.
        Some(next.saturating_duration_since(Instant::now()) + Duration::from_millis(1))
    }

    /// Takes in what other threads have brought.
    fn open_mail(&mut self, registry: &Registry) {
        self.mailbox.empty_into(&mut self.mail);
        for connection in mem::take(&mut self.mail.connections) {
            self.take(registry, connection);
        }
        let mut answers = mem::take(&mut self.mail.answers);
        for (ticket, answer) in answers.drain(..) {
            if let Some(settled) = self.rounds.answered(ticket, answer) {
                self.settle(settled);
            }
        }
        self.mail.answers = answers; // Its memory serves the next mail.
    }

    /// A new connection.
    fn take(&mut self, registry: &Registry, connection: Connection) {
        let Connection { stream, address, counted } = connection;
        let crowded = is_crowded(self.shared);
        let until = crowded.then(|| Instant::now() + FIRST_BYTE_TIMEOUT);
        let mut stream = TcpStream::from_std(stream);
        let entry = self.conns.vacant_entry();
        let (key, both) = (entry.key(), Interest::READABLE | Interest::WRITABLE);
        if let Err(error) = registry.register(&mut stream, Token(key), both) {
            log::warn!(target: "NodeSync", "Cannot serve {address}: {error}");
            return;
        }
        let stage = Stage::New(until);
        entry.insert(Conn { stream, address, counted, readable: false, hung_up: false, stage });
        if crowded {
            self.watch(key, WATCH_INTERVAL);
        }
    }

    /// Something has changed at a connection.
    fn note(&mut self, event: &Event) {
        let key = event.token().0;
        let Some(conn) = self.conns.get_mut(key) else { return };
        let ended = event.is_read_closed() || event.is_write_closed() || event.is_error();
        conn.hung_up |= ended;
        conn.readable |= ended || event.is_readable();
        match &conn.stage {
            Stage::Client(client) => match client.state {
                State::Writing { closing, .. } if ended || event.is_writable() => {
                    self.write_on(key, closing);
                }
                State::Reading if conn.readable => self.ready.push(key),
                _ => {}
            },
            _ if conn.readable => self.ready.push(key),
            _ => {}
        }
    }

    /// One turn: reads once from all that are ready, and asks for what they want.
    fn serve(&mut self, registry: &Registry) {
        for key in mem::take(&mut self.ready) {
            let Some(conn) = self.conns.get_mut(key) else { continue };
            match &mut conn.stage {
                Stage::New(_) => self.identify(registry, key),
                Stage::Client(client) if matches!(client.state, State::Yielding) => {
                    self.go_on(key);
                }
                Stage::Client(_) => self.read(key),
                Stage::Lingering(_, reads) => {
                    *reads = reads.saturating_sub(1);
                    let len = conn.stream.read(&mut [0; 4096]);
                    match len {
                        Ok(len) if len > 0 && *reads > 0 => self.ready.push(key),
                        Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                        _ => self.remove(key),
                    }
                }
            }
        }
        self.cancel_overdue();
        // Some requests are answered in the turn that asks for them, and their clients may ask for
        // more. The bound gives other threads' mail and new bytes their turn in between.
        for _ in 0..ASKS_MAX {
            if !self.rounds.has_gathered() {
                return;
            }
            let core = &self.shared.core;
            self.rounds.ask(self.shared.clock.now(), |requests| core.ask(requests));
            self.open_mail(registry);
        }
    }

    fn cancel_overdue(&mut self) {
        let Some(deadline) = self.rounds.deadline() else { return };
        let now = self.shared.clock.now();
        if deadline <= now {
            let core = &self.shared.core;
            for settled in self.rounds.cancel_overdue(now, |handle| core.cancel(handle)) {
                self.settle(settled);
            }
        }
    }

    /// Tells a peer from a client by the first byte.
    fn identify(&mut self, registry: &Registry, key: usize) {
        let Some(conn) = self.conns.get_mut(key) else { return };
        let is_peer = match is_peer(|first| conn.stream.peek(first)) {
            Ok(Some(is_peer)) => is_peer,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                conn.readable = false;
                return;
            }
            Ok(None) | Err(_) => return self.remove(key),
        };
        if is_peer {
            let conn = self.conns.remove(key);
            if let Err(error) = hand_to_the_pool(self.shared, registry, conn) {
                log::warn!(target: "NodeSync", "Cannot serve a peer: {error}");
            }
            return;
        }
        match admit(self.shared, &mut conn.stream, conn.address) {
            Some((client, driver)) => {
                let state = State::Reading;
                let client = ClientConn { client, driver, state, written: 0, busy: None };
                conn.stage = Stage::Client(Box::new(client));
                self.ready.push(key);
            }
            None => self.linger(key),
        }
    }

    /// Reads once from a client whose turn it is to send.
    fn read(&mut self, key: usize) {
        let Some(conn) = self.conns.get_mut(key) else { return };
        let Stage::Client(client) = &mut conn.stage else { return };
        if !matches!(client.state, State::Reading) {
            return;
        }
        let space = client.driver.space();
        let room = space.len();
        match conn.stream.read(space) {
            Ok(0) => self.remove(key),
            Ok(len) => {
                // Less than there was room for: that was all, and more will be reported. But the
                // end of the stream has been reported already, if it has been reached.
                conn.readable = len == room || conn.hung_up;
                client.driver.filled(len);
                if client.busy.is_none() {
                    client.busy = Some(self.shared.clients.busy());
                }
                self.go_on(key);
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => conn.readable = false,
            Err(error) if error.kind() == ErrorKind::Interrupted => self.ready.push(key),
            Err(error) => {
                log::debug!(target: "NodeSync", "Client {}: {error}", conn.address);
                self.remove(key);
            }
        }
    }

    /// Does what a client's driver asks for, until something has to be waited for.
    fn go_on(&mut self, key: usize) {
        loop {
            let Some(conn) = self.conns.get_mut(key) else { return };
            let Stage::Client(client) = &mut conn.stage else { return };
            let view = View { shared: self.shared, client: &client.client };
            let next = client.driver.next(&view);
            match next {
                Next::Ask(request) => {
                    client.state = State::Asking;
                    let commands = client.driver.commands_under_way();
                    return self.rounds.join(key, request, commands);
                }
                Next::Wait(wait) => match wait.result(view.now(), &view.status()) {
                    Some(holding) => {
                        client.driver.finish_wait(holding);
                        continue;
                    }
                    None => {
                        client.state = State::Waiting(wait);
                        return self.watch(key, WAIT_STEP);
                    }
                },
                Next::Yield => {
                    client.state = State::Yielding;
                    return self.ready.push(key);
                }
                Next::Flush | Next::Read | Next::Close => {}
            }
            let closing = matches!(next, Next::Close);
            match client.flush(&mut conn.stream) {
                Err(error) => {
                    log::debug!(target: "NodeSync", "Client {}: {error}", conn.address);
                    return self.remove(key);
                }
                Ok(Flushed::Blocked) => {
                    client.state = State::Writing { since: Instant::now(), closing };
                    return self.watch(key, WATCH_INTERVAL);
                }
                Ok(Flushed::All) if closing => return self.linger(key),
                Ok(Flushed::All) if matches!(next, Next::Read) => {
                    client.state = State::Reading;
                    client.busy = None;
                    client.publish();
                    if conn.readable {
                        self.ready.push(key);
                    }
                    return;
                }
                Ok(Flushed::All) => {}
            }
        }
    }

    /// There may be room for the rest of a client's replies.
    fn write_on(&mut self, key: usize, closing: bool) {
        let Some(conn) = self.conns.get_mut(key) else { return };
        let Stage::Client(client) = &mut conn.stage else { return };
        match client.flush(&mut conn.stream) {
            Ok(Flushed::Blocked) => {
                // It has taken some of it: its time begins anew.
                client.state = State::Writing { since: Instant::now(), closing };
            }
            Ok(Flushed::All) if closing => self.linger(key),
            Ok(Flushed::All) => self.go_on(key),
            Err(_) => self.remove(key),
        }
    }

    /// Splits an answer among its clients, and lets each go on.
    fn settle(&mut self, settled: Settled) {
        let members = settled.share_out(|key, share| self.complete(key, share));
        self.rounds.reuse(members);
    }

    fn complete(&mut self, key: usize, share: Share<'_>) {
        // A client that asks keeps its place until it has its answer, so the place is its own.
        if let Some(Conn { stage: Stage::Client(client), .. }) = self.conns.get_mut(key) {
            let view = View { shared: self.shared, client: &client.client };
            client.driver.complete(&view, share);
            self.go_on(key);
        }
    }

    /// Has a connection looked at after `interval`, and on, until it has no deadline.
    fn watch(&mut self, key: usize, interval: Duration) {
        let at = Instant::now() + interval;
        self.watch_at = if self.watched.is_empty() { at } else { self.watch_at.min(at) };
        self.watched.push(key);
    }

    /// Looks at connections that have a deadline.
    fn look_after_watched(&mut self) {
        let now = Instant::now();
        if self.watched.is_empty() || now < self.watch_at {
            return;
        }
        self.watch_at = now + WATCH_INTERVAL;
        let mut watched = mem::take(&mut self.watched);
        watched.sort_unstable();
        watched.dedup();
        for key in watched {
            let Some(conn) = self.conns.get_mut(key) else { continue };
            let until = match &mut conn.stage {
                Stage::New(until) => *until,
                Stage::Lingering(until, _) => Some(*until),
                Stage::Client(client) => match &client.state {
                    State::Writing { since, .. } => Some(*since + WRITE_TIMEOUT),
                    State::Waiting(wait) => {
                        let wait = *wait;
                        self.go_on_waiting(key, &wait);
                        continue;
                    }
                    State::Reading | State::Yielding | State::Asking => None,
                },
            };
            match until {
                Some(until) if until <= now => self.remove(key),
                Some(_) => self.watch(key, WATCH_INTERVAL),
                None => {}
            }
        }
    }

    /// Looks whether a WAIT has its result. A node that stops ends it with what is known.
    fn go_on_waiting(&mut self, key: usize, wait: &Wait) {
        let Some(Conn { stage: Stage::Client(client), .. }) = self.conns.get_mut(key) else {
            return;
        };
        let stopping = self.shared.stop.wait_for(Duration::ZERO);
        let status = self.shared.core.status();
        let result = wait.result(self.shared.clock.now(), &status);
        match result.or_else(|| stopping.then(|| wait.holding(&status))) {
            Some(holding) => {
                client.driver.finish_wait(holding);
                self.go_on(key);
            }
            None => self.watch(key, WAIT_STEP),
        }
    }

    /// Closes so that the client can still read what was written.
    fn linger(&mut self, key: usize) {
        let Some(conn) = self.conns.get_mut(key) else { return };
        let stage = Stage::Lingering(Instant::now() + LINGER, LINGER_READS);
        let before = mem::replace(&mut conn.stage, stage);
        let has_shut_down = conn.stream.shutdown(Shutdown::Write).is_ok();
        self.leave(&before);
        if !has_shut_down {
            return self.remove(key);
        }
        self.ready.push(key);
        self.watch(key, WATCH_INTERVAL);
    }

    fn leave(&self, stage: &Stage) {
        if let Stage::Client(client) = stage {
            client.publish();
            self.shared.clients.leave(client.client.id);
        }
    }

    fn remove(&mut self, key: usize) {
        if let Some(conn) = self.conns.try_remove(key) {
            self.leave(&conn.stage);
        }
    }

    /// The node has stopped.
    fn end(&mut self) {
        for (_, conn) in mem::take(&mut self.conns) {
            self.leave(&conn.stage);
        }
    }
}

impl ClientConn {
    fn publish(&self) {
        self.client.publish(self.driver.profile());
    }

    /// Writes as much of the output as the system takes.
    fn flush(&mut self, stream: &mut TcpStream) -> io::Result<Flushed> {
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

/// A peer gets a thread of its own, which blocks.
fn hand_to_the_pool(shared: &Arc<Shared>, registry: &Registry, conn: Conn) -> io::Result<()> {
    let Conn { mut stream, address, counted, .. } = conn;
    registry.deregister(&mut stream)?;
    let stream = std::net::TcpStream::from(stream);
    stream.set_nonblocking(false)?;
    by_the_pool(shared, Connection { stream, address, counted }, serve_peer)
}
