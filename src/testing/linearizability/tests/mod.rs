//! Hand-made histories for the checker. Random ones are in `oracle.rs`.

mod oracle;

use crate::testing::linearizability::*;

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
    let get = |at, text: Option<&str>| op(at, at + 1, Action::Get, text.map_or(Seen::Nil, value));
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
    let increment =
        |invoked, returned, sum| op(invoked, returned, Action::Increment(1), Seen::Integer(sum));
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
    // Which of the even numbers add up to an odd one? The search has to try.
    let adds: Vec<_> = (1..40).map(|at| lost(at, Action::Increment(2 << (at % 20)))).collect();
    let read = op(100, 101, Action::Get, value("10001"));
    let history: Vec<_> = adds.into_iter().chain([read]).collect();
    assert_eq!(check(history.clone(), 1000), Verdict::Undecided);
    assert!(explain(history, 1000).is_empty());
}

#[test]
fn an_unwritten_value_is_found_without_a_search() {
    let writes: Vec<_> = (1..40).map(|at| lost(at, set(&at.to_string()))).collect();
    let read = op(100, 101, Action::Get, value("never written"));
    let history: Vec<_> = writes.into_iter().chain([read.clone()]).collect();
    assert_eq!(check(history.clone(), 1), Verdict::Impossible);
    let part = explain(history, 100);
    assert_eq!(part.len(), 1);
    assert_eq!(part[0].to_string(), read.to_string());
}
