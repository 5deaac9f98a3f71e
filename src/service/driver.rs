//! What both front ends do for a client alike: a [`Session`], and what it asks of the node, as
//! requests to the core. Nothing here waits or touches a socket: the front ends decide when bytes
//! come and go, and how an answer is waited for.

use std::mem;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;

use crate::node::clients::registry::Client;
use crate::node::core::Request;
use crate::node::info::Wait;
use crate::node::{Shared, info};
use crate::protocol::{Question, Reply, Session, Work};
use crate::types::{NodeId, Outcome, Rejected, Unknown, Unserved, Write};

/// Eventual writes that are stamped in one go, so that a command with a million keys does not keep
/// the core's lock.
const ACCEPT_WRITES_MAX: usize = 1024;

/// Eventual reads that are done in one go; each of them may walk the whole store.
const LOOKS_MAX: usize = 16;

/// Replies are written when this much has gathered, even within a pipeline.
const OUTPUT_BYTES: usize = 64 << 10;

/// A client with its session.
pub struct Desk {
    pub client: Arc<Client>,
    session: Session,
    asked: Asked,
    accepting: Accepting,
}

/// What has been asked for latest.
#[derive(Clone, Copy, Debug)]
enum Asked {
    Write,
    Stamp,
    Read,
}

/// Eventual writes of one run, which go to the core part by part.
#[derive(Default)]
struct Accepting {
    rest: std::vec::IntoIter<Write>,
    /// For each write that has been taken: whether its key existed.
    existed: Vec<bool>,
}

/// What the client needs next.
#[derive(Debug)]
pub enum Next {
    /// Write the output, then read more bytes.
    Read,
    /// Write the output, then ask again.
    Flush,
    /// Write the output and close the connection.
    Close,
    /// Have this done by the core, then tell [`Desk::wrote`], [`Desk::accepted`],
    /// [`Desk::may_read`] or [`Desk::unserved`].
    Ask(Request),
    /// Let others have their turn, then ask again: this has taken long.
    Yield,
    /// Wait until so many other nodes hold everything, then tell [`Desk::waited`].
    Wait(Wait),
}

impl Desk {
    /// A client that has just been taken in.
    pub fn new(shared: &Shared, client: Arc<Client>) -> Desk {
        let session = Session::new(client.id, Arc::clone(&shared.server_info));
        Desk { client, session, asked: Asked::Read, accepting: Accepting::default() }
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

    /// How many outcomes the latest [`Request::Write`] must have.
    pub fn commands_asked(&self) -> usize {
        self.session.commands_under_way()
    }

    /// Lets others know what the client tells of itself.
    pub fn publish(&self) {
        self.client.publish(self.session.profile());
    }

    /// Does all that nobody has to wait for; then says what is needed to go on.
    pub fn next(&mut self, shared: &Shared) -> Next {
        let clients = &shared.clients;
        let mut looks = 0;
        loop {
            if looks == LOOKS_MAX {
                return Next::Yield;
            }
            if let Some(part) = self.accepting.next_part() {
                self.asked = Asked::Stamp;
                return Next::Ask(Request::Stamp(part));
            }
            if self.session.output().len() >= OUTPUT_BYTES {
                return Next::Flush;
            }
            match self.session.next() {
                Work::Wait => return Next::Read,
                Work::Close => return Next::Close,
                Work::Flush => return Next::Flush,
                Work::Write { commands, eventual } => {
                    clients.writes.fetch_add(1, Ordering::Relaxed);
                    let commands =
                        if eventual { with_undrained(shared, commands) } else { Ok(commands) };
                    self.asked = Asked::Write;
                    match commands {
                        Ok(commands) => return Next::Ask(Request::Write(commands)),
                        Err(unserved) => self.unserved(shared, unserved),
                    }
                }
                Work::Stamp { writes } => {
                    clients.accepts.fetch_add(1, Ordering::Relaxed);
                    self.accepting.rest = writes.into_iter();
                }
                Work::ReadLocal => {
                    clients.looks.fetch_add(1, Ordering::Relaxed);
                    looks += 1;
                    let store = &shared.store;
                    store.prefetch_commands(self.session.reads_under_way());
                    self.session.finish_read(Ok(&mut |command| store.read_newest(command)));
                }
                Work::Read => {
                    clients.reads.fetch_add(1, Ordering::Relaxed);
                    self.asked = Asked::Read;
                    return Next::Ask(Request::Read);
                }
                Work::Ask(Question::Wait { replicas, timeout_ms }) => {
                    return Next::Wait(Wait::new(shared, replicas, timeout_ms));
                }
                Work::Ask(question) => {
                    self.publish();
                    let reply = info::answer(shared, self.client.id, &question);
                    self.session.finish_ask(reply);
                }
            }
        }
    }

    /// What came of a [`Request::Write`].
    pub fn wrote(&mut self, shared: &Shared, outcomes: Vec<Outcome>) {
        self.session.finish_write(Ok(outcomes), shared.core.leader());
    }

    /// A [`Request::Read`] is granted.
    pub fn may_read(&mut self, shared: &Shared) {
        let store = &shared.store;
        store.prefetch_commands(self.session.reads_under_way());
        self.session.finish_read(Ok(&mut |command| store.read(command)));
    }

    /// The writes of a [`Request::Stamp`] are in the overlay: for each whether its key existed.
    /// `stamper` is who has stamped them.
    pub fn accepted(&mut self, existed: &[bool], stamper: Option<NodeId>) {
        self.accepting.existed.extend_from_slice(existed);
        if self.accepting.rest.as_slice().is_empty() {
            let Accepting { existed, .. } = mem::take(&mut self.accepting);
            self.session.finish_stamp(Ok(existed), stamper);
        }
    }

    /// What was asked for is not served.
    pub fn unserved(&mut self, shared: &Shared, unserved: Unserved) {
        match self.asked {
            Asked::Write => self.session.finish_write(Err(unserved), shared.core.leader()),
            Asked::Read => self.session.finish_read(Err(unserved)),
            Asked::Stamp => {
                let Accepting { existed, .. } = mem::take(&mut self.accepting);
                let partly = !existed.is_empty();
                let unserved = if partly { Unknown::Partly.into() } else { unserved };
                self.session.finish_stamp(Err(unserved), None);
            }
        }
    }

    /// The end of a [`Next::Wait`].
    pub fn waited(&mut self, holding: i64) {
        self.session.finish_ask(Reply::Integer(holding));
    }
}

impl Accepting {
    fn next_part(&mut self) -> Option<Vec<Write>> {
        let rest = &mut self.rest;
        if rest.as_slice().is_empty() {
            return None;
        }
        if rest.len() <= ACCEPT_WRITES_MAX {
            return Some(mem::take(rest).collect());
        }
        Some(rest.take(ACCEPT_WRITES_MAX).collect())
    }
}

/// Commands of an eventual session that go through the log take along what the log may not have yet
/// of the keys concerned, so that they see what the session has seen. If that is more than a
/// request may be long, they have to come again when it is in the log.
fn with_undrained(shared: &Shared, commands: Bytes) -> Result<Bytes, Unserved> {
    let (mut undrained, newest) = shared.store.undrained(&commands);
    if undrained.is_empty() {
        return Ok(commands);
    }
    shared.core.trust(newest)?;
    if undrained.len() + commands.len() > shared.server_info.limits.request_bytes_max {
        return Err(Rejected::Busy.into());
    }
    undrained.extend_from_slice(&commands);
    Ok(undrained.into())
}
