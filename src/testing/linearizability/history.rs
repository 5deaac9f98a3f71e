//! A history prepared for the search.
//!
//! It holds the operations in the order of their calls, their transitions, and facts about each
//! operation that follow from the whole history: the moment by which it must happen, and the
//! operations that could take its place.

use std::collections::HashMap;

use crate::testing::linearizability::model::{
    ABSENT, Effect, Id, Transition, Values, is_opaque, stays,
};
use crate::testing::linearizability::{Action, Operation, Seen};

/// Numbers and increments within this bound never overflow.
const FAR: i64 = 1 << 60;

/// The moment of a return that never comes.
pub const NEVER: u64 = u64::MAX;

/// Facts about an operation that hold for the whole search.
#[derive(Debug)]
pub struct Facts {
    /// True if it returned, so that it must happen.
    pub certain: bool,
    /// The first return of the operation itself and of those that ask for a value it makes.
    pub due: u64,
    /// The last call of an operation that asks for its unique value; 0 without such a value.
    pub served_from: u64,
    /// Its place in the order of `due`, then of returns, then of calls.
    pub rank: u32,
    /// Operations of one shape differ only in their moments and in their unique values.
    pub shape: u32,
}

/// The operations of one key, prepared.
#[derive(Debug)]
pub struct PreparedHistory {
    pub operations: Vec<Operation>,
    pub transitions: Vec<Transition>,
    pub facts: Vec<Facts>,
    pub values: Values,
    /// True if some increment may tell numbers from other values.
    pub numbers_matter: bool,
    /// The most that all increments without an observed sum together move a number, down and up.
    pub drift: (i64, i64),
    /// The numbers that some operation asks for, sorted.
    asked: Vec<i64>,
    /// True if some operation [`is_opaque`].
    pub opaque: bool,
}

/// The operations that make a value and that ask for it.
#[derive(Clone, Debug)]
struct Use {
    makers: u32,
    /// True if all that ask for it returned and keep it.
    only_kept: bool,
    first_return: u64,
    last_call: u64,
}

impl PreparedHistory {
    pub fn new(mut operations: Vec<Operation>) -> PreparedHistory {
        // A lost operation that changes nothing constrains no order.
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

    /// True for a value that blurs with the others of its sort once no pending operation asks for
    /// it. The sorts are numbers (see [`PreparedHistory::is_number`]) and other values.
    pub fn may_blur(&self, id: Id) -> bool {
        id != ABSENT && !self.opaque && (!self.is_number(id) || self.stands_alone(id))
    }

    /// True for a number, if some increment could tell that it is one.
    pub fn is_number(&self, id: Id) -> bool {
        self.numbers_matter && self.values.number(id).is_some()
    }

    /// True for a number from which unobserved increments reach no other number that is asked for,
    /// and no overflow.
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

    /// A description of the operation without its moments and without its unique value, `own`.
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
