//! The driver of one client's [`Session`]: turns its work into requests to the shell, and answers
//! into replies. Every front end drives its clients by this file, and so do the simulator and the
//! tests.
//!
//! It never waits and never touches a socket. The front end decides when bytes come and go, and how
//! an answer is waited for:
//!
//! ```text
//! loop {
//!     match driver.next(view) {
//!         Read     => write output(), clear it; read into space(), then filled(n)
//!         Flush    => write output(), clear it
//!         Ask(r)   => ask the shell for r; its share of the answer goes to complete()
//!         Wait(w)  => every WAIT_STEP: w.result(..), then finish_wait()
//!         Yield    => serve other clients first
//!         Close    => write output(), close
//!     }
//! }
//! ```

use std::mem;
use std::time::Duration;

use bytes::Bytes;

use super::completion::Share;
use super::shell::Request;
use super::wait::Wait;
use crate::clock::Now;
use crate::protocol::{Profile, Question, Reply, Session, Work};
use crate::replica::Status;
use crate::types::{Command, NodeId, Outcome, Rejected, Unknown, Unserved, Version, Write};

/// Runs of local reads that one call serves. Each of them may walk the whole store.
const LOCAL_READS_MAX: usize = 16;

/// Replies are written when this much has gathered, even within a pipeline.
const OUTPUT_BYTES: usize = 64 << 10;

/// The kinds of work that a node counts for INFO.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A batch for the log.
    Write,
    /// A linearizable read.
    Read,
    /// Eventual writes to be stamped.
    Stamp,
    /// A read of what this node holds.
    ReadLocal,
}

/// The driver's view of its node: its state, and reads that need no waiting.
pub trait NodeView {
    /// The present moment.
    fn now(&self) -> Now;

    /// The node that leads, if one is known.
    fn leader(&self) -> Option<NodeId>;

    /// The replica's state at this moment.
    fn status(&self) -> Status;

    /// Executes a read on the store as of the last applied entry.
    fn read(&self, command: &Command<'_>) -> Outcome;

    /// Executes a read on the store with this node's undrained eventual writes on top.
    fn read_local(&self, command: &Command<'_>) -> Outcome;

    /// Encoded reads are about to be executed: fetches their keys' memory.
    fn prefetch(&self, _commands: &[u8]) {}

    /// The undrained eventual writes to the keys of these encoded commands, as encoded commands
    /// themselves, and the highest version among them.
    fn undrained(&self, commands: &[u8]) -> (Vec<u8>, Version);

    /// See [`Shell::trust`](super::Shell::trust).
    ///
    /// # Errors
    /// The reason why the version may not travel into the log now.
    fn trust(&self, version: Version) -> Result<(), Rejected>;

    /// Answers a question about the node. (WAIT is the driver's own.)
    fn answer(&self, profile: &Profile, question: &Question) -> Reply;

    /// Counts a piece of work.
    fn count(&self, _kind: Kind) {}
}

/// A client's session, with its request that is under way.
pub struct SessionDriver {
    session: Session,
    request_timeout: Duration,
    under_way: Kind,
    stamping: Stamping,
}

/// Eventual writes of one run. They go to the core part by part, so that a command with a million
/// keys does not keep the core's lock.
#[derive(Default)]
struct Stamping {
    rest: std::vec::IntoIter<Write>,
    /// For each write that is stamped: whether its key existed.
    existed: Vec<bool>,
}

/// The client's next need.
#[derive(Debug)]
pub enum Next {
    /// Write the output, then read more bytes: the session's [`Work::Wait`].
    Read,
    /// Write the output, then call again.
    Flush,
    /// Write the output and close the connection.
    Close,
    /// Ask the shell for this, then call [`SessionDriver::complete`].
    Ask(Request),
    /// Let others have their turn, then call again: this call has taken long.
    Yield,
    /// Wait until enough other nodes hold everything, then call [`SessionDriver::finish_wait`].
    Wait(Wait),
}

impl SessionDriver {
    /// Drives a new session. `request_timeout` bounds WAIT.
    pub fn new(session: Session, request_timeout: Duration) -> SessionDriver {
        SessionDriver {
            session,
            request_timeout,
            under_way: Kind::Read,
            stamping: Stamping::default(),
        }
    }

    /// See [`Session::space`].
    pub fn space(&mut self) -> &mut [u8] {
        self.session.space()
    }

    /// See [`Session::filled`].
    pub fn filled(&mut self, len: usize) {
        self.session.filled(len);
    }

    /// See [`Session::output`].
    pub fn output(&mut self) -> &mut Vec<u8> {
        self.session.output()
    }

    /// See [`Session::profile`].
    pub fn profile(&self) -> &Profile {
        self.session.profile()
    }

    /// The number of outcomes that the answer to the latest [`Request::Write`] must have for this
    /// client.
    pub fn commands_under_way(&self) -> usize {
        self.session.commands_under_way()
    }

    /// Does everything that needs no waiting, then returns the client's next need.
    pub fn next(&mut self, view: &impl NodeView) -> Next {
        let mut local_reads = 0;
        loop {
            if local_reads == LOCAL_READS_MAX {
                return Next::Yield;
            }
            if let Some(part) = self.stamping.next_part(self.session.limits().stamp_writes_max) {
                return self.ask(Kind::Stamp, Request::Stamp(part));
            }
            if self.session.output().len() >= OUTPUT_BYTES {
                return Next::Flush;
            }
            match self.session.next() {
                Work::Wait => return Next::Read,
                Work::Close => return Next::Close,
                Work::Flush => return Next::Flush,
                Work::Write { commands, eventual } => {
                    view.count(Kind::Write);
                    let commands =
                        if eventual { self.with_undrained(view, commands) } else { Ok(commands) };
                    match commands {
                        Ok(commands) => return self.ask(Kind::Write, Request::Write(commands)),
                        Err(unserved) => self.session.finish_write(Err(unserved), view.leader()),
                    }
                }
                Work::Read => {
                    view.count(Kind::Read);
                    return self.ask(Kind::Read, Request::Read);
                }
                Work::Stamp { writes } => {
                    view.count(Kind::Stamp);
                    self.stamping.rest = writes.into_iter();
                }
                Work::ReadLocal => {
                    view.count(Kind::ReadLocal);
                    local_reads += 1;
                    view.prefetch(self.session.reads_under_way());
                    self.session.finish_read(Ok(&mut |command| view.read_local(command)));
                }
                Work::Ask(Question::Wait { replicas, timeout_ms }) => {
                    let (now, status) = (view.now(), view.status());
                    let limit = self.request_timeout;
                    return Next::Wait(Wait::new(now, &status, replicas, timeout_ms, limit));
                }
                Work::Ask(question) => {
                    let reply = view.answer(self.session.profile(), &question);
                    self.session.finish_ask(reply);
                }
            }
        }
    }

    fn ask(&mut self, kind: Kind, request: Request) -> Next {
        self.under_way = kind;
        Next::Ask(request)
    }

    /// Puts the undrained eventual writes to the same keys in front of an eventual session's
    /// commands, so that the commands see in the log what the session has seen on this node.
    ///
    /// # Errors
    /// The reason why the request cannot be made now. It is certainly not done.
    fn with_undrained(&self, view: &impl NodeView, commands: Bytes) -> Result<Bytes, Unserved> {
        let (mut undrained, newest) = view.undrained(&commands);
        if undrained.is_empty() {
            return Ok(commands);
        }
        // The log takes no version that may come from a wrong clock: it would win for ever.
        view.trust(newest)?;
        // A request has a greatest length on the wire. Once the writes have drained, the commands
        // need nothing in front of them, so trying again helps.
        if undrained.len() + commands.len() > self.session.limits().request_bytes_max {
            return Err(Rejected::Busy.into());
        }
        undrained.extend_from_slice(&commands);
        Ok(undrained.into())
    }

    /// The client's share of the answer to the latest [`Next::Ask`].
    pub fn complete(&mut self, view: &impl NodeView, share: Share<'_>) {
        match share {
            // Undrained writes in front of the commands have no outcomes.
            Share::Outcomes(outcomes) => self.session.finish_write(Ok(outcomes), view.leader()),
            Share::Stamped { existed, by } => self.stamped(existed, by),
            Share::MayRead => {
                view.prefetch(self.session.reads_under_way());
                self.session.finish_read(Ok(&mut |command| view.read(command)));
            }
            Share::Unserved(unserved) => self.unserved(view, unserved),
        }
    }

    fn stamped(&mut self, existed: &[bool], by: Option<NodeId>) {
        self.stamping.existed.extend_from_slice(existed);
        if self.stamping.rest.as_slice().is_empty() {
            let Stamping { existed, .. } = mem::take(&mut self.stamping);
            self.session.finish_stamp(Ok(existed), by);
        }
    }

    fn unserved(&mut self, view: &impl NodeView, unserved: Unserved) {
        match self.under_way {
            Kind::Write => self.session.finish_write(Err(unserved), view.leader()),
            Kind::Read | Kind::ReadLocal => self.session.finish_read(Err(unserved)),
            Kind::Stamp => {
                let Stamping { existed, .. } = mem::take(&mut self.stamping);
                // Earlier parts are stamped and stay. So "certainly not done" would be a lie.
                let partly_done = !existed.is_empty();
                let unserved = if partly_done { Unknown::Partly.into() } else { unserved };
                self.session.finish_stamp(Err(unserved), None);
            }
        }
    }

    /// The end of a [`Next::Wait`]: the number of nodes that hold everything.
    pub fn finish_wait(&mut self, holding: i64) {
        self.session.finish_ask(Reply::Integer(holding));
    }
}

impl Stamping {
    fn next_part(&mut self, writes_max: usize) -> Option<Vec<Write>> {
        let rest = &mut self.rest;
        if rest.as_slice().is_empty() {
            return None;
        }
        if rest.len() <= writes_max {
            return Some(mem::take(rest).collect());
        }
        Some(rest.take(writes_max).collect())
    }
}
