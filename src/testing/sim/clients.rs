//! Clients: each is connected to one node and asks, waits, thinks, and asks again, in RESP over a
//! connection that may be lost. One whose node is down tries another now and then.

use std::time::Duration;

use crate::protocol::Limits;
use crate::testing::linearizability::{Action, Seen};
use crate::testing::sim::cluster::World;
use crate::testing::sim::events::Event;
use crate::testing::sim::workload::{Client, End, Key, MIXED, Request};
use crate::types::When;

/// A client waits for its replies for so many request time-outs.
const PATIENCE: u32 = 3;

impl World {
    /// A client may ask.
    pub fn client(&mut self, client: usize) {
        if self.calm {
            return;
        }
        let think = Duration::from_micros(1 + self.rng.below(2 * self.plan.think_micros));
        self.schedule(self.now + think, Event::Client(client));
        let node = self.load.clients[client].node;
        let up = self.nodes[node].process.as_ref().is_some_and(|process| !process.stopping);
        if !up && self.rng.chance(1, 10) {
            // Somebody who finds the node down tries another one now and then.
            self.load.clients[client].node = self.rng.below(self.nodes.len() as u64) as usize;
        }
        let open = self.load.clients[client].open.len() as u64;
        if !up || open >= self.plan.pipeline {
            return;
        }
        if self.rng.chance(self.plan.eventual_share, 4) {
            let parts = self.load.eventual_parts(client, self.now.0, &mut self.rng);
            self.ask(client, parts, true);
            return;
        }
        let length = if self.rng.chance(1, 5) { 1 + self.rng.below(3) } else { 1 };
        let mut parts = Vec::new();
        for _ in 0..length {
            parts.push((self.key(), self.load.action(&mut self.rng)));
        }
        self.ask(client, parts, false);
    }

    fn key(&mut self) -> Key {
        if self.rng.chance(1, 20) {
            return b"constant".to_vec();
        }
        if self.plan.eventual_share > 0 && self.rng.chance(1, 10) {
            return MIXED.to_vec();
        }
        format!("k{}-{}", self.now.0 / 500_000, self.rng.below(3)).into_bytes()
    }

    /// A client that asks one node for something when all is calm.
    pub fn add_client(&mut self, node: usize) -> usize {
        self.load.clients.push(Client { node, ..Client::default() });
        self.load.clients.len() - 1
    }

    /// A client sends a pipeline. The numbers of its requests.
    pub fn ask(
        &mut self,
        client: usize,
        parts: Vec<(Key, Action)>,
        eventual: bool,
    ) -> std::ops::Range<usize> {
        let first = self.load.requests.len();
        let Some(connection) = self.connect_client(client) else { return first..first };
        let (node, life) = (self.connections[connection].node, self.connections[connection].life);
        let pieces = self.rng.chance(1, 5);
        let alone = self.load.clients[client].open.is_empty() && !pieces;
        let writes = parts.iter().any(|(_, action)| *action != Action::Get);
        let mut bytes = Vec::new();
        parts.iter().for_each(|(key, action)| encode(key, action, eventual, &mut bytes));
        let Limits { batch_commands_max, batch_bytes_max, .. } = self.plan.limits;
        let fits = parts.len() <= batch_commands_max && bytes.len() <= batch_bytes_max;
        let one_batch = alone && writes && fits;
        let group = (one_batch && !eventual).then_some(first as u64);
        for (key, action) in parts {
            let (number, invoked) = (self.load.requests.len(), self.load.moment());
            let end = End::Open;
            let request =
                Request { client, node, life, eventual, key, action, group, invoked, end };
            self.note(node, [30, number as u64, 0], || format!("is asked {number}: {request:?}"));
            self.load.requests.push(request);
            self.load.clients[client].open.push_back(number);
        }
        self.send_bytes(connection, &bytes, pieces);
        let at = self.now + self.plan.request_timeout * PATIENCE;
        self.schedule(at, Event::GiveUp { connection, operation: first });
        first..self.load.requests.len()
    }

    /// The client's connection, which is made if there is none.
    fn connect_client(&mut self, client: usize) -> Option<usize> {
        if let Some(connection) = self.load.clients[client].connection {
            return Some(connection);
        }
        let node = self.load.clients[client].node;
        let connection = self.open_connection(client, node)?;
        self.load.clients[client].connection = Some(connection);
        Some(connection)
    }

    /// A client hangs up if this request has no reply yet.
    pub fn give_up(&mut self, connection: usize, request: usize) {
        let open = self.load.requests[request].end == End::Open;
        if open && self.connections[connection].is_open() {
            self.close_connection(connection);
        }
    }

    /// A client's connection is no more: nobody knows what became of what it had asked.
    pub fn connection_lost(&mut self, connection: usize) {
        let client = &mut self.load.clients[self.connections[connection].client];
        if client.connection != Some(connection) {
            return;
        }
        client.connection = None;
        client.replies.clear();
        for request in std::mem::take(&mut client.open) {
            self.end(request, End::Unknown);
        }
    }

    /// A random client loses its connection.
    pub fn lose_client(&mut self) {
        let at = self.rng.below(self.load.clients.len() as u64) as usize;
        if let Some(connection) = self.load.clients[at].connection {
            self.close_connection(connection);
        }
    }

    /// Replies have come to a client.
    pub fn replies(&mut self, connection: usize, bytes: &[u8]) {
        if !self.connections[connection].is_open() {
            return;
        }
        let client = self.connections[connection].client;
        let mut replies = std::mem::take(&mut self.load.clients[client].replies);
        replies.extend_from_slice(bytes);
        let mut start = 0;
        while let Some((reply, len)) = parse(&replies[start..]) {
            start += len;
            let Some(request) = self.load.clients[client].open.pop_front() else {
                return self.fail("a request has one reply", format!("one more: {reply:?}"));
            };
            match self.end_of(&reply) {
                Some(end) => self.end(request, end),
                None => {
                    let request = &self.load.requests[request];
                    return self.fail("replies make sense", format!("{request:?}: {reply:?}"));
                }
            }
        }
        replies.drain(..start);
        self.load.clients[client].replies = replies;
    }

    /// What a reply says about its request; `None` if it is none of what was to be expected.
    fn end_of(&mut self, reply: &Result<Seen, String>) -> Option<End> {
        let error = match reply {
            Ok(seen) => return Some(End::Done { at: self.load.moment(), seen: seen.clone() }),
            Err(error) => error,
        };
        match error.split(' ').next()? {
            "CLUSTERDOWN" | "TRYAGAIN" | "LOADING" | "MISCONF" => Some(End::NotDone),
            "UNKNOWN" => Some(End::Unknown),
            _ if error.starts_with("ERR value is not an integer") => {
                Some(End::Done { at: self.load.moment(), seen: Seen::Failed })
            }
            _ => None,
        }
    }

    fn end(&mut self, number: usize, end: End) {
        let request = &mut self.load.requests[number];
        let node = request.node;
        let text = format!("request {number} ends: {end:?}");
        request.end = end;
        self.note(node, [31, number as u64, 0], || text);
    }
}

/// Appends a command in RESP.
fn encode(key: &[u8], action: &Action, eventual: bool, out: &mut Vec<u8>) {
    let mut words: Vec<&[u8]> = if eventual { vec![b"WITH", b"eventual"] } else { Vec::new() };
    let by;
    match action {
        Action::Get => words.extend([b"GET", key]),
        Action::Set { value, when, get } => {
            words.extend([b"SET", key, value.as_slice()]);
            words.extend(match when {
                When::Always => None,
                When::Absent => Some(b"NX".as_slice()),
                When::Present => Some(b"XX".as_slice()),
            });
            words.extend(get.then_some(b"GET".as_slice()));
        }
        Action::Increment(step) => {
            by = step.to_string();
            words.extend([b"INCRBY", key, by.as_bytes()]);
        }
        Action::Take => words.extend([b"GETDEL", key]),
        Action::Delete => words.extend([b"DEL", key]),
    }
    out.extend(format!("*{}\r\n", words.len()).bytes());
    for word in words {
        out.extend(format!("${}\r\n", word.len()).bytes());
        out.extend_from_slice(word);
        out.extend_from_slice(b"\r\n");
    }
}

/// The first reply, if it is whole, and its length. `Err` is an error reply.
fn parse(bytes: &[u8]) -> Option<(Result<Seen, String>, usize)> {
    let end = bytes.windows(2).position(|pair| pair == b"\r\n")?;
    let (line, len) = (std::str::from_utf8(&bytes[1..end]).ok()?, end + 2);
    let reply = match bytes[0] {
        b'+' => Ok(Seen::Done),
        b':' => line.parse().map(Seen::Integer).map_err(|_| line.to_owned()),
        b'$' if line == "-1" => Ok(Seen::Nil),
        b'$' => {
            let value_len: usize = line.parse().ok()?;
            let value = bytes.get(len..len + value_len)?;
            bytes.get(len + value_len..len + value_len + 2)?;
            return Some((Ok(Seen::Value(value.to_vec())), len + value_len + 2));
        }
        _ => Err(line.to_owned()),
    };
    Some((reply, len))
}
