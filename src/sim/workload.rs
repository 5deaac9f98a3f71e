//! Clients: each is connected to one node and asks, waits, thinks, and asks again. What they asked
//! and saw is the history that the linearizability checker judges.
//!
//! Most keys live for half a second, so that a key's history stays short enough to be checked even
//! when many of its operations have no known result. One key lives as long as the run.

use std::collections::BTreeMap;
use std::time::Duration;

use super::Sabotage;
use super::cluster::{Event, World};
use super::faults::Plan;
use crate::linearizability::{Action, Operation, Seen};
use crate::replica::pending::Withdrawn;
use crate::replica::{Input, ReadId};
use crate::rng::Rng;
use crate::types::{Command, Outcome, RequestId, Unserved, When};

type Key = Vec<u8>;

/// How an operation ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    Open,
    /// With one result for each action.
    Done {
        at: u64,
        seen: Vec<Seen>,
    },
    /// It may or may not be done, now or later.
    Unknown,
    /// Certainly not done.
    NotDone,
}

/// One request.
#[derive(Clone, Debug)]
pub struct Request {
    pub client: Option<usize>,
    node: usize,
    name: Name,
    pub parts: Vec<(Key, Action)>,
    pub invoked: u64,
    pub end: End,
}

#[derive(Clone, Copy, Debug)]
pub enum Name {
    Write(RequestId),
    Accept(RequestId),
    Read(ReadId),
}

impl Request {
    /// True if it sets a key to this value, of which there is one in a run.
    pub fn sets(&self, value: &[u8]) -> bool {
        let mut actions = self.parts.iter().map(|(_, action)| action);
        actions.any(|action| matches!(action, Action::Set { value: set, .. } if **set == *value))
    }

    /// True if the same process of a node was asked for eventual writes.
    pub fn is_of_same_process(&self, other: &Request) -> bool {
        match (self.name, other.name) {
            (Name::Accept(own), Name::Accept(other)) => {
                (own.node, own.boot) == (other.node, other.boot)
            }
            _ => false,
        }
    }

    fn is_strong(&self) -> bool {
        !matches!(self.name, Name::Accept(_))
    }
}

#[derive(Debug)]
struct Client {
    node: usize,
    under_way: u64,
}

/// See the module.
#[derive(Debug)]
pub struct Workload {
    clients: Vec<Client>,
    pub requests: Vec<Request>,
    /// Orders calls and returns.
    moment: u64,
    next_value: u64,
}

impl Workload {
    /// Clients at all nodes, drawn at random.
    pub fn new(plan: &Plan, rng: &mut Rng) -> Workload {
        let mut client = || Client { node: rng.below(plan.nodes as u64) as usize, under_way: 0 };
        let clients = (0..plan.clients).map(|_| client()).collect();
        Workload { clients, requests: Vec::new(), moment: 0, next_value: 1_000 }
    }

    pub fn clients(&self) -> usize {
        self.clients.len()
    }

    /// True if every request has come to an end.
    pub fn all_ended(&self) -> bool {
        self.requests.iter().all(|request| request.end != End::Open)
    }

    fn moment(&mut self) -> u64 {
        self.moment += 1;
        self.moment
    }

    fn action(&mut self, rng: &mut Rng) -> Action {
        self.next_value += 100;
        let value = self.next_value.to_string().into_bytes();
        let get = rng.chance(1, 4);
        match rng.below(12) {
            0..4 => Action::Get,
            4..6 => Action::Set { value, when: When::Always, get },
            6 => Action::Set { value, when: When::Absent, get },
            7 => Action::Set { value, when: When::Present, get },
            8..10 => Action::Increment(1),
            10 => Action::Take,
            _ => Action::Delete,
        }
    }

    /// A new value.
    pub fn set(&mut self) -> Action {
        self.next_value += 100;
        let value = self.next_value.to_string().into_bytes();
        Action::Set { value, when: When::Always, get: false }
    }

    /// The history of each key that only strong sessions write. What certainly did not happen is no
    /// part of it.
    pub fn histories(&self) -> BTreeMap<Key, Vec<Operation>> {
        let mut histories: BTreeMap<Key, Vec<Operation>> = BTreeMap::new();
        for request in self.requests.iter().filter(|request| request.is_strong()) {
            let (returned, seen) = match &request.end {
                End::NotDone => continue,
                End::Done { at, seen } => (Some(*at), Some(seen)),
                End::Open | End::Unknown => (None, None),
            };
            let mut by_key: BTreeMap<&Key, Vec<_>> = BTreeMap::new();
            for (at, (key, action)) in request.parts.iter().enumerate() {
                let seen = seen.map(|seen| seen[at].clone());
                by_key.entry(key).or_default().push((action.clone(), seen));
            }
            for (key, actions) in by_key.into_iter().filter(|(key, _)| *key != b"mixed") {
                let operation = Operation { invoked: request.invoked, returned, actions };
                histories.entry(key.clone()).or_default().push(operation);
            }
        }
        histories
    }
}

impl World {
    /// A client may ask.
    pub fn client(&mut self, client: usize) {
        if self.calm {
            return;
        }
        let (node, under_way) =
            (self.load.clients[client].node, self.load.clients[client].under_way);
        let think = Duration::from_micros(1 + self.rng.below(2 * self.plan.think_micros));
        let up = self.nodes[node].process.as_ref().is_some_and(|process| !process.stopping);
        if !up || self.nodes[node].paused || under_way >= self.plan.pipeline {
            // Somebody who finds the node down tries another one now and then.
            if !up && self.rng.chance(1, 10) {
                self.load.clients[client].node = self.rng.below(self.nodes.len() as u64) as usize;
            }
            return self.schedule(self.now + think, Event::Client(client));
        }
        self.load.clients[client].under_way += 1;
        if self.rng.chance(self.plan.eventual_share, 4) {
            let parts = self.eventual_parts(client);
            self.ask_eventual(Some(client), node, parts);
            return self.schedule(self.now + think, Event::Client(client));
        }
        let mut parts = Vec::new();
        let length = if self.rng.chance(1, 5) { 1 + self.rng.below(3) } else { 1 };
        for _ in 0..length {
            parts.push((self.key(), self.load.action(&mut self.rng)));
        }
        self.ask(Some(client), node, parts);
        self.schedule(self.now + think, Event::Client(client));
    }

    fn key(&mut self) -> Key {
        if self.rng.chance(1, 20) {
            return b"constant".to_vec();
        }
        if self.plan.eventual_share > 0 && self.rng.chance(1, 10) {
            return b"mixed".to_vec();
        }
        format!("k{}-{}", self.now.0 / 500_000, self.rng.below(3)).into_bytes()
    }

    /// A request reaches its node.
    pub fn ask(&mut self, client: Option<usize>, node: usize, parts: Vec<(Key, Action)>) -> usize {
        let operation = self.load.requests.len();
        let reads_only = parts.iter().all(|(_, action)| *action == Action::Get);
        let through_log = !reads_only || self.rng.chance(1, 5);
        let Some(process) = &mut self.nodes[node].process else { return operation };
        let (name, input) = if through_log {
            let id = process.replica.next_request();
            process.waiting.insert(id, operation);
            (Name::Write(id), Input::Propose { id, commands: encode(&parts).into() })
        } else {
            let read = process.replica.next_read();
            process.reading.insert(read, operation);
            (Name::Read(read), Input::Read(read))
        };
        self.open(client, node, name, parts);
        if self.sabotage == Some(Sabotage::ReadWithoutIndex)
            && let Name::Read(read) = name
        {
            self.serve_read(node, read);
        } else {
            self.step(node, vec![input]);
        }
        operation
    }

    /// Takes note of a request.
    pub fn open(
        &mut self,
        client: Option<usize>,
        node: usize,
        name: Name,
        parts: Vec<(Key, Action)>,
    ) -> usize {
        let operation = self.load.requests.len();
        let (invoked, timeout) = (self.load.moment(), self.now + self.plan.request_timeout);
        let request = Request { client, node, name, parts, invoked, end: End::Open };
        self.note(node, [30, operation as u64, 0], || format!("is asked {request:?}"));
        self.load.requests.push(request);
        if client.is_some() {
            self.schedule(timeout, Event::Timeout(operation));
        }
        operation
    }

    /// What an eventual session asks for: a read, or some writes.
    fn eventual_parts(&mut self, client: usize) -> Vec<(Key, Action)> {
        if self.rng.chance(1, 3) {
            return vec![(self.eventual_key(), Action::Get)];
        }
        let mut parts = Vec::new();
        for _ in 0..1 + self.rng.below(3) {
            let action = if self.rng.chance(1, 5) { Action::Delete } else { self.load.set() };
            parts.push((self.eventual_key(), action));
        }
        parts.push((format!("own{client}").into_bytes(), self.load.set()));
        parts
    }

    fn eventual_key(&mut self) -> Key {
        match self.rng.below(6) {
            0 => b"mixed".to_vec(),
            key => format!("e{key}").into_bytes(),
        }
    }

    /// A client's patience is over.
    pub fn timeout(&mut self, operation: usize) {
        let Request { node, name, ref end, .. } = self.load.requests[operation];
        if *end != End::Open {
            return;
        }
        if self.nodes[node].paused {
            let again = self.now + Duration::from_millis(10);
            return self.schedule(again, Event::Timeout(operation));
        }
        let Some(process) = &mut self.nodes[node].process else { return };
        match name {
            Name::Read(read) => {
                process.reading.remove(&read);
                self.end(operation, End::NotDone);
                self.step(node, vec![Input::AbandonRead(read)]);
            }
            Name::Accept(id) => {
                let Some(withdrawn) = process.replica.withdraw_accept(id) else {
                    return; // Taken: the answer is about to come.
                };
                process.accepting.remove(&id);
                self.given_up(operation, withdrawn);
            }
            Name::Write(id) => {
                let Some(withdrawn) = process.replica.withdraw(id) else {
                    return; // Committed: the result is about to come.
                };
                process.waiting.remove(&id);
                self.given_up(operation, withdrawn);
            }
        }
    }

    fn given_up(&mut self, operation: usize, withdrawn: Withdrawn) {
        let unsent = withdrawn == Withdrawn::Unsent;
        self.end(operation, if unsent { End::NotDone } else { End::Unknown });
    }

    /// A request has been applied at its own node.
    pub fn applied(&mut self, operation: usize, outcomes: &[Outcome]) {
        let at = self.load.moment();
        let seen = outcomes.iter().map(seen).collect();
        self.end(operation, End::Done { at, seen });
    }

    /// Nobody knows what became of a request.
    pub fn unknown(&mut self, operation: usize) {
        self.end(operation, End::Unknown);
    }

    /// The replica refused a request.
    pub fn refused(&mut self, node: usize, id: RequestId, why: Unserved) {
        let Some(process) = &mut self.nodes[node].process else { return };
        let Some(operation) = process.waiting.remove(&id) else {
            return self.fail("only waiting requests are refused", format!("{id:?}: {why}"));
        };
        self.refused_with(operation, why);
    }

    /// A request ends without its results.
    pub fn refused_with(&mut self, operation: usize, why: Unserved) {
        let not_done = matches!(why, Unserved::Rejected(_));
        self.end(operation, if not_done { End::NotDone } else { End::Unknown });
    }

    /// The replica refused a read.
    pub fn read_refused(&mut self, node: usize, read: ReadId) {
        let Some(process) = &mut self.nodes[node].process else { return };
        if let Some(operation) = process.reading.remove(&read) {
            self.end(operation, End::NotDone);
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
            self.serve_read(node, read);
        }
    }

    fn serve_read(&mut self, node: usize, read: ReadId) {
        let Some(process) = &mut self.nodes[node].process else { return };
        let Some(operation) = process.reading.remove(&read) else { return };
        let store = process.writer.store();
        let parts = &self.load.requests[operation].parts;
        let outcomes: Vec<_> =
            parts.iter().map(|(key, _)| store.read(&Command::Get { key })).collect();
        self.applied(operation, &outcomes);
    }

    fn end(&mut self, operation: usize, end: End) {
        let request = &mut self.load.requests[operation];
        if request.end != End::Open {
            let how = format!("request {operation}: {:?}, then {end:?}", request.end);
            return self.fail("a request ends once", how);
        }
        let (node, client) = (request.node, request.client);
        let text = format!("request {operation} ends: {end:?}");
        request.end = end;
        self.note(node, [31, operation as u64, 0], || text);
        if let Some(client) = client {
            self.load.clients[client].under_way -= 1;
        }
    }
}

fn encode(parts: &[(Key, Action)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (key, action) in parts {
        let command = match action {
            Action::Get => Command::Get { key },
            Action::Set { value, when, get } => Command::Set { key, value, when: *when, get: *get },
            Action::Increment(by) => Command::Increment { key, by: *by },
            Action::Take => Command::Take { key },
            Action::Delete => Command::Delete { keys: vec![key] },
        };
        command.encode(&mut bytes);
    }
    bytes
}

fn seen(outcome: &Outcome) -> Seen {
    match outcome {
        Outcome::Done => Seen::Done,
        Outcome::Nil => Seen::Nil,
        Outcome::Integer(number) => Seen::Integer(*number),
        Outcome::Value(value) => Seen::Value(value.to_vec()),
        Outcome::Values(_) | Outcome::Names(_) | Outcome::Page(..) | Outcome::Failed(_) => {
            Seen::Failed
        }
    }
}
