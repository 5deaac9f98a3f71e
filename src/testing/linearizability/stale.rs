//! A test for stale reads without a search: a value that only one operation makes was there, then
//! another value was certainly there, and then an operation saw the first value again (the forward
//! zones of Gibbons and Korach 1997). Most faults show like this, and a search would have to fail
//! on every path to prove the same.

use crate::testing::linearizability::history::{NEVER, PreparedHistory};
use crate::testing::linearizability::model::{ABSENT, Effect, Id, Transition};

/// The first return among the operations called from some moment on, and the first return among
/// those that leave another value than that one.
#[derive(Clone, Copy, Debug)]
struct Soonest {
    first: (u64, Id),
    other: (u64, Id),
}

/// True if an operation saw a value after it was certainly gone for ever. False decides nothing.
pub fn is_stale(history: &PreparedHistory) -> bool {
    let nothing = (NEVER, ABSENT);
    let mut soonest =
        vec![Soonest { first: nothing, other: nothing }; history.transitions.len() + 1];
    for (at, transition) in history.transitions.iter().enumerate().rev() {
        soonest[at] = soonest[at + 1];
        if let Some(left) = left_by(transition).filter(|_| history.facts[at].certain) {
            soonest[at].add((history.returned(at), left));
        }
    }
    let mut seen: Vec<(u64, u64)> = vec![(NEVER, 0); history.values.len()];
    let mut makers = vec![0; history.values.len()];
    for (at, transition) in history.transitions.iter().enumerate() {
        let (wants, certain) = (transition.wants().collect::<Vec<_>>(), history.facts[at].certain);
        if let ([id], true) = (&wants[..], certain) {
            let (first, last) = &mut seen[*id as usize];
            *first = (*first).min(history.returned(at));
            *last = (*last).max(history.operations[at].invoked);
        }
        for id in &transition.makes {
            let (first, _) = &mut seen[*id as usize];
            makers[*id as usize] += 1;
            // A sole maker that leaves only this value has made it by its return.
            if transition.makes.len() == 1 && transition.effect != Effect::Free {
                *first = (*first).min(history.returned(at));
            }
        }
    }
    let lone = LoneNumbers::new(history);
    (0..seen.len()).any(|at| {
        let (id, (first, last)) = (at as Id, seen[at]);
        if id == ABSENT || makers[at] != 1 || first >= last || !lone.holds(id, history) {
            return false;
        }
        let behind = history.operations.partition_point(|op| op.invoked < first);
        soonest[behind].without(id) < last
    })
}

/// The value that the operation leaves, if it is the same wherever the operation fits.
fn left_by(transition: &Transition) -> Option<Id> {
    match &transition.effect {
        Effect::Blind(after) => Some(*after),
        Effect::Exact(pairs) => {
            let (_, first) = pairs.first()?;
            pairs.iter().all(|(_, after)| after == first).then_some(*first)
        }
        Effect::Free => None,
    }
}

impl Soonest {
    fn add(&mut self, new: (u64, Id)) {
        if new.0 < self.first.0 {
            if new.1 != self.first.1 {
                self.other = self.first;
            }
            self.first = new;
        } else if new.1 != self.first.1 && new.0 < self.other.0 {
            self.other = new;
        }
    }

    fn without(&self, id: Id) -> u64 {
        if self.first.1 == id { self.other.0 } else { self.first.0 }
    }
}

/// The numbers from which unobserved increments may start.
struct LoneNumbers {
    bases: Vec<i64>,
}

impl LoneNumbers {
    fn new(history: &PreparedHistory) -> LoneNumbers {
        let made = history.transitions.iter().flat_map(|transition| &transition.makes);
        let mut bases: Vec<i64> = made.filter_map(|id| history.values.number(*id)).collect();
        bases.push(0); // an absent value counts as zero
        bases.sort_unstable();
        LoneNumbers { bases }
    }

    /// True if unobserved increments cannot make this value from another one.
    fn holds(&self, id: Id, history: &PreparedHistory) -> bool {
        let Some(number) = history.values.number(id) else { return true };
        let (down, up) = history.drift;
        if (down, up) == (0, 0) {
            return true;
        }
        let first = self.bases.partition_point(|base| *base < number.saturating_sub(up));
        let near = self.bases[first..].iter();
        let near = near.take_while(|base| **base <= number.saturating_sub(down));
        near.filter(|base| **base != number).count() == 0
    }
}
