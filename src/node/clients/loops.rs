//! `--io poll`: a few loops, each of which serves many clients through readiness.
//!
//! A loop sleeps until clients have sent bytes or answers have come. It reads from all clients that
//! are ready, asks the core once for all their requests (`service/rounds.rs`), and writes the
//! replies. It is woken once, however many answers come.
//!
//! The system reports readiness at its edge: once, when it changes. So a connection remembers that
//! there may be more to read, and is registered only once. A client that does not read its replies
//! is not read from either.
//!
//! A connection stays until its request is answered, even if the other end has closed. So the
//! place of a client, its key in the loop, never names another client when the answer comes.

use std::io::{self, ErrorKind, Read};
use std::mem;
use std::net::Shutdown;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mio::event::Event;
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Registry, Token, Waker};
use slab::Slab;

use super::conn::{Awaits, Conn, ConnClient, Flushed, Stage};
use super::connection::{FIRST_BYTE_TIMEOUT, LINGER, admit, is_crowded, is_peer};
use super::mailbox::{Mail, Mailbox};
use super::registry::NewConnection;
use super::view::ClientView;
use super::watched::{WATCH_INTERVAL, Watched};
use crate::node::shared::Shared;
use crate::node::stop::Fatal;
use crate::service::{Inbox, Next, NodeView, Rounds, Settled, Share, WAIT_STEP, Wait};

/// The waker's token; no connection has it.
const WAKER: Token = Token(usize::MAX);

/// The bound on events that one call takes from the system.
const EVENTS: usize = 256;

/// The bound on rounds in one turn.
const ASKS_MAX: usize = 4;

/// The bound on reads from a closing connection.
const LINGER_READS: u32 = 64;

/// A loop that has not begun to serve.
pub struct PollLoop {
    pub(super) poll: Poll,
    pub(super) mailbox: Arc<Mailbox>,
}

impl PollLoop {
    /// A loop and its mailbox.
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
        let mut serving = ServingLoop {
            shared,
            mailbox: &mailbox,
            mail: Mail::default(),
            conns: Slab::new(),
            rounds,
            ready: Vec::new(),
            watched: Watched::new(),
        };
        let mut events = Events::with_capacity(EVENTS);
        while !shared.stop.is_set() {
            match poll.poll(&mut events, serving.timeout()) {
                // Without readiness no client of this loop can be served any more.
                Err(error) if error.kind() != ErrorKind::Interrupted => {
                    shared.stop.fail(Fatal::Io(format!("cannot wait for clients: {error}")));
                    break;
                }
                _ => {}
            }
            serving.take_mail(poll.registry());
            events.iter().for_each(|event| serving.note(event));
            serving.check_watched();
            serving.serve(poll.registry());
        }
        mailbox.close();
        serving.end();
    }
}

/// A loop at work.
struct ServingLoop<'a> {
    shared: &'a Arc<Shared>,
    mailbox: &'a Mailbox,
    mail: Mail,
    conns: Slab<Conn>,
    rounds: Rounds,
    /// Connections that may have bytes to read, for the next turn.
    ready: Vec<usize>,
    watched: Watched,
}

impl ServingLoop<'_> {
    /// The longest time to sleep.
    fn timeout(&self) -> Option<Duration> {
        // `may_sleep` last: it announces the sleep to other threads.
        if !self.ready.is_empty() || self.rounds.has_gathered() || !self.mailbox.may_sleep() {
            return Some(Duration::ZERO);
        }
        let deadline = self.rounds.deadline().map(|at| self.shared.clock.instant(at));
        let next = deadline.into_iter().chain(self.watched.check_at()).min()?;
        // epoll_wait counts whole milliseconds and rounds down. One more, or the loop would wake
        // too early, again and again.
        Some(next.saturating_duration_since(Instant::now()) + Duration::from_millis(1))
    }

    /// Takes in connections and answers from other threads.
    fn take_mail(&mut self, registry: &Registry) {
        self.mailbox.empty_into(&mut self.mail);
        for connection in mem::take(&mut self.mail.connections) {
            self.take(registry, connection);
        }
        let mut answers = mem::take(&mut self.mail.answers);
        for (ticket, answer) in answers.drain(..) {
            // `None`: the request was cancelled, and its clients have their replies.
            if let Some(settled) = self.rounds.answered(ticket, answer) {
                self.settle(settled);
            }
        }
        self.mail.answers = answers; // Its memory serves the next mail.
    }

    /// Takes in a new connection.
    fn take(&mut self, registry: &Registry, connection: NewConnection) {
        let NewConnection { stream, address, counted } = connection;
        let is_crowded = is_crowded(self.shared);
        let until = is_crowded.then(|| Instant::now() + FIRST_BYTE_TIMEOUT);
        let mut stream = TcpStream::from_std(stream);
        let entry = self.conns.vacant_entry();
        let (key, both) = (entry.key(), Interest::READABLE | Interest::WRITABLE);
        if let Err(error) = registry.register(&mut stream, Token(key), both) {
            log::warn!(target: "NodeSync", "Cannot serve {address}: {error}");
            return;
        }
        entry.insert(Conn::new(stream, address, counted, until));
        if is_crowded {
            self.watched.watch(key, WATCH_INTERVAL);
        }
    }

    /// Takes note of a change at a connection.
    fn note(&mut self, event: &Event) {
        let key = event.token().0;
        // The waker, or a connection that was removed in this turn.
        let Some(conn) = self.conns.get_mut(key) else { return };
        let has_ended = conn.note(event);
        match &conn.stage {
            Stage::Client(client) => match client.awaits {
                Awaits::Room { is_closing, .. } if has_ended || event.is_writable() => {
                    self.write_on(key, is_closing);
                }
                Awaits::Bytes if conn.is_readable => self.ready.push(key),
                // All others read again when they are through: `is_readable` keeps the edge.
                _ => {}
            },
            Stage::New(_) | Stage::Lingering { .. } if conn.is_readable => self.ready.push(key),
            Stage::New(_) | Stage::Lingering { .. } => {}
        }
    }

    /// One turn: reads once from all clients that are ready, and asks the core for their requests.
    fn serve(&mut self, registry: &Registry) {
        for key in mem::take(&mut self.ready) {
            let Some(conn) = self.conns.get_mut(key) else { continue };
            match &conn.stage {
                Stage::New(_) => self.identify(registry, key),
                Stage::Client(client) if matches!(client.awaits, Awaits::Turn) => self.go_on(key),
                Stage::Client(_) => self.read(key),
                Stage::Lingering { .. } => match conn.linger_on() {
                    Some(true) => self.ready.push(key),
                    Some(false) => {}
                    None => self.remove(key),
                },
            }
        }
        self.cancel_overdue();
        // Some requests are answered in the round that asks for them, and their clients may ask for
        // more. The bound gives mail and new bytes their turn in between.
        for _ in 0..ASKS_MAX {
            if !self.rounds.has_gathered() {
                return;
            }
            let core = &self.shared.core;
            self.rounds.ask(self.shared.clock.now(), |requests| core.ask(requests));
            self.take_mail(registry);
        }
    }

    /// Cancels the requests whose time is over. Their clients learn whether the request is
    /// certainly not done, or may be done.
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

    /// Tells a peer from a client by the first byte, and takes it in.
    fn identify(&mut self, registry: &Registry, key: usize) {
        let Some(conn) = self.conns.get_mut(key) else { return };
        let is_peer = match is_peer(|first| conn.stream.peek(first)) {
            Ok(Some(is_peer)) => is_peer,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                conn.is_readable = false;
                return;
            }
            Ok(None) | Err(_) => return self.remove(key),
        };
        if is_peer {
            let conn = self.conns.remove(key);
            if let Err(error) = conn.hand_to_the_pool(self.shared, registry) {
                log::warn!(target: "NodeSync", "Cannot serve a peer: {error}");
            }
            return;
        }
        match admit(self.shared, &mut conn.stream, conn.address) {
            Some((client, driver)) => {
                conn.stage = Stage::Client(Box::new(ConnClient::new(client, driver)));
                self.ready.push(key);
            }
            None => self.linger(key),
        }
    }

    /// Reads once from a client, if bytes are what it waits for.
    fn read(&mut self, key: usize) {
        let Some(conn) = self.conns.get_mut(key) else { return };
        let Stage::Client(client) = &mut conn.stage else { return };
        // Back-pressure: a client with an open request or unread replies sends no more commands.
        if !matches!(client.awaits, Awaits::Bytes) {
            return;
        }
        let space = client.driver.space();
        let room = space.len();
        match conn.stream.read(space) {
            Ok(0) => self.remove(key),
            Ok(len) => {
                // A short read has emptied the socket, and the system will report new bytes. It
                // does not report the end of the stream a second time.
                conn.is_readable = len == room || conn.has_hung_up;
                client.driver.filled(len);
                if client.busy.is_none() {
                    client.busy = Some(self.shared.clients.busy());
                }
                self.go_on(key);
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => conn.is_readable = false,
            Err(error) if error.kind() == ErrorKind::Interrupted => self.ready.push(key),
            Err(error) => {
                log::debug!(target: "NodeSync", "Client {}: {error}", conn.address);
                self.remove(key);
            }
        }
    }

    /// Follows a client's driver until the client has to wait.
    fn go_on(&mut self, key: usize) {
        loop {
            let Some(conn) = self.conns.get_mut(key) else { return };
            let Stage::Client(client) = &mut conn.stage else { return };
            let view = ClientView { shared: self.shared, client: &client.client };
            let next = client.driver.next(&view);
            match next {
                Next::Ask(request) => {
                    client.awaits = Awaits::Answer;
                    let commands = client.driver.commands_under_way();
                    return self.rounds.join(key, request, commands);
                }
                Next::Wait(wait) => match wait.result(view.now(), &view.status()) {
                    Some(holding) => {
                        client.driver.finish_wait(holding);
                        continue;
                    }
                    None => {
                        client.awaits = Awaits::Replicas(wait);
                        return self.watched.watch(key, WAIT_STEP);
                    }
                },
                Next::Yield => {
                    client.awaits = Awaits::Turn;
                    return self.ready.push(key);
                }
                Next::Flush | Next::Read | Next::Close => {}
            }
            let is_closing = matches!(next, Next::Close);
            match client.flush(&mut conn.stream) {
                Err(error) => {
                    log::debug!(target: "NodeSync", "Client {}: {error}", conn.address);
                    return self.remove(key);
                }
                Ok(Flushed::Blocked) => {
                    client.awaits = Awaits::Room { since: Instant::now(), is_closing };
                    return self.watched.watch(key, WATCH_INTERVAL);
                }
                Ok(Flushed::All) if is_closing => return self.linger(key),
                Ok(Flushed::All) if matches!(next, Next::Read) => {
                    client.awaits = Awaits::Bytes;
                    client.busy = None;
                    client.publish();
                    // This edge was reported while the client waited for its reply.
                    if conn.is_readable {
                        self.ready.push(key);
                    }
                    return;
                }
                Ok(Flushed::All) => {}
            }
        }
    }

    /// Writes the rest of a client's replies: the socket has room again.
    fn write_on(&mut self, key: usize, is_closing: bool) {
        let Some(conn) = self.conns.get_mut(key) else { return };
        let Stage::Client(client) = &mut conn.stage else { return };
        match client.flush(&mut conn.stream) {
            Ok(Flushed::Blocked) => {
                // The client has taken some bytes, so its time begins anew.
                client.awaits = Awaits::Room { since: Instant::now(), is_closing };
            }
            Ok(Flushed::All) if is_closing => self.linger(key),
            Ok(Flushed::All) => self.go_on(key),
            Err(_) => self.remove(key),
        }
    }

    /// Gives each client its share of an answer, and lets it go on.
    fn settle(&mut self, settled: Settled) {
        let members = settled.share_out(|key, share| self.complete(key, share));
        self.rounds.reuse(members);
    }

    fn complete(&mut self, key: usize, share: Share<'_>) {
        // A client that waits for an answer is never removed, so the key is still its own.
        if let Some(Conn { stage: Stage::Client(client), .. }) = self.conns.get_mut(key) {
            let view = ClientView { shared: self.shared, client: &client.client };
            client.driver.complete(&view, share);
            self.go_on(key);
        }
    }

    /// Checks the deadlines of watched connections.
    fn check_watched(&mut self) {
        let now = Instant::now();
        for key in self.watched.take_due(now) {
            let Some(conn) = self.conns.get(key) else { continue };
            if let Stage::Client(client) = &conn.stage
                && let Awaits::Replicas(wait) = client.awaits
            {
                self.go_on_waiting(key, &wait);
                continue;
            }
            match conn.close_at() {
                Some(at) if at <= now => self.remove(key),
                Some(_) => self.watched.watch(key, WATCH_INTERVAL),
                None => {}
            }
        }
    }

    /// Replies to a WAIT if it has its result. A stop ends it early, with the number known so far.
    fn go_on_waiting(&mut self, key: usize, wait: &Wait) {
        let Some(Conn { stage: Stage::Client(client), .. }) = self.conns.get_mut(key) else {
            return;
        };
        let is_stopping = self.shared.stop.wait_for(Duration::ZERO);
        let status = self.shared.core.status();
        let result = wait.result(self.shared.clock.now(), &status);
        match result.or_else(|| is_stopping.then(|| wait.holding(&status))) {
            Some(holding) => {
                client.driver.finish_wait(holding);
                self.go_on(key);
            }
            None => self.watched.watch(key, WAIT_STEP),
        }
    }

    /// Closes so that the client can still read its last replies, see [`LINGER`].
    fn linger(&mut self, key: usize) {
        let Some(conn) = self.conns.get_mut(key) else { return };
        let stage = Stage::Lingering { until: Instant::now() + LINGER, reads_left: LINGER_READS };
        let before = mem::replace(&mut conn.stage, stage);
        let has_shut_down = conn.stream.shutdown(Shutdown::Write).is_ok();
        self.leave(&before);
        if !has_shut_down {
            return self.remove(key);
        }
        self.ready.push(key);
        self.watched.watch(key, WATCH_INTERVAL);
    }

    /// Removes the client of a connection from the registry.
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

    /// Removes all clients: the node has stopped.
    fn end(&mut self) {
        for (_, conn) in mem::take(&mut self.conns) {
            self.leave(&conn.stage);
        }
    }
}
