//! What clients ask for, and the history of what they asked and saw, which is judged in the end.
//!
//! Most keys live for half a second, so that a key's history stays short enough to be checked even
//! when many of its operations have no known result. One key lives as long as the run.

use std::collections::{BTreeMap, VecDeque};

use crate::rng::Rng;
use crate::testing::linearizability::{Action, Operation, Seen};
use crate::testing::sim::plan::Plan;
use crate::types::When;

pub type Key = Vec<u8>;

/// A key that both kinds of sessions write: what comes of it is decided by versions.
pub const MIXED: &[u8] = b"mixed";

/// How a request ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    Open,
    Done {
        at: u64,
        seen: Seen,
    },
    /// It may or may not be done, now or later.
    Unknown,
    /// Certainly not done.
    NotDone,
}

/// One command.
#[derive(Clone, Debug)]
pub struct Request {
    pub client: usize,
    /// The process that was asked.
    pub node: usize,
    pub life: u64,
    pub eventual: bool,
    pub key: Key,
    pub action: Action,
    /// Those of one group happen at one moment.
    pub group: Option<u64>,
    pub invoked: u64,
    pub end: End,
}

impl Request {
    /// True if it sets a key to this value, of which there is one in a run.
    pub fn sets(&self, value: &[u8]) -> bool {
        matches!(&self.action, Action::Set { value: set, .. } if **set == *value)
    }

    /// True if the same process of a node was asked for eventual writes.
    pub fn is_of_same_process(&self, other: &Request) -> bool {
        self.eventual && other.eventual && (self.node, self.life) == (other.node, other.life)
    }
}

/// One who asks.
#[derive(Debug, Default)]
pub struct Client {
    /// Where it connects.
    pub node: usize,
    pub connection: Option<usize>,
    /// Requests without a reply, in their order.
    pub open: VecDeque<usize>,
    /// Bytes of replies that are not whole yet.
    pub replies: Vec<u8>,
}

/// See the module.
#[derive(Debug)]
pub struct Workload {
    pub clients: Vec<Client>,
    pub requests: Vec<Request>,
    /// Orders calls and returns.
    moment: u64,
    next_value: u64,
}

impl Workload {
    /// Clients of random nodes.
    pub fn new(plan: &Plan, rng: &mut Rng) -> Workload {
        let mut client =
            || Client { node: rng.below(plan.nodes as u64) as usize, ..Client::default() };
        let clients = (0..plan.clients).map(|_| client()).collect();
        Workload { clients, requests: Vec::new(), moment: 0, next_value: 1_000 }
    }

    /// True if every request has come to an end.
    pub fn all_ended(&self) -> bool {
        self.requests.iter().all(|request| request.end != End::Open)
    }

    /// The next moment.
    pub fn moment(&mut self) -> u64 {
        self.moment += 1;
        self.moment
    }

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

    /// What an eventual session asks for: a read, some blind writes, or a write that depends on
    /// what is there.
    pub fn eventual_parts(&mut self, client: usize, at: u64, rng: &mut Rng) -> Vec<(Key, Action)> {
        let key = |rng: &mut Rng| match rng.below(10) {
            0 => MIXED.to_vec(),
            // A key without a record: nothing but the floor says how old a write to it may be.
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
        parts.push((format!("own{client}").into_bytes(), self.set()));
        parts
    }

    /// The history of each key that only strong sessions write. What certainly did not happen is no
    /// part of it.
    pub fn histories(&self) -> BTreeMap<Key, Vec<Operation>> {
        let mut histories: BTreeMap<Key, Vec<Operation>> = BTreeMap::new();
        let mut groups: BTreeMap<(u64, &Key), usize> = BTreeMap::new();
        for request in self.requests.iter().filter(|request| !request.eventual) {
            let (returned, seen) = match &request.end {
                End::NotDone => continue,
                End::Done { at, seen } => (Some(*at), Some(seen.clone())),
                End::Open | End::Unknown => (None, None),
            };
            let action = (request.action.clone(), seen);
            if request.key == MIXED {
                continue;
            }
            let history = histories.entry(request.key.clone()).or_default();
            let group = request.group.map(|group| (group, &request.key));
            match group.and_then(|group| groups.get(&group)) {
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
