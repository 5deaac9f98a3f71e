//! The load generator: a few threads, each of which serves many non-blocking connections with
//! epoll.
//!
//! The generator shares the machine with the nodes that it measures, so it must be cheap. Requests
//! are copies of a template, replies are only scanned, and once all buffers have grown an operation
//! allocates nothing. An operation costs one write, one read and a share of a wait; in a batch,
//! less.
//!
//! An operation counts if its start lies in the measured time. After that time no operation starts.
//! The generator then waits for answers, up to [`DRAIN_NS`]; in an open loop it also sends late
//! operations, up to [`LATE_NS`]. The operations of a lost connection count as errors; the client
//! connects again, to a node that is a target at that time.

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

/// Longest wait for the last answers: longer than a node takes to refuse a request.
const DRAIN_NS: u64 = 15_000_000_000;
/// Time after the end during which late operations of an open loop are still sent. The report
/// counts the rest as never sent.
const LATE_NS: u64 = 1_000_000_000;
/// Time between two attempts to connect.
const RETRY_NS: u64 = 20_000_000;
/// Longest wait for sockets, so that a thread soon sees new targets and the stop flag.
const WAIT_NS: u64 = 10_000_000;
/// Most connections in progress at a time, because a listener's backlog is bounded.
const OPENING_MAX: usize = 64;
const READ_BYTES: usize = 256 << 10;
const EVENTS: usize = 256;

/// The part of the load that one thread generates.
#[derive(Clone, Debug)]
pub struct Share {
    /// Its number, and the number of threads.
    pub thread: (usize, usize),
    /// Number of its clients.
    pub clients: usize,
    /// Operations that a client has in flight.
    pub pipeline: usize,
    /// Operations a second of all threads together.
    pub rate: Option<f64>,
    /// Most counted operations of this thread.
    pub requests: Option<u64>,
    /// True if clients stay at any target, false if all belong to the first one.
    pub spread: bool,
    /// The protocol of the clients.
    pub protocol: WireProtocol,
}

/// A thread of the load generator.
pub struct LoadWorker<'a> {
    share: Share,
    shared: &'a RunShared,
    greeting: &'a Greeting,
    requests: RequestGenerator,
    epoll: OwnedFd,
    connections: Vec<LoadConnection>,
    /// Closed connections, each with the time of its next attempt.
    down: VecDeque<(u64, usize)>,
    /// Connections with nothing in flight.
    idle: VecDeque<usize>,
    /// Number of connections whose greeting is not answered yet.
    opening: usize,
    targets: Targets,
    pace: Option<Pace>,
    /// The times of the run; until the guide has set them, nothing is measured.
    times: Times,
    tally: Tally,
    buffer: Vec<u8>,
}

impl<'a> LoadWorker<'a> {
    /// A thread with its own stream of requests.
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

    /// Generates load until the run is over. Returns the measurements.
    pub fn run(mut self) -> io::Result<Tally> {
        // An open loop needs exact timers; the default slack of Linux is 50 µs.
        if self.share.rate.is_some() {
            let _ = set_current_timer_slack(NonZeroU64::new(1));
        }
        let mut events = Vec::with_capacity(EVENTS);
        let mut drain_until = u64::MAX;
        loop {
            let now = self.shared.now();
            self.follow_guide();
            self.open_due(now);
            if self.pace.is_some() {
                self.start_due(now);
            }
            if self.is_over(now) {
                drain_until = drain_until.min(now.saturating_add(DRAIN_NS));
                if self.is_done(now) || now >= drain_until {
                    self.count_unanswered(now);
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

    /// Takes over new targets and the times of the run from the guide.
    fn follow_guide(&mut self) {
        if let Some(targets) = self.shared.targets_after(self.targets.generation) {
            self.targets = targets;
            // Busy connections move when their batch is answered.
            for _ in 0..self.idle.len() {
                if let Some(at) = self.idle.pop_front() {
                    self.on_idle(at);
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

    /// True if no further operation starts, except late ones.
    fn is_over(&self, now: u64) -> bool {
        let Some(pace) = &self.pace else { return self.shared.stop.load(Ordering::Relaxed) };
        now >= self.times.end
            || self.shared.stop.load(Ordering::Relaxed)
            || pace.next(now).is_none()
    }

    /// True if no operation is left to send or to wait for.
    fn is_done(&self, now: u64) -> bool {
        let waits = self.connections.iter().any(|one| !one.waiting().is_empty());
        let sends =
            !self.is_closed(now) && self.pace.as_ref().is_some_and(|pace| pace.next(now).is_some());
        self.shared.abandon.load(Ordering::Relaxed) || !(waits || sends)
    }

    /// True if not even late operations are sent any more.
    fn is_closed(&self, now: u64) -> bool {
        self.shared.stop.load(Ordering::Relaxed) || now >= self.times.end.saturating_add(LATE_NS)
    }

    /// Opens closed connections whose next attempt is due.
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

    /// Starts due operations on idle connections.
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

    /// Sends the next batch on an idle connection, if operations are due.
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
            // Lateness is the generator's own fault only while a connection was idle.
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
        // epoll_wait rounds to milliseconds; ppoll takes nanoseconds.
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

    /// Serves an event of a connection. Returns the number of answered operations.
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

    /// Scans received bytes. Returns the number of answered operations, or the reason to close the
    /// connection.
    fn take_replies(&mut self, at: usize, len: usize, now: u64) -> Result<u64, String> {
        let connection = &mut self.connections[at];
        let mut input = &self.buffer[..len];
        let (mut answers, mut greeted) = (0, false);
        while let Some(seen) = connection
            .scanner
            .next(&mut input)
            .map_err(|_| "bytes that are no reply".to_string())?
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
                return Err("a reply without a request".into());
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
            if !std::mem::replace(&mut connection.was_ready, true) {
                self.shared.ready.fetch_add(1, Ordering::Relaxed);
            }
            self.on_idle(at);
        } else if connection.answered > 0 && connection.waiting().is_empty() {
            connection.operations.clear();
            connection.answered = 0;
            connection.idle_since = now;
            self.on_idle(at);
        }
        Ok(answers)
    }

    /// Moves an idle connection to its target, or gives it the next work.
    fn on_idle(&mut self, at: usize) {
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
            // An open loop takes idle connections in turn.
            Some(_) => self.idle.push_back(at),
            None => {
                let now = self.shared.now();
                self.start(at, now);
            }
        }
    }

    /// Closes a connection that failed, counts its operations as lost, and schedules a new attempt.
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

    /// Counts the unanswered operations as errors at the end of the run.
    fn count_unanswered(&mut self, now: u64) {
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

/// The result of a wait that a signal may interrupt: an interruption is no failure.
fn uninterrupted(done: rustix::io::Result<usize>) -> io::Result<usize> {
    match done {
        Err(rustix::io::Errno::INTR) => Ok(0),
        other => Ok(other?),
    }
}
