//! `--io poll`: a few loops, each of which serves many clients through readiness. A loop sleeps
//! until clients have sent something or answers have come, reads from all that are ready, asks the
//! core once for what they brought (`rounds.rs`), and writes what is answered. However many answers
//! come at once, it is woken once.
//!
//! Readiness is reported at its edge: once, when something changes. So a connection keeps a note
//! that there may be more to read, and nothing has to be registered again. A client that does not
//! read its replies is not read from either.
//!
//! A connection lives while its question is open, even if the other end has gone.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mio::event::Event;
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Registry, Token};
use slab::Slab;

use crate::node::clients::mailbox::{Mail, Mailbox};
use crate::node::clients::registry::Counted;
use crate::node::clients::waiter::{Answer, Inbox};
use crate::node::clients::{
    Connection, FIRST_BYTE_TIMEOUT, LINGER, WRITE_TIMEOUT, admit, by_the_pool, is_crowded, is_peer,
    serve_peer,
};
use crate::node::info::{WAIT_STEP, Wait};
use crate::node::{Fatal, Shared};
use crate::service::driver::{Desk, Next};
use crate::service::rounds::{Rounds, Settled};

/// How often connections are looked at that something has to happen to in time.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// Events that are taken from the system at once.
const EVENTS: usize = 256;

/// How often the core is asked in one turn at most.
const ASKS_MAX: usize = 4;

/// How often a closing connection is read from at most.
const LINGER_READS: u32 = 64;

/// A connection of a loop.
struct Seat {
    stream: TcpStream,
    address: SocketAddr,
    counted: Counted,
    /// There may be something to read.
    readable: bool,
    /// The other end has gone, or sends nothing more: once all is read, the connection ends.
    hung_up: bool,
    stage: Stage,
}

/// How far a connection is.
enum Stage {
    /// Nothing has come yet that tells who it is. It must come by then, if at all.
    New(Option<Instant>),
    Client(Box<Served>),
    /// See [`LINGER`]; until then, and for so many reads.
    Lingering(Instant, u32),
}

/// A client at its desk.
struct Served {
    desk: Desk,
    state: State,
    /// How much of the output is written.
    written: usize,
    /// While it waits for an answer.
    busy: Option<Counted>,
}

enum State {
    /// Waits for the client.
    Reading,
    /// Waits for its next turn: it has had a long one.
    Yielding,
    /// Waits for the core.
    Asking,
    /// A command waits for time to pass.
    Waiting(Wait),
    /// Waits, since then, for the client to take its replies; then to be closed, or to go on.
    Writing { since: Instant, closing: bool },
}

/// Whether all could be written.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Flushed {
    All,
    Blocked,
}

/// A loop that has not begun.
pub struct Idle {
    pub poll: Poll,
    pub mailbox: Arc<Mailbox>,
}

impl Idle {
    /// Serves clients until the node stops.
    pub fn run(self, shared: &Arc<Shared>) {
        let Idle { mut poll, mailbox } = self;
        let inbox: Arc<dyn Inbox> = Arc::<Mailbox>::clone(&mailbox);
        let rounds = Rounds::new(inbox, shared.config.request_timeout, &shared.server_info.limits);
        let mut serving = Loop {
            shared,
            seats: Slab::new(),
            rounds,
            ready: Vec::new(),
            watched: Vec::new(),
            look_at: Instant::now(),
        };
        let mut events = Events::with_capacity(EVENTS);
        let mut mail = Mail::default();
        while !shared.stop.is_set() {
            let timeout = serving.timeout(&mailbox);
            match poll.poll(&mut events, timeout) {
                Err(error) if error.kind() != ErrorKind::Interrupted => {
                    shared.stop.fail(Fatal::Io(format!("cannot wait for clients: {error}")));
                    break;
                }
                _ => {}
            }
            mailbox.empty_into(&mut mail);
            for connection in mail.connections.drain(..) {
                serving.take(poll.registry(), connection);
            }
            for (ticket, answer) in mail.answers.drain(..) {
                if let Some(settled) = serving.rounds.answered(&shared.core, ticket, answer) {
                    serving.settle(settled);
                }
            }
            for event in &events {
                serving.note(event);
            }
            serving.look();
            serving.serve(poll.registry());
        }
        mailbox.close();
        serving.end();
    }
}

/// A loop at work.
struct Loop<'a> {
    shared: &'a Arc<Shared>,
    seats: Slab<Seat>,
    rounds: Rounds,
    /// Seats that may have something to read, to be looked at in the next turn.
    ready: Vec<usize>,
    /// Seats that something has to happen to in time, or had; next looked at then.
    watched: Vec<usize>,
    look_at: Instant,
}

impl Loop<'_> {
    /// How long the loop may sleep.
    fn timeout(&self, mailbox: &Mailbox) -> Option<Duration> {
        if !self.ready.is_empty() || self.rounds.has_gathered() || !mailbox.may_sleep() {
            return Some(Duration::ZERO);
        }
        let look_at = (!self.watched.is_empty()).then_some(self.look_at);
        let next = self.rounds.deadline().into_iter().chain(look_at).min()?;
        // The system's clock for this ticks in milliseconds.
        Some(next.saturating_duration_since(Instant::now()) + Duration::from_millis(1))
    }

    /// A new connection.
    fn take(&mut self, registry: &Registry, connection: Connection) {
        let Connection { stream, address, counted } = connection;
        let crowded = is_crowded(self.shared);
        let until = crowded.then(|| Instant::now() + FIRST_BYTE_TIMEOUT);
        let mut stream = TcpStream::from_std(stream);
        let entry = self.seats.vacant_entry();
        let (key, both) = (entry.key(), Interest::READABLE | Interest::WRITABLE);
        if let Err(error) = registry.register(&mut stream, Token(key), both) {
            log::warn!(target: "NodeSync", "Cannot serve {address}: {error}");
            return;
        }
        let stage = Stage::New(until);
        entry.insert(Seat { stream, address, counted, readable: false, hung_up: false, stage });
        if crowded {
            self.watch(key, LOOK_INTERVAL);
        }
    }

    /// Something has changed at a connection.
    fn note(&mut self, event: &Event) {
        let key = event.token().0;
        let Some(seat) = self.seats.get_mut(key) else { return };
        let ended = event.is_read_closed() || event.is_write_closed() || event.is_error();
        seat.hung_up |= ended;
        seat.readable |= ended || event.is_readable();
        match &seat.stage {
            Stage::Client(served) => match served.state {
                State::Writing { closing, .. } if ended || event.is_writable() => {
                    self.write_on(key, closing);
                }
                State::Reading if seat.readable => self.ready.push(key),
                _ => {}
            },
            _ if seat.readable => self.ready.push(key),
            _ => {}
        }
    }

    /// One turn: reads once from all that are ready, and asks for what they want.
    fn serve(&mut self, registry: &Registry) {
        for key in std::mem::take(&mut self.ready) {
            let Some(seat) = self.seats.get_mut(key) else { continue };
            match &mut seat.stage {
                Stage::New(_) => self.identify(registry, key),
                Stage::Client(served) if matches!(served.state, State::Yielding) => {
                    self.go_on(key);
                }
                Stage::Client(_) => self.read(key),
                Stage::Lingering(_, reads) => {
                    *reads = reads.saturating_sub(1);
                    let len = seat.stream.read(&mut [0; 4096]);
                    match len {
                        Ok(len) if len > 0 && *reads > 0 => self.ready.push(key),
                        Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                        _ => self.remove(key),
                    }
                }
            }
        }
        if let Some(late) = self.rounds.deadline().filter(|deadline| *deadline <= Instant::now()) {
            for settled in self.rounds.cancel(&self.shared.core, late) {
                self.settle(settled);
            }
        }
        // What is settled at once may ask for more; others shall have their turn in between.
        for _ in 0..ASKS_MAX {
            let settled = self.rounds.ask(&self.shared.core);
            settled.into_iter().for_each(|settled| self.settle(settled));
            if !self.rounds.has_gathered() {
                return;
            }
        }
    }

    /// The first byte tells who it is.
    fn identify(&mut self, registry: &Registry, key: usize) {
        let Some(seat) = self.seats.get_mut(key) else { return };
        let is_peer = match is_peer(|first| seat.stream.peek(first)) {
            Ok(Some(is_peer)) => is_peer,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                seat.readable = false;
                return;
            }
            Ok(None) | Err(_) => return self.remove(key),
        };
        if is_peer {
            let seat = self.seats.remove(key);
            if let Err(error) = hand_to_the_pool(self.shared, registry, seat) {
                log::warn!(target: "NodeSync", "Cannot serve a peer: {error}");
            }
            return;
        }
        match admit(self.shared, &mut seat.stream, seat.address) {
            Some(desk) => {
                let state = State::Reading;
                let served = Served { desk, state, written: 0, busy: None };
                seat.stage = Stage::Client(Box::new(served));
                self.ready.push(key);
            }
            None => self.linger(key),
        }
    }

    /// Reads once from a client that is waited for.
    fn read(&mut self, key: usize) {
        let Some(seat) = self.seats.get_mut(key) else { return };
        let Stage::Client(served) = &mut seat.stage else { return };
        if !matches!(served.state, State::Reading) {
            return;
        }
        let space = served.desk.space();
        let room = space.len();
        match seat.stream.read(space) {
            Ok(0) => self.remove(key),
            Ok(len) => {
                // Less than there was room for: that was all, and more will be reported. But the
                // end of the stream has been reported already, if it has been reached.
                seat.readable = len == room || seat.hung_up;
                served.desk.filled(len);
                if served.busy.is_none() {
                    served.busy = Some(self.shared.clients.busy());
                }
                self.go_on(key);
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => seat.readable = false,
            Err(error) if error.kind() == ErrorKind::Interrupted => self.ready.push(key),
            Err(error) => {
                log::debug!(target: "NodeSync", "Client {}: {error}", seat.address);
                self.remove(key);
            }
        }
    }

    /// Does what a client's desk asks for, until something has to be waited for.
    fn go_on(&mut self, key: usize) {
        loop {
            let Some(seat) = self.seats.get_mut(key) else { return };
            let Stage::Client(served) = &mut seat.stage else { return };
            let next = served.desk.next(self.shared);
            match next {
                Next::Ask(request) => {
                    served.state = State::Asking;
                    let commands = served.desk.commands_asked();
                    return self.rounds.join(key, request, commands);
                }
                Next::Wait(wait) => match wait.answer(self.shared) {
                    Some(holding) => {
                        served.desk.waited(holding);
                        continue;
                    }
                    None => {
                        served.state = State::Waiting(wait);
                        return self.watch(key, WAIT_STEP);
                    }
                },
                Next::Yield => {
                    served.state = State::Yielding;
                    return self.ready.push(key);
                }
                Next::Flush | Next::Read | Next::Close => {}
            }
            let closing = matches!(next, Next::Close);
            match served.flush(&mut seat.stream) {
                Err(error) => {
                    log::debug!(target: "NodeSync", "Client {}: {error}", seat.address);
                    return self.remove(key);
                }
                Ok(Flushed::Blocked) => {
                    served.state = State::Writing { since: Instant::now(), closing };
                    return self.watch(key, LOOK_INTERVAL);
                }
                Ok(Flushed::All) if closing => return self.linger(key),
                Ok(Flushed::All) if matches!(next, Next::Read) => {
                    served.state = State::Reading;
                    served.busy = None;
                    served.desk.publish();
                    if seat.readable {
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
        let Some(seat) = self.seats.get_mut(key) else { return };
        let Stage::Client(served) = &mut seat.stage else { return };
        match served.flush(&mut seat.stream) {
            Ok(Flushed::Blocked) => {
                // It has taken some of it: its time begins anew.
                served.state = State::Writing { since: Instant::now(), closing };
            }
            Ok(Flushed::All) if closing => self.linger(key),
            Ok(Flushed::All) => self.go_on(key),
            Err(_) => self.remove(key),
        }
    }

    /// Shares an answer out.
    fn settle(&mut self, settled: Settled) {
        let Settled { members, answer, stamper } = settled;
        let shared = self.shared;
        let mut desk = |key: usize, tell: &mut dyn FnMut(&mut Desk)| {
            if let Some(Seat { stage: Stage::Client(served), .. }) = self.seats.get_mut(key) {
                tell(&mut served.desk);
                self.go_on(key);
            }
        };
        match answer {
            Answer::Outcomes(outcomes) => {
                let mut outcomes = outcomes.into_iter();
                for &(key, share) in &members {
                    let own = outcomes.by_ref().take(share).collect::<Vec<_>>();
                    let mut own = Some(own);
                    desk(key, &mut |desk| desk.wrote(shared, own.take().unwrap_or_default()));
                }
            }
            Answer::Stamped(writes) => {
                let existed = shared.store.put_overlay(&writes);
                let mut rest = &existed[..];
                for &(key, share) in &members {
                    let (own, others) = rest.split_at(share.min(rest.len()));
                    rest = others;
                    desk(key, &mut |desk| desk.accepted(own, stamper));
                }
            }
            Answer::MayRead => {
                for &(key, _) in &members {
                    desk(key, &mut |desk| desk.may_read(shared));
                }
            }
            Answer::Unserved(unserved) => {
                for &(key, _) in &members {
                    desk(key, &mut |desk| desk.unserved(shared, unserved));
                }
            }
        }
        self.rounds.reuse(members);
    }

    /// Has a seat looked at from then on, until nothing has to happen to it in time.
    fn watch(&mut self, key: usize, interval: Duration) {
        if self.watched.is_empty() {
            self.look_at = Instant::now() + interval;
        }
        self.look_at = self.look_at.min(Instant::now() + interval);
        self.watched.push(key);
    }

    /// Does what time brings.
    fn look(&mut self) {
        let now = Instant::now();
        if self.watched.is_empty() || now < self.look_at {
            return;
        }
        self.look_at = now + LOOK_INTERVAL;
        let mut watched = std::mem::take(&mut self.watched);
        watched.sort_unstable();
        watched.dedup();
        for key in watched {
            let Some(seat) = self.seats.get_mut(key) else { continue };
            let until = match &mut seat.stage {
                Stage::New(until) => *until,
                Stage::Lingering(until, _) => Some(*until),
                Stage::Client(served) => match &served.state {
                    State::Writing { since, .. } => Some(*since + WRITE_TIMEOUT),
                    State::Waiting(wait) => {
                        let stopping = self.shared.stop.wait_for(Duration::ZERO);
                        let answer = wait.answer(self.shared);
                        let answer = answer.or_else(|| stopping.then(|| wait.holding(self.shared)));
                        match answer {
                            Some(holding) => {
                                served.desk.waited(holding);
                                self.go_on(key);
                            }
                            None => self.watch(key, WAIT_STEP),
                        }
                        continue;
                    }
                    State::Reading | State::Yielding | State::Asking => None,
                },
            };
            match until {
                Some(until) if until <= now => self.remove(key),
                Some(_) => self.watch(key, LOOK_INTERVAL),
                None => {}
            }
        }
    }

    /// Closes so that the client can still read what was written.
    fn linger(&mut self, key: usize) {
        let Some(seat) = self.seats.get_mut(key) else { return };
        let stage = Stage::Lingering(Instant::now() + LINGER, LINGER_READS);
        let before = std::mem::replace(&mut seat.stage, stage);
        self.leave(&before);
        let Some(seat) = self.seats.get_mut(key) else { return };
        if seat.stream.shutdown(Shutdown::Write).is_err() {
            return self.remove(key);
        }
        self.ready.push(key);
        self.watch(key, LOOK_INTERVAL);
    }

    fn leave(&self, stage: &Stage) {
        if let Stage::Client(served) = stage {
            served.desk.publish();
            self.shared.clients.leave(served.desk.client.id);
        }
    }

    fn remove(&mut self, key: usize) {
        if let Some(seat) = self.seats.try_remove(key) {
            self.leave(&seat.stage);
        }
    }

    /// The node has stopped.
    fn end(&mut self) {
        for seat in std::mem::take(&mut self.seats) {
            self.leave(&seat.1.stage);
        }
    }
}

impl Served {
    /// Writes as much of the output as the system takes.
    fn flush(&mut self, stream: &mut TcpStream) -> io::Result<Flushed> {
        let output = self.desk.output();
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
fn hand_to_the_pool(shared: &Arc<Shared>, registry: &Registry, seat: Seat) -> io::Result<()> {
    let Seat { mut stream, address, counted, .. } = seat;
    registry.deregister(&mut stream)?;
    let stream = std::net::TcpStream::from(stream);
    stream.set_nonblocking(false)?;
    by_the_pool(shared, Connection { stream, address, counted }, serve_peer)
}
