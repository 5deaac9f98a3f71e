//! The requests of clients, and the history of requests and results, which is judged at the end.
//!
//! Most keys live for half a second, so that a key's history stays short enough to be checked even
//! when many of its operations have no known result. One key lives as long as the run.

use std::collections::{BTreeMap, VecDeque};

use crate::rng::Rng;
use crate::testing::linearizability::{Action, Operation, Seen};
use crate::testing::sim::plan::Plan;
use crate::types::When;

/// A command, with the key that it is about.
pub type KeyAction = (Vec<u8>, Action);

/// A key that strong and eventual sessions write. Versions decide which write wins, so its history
/// need not be linearizable.
pub const MIXED: &[u8] = b"mixed";

/// The state of a request, as its client knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RequestState {
    /// It has no reply yet.
    Open,
    /// It is done, with this result, at this moment.
    Done { at: u64, seen: Seen },
    /// It may or may not be done, now or later.
    Unknown,
    /// Certainly not done.
    NotDone,
}

/// One command of a client.
#[derive(Clone, Debug)]
pub struct SimRequest {
    pub client: usize,
    /// The node and the process that it was sent to.
    pub node: usize,
    pub life: u64,
    pub eventual: bool,
    pub key: Vec<u8>,
    pub action: Action,
    /// Requests of one group happen at one moment.
    pub group: Option<u64>,
    /// The moment of the call.
    pub invoked: u64,
    pub state: RequestState,
}

impl SimRequest {
    /// True if it sets a key to this value. No two requests of a run set the same value.
    pub fn sets(&self, value: &[u8]) -> bool {
        matches!(&self.action, Action::Set { value: set, .. } if **set == *value)
    }

    /// True if both are requests of eventual sessions to the same process.
    pub fn is_of_same_process(&self, other: &SimRequest) -> bool {
        self.eventual && other.eventual && (self.node, self.life) == (other.node, other.life)
    }
}

/// A client.
#[derive(Debug, Default)]
pub struct SimClient {
    /// The node that it connects to.
    pub node: usize,
    pub connection: Option<usize>,
    /// Requests without a reply, in order.
    pub open: VecDeque<usize>,
    /// The bytes of a reply that has not come whole.
    pub replies: Vec<u8>,
}

/// All clients and all requests of a run.
#[derive(Debug)]
pub struct Workload {
    pub clients: Vec<SimClient>,
    pub requests: Vec<SimRequest>,
    /// Orders calls and returns.
    moment: u64,
    next_value: u64,
}

impl Workload {
    /// The clients of a plan, at random nodes.
    pub fn new(plan: &Plan, rng: &mut Rng) -> Workload {
        let mut client =
            || SimClient { node: rng.below(plan.nodes as u64) as usize, ..SimClient::default() };
        let clients = (0..plan.clients).map(|_| client()).collect();
        Workload { clients, requests: Vec::new(), moment: 0, next_value: 1_000 }
    }

    /// True if no request is open.
    pub fn all_ended(&self) -> bool {
        self.requests.iter().all(|request| request.state != RequestState::Open)
    }

    /// The next moment. No two calls and returns share one.
    pub fn moment(&mut self) -> u64 {
        self.moment += 1;
        self.moment
    }

    /// A value that no other request writes.
    fn value(&mut self) -> Vec<u8> {
        self.next_value += 100;
        self.next_value.to_string().into_bytes()
    }

    /// A command of a strong session.
    pub fn action(&mut self, rng: &mut Rng) -> Action {
        let value = self.value();
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

    /// A command that writes a new value.
    fn set(&mut self) -> Action {
        Action::Set { value: self.value(), when: When::Always, get: false }
    }

    /// The commands of an eventual session: a read, some blind writes, or an increment.
    pub fn eventual_parts(&mut self, client: usize, at: u64, rng: &mut Rng) -> Vec<KeyAction> {
        let key = |rng: &mut Rng| match rng.below(10) {
            0 => MIXED.to_vec(),
            // A key of its own time has no record: only the floor bounds the age of a write to it.
            1..4 => format!("e-{}-{}", at / 500_000, rng.below(3)).into_bytes(),
            number => format!("e{}", number % 4).into_bytes(),
        };
        match rng.below(12) {
            0..4 => return vec![(key(rng), Action::Get)],
            4 => return vec![(key(rng), Action::Increment(1))],
            _ => {}
        }
        let mut parts = Vec::new();
        for _ in 0..1 + rng.below(3) {
            let action = if rng.chance(1, 5) { Action::Delete } else { self.set() };
            parts.push((key(rng), action));
        }
        // Anywhere among them: a run that is only partly stamped may hold it, or not.
        let place = rng.below(parts.len() as u64 + 1) as usize;
        parts.insert(place, (format!("own{client}").into_bytes(), self.set()));
        parts
    }

    /// The history of each key that only strong sessions write. Requests that are certainly not
    /// done are no part of it.
    pub fn histories(&self) -> BTreeMap<Vec<u8>, Vec<Operation>> {
        let mut histories: BTreeMap<Vec<u8>, Vec<Operation>> = BTreeMap::new();
        let mut groups: BTreeMap<(u64, &Vec<u8>), usize> = BTreeMap::new();
        for request in self.requests.iter().filter(|request| !request.eventual) {
            let (returned, seen) = match &request.state {
                RequestState::NotDone => continue,
                RequestState::Done { at, seen } => (Some(*at), Some(seen.clone())),
                RequestState::Open | RequestState::Unknown => (None, None),
            };
            let action = (request.action.clone(), seen);
            // Versions decide about this key: `eventual` checks it.
            if request.key == MIXED {
                continue;
            }
            let history = histories.entry(request.key.clone()).or_default();
            let group = request.group.map(|group| (group, &request.key));
            match group.and_then(|group| groups.get(&group)) {
                // Another command of the same batch: both happen at one moment.
                Some(&at) => {
                    let operation = &mut history[at];
                    operation.actions.push(action);
                    operation.returned = operation.returned.zip(returned).map(|(a, b)| a.max(b));
                }
                None => {
                    group.map(|group| groups.insert(group, history.len()));
                    let (invoked, actions) = (request.invoked, vec![action]);
                    history.push(Operation { invoked, returned, actions });
                }
            }
        }
        histories
    }
}
