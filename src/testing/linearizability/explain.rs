//! The smallest counterexample that can be found cheaply.
//!
//! Every transition of the way is sound: it could not make a history impossible that is not. Such transitions
//! are: to cut the history off at a moment; to leave out what changed nothing; to take an operation
//! that returned for a lost one; and to leave out a lost one whose effect nobody left could use.

use crate::testing::linearizability::history::PreparedHistory;
use crate::testing::linearizability::model::{ABSENT, Effect, Transition, stays};
use crate::testing::linearizability::search::search;
use crate::testing::linearizability::{Operation, Verdict};

pub fn explain(operations: Vec<Operation>, budget: usize) -> Vec<Operation> {
    let mut history = PreparedHistory::new(operations);
    if search(&mut history, budget).0 != Verdict::Impossible {
        return Vec::new();
    }
    let mut trials = Trials { left: budget };
    let shorter = trials.shorten(history.operations);
    trials.thin_out(shorter)
}

/// What the trials may still cost.
struct Trials {
    left: usize,
}

impl Trials {
    /// True if the history was seen to be impossible.
    fn fails(&mut self, operations: &[Operation]) -> bool {
        // One that takes long is given up: others may be quicker.
        let patience = self.left.min(1_000 + 8 * operations.len());
        let (verdict, visited, _) =
            search(&mut PreparedHistory::new(operations.to_vec()), patience);
        // To prepare the search costs something too.
        self.left = self.left.saturating_sub(visited + operations.len() + 1);
        verdict == Verdict::Impossible
    }

    /// The shortest beginning that is impossible. A longer one always is, too.
    fn shorten(&mut self, operations: Vec<Operation>) -> Vec<Operation> {
        let mut returns: Vec<u64> = operations.iter().filter_map(|op| op.returned).collect();
        returns.sort_unstable();
        let mut best = operations;
        let (mut low, mut high) = (0, returns.len());
        while low < high && self.left > 0 {
            let middle = (low + high) / 2;
            let beginning = cut(&best, returns[middle]);
            if self.fails(&beginning) {
                (best, high) = (beginning, middle);
            } else {
                low = middle + 1;
            }
        }
        best
    }

    /// Weakens as many of the operations that returned as can be; first many at once, then few.
    fn thin_out(&mut self, operations: Vec<Operation>) -> Vec<Operation> {
        let mut best = operations;
        let mut size = best.len().div_ceil(2);
        while size > 0 && self.left > 0 {
            let (mut from, mut shrunk) = (0, false);
            loop {
                let returned: Vec<u64> =
                    best.iter().filter(|op| op.returned.is_some()).map(|op| op.invoked).collect();
                if from >= returned.len() || self.left == 0 {
                    break;
                }
                let until = returned.len().min(from + size);
                let weaker = weaken(&best, returned[from], returned[until - 1]);
                if self.fails(&weaker) {
                    (best, shrunk) = (weaker, true);
                } else {
                    from = until;
                }
            }
            if size > 1 || !shrunk {
                size /= 2;
            }
        }
        best
    }
}

/// What was known at a moment.
fn cut(operations: &[Operation], moment: u64) -> Vec<Operation> {
    let known = operations.iter().filter(|op| op.invoked < moment).cloned();
    let known = known.map(|op| if op.returned > Some(moment) { lost(op) } else { op });
    useful(known.collect())
}

/// Operations called between two moments, both included, are lost or, if they changed nothing, left
/// out.
fn weaken(operations: &[Operation], first: u64, last: u64) -> Vec<Operation> {
    let mut weaker = Vec::with_capacity(operations.len());
    for operation in operations {
        if !(first..=last).contains(&operation.invoked) {
            weaker.push(operation.clone());
        } else if !operation.actions.iter().all(|(action, seen)| stays(action, seen.as_ref())) {
            weaker.push(lost(operation.clone()));
        }
    }
    useful(weaker)
}

fn lost(mut operation: Operation) -> Operation {
    operation.returned = None;
    operation.actions.iter_mut().for_each(|(_, seen)| *seen = None);
    operation
}

/// What the operations of a history ask of others.
struct Needs {
    wanted: Vec<bool>,
    /// How many ask for a value, whichever, and for none.
    present: usize,
    absent: usize,
    numbers: bool,
}

impl Needs {
    fn add(&mut self, transition: &Transition, history: &PreparedHistory) {
        match &transition.effect {
            Effect::Blind(_) => {}
            Effect::Exact(_) => {
                for id in transition.wants() {
                    self.wanted[id as usize] = true;
                    self.absent += usize::from(id == ABSENT);
                    self.numbers |= history.values.number(id).is_some();
                }
            }
            // More than it may ask for, in most cases.
            Effect::Free => {
                self.present += 1;
                self.absent += 1;
                self.numbers |= history.numbers_matter;
            }
        }
    }

    /// True if the transition's effect, of which it is not known that it happened, may be asked for.
    fn ask_for(&self, transition: &Transition, history: &PreparedHistory) -> bool {
        let numbers = self.numbers && history.numbers_matter;
        let made = transition.makes.iter().any(|id| {
            let number = history.values.number(*id).is_some() || *id == ABSENT;
            *id != ABSENT && self.wanted[*id as usize] || numbers && number
        });
        let conditional =
            transition.effect == Effect::Free && (self.present > 0 || self.absent > 0);
        let exact = matches!(transition.effect, Effect::Exact(_));
        made || conditional || exact || numbers && transition.adds.is_some()
    }
}

/// Leaves out lost operations that could not help any other one.
///
/// An order of the whole stays one without them: what follows a write that is left out, up to the
/// next change, asks for no value of its own, or it would have kept it. If it only asks whether
/// there is a value, any blind write will do; the first ones called are the most useful, and no
/// more of them than there are operations that ask. The same goes for deletes.
fn useful(operations: Vec<Operation>) -> Vec<Operation> {
    let history = PreparedHistory::new(operations);
    if history.opaque {
        return history.operations;
    }
    let wanted = vec![false; history.values.len()];
    let mut needs = Needs { wanted, present: 0, absent: 0, numbers: false };
    let mut keep = vec![false; history.transitions.len()];
    let mut grew = true;
    while grew {
        grew = false;
        for (at, transition) in history.transitions.iter().enumerate() {
            let certain = history.facts[at].certain;
            if !keep[at] && (certain || needs.ask_for(transition, &history)) {
                needs.add(transition, &history);
                (keep[at], grew) = (true, true);
            }
        }
    }
    for (transition, keep) in history.transitions.iter().zip(&mut keep).filter(|(_, keep)| !**keep)
    {
        let left = match transition.effect {
            Effect::Blind(ABSENT) => &mut needs.absent,
            Effect::Blind(_) => &mut needs.present,
            Effect::Exact(_) | Effect::Free => continue,
        };
        if *left > 0 {
            *left -= 1;
            *keep = true;
        }
    }
    let mut keep = keep.into_iter();
    let mut operations = history.operations;
    operations.retain(|_| keep.next() == Some(true));
    operations
}
