//! The server's side of client connections: the real driver of each session, fed with bytes that
//! arrive late, in pieces, and from clients that take their replies slowly. `loops` decides when a
//! connection has its turn.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::clock::Now;
use crate::protocol::{Profile, Question, Reply, ServerInfo, Session};
use crate::replica::Status;
use crate::service::{Next, NodeView, Request, SessionDriver, Share, Shell};
use crate::store::Store;
use crate::testing::sim::cluster::{World, local};
use crate::testing::sim::events::Event;
use crate::testing::sim::eventual::Versions;
use crate::testing::sim::plan::Plan;
use crate::types::{Command, Consistency, Key, NodeId, Outcome, Rejected, Version, Write};

/// The reason why a connection stands still.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// The client has to send something.
    Reading,
    /// A request has no answer yet. What the client sends stays in the socket.
    Asking,
    /// The client takes its replies slowly.
    Writing,
}

/// A client's connection.
pub struct Connection {
    pub client: usize,
    pub node: usize,
    pub life: u64,
    /// The loop or thread that serves it.
    pub lane: usize,
    /// `None` once the connection is closed.
    driver: Option<Box<SessionDriver>>,
    state: State,
    /// Bytes that the session has not taken yet.
    inbox: Vec<u8>,
    /// The time at which the latest bytes arrive, each way.
    latest: [Now; 2],
    /// The key that an eventual session counts up, while that is under way.
    update: Option<Key>,
    /// The newest eventual writes that its client knows to be taken.
    pub written: Versions,
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "client {} at #{}: {:?}", self.client, self.node, self.state)
    }
}

impl Connection {
    /// True while both ends have it open.
    pub fn is_open(&self) -> bool {
        self.driver.is_some()
    }
}

/// A node as a driver sees it, which remembers what was read for the checks.
struct View<'a> {
    now: Now,
    shell: &'a Shell,
    store: &'a Store,
    /// Keys read locally, with what was found.
    seen: RefCell<Vec<(Key, Outcome)>>,
    /// The key of an increment of an eventual session.
    update: Cell<Option<Key>>,
}

impl NodeView for View<'_> {
    fn now(&self) -> Now {
        self.now
    }

    fn leader(&self) -> Option<NodeId> {
        self.shell.replica().leader()
    }

    fn status(&self) -> Status {
        self.shell.replica().status()
    }

    fn read(&self, command: &Command<'_>) -> Outcome {
        self.store.read(command)
    }

    fn read_local(&self, command: &Command<'_>) -> Outcome {
        let outcome = self.store.read_newest(command);
        if let Command::Get { key } = command {
            self.seen.borrow_mut().push(((*key).into(), outcome.clone()));
        }
        outcome
    }

    fn undrained(&self, commands: &[u8]) -> (Vec<u8>, Version) {
        if let Some(Command::Increment { key, .. }) =
            Command::decode_all(commands).find_map(Result::ok)
        {
            self.update.set(Some(key.into()));
        }
        self.store.undrained(commands)
    }

    fn trust(&self, version: Version) -> Result<(), Rejected> {
        self.shell.trust(self.now, version)
    }

    fn answer(&self, _: &Profile, question: &Question) -> Reply {
        Reply::Error(format!("{question:?}").into())
    }
}

/// The facts and limits that all sessions of a node share.
fn server_info(node: NodeId, plan: &Plan) -> Arc<ServerInfo> {
    Arc::new(ServerInfo {
        node,
        version: "simulated",
        password: None,
        limits: plan.limits.clone(),
        consistency: Consistency::Strong,
        config: Vec::new(),
    })
}

impl World {
    /// A client connects to a running node.
    pub fn open_connection(&mut self, client: usize, node: usize) -> Option<usize> {
        let life = self.life(node)?;
        let number = self.connections.len();
        let session = Session::new(number as u64, server_info(self.nodes[node].id, &self.plan));
        let driver = SessionDriver::new(session, self.plan.request_timeout);
        let lane = self.lane_for(node, number);
        self.connections.push(Connection {
            client,
            node,
            life,
            lane,
            driver: Some(Box::new(driver)),
            state: State::Reading,
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

    /// The time at which bytes sent now arrive, on the way to (0) or from (1) the node.
    fn travel_time(&mut self, connection: usize, way: usize) -> Now {
        let micros = 1 + self.rng.below(self.plan.client_micros);
        let latest = &mut self.connections[connection].latest[way];
        *latest = (self.now + Duration::from_micros(micros)).max(*latest);
        *latest
    }

    /// Bytes have come from a client.
    pub fn bytes(&mut self, connection: usize, bytes: Vec<u8>) {
        self.connections[connection].inbox.extend(bytes);
        if self.connections[connection].state == State::Reading {
            self.has_turn_soon(connection);
        }
    }

    /// A client has taken its replies.
    pub fn has_room(&mut self, connection: usize) {
        self.connections[connection].state = State::Reading;
        self.has_turn_soon(connection);
    }

    /// A connection goes on until it has to wait. Its request, if it has one, joins the round.
    pub fn serve(&mut self, number: usize) -> Option<(Request, usize)> {
        loop {
            let Connection { node, state, driver, .. } = &mut self.connections[number];
            let driver = driver.as_mut().filter(|_| *state == State::Reading)?;
            let now = local(self.now, self.nodes[*node].rate_ppm);
            let process = self.nodes[*node].process.as_ref()?;
            let (seen, update) = (RefCell::default(), Cell::default());
            let store = process.writer.store();
            let view = View { now, shell: &process.shell, store: &store, seen, update };
            let next = driver.next(&view);
            let commands = driver.commands_under_way();
            let (seen, update) = (view.seen.into_inner(), view.update.into_inner());
            for (key, outcome) in seen {
                self.check_read(number, &key, &outcome);
            }
            match next {
                Next::Ask(request) => {
                    let connection = &mut self.connections[number];
                    (connection.state, connection.update) = (State::Asking, update);
                    return Some((request, commands));
                }
                Next::Wait(wait) => {
                    let node = self.connections[number].node;
                    let status = self.nodes[node].process.as_ref()?.shell.replica().status();
                    let driver = self.connections[number].driver.as_mut()?;
                    driver.finish_wait(wait.holding(&status));
                }
                Next::Yield => {
                    self.has_turn_soon(number);
                    return None;
                }
                Next::Flush => {
                    if self.flush(number) {
                        return None;
                    }
                }
                Next::Read => {
                    if self.flush(number) || !self.feed(number) {
                        return None;
                    }
                }
                Next::Close => {
                    self.flush(number);
                    self.close_connection(number);
                    return None;
                }
            }
        }
    }

    /// Gives the session what has come. False if there is nothing.
    fn feed(&mut self, number: usize) -> bool {
        let Connection { driver, inbox, .. } = &mut self.connections[number];
        let Some(driver) = driver.as_mut().filter(|_| !inbox.is_empty()) else { return false };
        let space = driver.space();
        let len = space.len().min(inbox.len());
        space[..len].copy_from_slice(&inbox[..len]);
        inbox.drain(..len);
        driver.filled(len);
        true
    }

    /// Sends the replies. True if the connection has to wait until the client takes them.
    fn flush(&mut self, number: usize) -> bool {
        let Some(driver) = &mut self.connections[number].driver else { return false };
        let bytes = std::mem::take(driver.output());
        if bytes.is_empty() {
            return false;
        }
        let at = self.travel_time(number, 1);
        self.schedule(at, Event::Replies { connection: number, bytes });
        let slow = !self.calm && self.rng.chance(self.plan.slow_clients, 100);
        if slow {
            let Connection { node, life, state, .. } = &mut self.connections[number];
            *state = State::Writing;
            let event = Event::HasRoom { node: *node, life: *life, connection: number };
            let at = self.soon(500);
            self.schedule(at, event);
        }
        slow
    }

    /// A connection has its share of an answer. `writes` are its own stamped writes, if the answer
    /// is about such.
    pub fn answered(&mut self, number: usize, share: Share<'_>, writes: &[Write]) {
        if !self.connections[number].is_open() {
            return;
        }
        if let Share::Stamped { .. } = &share {
            self.check_stamped(number, writes);
        }
        if let (Share::Outcomes(outcomes), Some(key)) =
            (&share, self.connections[number].update.take())
            && let [Outcome::Integer(sum)] = outcomes[..]
        {
            let before = match sum - 1 {
                0 => Outcome::Nil,
                before => Outcome::Value(before.to_string().as_bytes().into()),
            };
            self.check_read(number, &key, &before);
        }
        let Connection { node, state, driver, .. } = &mut self.connections[number];
        let now = local(self.now, self.nodes[*node].rate_ppm);
        let (Some(process), Some(driver)) = (&self.nodes[*node].process, driver) else { return };
        let (seen, update) = (RefCell::default(), Cell::default());
        let store = process.writer.store();
        driver.complete(&View { now, shell: &process.shell, store: &store, seen, update }, share);
        *state = State::Reading;
    }

    /// Either end has closed a connection.
    pub fn close_connection(&mut self, number: usize) {
        self.connections[number].driver = None;
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
