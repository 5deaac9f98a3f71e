//! A history made ready for the search: its operations in the order of their calls, the list of
//! calls and returns that the search takes operations out of, and what the whole history tells
//! about each operation: how soon it is needed, and which others could stand in for it.

use std::collections::HashMap;

use crate::testing::linearizability::model::{
    ABSENT, Effect, Id, Transition, Values, is_opaque, stays,
};
use crate::testing::linearizability::{Action, Operation, Seen};

/// No number nearer to zero than this overflows by as little as this.
const FAR: i64 = 1 << 60;

/// "Never", as a moment.
pub const NEVER: u64 = u64::MAX;

/// What the search knows of an operation from the start.
#[derive(Debug)]
pub struct Facts {
    pub certain: bool,
    /// The first moment by which it, or an operation that only it can serve, has returned.
    pub due: u64,
    /// The last moment at which an operation that only it can serve was called.
    pub served_from: u64,
    /// Its place in the order of what is due, returns and calls.
    pub rank: u32,
    /// Operations of one shape can take each other's place.
    pub shape: u32,
}

/// See the module.
#[derive(Debug)]
pub struct PreparedHistory {
    pub operations: Vec<Operation>,
    pub transitions: Vec<Transition>,
    pub facts: Vec<Facts>,
    pub values: Values,
    /// An increment may tell numbers from other values.
    pub numbers_matter: bool,
    /// How far increments whose sums nobody saw may move a number, all together, down and up.
    pub drift: (i64, i64),
    /// The numbers that some operation asks for.
    asked: Vec<i64>,
    /// See [`is_opaque`].
    pub opaque: bool,
}

/// What a value means to the operations.
#[derive(Clone, Debug)]
struct Use {
    makers: u32,
    only_kept: bool,
    first_return: u64,
    last_call: u64,
}

impl PreparedHistory {
    pub fn new(mut operations: Vec<Operation>) -> PreparedHistory {
        // What nobody saw and what changes nothing tells nothing.
        operations.retain(|op| op.returned.is_some() || !idle(op));
        operations.sort_by_key(|op| op.invoked);
        let mut values = Values::new();
        let transitions: Vec<Transition> =
            operations.iter().map(|op| Transition::new(op, &mut values)).collect();
        let opaque = operations.iter().any(is_opaque);
        let free = operations
            .iter()
            .zip(&transitions)
            .filter(|(_, transition)| transition.effect == Effect::Free);
        let by: Vec<i64> = free.flat_map(|(op, _)| op.actions.iter().filter_map(added)).collect();
        let adds = transitions.iter().filter_map(|transition| transition.adds);
        let mut drift = adds
            .fold((0i64, 0i64), |all, by| (all.0.saturating_add(by.0), all.1.saturating_add(by.1)));
        if by.iter().any(|by| by.unsigned_abs() > FAR.unsigned_abs()) {
            drift = (i64::MIN, i64::MAX);
        }
        let wants = transitions.iter().flat_map(Transition::wants);
        let mut asked: Vec<i64> = wants.filter_map(|id| values.number(id)).collect();
        asked.sort_unstable();
        let mut history = PreparedHistory {
            operations,
            transitions,
            facts: Vec::new(),
            values,
            numbers_matter: !by.is_empty(),
            drift,
            asked,
            opaque,
        };
        history.facts = history.learn();
        history
    }

    pub fn returned(&self, at: usize) -> u64 {
        self.operations[at].returned.unwrap_or(NEVER)
    }

    /// True for a value that, once nobody asks for it any more, is like any other one of its sort
    /// (see [`PreparedHistory::is_number`]).
    pub fn may_blur(&self, id: Id) -> bool {
        id != ABSENT && !self.opaque && (!self.is_number(id) || self.stands_alone(id))
    }

    /// True for a number, if somebody could tell that it is one.
    pub fn is_number(&self, id: Id) -> bool {
        self.numbers_matter && self.values.number(id).is_some()
    }

    /// True for a number of which unseen increments make no other one that is asked for, and no
    /// overflow.
    fn stands_alone(&self, id: Id) -> bool {
        let Some(number) = self.values.number(id) else { return false };
        let ((down, up), near) = (self.drift, -FAR..=FAR);
        if ![number, down, up].iter().all(|number| near.contains(number)) {
            return false;
        }
        let first = self.asked.partition_point(|asked| *asked < number + down);
        let mut reached = self.asked[first..].iter().take_while(|asked| **asked <= number + up);
        reached.all(|asked| *asked == number)
    }

    fn learn(&self) -> Vec<Facts> {
        let unused = Use { makers: 0, only_kept: true, first_return: NEVER, last_call: 0 };
        let mut uses = vec![unused; self.values.len()];
        for (at, transition) in self.transitions.iter().enumerate() {
            let operation = &self.operations[at];
            for id in transition.wants() {
                let used = &mut uses[id as usize];
                used.only_kept &= transition.keeps && operation.returned.is_some();
                used.first_return = used.first_return.min(self.returned(at));
                used.last_call = used.last_call.max(operation.invoked);
            }
            for id in &transition.makes {
                uses[*id as usize].makers += 1;
            }
        }
        let mut shapes = HashMap::new();
        let learn = |at: usize| {
            let transition = &self.transitions[at];
            let made = transition.makes.iter().map(|id| &uses[*id as usize]);
            let due = made.map(|used| used.first_return).fold(self.returned(at), u64::min);
            let own = match transition.makes[..] {
                [id] if self.may_blur(id) => Some((id, &uses[id as usize])),
                _ => None,
            };
            let own = own.filter(|(_, used)| used.makers == 1 && used.only_kept);
            let shape = self.shape(at, own.map(|(id, _)| id));
            let next = shapes.len() as u32;
            Facts {
                certain: self.operations[at].returned.is_some(),
                due,
                rank: 0,
                served_from: own.map_or(0, |(_, used)| used.last_call),
                shape: *shapes.entry(shape).or_insert(next),
            }
        };
        let mut facts: Vec<Facts> = (0..self.transitions.len()).map(learn).collect();
        let mut ranking: Vec<usize> = (0..facts.len()).collect();
        ranking.sort_by_key(|at| (facts[*at].due, self.returned(*at)));
        for (rank, at) in (0..).zip(ranking) {
            facts[at].rank = rank;
        }
        facts
    }

    /// Everything that matters of an operation but its moments; not the value that is its own.
    fn shape(&self, at: usize, own: Option<Id>) -> String {
        let actions = &self.operations[at].actions;
        let sort = own.map(|id| self.is_number(id));
        match (&self.transitions[at].effect, &actions[..]) {
            (Effect::Blind(after), _) => format!("{sort:?} {:?}", own.is_none().then_some(after)),
            (Effect::Exact(pairs), _) if own.is_some() => {
                format!("{sort:?} {:?}", pairs.iter().map(|(before, _)| before).collect::<Vec<_>>())
            }
            (Effect::Exact(pairs), _) => format!("{pairs:?}"),
            (Effect::Free, [(Action::Set { when, get, .. }, seen)]) if own.is_some() => {
                format!("{sort:?} {when:?} {get} {seen:?}")
            }
            (Effect::Free, actions) => format!("{actions:?}"),
        }
    }
}

fn added((action, _): &(Action, Option<Seen>)) -> Option<i64> {
    match action {
        Action::Increment(by) => Some(*by),
        _ => None,
    }
}

fn idle(operation: &Operation) -> bool {
    operation.actions.iter().all(|(action, seen)| stays(action, seen.as_ref()))
}
