//! The server's side of client connections: real sessions, and what the threads that serve them do.
//! A thread waits for its client, then for what it has asked of the node, and wakes up a little
//! later than it could. While it waits for something, what its client sends stays in the socket.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::clock::Now;
use crate::protocol::{Limits, Question, Reply, ServerInfo, Session, Work};
use crate::replica::pending::Cancelled;
use crate::replica::{Input, ReadId};
use crate::testing::sim::Mutant;
use crate::testing::sim::cluster::World;
use crate::testing::sim::events::Event;
use crate::testing::sim::eventual::Versions;
use crate::testing::sim::plan::Plan;
use crate::types::{
    Command, Consistency, Key, NodeId, Outcome, Rejected, RequestId, Unknown, Unserved, Write,
};

/// What a thread waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wait {
    Client,
    Write(RequestId),
    Accept(RequestId),
    Read(ReadId),
    /// Its eventual writes are taken, and about to be visible.
    Visible,
    /// The client takes its replies slowly.
    Room,
}

/// What it waited for.
#[derive(Debug)]
pub enum Answer {
    Outcomes(Vec<Outcome>),
    Unserved(Unserved),
    MayRead,
    Stamped(Vec<bool>, Option<NodeId>),
    Room,
}

/// A client's connection.
pub struct Connection {
    pub client: usize,
    pub node: usize,
    pub life: u64,
    /// `None` once the connection is closed.
    session: Option<Box<Session>>,
    wait: Wait,
    /// Numbers the waits, so that a deadline knows its own.
    waits: u64,
    answer: Option<Answer>,
    /// Bytes that the session has not taken yet.
    inbox: Vec<u8>,
    /// When the latest bytes will arrive, each way.
    latest: [Now; 2],
    /// The key that an eventual session counts up.
    update: Option<Key>,
    /// The newest eventual writes that its client knows to be taken.
    pub written: Versions,
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "client {} at #{}: {:?}", self.client, self.node, self.wait)
    }
}

impl Connection {
    /// True while both ends have it open.
    pub fn is_open(&self) -> bool {
        self.session.is_some()
    }
}

/// What all sessions of a node know.
fn server_info(node: NodeId, plan: &Plan) -> Arc<ServerInfo> {
    let Plan { batch_commands_max, output_bytes_max, .. } = *plan;
    let limits = Limits { batch_commands_max, output_bytes_max, ..Limits::default() };
    Arc::new(ServerInfo {
        node,
        version: "simulated",
        password: None,
        limits,
        consistency: Consistency::Strong,
        config: Vec::new(),
    })
}

impl World {
    /// A client connects to a running node.
    pub fn open_connection(&mut self, client: usize, node: usize) -> Option<usize> {
        let life = self.life(node)?;
        let number = self.connections.len();
        let server_info = server_info(self.nodes[node].id, &self.plan);
        self.connections.push(Connection {
            client,
            node,
            life,
            session: Some(Box::new(Session::new(number as u64, server_info))),
            wait: Wait::Client,
            waits: 0,
            answer: None,
            inbox: Vec::new(),
            latest: [self.now; 2],
            update: None,
            written: BTreeMap::new(),
        });
        Some(number)
    }

    /// A client sends bytes, in one or two pieces.
    pub fn send_bytes(&mut self, connection: usize, bytes: &[u8], pieces: bool) {
        let cut = if pieces { self.rng.below(bytes.len() as u64) as usize } else { 0 };
        for part in [&bytes[..cut], &bytes[cut..]] {
            if part.is_empty() {
                continue;
            }
            let at = self.travel_time(connection, 0);
            let Connection { node, life, .. } = self.connections[connection];
            let bytes = part.to_vec();
            self.schedule(at, Event::Bytes { node, life, connection, bytes });
        }
    }

    /// When what is sent now arrives, on the way to (0) or from (1) the node.
    fn travel_time(&mut self, connection: usize, way: usize) -> Now {
        let micros = 1 + self.rng.below(self.plan.client_micros);
        let latest = &mut self.connections[connection].latest[way];
        *latest = (self.now + Duration::from_micros(micros)).max(*latest);
        *latest
    }

    /// Bytes have come from a client.
    pub fn bytes(&mut self, connection: usize, bytes: Vec<u8>) {
        self.connections[connection].inbox.extend(bytes);
        if self.connections[connection].wait == Wait::Client {
            self.serve(connection);
        }
    }

    /// A thread goes on with its session until it has to wait.
    fn serve(&mut self, number: usize) {
        while let Some(work) = self.next_work(number) {
            let waits = match work {
                Work::Wait => self.flush(number) || !self.feed(number),
                Work::Flush => self.flush(number),
                Work::Close => {
                    self.flush(number);
                    self.close_connection(number);
                    true
                }
                Work::Write { commands, eventual } => self.propose(number, commands, eventual),
                Work::Read => self.ask_to_read(number),
                Work::Stamp { writes } => self.ask_to_accept(number, writes),
                Work::ReadLocal => self.look(number),
                Work::Ask(question) => self.tell(number, &question),
            };
            if waits {
                return;
            }
        }
    }

    fn next_work(&mut self, number: usize) -> Option<Work> {
        self.connections[number].session.as_mut().map(|session| session.next())
    }

    /// Gives the session what has come. False if there is nothing: the thread waits for its client.
    fn feed(&mut self, number: usize) -> bool {
        let Connection { session, inbox, wait, .. } = &mut self.connections[number];
        let Some(session) = session.as_mut().filter(|_| !inbox.is_empty()) else {
            *wait = Wait::Client;
            return false;
        };
        let space = session.space();
        let len = space.len().min(inbox.len());
        space[..len].copy_from_slice(&inbox[..len]);
        inbox.drain(..len);
        session.filled(len);
        true
    }

    /// Sends the replies. True if the thread has to wait until the client takes them.
    fn flush(&mut self, number: usize) -> bool {
        let Some(session) = &mut self.connections[number].session else { return false };
        let bytes = std::mem::take(session.output());
        if bytes.is_empty() {
            return false;
        }
        let at = self.travel_time(number, 1);
        self.schedule(at, Event::Replies { connection: number, bytes });
        let slow = !self.calm && self.rng.chance(self.plan.slow_clients, 100);
        if slow {
            let Connection { node, life, wait, answer, .. } = &mut self.connections[number];
            (*wait, *answer) = (Wait::Room, Some(Answer::Room));
            let event = Event::Wake { node: *node, life: *life, connection: number };
            let at = self.soon(500);
            self.schedule(at, event);
        }
        slow
    }

    /// The thread waits for an answer of its node, until the request's time is over.
    fn wait_for(&mut self, number: usize, wait: Wait) {
        let connection = &mut self.connections[number];
        connection.wait = wait;
        connection.waits += 1;
        let (node, life, wait) = (connection.node, connection.life, connection.waits);
        let at = self.now + self.plan.request_timeout;
        self.schedule(at, Event::Deadline { node, life, connection: number, wait });
    }

    fn propose(&mut self, number: usize, commands: bytes::Bytes, eventual: bool) -> bool {
        let node = self.connections[number].node;
        let now = self.local(node);
        let Some(process) = &mut self.nodes[node].process else { return true };
        let (mut all, newest) =
            if eventual { process.writer.store().undrained(&commands) } else { Default::default() };
        if !all.is_empty()
            && let Err(why) = process.replica.trust(now, newest)
        {
            self.finish(number, Answer::Unserved(why.into()));
            return false;
        }
        let Some(process) = &mut self.nodes[node].process else { return true };
        all.extend_from_slice(&commands);
        let first = Command::decode_all(&commands).find_map(Result::ok);
        self.connections[number].update = match first {
            Some(Command::Increment { key, .. }) if eventual => Some(key.into()),
            _ => None,
        };
        let id = process.replica.next_request();
        process.waiting.insert(id, number);
        self.wait_for(number, Wait::Write(id));
        self.step(node, vec![Input::Propose { id, commands: all.into() }]);
        true
    }

    fn ask_to_read(&mut self, number: usize) -> bool {
        let node = self.connections[number].node;
        let Some(process) = &mut self.nodes[node].process else { return true };
        let id = process.replica.next_read();
        if self.mutant == Some(Mutant::ReadWithoutQuorum) {
            self.finish(number, Answer::MayRead);
            return false;
        }
        process.reading.insert(id, (number, self.oracle.commits()));
        self.wait_for(number, Wait::Read(id));
        self.step(node, vec![Input::Read(id)]);
        true
    }

    fn ask_to_accept(&mut self, number: usize, writes: Vec<Write>) -> bool {
        let node = self.connections[number].node;
        let Some(process) = &mut self.nodes[node].process else { return true };
        let id = process.replica.next_stamp();
        process.accepting.insert(id, number);
        self.wait_for(number, Wait::Accept(id));
        self.step(node, vec![Input::Stamp { id, writes }]);
        true
    }

    /// Serves eventual reads.
    fn look(&mut self, number: usize) -> bool {
        let Connection { node, session, .. } = &mut self.connections[number];
        let (Some(process), Some(session)) = (&self.nodes[*node].process, session) else {
            return true;
        };
        let store = process.writer.store();
        let mut seen: Vec<(Key, Outcome)> = Vec::new();
        session.finish_read(Ok(&mut |command| {
            let outcome = store.read_newest(command);
            if let Command::Get { key } = command {
                seen.push(((*key).into(), outcome.clone()));
            }
            outcome
        }));
        for (key, outcome) in seen {
            self.check_read(number, &key, &outcome);
        }
        false
    }

    fn tell(&mut self, number: usize, question: &Question) -> bool {
        let how = format!("{question:?}");
        if let Some(session) = &mut self.connections[number].session {
            session.finish_ask(Reply::Error(how.into()));
        }
        false
    }

    /// What a thread waits for has come; it wakes up soon.
    pub fn answer(&mut self, number: usize, answer: Answer) {
        let Connection { node, life, answer: slot, .. } = &mut self.connections[number];
        *slot = Some(answer);
        let (node, life) = (*node, *life);
        let at = self.now + Duration::from_micros(self.rng.below(self.plan.wake_micros));
        self.schedule(at, Event::Wake { node, life, connection: number });
    }

    /// A thread wakes up and goes on.
    pub fn wake(&mut self, number: usize) {
        let Some(answer) = self.connections[number].answer.take() else { return };
        self.finish(number, answer);
        self.serve(number);
    }

    fn finish(&mut self, number: usize, answer: Answer) {
        let Connection { node, wait, .. } = &mut self.connections[number];
        let waited = std::mem::replace(wait, Wait::Room);
        let Some(process) = &self.nodes[*node].process else { return };
        let leader = process.replica.leader();
        let update = self.connections[number].update.take();
        if let (Answer::Outcomes(outcomes), Some(key)) = (&answer, update)
            && let [Outcome::Integer(sum)] = outcomes[..]
        {
            let before = match sum - 1 {
                0 => Outcome::Nil,
                before => Outcome::Value(before.to_string().as_bytes().into()),
            };
            self.check_read(number, &key, &before);
        }
        let Connection { node, session, .. } = &mut self.connections[number];
        let (Some(process), Some(session)) = (&self.nodes[*node].process, session) else { return };
        match (answer, waited) {
            (Answer::Outcomes(outcomes), _) => session.finish_write(Ok(outcomes), leader),
            (Answer::Stamped(existed, by), _) => session.finish_stamp(Ok(existed), by),
            (Answer::MayRead, _) => {
                let store = process.writer.store();
                session.finish_read(Ok(&mut |command| store.read(command)));
            }
            (Answer::Unserved(why), Wait::Read(_)) => session.finish_read(Err(why)),
            (Answer::Unserved(why), Wait::Accept(_) | Wait::Visible) => {
                session.finish_stamp(Err(why), None);
            }
            (Answer::Unserved(why), _) => session.finish_write(Err(why), leader),
            (Answer::Room, _) => {}
        }
    }

    /// The time for what a thread waits for is over.
    pub fn deadline(&mut self, number: usize, wait: u64) {
        let connection = &self.connections[number];
        let (node, waits) = (connection.node, connection.wait);
        if connection.waits != wait {
            return;
        }
        let Some(process) = &mut self.nodes[node].process else { return };
        match waits {
            Wait::Write(id) if process.waiting.remove(&id).is_some() => {
                let cancelled = process.replica.cancel(id).unwrap_or(Cancelled::NotPending);
                let why = cancelled.outcome(process.replica.leader());
                self.answer(number, Answer::Unserved(why));
            }
            Wait::Accept(id) if process.accepting.remove(&id).is_some() => {
                let cancelled = process.replica.cancel_stamp(id).unwrap_or(Cancelled::NotPending);
                let why = cancelled.outcome(process.replica.stamper());
                self.answer(number, Answer::Unserved(why));
            }
            Wait::Read(id) if process.reading.remove(&id).is_some() => {
                self.step(node, vec![Input::CancelRead(id)]);
                self.answer(number, Answer::Unserved(Rejected::NoLeader.into()));
            }
            _ => {}
        }
    }

    /// The replica refused a request.
    pub fn refused(&mut self, node: usize, id: RequestId, why: Unserved) {
        let Some(process) = &mut self.nodes[node].process else { return };
        match process.waiting.remove(&id) {
            Some(number) => self.answer(number, Answer::Unserved(why)),
            None => self.fail("only waiting requests are refused", format!("{id:?}: {why}")),
        }
    }

    /// The replica did not take the writes of a request.
    pub fn accept_refused(&mut self, node: usize, id: RequestId, why: Unserved) {
        let Some(process) = &mut self.nodes[node].process else { return };
        if let Some(number) = process.accepting.remove(&id) {
            self.answer(number, Answer::Unserved(why));
        }
    }

    /// The replica refused a read.
    pub fn read_refused(&mut self, node: usize, read: ReadId, why: Rejected) {
        let Some(process) = &mut self.nodes[node].process else { return };
        if let Some((number, _)) = process.reading.remove(&read) {
            self.answer(number, Answer::Unserved(why.into()));
        }
    }

    /// A connection whose eventual writes were taken.
    pub fn accepted_by(&mut self, node: usize, id: RequestId) -> Option<usize> {
        let number = self.nodes[node].process.as_mut()?.accepting.remove(&id)?;
        self.connections[number].wait = Wait::Visible;
        Some(number)
    }

    /// Results that came with an image are lost.
    pub fn results_lost(&mut self, node: usize) {
        let Some(process) = &mut self.nodes[node].process else { return };
        let requests = process.writer.requests();
        let waiting = std::mem::take(&mut process.waiting);
        let (lost, kept) = waiting.into_iter().partition(|(id, _)| requests.contains(*id));
        process.waiting = kept;
        let lost: BTreeMap<RequestId, usize> = lost;
        for number in lost.into_values() {
            self.answer(number, Answer::Unserved(Unknown::ResultLost.into()));
        }
    }

    /// Serves the reads whose index is applied.
    pub fn serve_reads(&mut self, node: usize) {
        let Some(process) = &mut self.nodes[node].process else { return };
        let applied = process.writer.applied().index;
        let (ready, waiting): (Vec<_>, Vec<_>) =
            std::mem::take(&mut process.granted).into_iter().partition(|(at, _)| *at <= applied);
        process.granted = waiting;
        for (_, read) in ready {
            let process = self.nodes[node].process.as_mut();
            if let Some((number, _)) = process.and_then(|process| process.reading.remove(&read)) {
                self.answer(number, Answer::MayRead);
            }
        }
    }

    /// Either end has closed a connection.
    pub fn close_connection(&mut self, number: usize) {
        self.connections[number].session = None;
        self.connection_lost(number);
    }

    /// A process has ended, and its connections with it.
    pub fn connections_of_the_dead(&mut self, node: usize) {
        for number in 0..self.connections.len() {
            if self.connections[number].node == node && self.connections[number].is_open() {
                self.close_connection(number);
            }
        }
    }
}
