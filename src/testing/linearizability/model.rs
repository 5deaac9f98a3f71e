//! The sequential specification: the effect of an action on a key's value, and its result.
//!
//! And the same for whole operations, prepared for the search: states get numbers, and a result is
//! turned once into the states before the operation that it allows.

use std::collections::HashMap;

use crate::testing::linearizability::{Action, Operation, Seen};
use crate::types::{When, parse_integer};

/// The value of a key, if it has one.
pub type KeyState = Option<Vec<u8>>;

/// The number of a state in [`Values`].
pub type Id = u32;

/// The state of a key without a value.
pub const ABSENT: Id = 0;

/// Applies an action to a state and returns its result.
pub fn act(action: &Action, state: &mut KeyState) -> Seen {
    let shown = |value: KeyState| value.map_or(Seen::Nil, Seen::Value);
    match action {
        Action::Get => shown(state.clone()),
        Action::Set { value, when, get } => {
            let old = state.clone();
            let allowed = match when {
                When::Always => true,
                When::Absent => old.is_none(),
                When::Present => old.is_some(),
            };
            if allowed {
                *state = Some(value.clone());
            }
            match (*get, allowed) {
                (true, _) => shown(old),
                (false, true) => Seen::Done,
                (false, false) => Seen::Nil,
            }
        }
        Action::Increment(by) => {
            let number = state.as_deref().map_or(Some(0), parse_integer);
            match number.and_then(|number| number.checked_add(*by)) {
                Some(sum) => {
                    *state = Some(sum.to_string().into_bytes());
                    Seen::Integer(sum)
                }
                None => Seen::Failed,
            }
        }
        Action::Take => shown(state.take()),
        Action::Delete => Seen::Integer(i64::from(state.take().is_some())),
    }
}

/// The state after the operation; `None` if the results in `operation` do not follow from `state`.
pub fn run(operation: &Operation, mut state: KeyState) -> Option<KeyState> {
    for (action, seen) in &operation.actions {
        let shown = act(action, &mut state);
        if seen.as_ref().is_some_and(|seen| *seen != shown) {
            return None;
        }
    }
    Some(state)
}

/// All states so far, with their numbers.
#[derive(Debug)]
pub struct Values {
    states: Vec<KeyState>,
    numbers: Vec<Option<i64>>,
    ids: HashMap<KeyState, Id, foldhash::fast::FixedState>,
}

impl Values {
    pub fn new() -> Values {
        let ids = HashMap::from_iter([(None, ABSENT)]);
        Values { states: vec![None], numbers: vec![None], ids }
    }

    pub fn id(&mut self, state: KeyState) -> Id {
        let next = Id::try_from(self.states.len()).expect("memory ends before the numbers do");
        let id = *self.ids.entry(state.clone()).or_insert(next);
        if id == next {
            self.numbers.push(state.as_deref().and_then(parse_integer));
            self.states.push(state);
        }
        id
    }

    pub fn len(&self) -> usize {
        self.states.len()
    }

    /// The value as a number, if it is one.
    pub fn number(&self, id: Id) -> Option<i64> {
        self.numbers[id as usize]
    }
}

/// The states that an operation accepts, and the state that it leaves for each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// It accepts these states only; each comes with the state that it leaves.
    Exact(Vec<(Id, Id)>),
    /// It accepts every state and leaves this one.
    Blind(Id),
    /// Any other effect, found by running it. It tells states apart only by whether there is a
    /// value and, if it increments, by numbers.
    Free,
}

/// An operation as a transition between states.
#[derive(Debug)]
pub struct Transition {
    pub effect: Effect,
    /// True if it keeps the state wherever it fits.
    pub keeps: bool,
    /// The states that it may leave by a change, apart from unobserved sums.
    pub makes: Vec<Id>,
    /// The most that it may move a number down and up without an observed sum.
    pub adds: Option<(i64, i64)>,
}

impl Transition {
    pub fn new(operation: &Operation, values: &mut Values) -> Transition {
        let effect = effect(operation, values);
        let keeps = match &effect {
            Effect::Exact(pairs) => pairs.iter().all(|(before, after)| before == after),
            Effect::Blind(_) => false,
            Effect::Free => operation.actions.iter().all(|(a, seen)| stays(a, seen.as_ref())),
        };
        let makes = match &effect {
            _ if keeps => Vec::new(),
            Effect::Exact(pairs) => {
                let changes = pairs.iter().filter(|(before, after)| before != after);
                changes.map(|(_, after)| *after).collect()
            }
            Effect::Blind(after) => vec![*after],
            Effect::Free => left_states(operation, values),
        };
        let adds = match &effect {
            Effect::Free => unseen_increments(operation),
            Effect::Exact(_) | Effect::Blind(_) => None,
        };
        Transition { effect, keeps, makes, adds }
    }

    /// The states that it asks for: it tells them from all others.
    pub fn wants(&self) -> impl Iterator<Item = Id> {
        let pairs: &[(Id, Id)] = match &self.effect {
            Effect::Exact(pairs) => pairs,
            Effect::Blind(_) | Effect::Free => &[],
        };
        pairs.iter().map(|(before, _)| *before)
    }

    /// The state that it leaves, for the two effects that need no run.
    pub fn after(&self, before: Id) -> Option<Id> {
        match &self.effect {
            Effect::Exact(pairs) => {
                pairs.iter().find(|(from, _)| *from == before).map(|(_, to)| *to)
            }
            Effect::Blind(after) => Some(*after),
            Effect::Free => None,
        }
    }

    /// The state that `operation` leaves, if it accepts `before`. The transition is that
    /// operation's.
    pub fn apply(&self, operation: &Operation, before: Id, values: &mut Values) -> Option<Id> {
        match self.effect {
            Effect::Free => {
                let after = run(operation, values.states[before as usize].clone())?;
                Some(values.id(after))
            }
            Effect::Exact(_) | Effect::Blind(_) => self.after(before),
        }
    }
}

/// True if the action, with this result, changes nothing.
pub fn stays(action: &Action, seen: Option<&Seen>) -> bool {
    match action {
        Action::Get => true,
        Action::Set { get: false, when: When::Absent | When::Present, .. } => {
            seen == Some(&Seen::Nil)
        }
        Action::Increment(_) => seen == Some(&Seen::Failed),
        Action::Delete => seen == Some(&Seen::Integer(0)),
        Action::Take => seen == Some(&Seen::Nil),
        Action::Set { .. } => false,
    }
}

/// True if the operation has some results and lacks others. The search must not rely on the promise
/// of [`Effect::Free`] then. No known client makes such operations.
pub fn is_opaque(operation: &Operation) -> bool {
    let mut seen = operation.actions.iter().map(|(_, seen)| seen.is_some());
    seen.any(|seen| !seen) && operation.actions.iter().any(|(_, seen)| seen.is_some())
}

fn effect(operation: &Operation, values: &mut Values) -> Effect {
    for (at, (action, seen)) in operation.actions.iter().enumerate() {
        let before: Vec<KeyState> = match (action, seen) {
            (Action::Set { when: When::Always, get: false, .. }, _)
            | (Action::Set { when: When::Always, .. } | Action::Take | Action::Delete, None) => {
                if at > 0 {
                    return Effect::Free;
                }
                return match run(operation, None) {
                    Some(after) => Effect::Blind(values.id(after)),
                    None => Effect::Exact(Vec::new()),
                };
            }
            (Action::Get | Action::Take | Action::Set { get: true, .. }, Some(Seen::Nil))
            | (Action::Set { when: When::Absent, get: false, .. }, Some(Seen::Done))
            | (Action::Set { when: When::Present, get: false, .. }, Some(Seen::Nil))
            | (Action::Delete, Some(Seen::Integer(0))) => vec![None],
            (
                Action::Get | Action::Take | Action::Set { get: true, .. },
                Some(Seen::Value(value)),
            ) => vec![Some(value.clone())],
            (Action::Increment(by), Some(Seen::Integer(sum))) => match sum.checked_sub(*by) {
                Some(0) => vec![None, Some(b"0".to_vec())],
                Some(before) => vec![Some(before.to_string().into_bytes())],
                None => Vec::new(),
            },
            // The state is as before: the next action may say more about it.
            (Action::Set { when: When::Absent, get: false, .. }, Some(Seen::Nil))
            | (Action::Increment(_), Some(Seen::Failed)) => continue,
            _ => return Effect::Free,
        };
        let mut pairs = Vec::new();
        for state in before {
            if let Some(after) = run(operation, state.clone()) {
                pairs.push((values.id(state), values.id(after)));
            }
        }
        return Effect::Exact(pairs);
    }
    Effect::Free
}

/// The states that an operation with [`Effect::Free`] may leave, apart from unobserved sums.
fn left_states(operation: &Operation, values: &mut Values) -> Vec<Id> {
    let mut found = Vec::new();
    for (action, seen) in &operation.actions {
        let after = match (action, seen) {
            (Action::Set { value, .. }, _) => Some(value.clone()),
            (Action::Take | Action::Delete, _) => None,
            (Action::Increment(_), Some(Seen::Integer(sum))) => Some(sum.to_string().into_bytes()),
            (Action::Increment(_) | Action::Get, _) => continue,
        };
        found.push(values.id(after));
    }
    found.sort_unstable();
    found.dedup();
    found
}

/// The sum of the negative and of the positive increments without an observed sum, if any.
fn unseen_increments(operation: &Operation) -> Option<(i64, i64)> {
    let mut unseen = operation.actions.iter().filter_map(|(action, seen)| match (action, seen) {
        (Action::Increment(by), None) => Some((*by.min(&0), *by.max(&0))),
        _ => None,
    });
    let first = unseen.next()?;
    Some(unseen.fold(first, |all, by| (all.0.saturating_add(by.0), all.1.saturating_add(by.1))))
}
