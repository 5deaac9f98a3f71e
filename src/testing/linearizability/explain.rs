//! The search for a small counterexample inside an impossible history.
//!
//! Every reduction is sound: it cannot make a possible history impossible. The reductions are: cut
//! the history off at a moment; leave out an operation that changed nothing; turn an operation that
//! returned into a lost one; leave out a lost operation whose effect no other one could use.

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

/// Searches of smaller histories, within one budget of configurations.
struct Trials {
    left: usize,
}

impl Trials {
    /// True if the search proves the operations impossible.
    fn fails(&mut self, operations: &[Operation]) -> bool {
        // Give up a long search early: other reductions may be decided sooner.
        let patience = self.left.min(1_000 + 8 * operations.len());
        let (verdict, visited, _) =
            search(&mut PreparedHistory::new(operations.to_vec()), patience);
        // Preparing the history has its cost, too.
        self.left = self.left.saturating_sub(visited + operations.len() + 1);
        verdict == Verdict::Impossible
    }

    /// The shortest impossible beginning of the history, by bisection: every longer beginning is
    /// impossible, too.
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

    /// Weakens as many returned operations as possible, in ever smaller groups (delta debugging,
    /// Zeller and Hildebrandt 2002).
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

/// The history as it was known at a moment.
fn cut(operations: &[Operation], moment: u64) -> Vec<Operation> {
    let known = operations.iter().filter(|op| op.invoked < moment).cloned();
    let known = known.map(|op| if op.returned > Some(moment) { lost(op) } else { op });
    useful(known.collect())
}

/// Turns the operations called from `first` to `last` into lost ones, and leaves them out if they
/// changed nothing.
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

/// The states that the operations of a history ask for.
struct Needs {
    wanted: Vec<bool>,
    /// Number of operations that ask for any value, and for none.
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
            // An upper bound: few operations ask for all of it.
            Effect::Free => {
                self.present += 1;
                self.absent += 1;
                self.numbers |= history.numbers_matter;
            }
        }
    }

    /// True if another operation may ask for the effect of this lost operation.
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

/// Leaves out lost operations whose effect no other operation needs.
///
/// An order of all operations stays an order without them: an operation that asked for the value of
/// a left-out write would have kept that write. For an operation that only asks whether there is a
/// value, any blind write serves; the writes called first serve best, and no more of them than
/// there are such operations. The same holds for deletions.
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
