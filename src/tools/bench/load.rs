//! The load generator: a few threads, each of which serves many non-blocking connections through
//! readiness (epoll).
//!
//! It shares the machine with what it measures, so it has to be cheap: requests are copies of a
//! template, replies are only scanned, and once all buffers have grown an operation allocates
//! nothing. An operation costs one write, one read and a share of a wait; in a batch, less.
//!
//! An operation counts if its start lies in the measured time. When that is over no more are
//! started, and those under way are waited for, up to [`DRAIN_NS`]; of an open loop also those that
//! are late, up to [`LATE_NS`]. A connection that is lost takes its operations with it, which count
//! as errors, and is made again, to whatever node is a target then.

use std::collections::VecDeque;
use std::io;
use std::num::NonZeroU64;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::Ordering;

use rustix::event::epoll::{self, CreateFlags};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::thread::set_current_timer_slack;

use crate::tools::bench::connection::{InFlight, LoadConnection};
use crate::tools::bench::pace::Pace;
use crate::tools::bench::request::{Greeting, RequestGenerator};
use crate::tools::bench::scan::{ReplyKind, WireProtocol};
use crate::tools::bench::shared::{RunShared, Targets, Times};
use crate::tools::bench::tally::Tally;

/// How long the last answers are waited for: longer than a node takes to refuse a request.
const DRAIN_NS: u64 = 15_000_000_000;
/// How long operations of an open loop that are late at the end are still sent. What stays behind
/// for longer is told as never sent.
const LATE_NS: u64 = 1_000_000_000;
/// Between two attempts to connect.
const RETRY_NS: u64 = 20_000_000;
/// The longest wait, so that orders are heard.
const WAIT_NS: u64 = 10_000_000;
/// Connections under way at a time: a listener's queue is not endless.
const OPENING_MAX: usize = 64;
const READ_BYTES: usize = 256 << 10;
const EVENTS: usize = 256;

/// What a thread is to do.
#[derive(Clone, Debug)]
pub struct Share {
    /// Its number, and how many there are.
    pub thread: (usize, usize),
    /// Its connections.
    pub clients: usize,
    /// Operations that a connection has under way.
    pub pipeline: usize,
    /// Operations a second of all threads.
    pub rate: Option<f64>,
    /// Operations of this thread that count, if limited.
    pub requests: Option<u64>,
    /// Clients stay wherever a target is, instead of going to the first one.
    pub spread: bool,
    /// What is spoken.
    pub protocol: WireProtocol,
}

/// A thread of the generator.
pub struct LoadWorker<'a> {
    share: Share,
    shared: &'a RunShared,
    greeting: &'a Greeting,
    requests: RequestGenerator,
    epoll: OwnedFd,
    connections: Vec<LoadConnection>,
    /// Connections without a socket, and when each is to be made.
    down: VecDeque<(u64, usize)>,
    /// Connections that have nothing under way.
    idle: VecDeque<usize>,
    opening: usize,
    targets: Targets,
    pace: Option<Pace>,
    /// Until there are times, nothing is measured.
    times: Times,
    tally: Tally,
    buffer: Vec<u8>,
}

impl<'a> LoadWorker<'a> {
    /// With its own stream of requests.
    pub fn new(
        share: Share,
        shared: &'a RunShared,
        greeting: &'a Greeting,
        requests: RequestGenerator,
    ) -> io::Result<LoadWorker<'a>> {
        let connection = || LoadConnection::new(share.protocol, share.pipeline);
        Ok(LoadWorker {
            shared,
            greeting,
            requests,
            epoll: epoll::create(CreateFlags::CLOEXEC)?,
            connections: (0..share.clients).map(|_| connection()).collect(),
            down: (0..share.clients).map(|at| (0, at)).collect(),
            idle: VecDeque::with_capacity(share.clients),
            opening: 0,
            targets: shared.targets(),
            pace: None,
            times: Times { load: u64::MAX, measured: u64::MAX, end: u64::MAX },
            tally: Tally::new(),
            buffer: vec![0; READ_BYTES],
            share,
        })
    }

    /// Works until the run is over; what it has measured.
    pub fn run(mut self) -> io::Result<Tally> {
        // An open loop wants exact timers.
        if self.share.rate.is_some() {
            let _ = set_current_timer_slack(NonZeroU64::new(1));
        }
        let mut events = Vec::with_capacity(EVENTS);
        let mut drain_until = u64::MAX;
        loop {
            let now = self.shared.now();
            self.follow_orders();
            self.open_due(now);
            if self.pace.is_some() {
                self.start_due(now);
            }
            if self.is_over(now) {
                drain_until = drain_until.min(now.saturating_add(DRAIN_NS));
                if self.is_done(now) || now >= drain_until {
                    self.give_up(now);
                    return Ok(self.tally);
                }
            }
            self.wait(now, &mut events)?;
            let mut answers = 0;
            for event in events.drain(..) {
                let event: epoll::Event = event;
                answers += self.serve(event.data.u64() as usize);
            }
            if answers > 0 {
                self.shared.answered.fetch_add(answers, Ordering::Relaxed);
            }
        }
    }

    /// Hears what the guide says.
    fn follow_orders(&mut self) {
        if let Some(targets) = self.shared.targets_after(self.targets.generation) {
            self.targets = targets;
            // Those that have something under way go when it is answered.
            for _ in 0..self.idle.len() {
                if let Some(at) = self.idle.pop_front() {
                    self.rest(at);
                }
            }
        }
        if self.pace.is_none()
            && let Some(times) = self.shared.times.get()
        {
            self.times = *times;
            let Share { rate, thread, requests, .. } = self.share;
            self.pace = Some(Pace::new(*times, rate, thread, requests));
        }
    }

    /// True if nothing more is to be begun, except what is late.
    fn is_over(&self, now: u64) -> bool {
        let Some(pace) = &self.pace else { return self.shared.stop.load(Ordering::Relaxed) };
        now >= self.times.end
            || self.shared.stop.load(Ordering::Relaxed)
            || pace.next(now).is_none()
    }

    /// True if nothing is left to be sent or waited for.
    fn is_done(&self, now: u64) -> bool {
        let waits = self.connections.iter().any(|one| !one.waiting().is_empty());
        let sends =
            !self.is_closed(now) && self.pace.as_ref().is_some_and(|pace| pace.next(now).is_some());
        self.shared.abandon.load(Ordering::Relaxed) || !(waits || sends)
    }

    /// True if no operation may be sent any more.
    fn is_closed(&self, now: u64) -> bool {
        self.shared.stop.load(Ordering::Relaxed) || now >= self.times.end.saturating_add(LATE_NS)
    }

    /// Connects what is due.
    fn open_due(&mut self, now: u64) {
        while self.opening < OPENING_MAX
            && let Some((due, at)) = self.down.front().copied()
            && due <= now
        {
            self.down.pop_front();
            let connection = &mut self.connections[at];
            let nodes = &self.targets.nodes;
            let first = at * self.share.thread.1 + self.share.thread.0;
            let node = nodes[(first + connection.attempts) % nodes.len()];
            connection.attempts += 1;
            let target = (node, self.shared.addresses[node]);
            let hello = (self.share.protocol, self.greeting);
            match connection.open(&self.epoll, at as u64, target, hello) {
                Ok(()) => self.opening += 1,
                Err(error) => self.lose(at, &error.to_string()),
            }
        }
    }

    /// Starts operations that are due on connections that are free.
    fn start_due(&mut self, now: u64) {
        if self.is_closed(now) {
            return;
        }
        for _ in 0..self.idle.len() {
            let next = self.pace.as_ref().and_then(|pace| pace.next(now));
            if next.is_none_or(|start| start > now) {
                return;
            }
            let Some(at) = self.idle.pop_front() else { return };
            self.start(at, now);
        }
    }

    /// Sends the next batch on a free connection, if operations are due.
    fn start(&mut self, at: usize, now: u64) {
        let closed = self.is_closed(now);
        let connection = &mut self.connections[at];
        if let Some(pace) = self.pace.as_mut().filter(|_| !closed) {
            connection.operations.clear();
            connection.answered = 0;
            while connection.operations.len() < self.share.pipeline
                && let Some(start) = pace.take(now)
            {
                let read = self.requests.put(&mut connection.out);
                connection.operations.push(InFlight { start, read });
            }
        }
        let Some(first) = connection.operations.first().filter(|_| !connection.out.is_empty())
        else {
            self.idle.push_back(at);
            return;
        };
        if first.start >= self.times.measured {
            let late = now.saturating_sub(first.start);
            self.tally.late = self.tally.late.max(late);
            let own = now.saturating_sub(first.start.max(connection.idle_since));
            self.tally.late_by_generator = self.tally.late_by_generator.max(own);
        }
        if let Err(error) = connection.flush(&self.epoll, at as u64) {
            self.lose(at, &error.to_string());
        }
    }

    /// Waits for sockets, or until the next operation is due.
    fn wait(&mut self, now: u64, events: &mut Vec<epoll::Event>) -> io::Result<()> {
        let mut wait = WAIT_NS;
        if let Some(pace) = &self.pace
            && !self.idle.is_empty()
            && let Some(next) = pace.next(now)
        {
            wait = wait.min(next.saturating_sub(now));
        }
        // Epoll counts milliseconds, poll nanoseconds.
        if self.share.rate.is_some() && wait < WAIT_NS {
            let time = Timespec { tv_sec: 0, tv_nsec: wait as i64 };
            let mut fds = [PollFd::new(&self.epoll, PollFlags::IN)];
            uninterrupted(poll(&mut fds, Some(&time)))?;
            wait = 0;
        }
        let time = Timespec { tv_sec: 0, tv_nsec: wait as i64 };
        let room = rustix::buffer::spare_capacity(events);
        uninterrupted(epoll::wait(self.epoll.as_fd(), room, Some(&time)))?;
        Ok(())
    }

    /// Something has happened to a connection. How many operations were answered.
    fn serve(&mut self, at: usize) -> u64 {
        let connection = &mut self.connections[at];
        if connection.is_blocked()
            && let Err(error) = connection.flush(&self.epoll, at as u64)
        {
            self.lose(at, &error.to_string());
            return 0;
        }
        let len = match connection.receive(&mut self.buffer) {
            Ok(len) => len,
            Err(error) => {
                self.lose(at, &error.to_string());
                return 0;
            }
        };
        if len == 0 {
            return 0;
        }
        let now = self.shared.now();
        match self.take_replies(at, len, now) {
            Ok(answers) => answers,
            Err(text) => {
                self.lose(at, &text);
                0
            }
        }
    }

    /// Looks at what has come: the answers among it, or why the connection is of no use.
    fn take_replies(&mut self, at: usize, len: usize, now: u64) -> Result<u64, String> {
        let connection = &mut self.connections[at];
        let mut input = &self.buffer[..len];
        let (mut answers, mut greeted) = (0, false);
        while let Some(seen) =
            connection.scanner.next(&mut input).map_err(|_| "replies that are none".to_string())?
        {
            if connection.greeting > 0 {
                if seen == ReplyKind::Error {
                    let text = String::from_utf8_lossy(connection.scanner.text()).into_owned();
                    return Err(format!("refused: {text}"));
                }
                connection.greeting -= 1;
                if connection.greeting == 0 {
                    greeted = true;
                    self.opening -= 1;
                    connection.idle_since = now;
                }
                continue;
            }
            let Some(operation) = connection.operations.get(connection.answered).copied() else {
                return Err("a reply to nothing".into());
            };
            connection.answered += 1;
            let counts = operation.start >= self.times.measured;
            if seen == ReplyKind::Answer {
                answers += 1;
                if counts {
                    let latency = now.saturating_sub(operation.start);
                    let since = now.saturating_sub(self.times.measured);
                    self.tally.answer(operation.read, since, latency);
                }
            } else {
                self.shared.doubt.store(true, Ordering::Relaxed);
                let text = String::from_utf8_lossy(connection.scanner.text());
                let killed = self.shared.is_killed(connection.node);
                self.tally.error(connection.node, killed, &text);
                self.tally.fail(operation.read, killed);
            }
        }
        if answers > 0 {
            self.shared.note_answers(now);
        }
        if greeted {
            if !std::mem::replace(&mut connection.has_stood, true) {
                self.shared.ready.fetch_add(1, Ordering::Relaxed);
            }
            self.rest(at);
        } else if connection.answered > 0 && connection.waiting().is_empty() {
            connection.operations.clear();
            connection.answered = 0;
            connection.idle_since = now;
            self.rest(at);
        }
        Ok(answers)
    }

    /// A connection is free: it goes to another node if it must, and on to work if there is some.
    fn rest(&mut self, at: usize) {
        let node = self.connections[at].node;
        let nodes = &self.targets.nodes;
        let stays = if self.share.spread { nodes.contains(&node) } else { nodes[0] == node };
        if !stays {
            self.connections[at].close();
            self.tally.reconnects += 1;
            self.down.push_front((0, at));
            return;
        }
        match self.share.rate {
            // In turn with the others.
            Some(_) => self.idle.push_back(at),
            None => {
                let now = self.shared.now();
                self.start(at, now);
            }
        }
    }

    /// A connection is lost, or could not be made. Its operations are lost with it.
    fn lose(&mut self, at: usize, why: &str) {
        let connection = &mut self.connections[at];
        let killed = self.shared.is_killed(connection.node);
        self.opening -= usize::from(connection.is_open() && connection.greeting > 0);
        let refused = why.starts_with("refused: ");
        if refused && !killed {
            self.tally.error(connection.node, killed, why);
        }
        for operation in connection.waiting() {
            self.tally.error(connection.node, killed, &format!("connection lost: {why}"));
            self.tally.fail(operation.read, killed);
        }
        self.tally.reconnects += u64::from(connection.is_open() && connection.greeting == 0);
        connection.close();
        self.idle.retain(|idle| *idle != at);
        self.shared.doubt.store(true, Ordering::Relaxed);
        self.down.push_back((self.shared.now() + RETRY_NS, at));
    }

    /// The end: what has no answer now will have none.
    fn give_up(&mut self, now: u64) {
        let early = self.shared.stop.load(Ordering::Relaxed);
        for connection in self.connections.iter().filter(|_| !early) {
            let killed = self.shared.is_killed(connection.node);
            for operation in connection.waiting() {
                self.tally.error(connection.node, killed, "no answer");
                self.tally.fail(operation.read, killed);
            }
        }
        if let Some(pace) = &self.pace {
            self.tally.unsent = pace.due(now);
        }
    }
}

/// A signal is no failure.
fn uninterrupted(done: rustix::io::Result<usize>) -> io::Result<usize> {
    match done {
        Err(rustix::io::Errno::INTR) => Ok(0),
        other => Ok(other?),
    }
}
