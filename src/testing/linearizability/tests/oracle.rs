//! The checker against an oracle that tries all orders of all subsets of operations, and against
//! long histories of a simulated register, with and without a fault.

use crate::rng::Rng;
use crate::testing::linearizability::model::{KeyState, act, run};
use crate::testing::linearizability::search::search;
use crate::testing::linearizability::tests::*;

const BUDGET: usize = 1_000_000;

/// True if the operations in `left` can follow `state` in some order.
fn has_order(left: &[&Operation], state: &KeyState) -> bool {
    let first_return = left.iter().filter_map(|op| op.returned).min();
    let Some(first_return) = first_return else { return true };
    left.iter().enumerate().any(|(at, op)| {
        let mut others = left.to_vec();
        others.remove(at);
        op.invoked < first_return
            && run(op, state.clone()).is_some_and(|next| has_order(&others, &next))
    })
}

fn is_possible(history: &[Operation]) -> bool {
    has_order(&history.iter().collect::<Vec<_>>(), &None)
}

fn action(rng: &mut Rng, flavour: u64, unique: u64) -> Action {
    let text = match flavour {
        0 => format!("v{}", rng.below(3)),
        1 => format!("v{unique}"),
        2 => rng.below(3).to_string(),
        _ => (100 * unique).to_string(),
    };
    let value = text.into_bytes();
    let get = rng.chance(1, 4);
    match rng.below(14) {
        0..4 => Action::Get,
        4..7 => Action::Set { value, when: When::Always, get },
        7 => Action::Set { value, when: When::Absent, get },
        8 => Action::Set { value, when: When::Present, get },
        9 => Action::Increment(1),
        10 => Action::Increment(rng.below(4) as i64 - 1),
        11 => Action::Take,
        _ => Action::Delete,
    }
}

/// A history of a simulated register in which some results are swapped, and some are lost.
fn random_history(rng: &mut Rng) -> Vec<Operation> {
    let (flavour, count) = (rng.below(4), 1 + rng.below(7));
    let width = 1 + rng.below(30);
    let mut calls: Vec<Operation> = (0..count)
        .map(|at| {
            let length = if rng.chance(1, 6) { 2 } else { 1 };
            let actions = (0..length).map(|_| (action(rng, flavour, at), None)).collect();
            Operation { invoked: 0, returned: None, actions }
        })
        .collect();
    let mut moments: Vec<(u64, usize, u8)> = Vec::new();
    for at in 0..calls.len() {
        let mut three = [(); 3].map(|()| 3 * at as u64 + rng.below(width));
        three.sort_unstable();
        moments.extend(three.into_iter().zip([0, 1, 2]).map(|(moment, what)| (moment, at, what)));
    }
    moments.sort_by_key(|(moment, at, what)| (*moment, *what, *at));
    let mut state = None;
    for (moment, (_, at, what)) in moments.into_iter().enumerate() {
        let op = &mut calls[at];
        match what {
            0 => op.invoked = moment as u64,
            1 if op.returned == Some(0) => {}
            1 => {
                for (action, seen) in &mut op.actions {
                    *seen = Some(act(action, &mut state));
                }
            }
            _ => op.returned = Some(moment as u64),
        }
    }
    for at in 0..calls.len() {
        let other = calls[rng.below(count) as usize].actions[0].1.clone();
        if rng.chance(1, 5) && other.is_some() {
            calls[at].actions[0].1 = other;
        }
        if rng.chance(1, 5) {
            calls[at].returned = None;
            let half = rng.chance(1, 10);
            let unseen = calls[at].actions.iter_mut().skip(usize::from(half));
            unseen.for_each(|(_, seen)| *seen = None);
        } else if rng.chance(1, 60) {
            calls[at].actions[0].1 = None;
        }
    }
    calls
}

fn shown(history: &[Operation]) -> String {
    history.iter().map(|op| format!("{op}\n")).collect()
}

fn assert_is_order(history: &PreparedHistory, order: &[usize]) {
    let mut state = None;
    for (nth, at) in order.iter().enumerate() {
        let op = &history.operations[*at];
        state = run(op, state).expect("every result follows from the order");
        let before = order[..nth].iter().map(|at| history.operations[*at].invoked).max();
        assert!(before.is_none_or(|invoked| op.returned.is_none_or(|end| invoked < end)));
    }
    let certain = history.operations.iter().enumerate().filter(|(_, op)| op.returned.is_some());
    certain.for_each(|(at, op)| assert!(order.contains(&at), "{op} is missing"));
}

#[test]
fn every_verdict_is_that_of_trying_all_orders() {
    let (mut possible, mut impossible, mut smaller) = (0, 0, 0);
    for seed in 0..20_000 {
        let history = random_history(&mut Rng::new(seed));
        let expected = is_possible(&history);
        let mut prepared = PreparedHistory::new(history.clone());
        let (verdict, _, order) = search(&mut prepared, BUDGET);
        let text = shown(&history);
        let wanted = if expected { Verdict::Linearizable } else { Verdict::Impossible };
        assert_eq!(verdict, wanted, "seed {seed}:\n{text}");
        if expected {
            possible += 1;
            assert_is_order(&prepared, &order);
            assert!(explain(history, BUDGET).is_empty(), "seed {seed}:\n{text}");
        } else {
            impossible += 1;
            let part = explain(history.clone(), BUDGET);
            assert!(!part.is_empty() && !is_possible(&part), "seed {seed}:\n{text}");
            assert!(part.is_sorted_by_key(|op| op.invoked));
            smaller += u64::from(part.len() < history.len());
        }
    }
    let counts = (possible, impossible, smaller);
    assert!(possible > 4_000 && impossible > 4_000 && smaller > 2_000, "{counts:?}");
}

/// The history that `clients` see of one correct register, with `lost` of 10,000 answers lost.
fn register(
    seed: u64,
    count: usize,
    clients: usize,
    lost: u64,
    kind: WorkloadKind,
) -> Vec<Operation> {
    let rng = &mut Rng::new(seed);
    let (mut open, mut done): (Vec<(Operation, bool)>, Vec<Operation>) = (Vec::new(), Vec::new());
    let (mut state, mut moment) = (None, 0);
    while done.len() < count {
        moment += 1;
        if open.iter().filter(|(op, _)| op.returned.is_none()).count() < clients {
            let actions = vec![(kind.action(rng, moment), None)];
            open.push((Operation { invoked: moment, returned: None, actions }, false));
        }
        let at = rng.below(open.len() as u64) as usize;
        let (operation, happened) = &mut open[at];
        let (action, seen) = &mut operation.actions[0];
        if !*happened && !rng.chance(lost, 20_000) {
            *seen = Some(act(action, &mut state));
            *happened = true;
        } else {
            moment += 1;
            let (mut operation, happened) = open.swap_remove(at);
            if happened && !rng.chance(lost, 20_000) {
                operation.returned = Some(moment);
            } else {
                operation.actions[0].1 = None;
            }
            done.push(operation);
        }
    }
    for (mut operation, _) in open {
        operation.actions[0].1 = None;
        done.push(operation);
    }
    done.sort_by_key(|op| op.invoked);
    done
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum WorkloadKind {
    Register,
    Counter,
    Mixed,
    Numbers,
}

impl WorkloadKind {
    fn action(self, rng: &mut Rng, moment: u64) -> Action {
        let value = match self {
            WorkloadKind::Numbers => (100 * moment).to_string(),
            _ => format!("v{moment}"),
        };
        let set = |when, get| Action::Set { value: value.clone().into(), when, get };
        match (self, rng.below(12)) {
            (_, 0..4) => Action::Get,
            (WorkloadKind::Register, _) => set(When::Always, false),
            (WorkloadKind::Counter, _) => Action::Increment(1),
            (WorkloadKind::Numbers, 4..6) => Action::Increment(1),
            (_, 4..8) => set(When::Always, rng.chance(1, 4)),
            (_, 8) => set(When::Absent, rng.chance(1, 4)),
            (_, 9) => set(When::Present, rng.chance(1, 4)),
            (_, 10) => Action::Take,
            _ => Action::Delete,
        }
    }
}

/// Gives a read in the last third of the history the result of a read in the second third.
fn plant_stale_read(history: &mut [Operation]) {
    let is_read = |op: &Operation| op.returned.is_some() && op.actions[0].0 == Action::Get;
    let third = history.len() / 3;
    // Not a short value, which could come back by chance.
    let is_rare = |seen: &Option<Seen>| matches!(seen, Some(Seen::Value(v)) if v.len() > 2);
    let old = history[third..].iter().find(|op| is_read(op) && is_rare(&op.actions[0].1));
    let seen = old.expect("there are reads").actions[0].1.clone();
    let late = history[2 * third..].iter_mut().find(|op| is_read(op));
    late.expect("there are reads").actions[0].1 = seen;
}

fn assert_scale(kind: WorkloadKind, count: usize, part_max: usize) {
    let mut history = register(7, count, 30, 100, kind);
    let lost = history.iter().filter(|op| op.returned.is_none()).count();
    assert!(lost > count / 200, "{lost} lost");
    let found = search(&mut PreparedHistory::new(history.clone()), BUDGET);
    assert_eq!(found.0, Verdict::Linearizable);
    plant_stale_read(&mut history);
    let found = search(&mut PreparedHistory::new(history.clone()), BUDGET);
    assert_eq!(found.0, Verdict::Impossible);
    let part = explain(history, BUDGET);
    assert_eq!(check(part.clone(), BUDGET), Verdict::Impossible);
    assert!(part.len() < part_max, "{} operations:\n{}", part.len(), shown(&part));
}

#[test]
fn a_long_history_of_a_register_is_judged_and_its_stale_read_explained() {
    assert_scale(WorkloadKind::Register, 20_000, 10);
}

#[test]
fn a_long_history_of_many_commands_is_judged_and_its_stale_read_explained() {
    assert_scale(WorkloadKind::Mixed, 2_000, 10);
}

#[test]
fn a_long_history_of_a_counter_is_judged_and_its_stale_read_explained() {
    assert_scale(WorkloadKind::Counter, 1_000, 1_000);
}

#[test]
fn a_long_history_of_numbers_is_judged_and_its_stale_read_explained() {
    assert_scale(WorkloadKind::Numbers, 1_000, 1_000);
}

#[test]
fn an_operation_is_one_readable_line() {
    let batch = vec![
        (Action::Set { value: b"a\n".into(), when: When::Absent, get: true }, Some(Seen::Nil)),
        (Action::Increment(-3), Some(Seen::Failed)),
        (Action::Get, Some(value("a\n"))),
    ];
    let op = Operation { invoked: 3, returned: Some(9), actions: batch };
    let line = r#"[3..9] SET "a\n" NX GET -> nil, INCRBY -3 -> error, GET -> "a\n""#;
    assert_eq!(op.to_string(), line);
    let lost = Operation { invoked: 4, returned: None, actions: vec![(set("b"), None)] };
    assert_eq!(lost.to_string(), r#"[4..lost] SET "b" -> ?"#);
}
