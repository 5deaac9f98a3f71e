//! The server's end of client connections: a real session driver for each. Bytes arrive late and in
//! pieces, and some clients take their replies slowly. `loops` gives each connection its turns.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::clock::Now;
use crate::protocol::{Profile, Question, Reply, ServerInfo, Session};
use crate::replica::Status;
use crate::service::{Next, NodeView, Request, SessionDriver, Share, Shell};
use crate::store::Store;
use crate::testing::sim::cluster::{World, local};
use crate::testing::sim::connection::{SimConnection, WaitsFor};
use crate::testing::sim::events::SimEvent;
use crate::testing::sim::plan::Plan;
use crate::types::{Command, Consistency, Key, NodeId, Outcome, Rejected, Version, Write};

/// A driver's view of its node. It remembers local reads, which the checks look at afterwards.
struct RecordingView<'a> {
    now: Now,
    shell: &'a Shell,
    store: &'a Store,
    /// The keys that were read locally, and the results.
    local_reads: RefCell<Vec<(Key, Outcome)>>,
    /// The key that an eventual session increments.
    incremented: Cell<Option<Key>>,
}

impl<'a> RecordingView<'a> {
    fn new(now: Now, shell: &'a Shell, store: &'a Store) -> RecordingView<'a> {
        let (local_reads, incremented) = (RefCell::default(), Cell::default());
        RecordingView { now, shell, store, local_reads, incremented }
    }
}

impl NodeView for RecordingView<'_> {
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
            self.local_reads.borrow_mut().push(((*key).into(), outcome.clone()));
        }
        outcome
    }

    fn undrained(&self, commands: &[u8]) -> (Vec<u8>, Version) {
        if let Some(Command::Increment { key, .. }) =
            Command::decode_all(commands).find_map(Result::ok)
        {
            self.incremented.set(Some(key.into()));
        }
        self.store.undrained(commands)
    }

    fn trust(&self, version: Version) -> Result<(), Rejected> {
        self.shell.trust(self.now, version)
    }

    /// No client asks such a question: an error would show up as an unexpected reply.
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
    /// A client connects to a node. `None` if no process runs there.
    pub fn open_connection(&mut self, client: usize, node: usize) -> Option<usize> {
        let life = self.life(node)?;
        let number = self.connections.len();
        let session = Session::new(number as u64, server_info(self.nodes[node].id, &self.plan));
        let driver = SessionDriver::new(session, self.plan.request_timeout);
        let client_loop = self.loop_for(node, number);
        self.connections.push(SimConnection {
            client,
            node,
            life,
            client_loop,
            driver: Some(Box::new(driver)),
            waits_for: WaitsFor::Bytes,
            inbox: Vec::new(),
            latest: [self.now; 2],
            incremented: None,
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
            let SimConnection { node, life, .. } = self.connections[connection];
            let bytes = part.to_vec();
            self.schedule(at, SimEvent::ClientBytes { node, life, connection, bytes });
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
    pub fn client_bytes(&mut self, connection: usize, bytes: Vec<u8>) {
        self.connections[connection].inbox.extend(bytes);
        // While a connection waits for an answer or for room, nothing reads its socket.
        if self.connections[connection].waits_for == WaitsFor::Bytes {
            self.has_turn_soon(connection);
        }
    }

    /// A client has taken its replies.
    pub fn replies_taken(&mut self, connection: usize) {
        self.connections[connection].waits_for = WaitsFor::Bytes;
        self.has_turn_soon(connection);
    }

    /// A connection goes on until it has to wait. Returns the request that it waits for, if any,
    /// and the number of outcomes that the answer must have.
    pub fn serve(&mut self, number: usize) -> Option<(Request, usize)> {
        loop {
            let SimConnection { node, waits_for, driver, .. } = &mut self.connections[number];
            let driver = driver.as_mut().filter(|_| *waits_for == WaitsFor::Bytes)?;
            let now = local(self.now, self.nodes[*node].rate_ppm);
            let process = self.nodes[*node].process.as_ref()?;
            let store = process.writer.store();
            let view = RecordingView::new(now, &process.shell, &store);
            let next = driver.next(&view);
            let commands = driver.commands_under_way();
            let incremented = view.incremented.into_inner();
            for (key, outcome) in view.local_reads.into_inner() {
                self.check_read(number, &key, &outcome);
            }
            match next {
                Next::Ask(request) => {
                    let connection = &mut self.connections[number];
                    connection.waits_for = WaitsFor::Answer;
                    connection.incremented = incremented;
                    return Some((request, commands));
                }
                // WAIT is answered at once, as if its time were over.
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

    /// Gives the session the bytes that have come. False if there are none.
    fn feed(&mut self, number: usize) -> bool {
        let SimConnection { driver, inbox, .. } = &mut self.connections[number];
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
        self.schedule(at, SimEvent::Replies { connection: number, bytes });
        // A slow client: the node's send buffer is full, and the connection waits for room.
        let slow = !self.calm && self.rng.chance(self.plan.slow_clients, 100);
        if slow {
            let SimConnection { node, life, waits_for, .. } = &mut self.connections[number];
            *waits_for = WaitsFor::Room;
            let event = SimEvent::RepliesTaken { node: *node, life: *life, connection: number };
            let at = self.soon(500);
            self.schedule(at, event);
        }
        slow
    }

    /// A connection gets its share of an answer. `writes` are its own stamped writes, if the answer
    /// acknowledges any.
    pub fn answered(&mut self, number: usize, share: Share<'_>, writes: &[Write]) {
        if !self.connections[number].is_open() {
            return;
        }
        if let Share::Stamped { .. } = &share {
            self.check_stamped(number, writes);
        }
        // The increment of an eventual session has read the value that it has changed. So the sum
        // tells which value that was.
        if let (Share::Outcomes(outcomes), Some(key)) =
            (&share, self.connections[number].incremented.take())
            && let [Outcome::Integer(sum)] = outcomes[..]
        {
            let before = match sum - 1 {
                0 => Outcome::Nil,
                before => Outcome::Value(before.to_string().as_bytes().into()),
            };
            self.check_read(number, &key, &before);
        }
        let SimConnection { node, waits_for, driver, .. } = &mut self.connections[number];
        let now = local(self.now, self.nodes[*node].rate_ppm);
        let (Some(process), Some(driver)) = (&self.nodes[*node].process, driver) else { return };
        let store = process.writer.store();
        let is_stamped = matches!(share, Share::Stamped { .. });
        driver.complete(&RecordingView::new(now, &process.shell, &store), share);
        // Acknowledged writes without a reply: other parts of them are still to be stamped.
        if is_stamped && driver.output().is_empty() {
            self.coverage.stamped_in_parts += 1;
        }
        *waits_for = WaitsFor::Bytes;
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
