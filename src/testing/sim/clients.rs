//! Clients: each is connected to one node, sends requests in RESP, waits for the replies, thinks,
//! and sends more. Connections may be lost. A client whose node is down tries another one now and
//! then.

use std::time::Duration;

use crate::protocol::Limits;
use crate::testing::linearizability::{Action, Seen};
use crate::testing::sim::cluster::World;
use crate::testing::sim::events::SimEvent;
use crate::testing::sim::workload::{KeyAction, MIXED, RequestState, SimClient, SimRequest};
use crate::types::When;

/// A client hangs up when its first reply has not come within this many request time-outs.
const PATIENCE: u32 = 3;

impl World {
    /// A client may send its next requests.
    pub fn client_turn(&mut self, client: usize) {
        if self.calm {
            return;
        }
        let think = Duration::from_micros(1 + self.rng.below(2 * self.plan.think_micros));
        self.schedule(self.now + think, SimEvent::ClientTurn(client));
        let node = self.load.clients[client].node;
        let up = self.nodes[node].process.as_ref().is_some_and(|process| !process.stopping);
        if !up && self.rng.chance(1, 10) {
            // The node is down: try another one.
            self.load.clients[client].node = self.rng.below(self.nodes.len() as u64) as usize;
        }
        let open = self.load.clients[client].open.len() as u64;
        if !up || open >= self.plan.pipeline {
            return;
        }
        if self.rng.chance(self.plan.eventual_share, 4) {
            let parts = self.load.eventual_parts(client, self.now.0, &mut self.rng);
            self.send_requests(client, parts, true);
            return;
        }
        let length = if self.rng.chance(1, 5) { 1 + self.rng.below(3) } else { 1 };
        let mut parts = Vec::new();
        for _ in 0..length {
            parts.push((self.key(), self.load.action(&mut self.rng)));
        }
        self.send_requests(client, parts, false);
    }

    /// A key for a strong session.
    fn key(&mut self) -> Vec<u8> {
        if self.rng.chance(1, 20) {
            return b"constant".to_vec();
        }
        if self.plan.eventual_share > 0 && self.rng.chance(1, 10) {
            return MIXED.to_vec();
        }
        format!("k{}-{}", self.now.0 / 500_000, self.rng.below(3)).into_bytes()
    }

    /// A new client of a node.
    pub fn add_client(&mut self, node: usize) -> usize {
        self.load.clients.push(SimClient { node, ..SimClient::default() });
        self.load.clients.len() - 1
    }

    /// A client sends a pipeline. Returns the numbers of its requests.
    pub fn send_requests(
        &mut self,
        client: usize,
        parts: Vec<KeyAction>,
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
        // A session makes one batch of a pipeline that comes in one piece, behind no other request,
        // and within the limits.
        let Limits { batch_commands_max, batch_bytes_max, .. } = self.plan.limits;
        let fits = parts.len() <= batch_commands_max && bytes.len() <= batch_bytes_max;
        let one_batch = alone && writes && fits;
        // The log applies a batch at one moment. An eventual session has no such promise.
        let group = (one_batch && !eventual).then_some(first as u64);
        for (key, action) in parts {
            let (number, invoked) = (self.load.requests.len(), self.load.moment());
            let state = RequestState::Open;
            let request =
                SimRequest { client, node, life, eventual, key, action, group, invoked, state };
            self.note(node, [30, number as u64, 0], || {
                format!("gets request {number}: {request:?}")
            });
            self.load.requests.push(request);
            self.load.clients[client].open.push_back(number);
        }
        self.send_bytes(connection, &bytes, pieces);
        let at = self.now + self.plan.request_timeout * PATIENCE;
        self.schedule(at, SimEvent::HangUp { connection, request: first });
        first..self.load.requests.len()
    }

    /// The client's connection. If it has none, it connects.
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
    pub fn hang_up_unanswered(&mut self, connection: usize, request: usize) {
        let open = self.load.requests[request].state == RequestState::Open;
        if open && self.connections[connection].is_open() {
            self.close_connection(connection);
        }
    }

    /// A client's connection is gone. Its open requests may or may not be done.
    pub fn connection_lost(&mut self, connection: usize) {
        let client = &mut self.load.clients[self.connections[connection].client];
        // The client has another connection by now.
        if client.connection != Some(connection) {
            return;
        }
        client.connection = None;
        client.replies.clear();
        for request in std::mem::take(&mut client.open) {
            self.end_request(request, RequestState::Unknown);
        }
    }

    /// A random client loses its connection.
    pub fn lose_client(&mut self) {
        let at = self.rng.below(self.load.clients.len() as u64) as usize;
        if let Some(connection) = self.load.clients[at].connection {
            self.close_connection(connection);
        }
    }

    /// Replies come to a client.
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
            match self.state_after(&reply) {
                Some(state) => self.end_request(request, state),
                None => {
                    let request = &self.load.requests[request];
                    return self.fail("replies make sense", format!("{request:?}: {reply:?}"));
                }
            }
        }
        replies.drain(..start);
        self.load.clients[client].replies = replies;
    }

    /// The state of a request after its reply. `None` if no such reply was expected.
    fn state_after(&mut self, reply: &Result<Seen, String>) -> Option<RequestState> {
        let error = match reply {
            Ok(seen) => {
                return Some(RequestState::Done { at: self.load.moment(), seen: seen.clone() });
            }
            Err(error) => error,
        };
        // The first word of an error is a contract: is the request certainly not done, or unknown?
        match error.split(' ').next()? {
            "CLUSTERDOWN" | "TRYAGAIN" | "LOADING" | "MISCONF" => Some(RequestState::NotDone),
            "UNKNOWN" => Some(RequestState::Unknown),
            _ if error.starts_with("ERR value is not an integer") => {
                Some(RequestState::Done { at: self.load.moment(), seen: Seen::Failed })
            }
            _ => None,
        }
    }

    fn end_request(&mut self, number: usize, state: RequestState) {
        let request = &mut self.load.requests[number];
        let node = request.node;
        let text = format!("request {number} ends: {state:?}");
        request.state = state;
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

/// The first reply and its length, if all of it has come. `Err` is an error reply.
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
