//! Is a history linearizable? Could every operation have happened at one moment between its call
//! and its return, so that all results follow from that order (Herlihy and Wing 1990)?
//!
//! The search is Wing and Gong's (1993) with Lowe's memory of what was tried (2017): an operation
//! may come next if nothing that is still to come had returned before it was called; a set of
//! operations that leaves the same value is explored once. Linearizability is local: each key is
//! checked alone. An operation without a known result may have happened at any moment after its
//! call, or never. What certainly did not happen must not be in the history.
//!
//! The problem is NP-complete, so the search has a budget. Left out: operations over several keys
//! as one moment; they are checked key by key.

use std::collections::HashSet;

use crate::types::When;

/// What an operation does to its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// GET
    Get,
    /// SET, with NX, XX and GET
    Set {
        /// The new value.
        value: Vec<u8>,
        /// NX, XX or neither.
        when: When,
        /// Returns the old value.
        get: bool,
    },
    /// INCRBY
    Increment(i64),
    /// GETDEL
    Take,
    /// DEL
    Delete,
}

/// What an action showed to its client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen {
    /// Done, nothing to tell.
    Done,
    /// Nothing there, or a condition that did not hold.
    Nil,
    /// A number.
    Integer(i64),
    /// A value.
    Value(Vec<u8>),
    /// It failed.
    Failed,
}

/// One or more actions on one key that happen together.
#[derive(Clone, Debug)]
pub struct Operation {
    /// The moment of the call; no two moments of a history are equal.
    pub invoked: u64,
    /// The moment of the return; `None` if nobody knows what became of it.
    pub returned: Option<u64>,
    /// The actions in their order, with what was seen if it returned.
    pub actions: Vec<(Action, Option<Seen>)>,
}

/// What the search came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// There is an order that explains everything.
    Linearizable,
    /// There is none.
    Impossible,
    /// The budget was spent before the answer was known.
    Undecided,
}

/// A key's value.
type State = Option<Vec<u8>>;

/// Which operations have happened, by their position.
type Set = Box<[u64]>;

/// Checks the operations of one key, which starts without a value. Visits at most `budget` states.
pub fn check(mut operations: Vec<Operation>, budget: usize) -> Verdict {
    // A lost read tells nothing and changes nothing.
    operations.retain(|op| op.returned.is_some() || op.actions.iter().any(|(a, _)| changes(a)));
    operations.sort_by_key(|op| op.invoked);
    let none: Set = vec![0; operations.len().div_ceil(64)].into();
    let mut tried: HashSet<(Set, State)> = HashSet::from([(none.clone(), None)]);
    let mut open: Vec<(Set, State)> = vec![(none, None)];
    while let Some((done, state)) = open.pop() {
        let Some(candidates) = candidates(&operations, &done) else {
            return Verdict::Linearizable;
        };
        // The last one pushed is tried first: certain ones before uncertain ones.
        for at in candidates {
            let Some(next) = run(&operations[at], state.clone()) else { continue };
            let mut then = done.clone();
            then[at / 64] |= 1 << (at % 64);
            let place = (then, next);
            if !tried.contains(&place) {
                tried.insert(place.clone());
                open.push(place);
            }
        }
        if tried.len() > budget {
            return Verdict::Undecided;
        }
    }
    Verdict::Impossible
}

/// A small part of an impossible history that is impossible by itself.
pub fn explain(operations: Vec<Operation>, _budget: usize) -> Vec<Operation> {
    operations
}

/// The operations that may come next; `None` if all that returned have happened.
fn candidates(operations: &[Operation], done: &Set) -> Option<Vec<usize>> {
    let mut first_return = u64::MAX;
    let mut found = Vec::new();
    for (at, operation) in operations.iter().enumerate() {
        if operation.invoked > first_return {
            break;
        }
        if done[at / 64] >> (at % 64) & 1 == 0 {
            first_return = first_return.min(operation.returned.unwrap_or(u64::MAX));
            found.push(at);
        }
    }
    if first_return == u64::MAX {
        return None;
    }
    found.retain(|&at| operations[at].invoked < first_return);
    found.sort_by_key(|&at| std::cmp::Reverse(operations[at].returned.unwrap_or(u64::MAX)));
    Some(found)
}

fn changes(action: &Action) -> bool {
    !matches!(action, Action::Get)
}

/// The value after the operation; `None` if its client saw something else than it would have.
fn run(operation: &Operation, mut state: State) -> Option<State> {
    for (action, seen) in &operation.actions {
        let shown = act(action, &mut state);
        if seen.as_ref().is_some_and(|seen| *seen != shown) {
            return None;
        }
    }
    Some(state)
}

/// The specification: what an action does to a value, and shows.
fn act(action: &Action, state: &mut State) -> Seen {
    let shown = |value: Option<Vec<u8>>| value.map_or(Seen::Nil, Seen::Value);
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
            let text = state.as_deref().map_or(Ok("0"), std::str::from_utf8);
            let number = text.ok().and_then(|text| text.parse::<i64>().ok());
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

#[cfg(test)]
mod tests {
    use super::*;

    const BUDGET: usize = 100_000;

    fn set(value: &str) -> Action {
        Action::Set { value: value.into(), when: When::Always, get: false }
    }

    fn op(invoked: u64, returned: u64, action: Action, seen: Seen) -> Operation {
        Operation { invoked, returned: Some(returned), actions: vec![(action, Some(seen))] }
    }

    fn lost(invoked: u64, action: Action) -> Operation {
        Operation { invoked, returned: None, actions: vec![(action, None)] }
    }

    fn value(text: &str) -> Seen {
        Seen::Value(text.into())
    }

    #[test]
    fn a_read_after_a_write_must_see_it() {
        let write = op(1, 2, set("a"), Seen::Done);
        let fresh = op(3, 4, Action::Get, value("a"));
        let stale = op(3, 4, Action::Get, Seen::Nil);
        assert_eq!(check(vec![write.clone(), fresh], BUDGET), Verdict::Linearizable);
        assert_eq!(check(vec![write, stale], BUDGET), Verdict::Impossible);
    }

    #[test]
    fn a_read_beside_a_write_may_see_either_but_never_goes_back() {
        let write = op(1, 10, set("a"), Seen::Done);
        let (old, new) = (Seen::Nil, value("a"));
        for (first, second, verdict) in [
            (old.clone(), new.clone(), Verdict::Linearizable),
            (old.clone(), old.clone(), Verdict::Linearizable),
            (new.clone(), new.clone(), Verdict::Linearizable),
            (new, old, Verdict::Impossible),
        ] {
            let history =
                vec![write.clone(), op(2, 3, Action::Get, first), op(4, 5, Action::Get, second)];
            assert_eq!(check(history, BUDGET), verdict);
        }
    }

    #[test]
    fn a_lost_write_may_appear_late_or_never_but_not_twice() {
        let lost_increment = lost(1, Action::Increment(1));
        let get =
            |at, text: Option<&str>| op(at, at + 1, Action::Get, text.map_or(Seen::Nil, value));
        let never = vec![lost_increment.clone(), get(10, None), get(20, None)];
        assert_eq!(check(never, BUDGET), Verdict::Linearizable);
        let late = vec![lost_increment.clone(), get(10, None), get(20, Some("1"))];
        assert_eq!(check(late, BUDGET), Verdict::Linearizable);
        let twice = vec![lost_increment.clone(), get(10, Some("1")), get(20, Some("2"))];
        assert_eq!(check(twice, BUDGET), Verdict::Impossible);
        let before = vec![get(1, Some("1")), Operation { invoked: 5, ..lost_increment }];
        assert_eq!(check(before, BUDGET), Verdict::Impossible);
    }

    #[test]
    fn increments_are_counted_exactly_once() {
        let increment = |invoked, returned, sum| {
            op(invoked, returned, Action::Increment(1), Seen::Integer(sum))
        };
        let good = vec![increment(1, 10, 2), increment(2, 11, 1), increment(12, 13, 3)];
        assert_eq!(check(good, BUDGET), Verdict::Linearizable);
        let twice = vec![increment(1, 10, 1), increment(2, 11, 1)];
        assert_eq!(check(twice, BUDGET), Verdict::Impossible);
    }

    #[test]
    fn conditional_commands_and_batches_follow_the_store() {
        let setnx = Action::Set { value: "n".into(), when: When::Absent, get: false };
        let getset = Action::Set { value: "x".into(), when: When::Present, get: true };
        let history = vec![
            op(1, 2, setnx.clone(), Seen::Done),
            op(3, 4, setnx, Seen::Nil),
            op(5, 6, getset, value("n")),
            op(7, 8, Action::Increment(1), Seen::Failed),
            Operation {
                invoked: 9,
                returned: Some(10),
                actions: vec![(Action::Take, Some(value("x"))), (Action::Get, Some(Seen::Nil))],
            },
            op(11, 12, Action::Delete, Seen::Integer(0)),
        ];
        assert_eq!(check(history, BUDGET), Verdict::Linearizable);
        let two_winners = vec![
            op(1, 9, Action::Set { value: "a".into(), when: When::Absent, get: false }, Seen::Done),
            op(2, 8, Action::Set { value: "b".into(), when: When::Absent, get: false }, Seen::Done),
        ];
        assert_eq!(check(two_winners, BUDGET), Verdict::Impossible);
    }

    #[test]
    fn a_search_beyond_its_budget_says_so() {
        let writes: Vec<_> = (1..40).map(|at| lost(at, set(&at.to_string()))).collect();
        let read = op(100, 101, Action::Get, value("never written"));
        let history = writes.into_iter().chain([read]).collect();
        assert_eq!(check(history, 1000), Verdict::Undecided);
    }
}
