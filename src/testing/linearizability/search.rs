//! The search for an order that explains a history: Wing and Gong (1993) with Lowe's cache (2017).
//!
//! The module above lists the rules that keep the search small; each stands here at the branch that
//! applies it.

use std::collections::{BTreeMap, HashSet};

use xxhash_rust::xxh3::xxh3_128_with_seed;

use crate::testing::linearizability::Verdict;
use crate::testing::linearizability::history::{NEVER, PreparedHistory};
use crate::testing::linearizability::model::{ABSENT, Id};
use crate::testing::linearizability::stale::is_stale;

/// The states that stand for all numbers, and for all other values, that no pending operation asks
/// for. (Pending: not linearized yet.)
const BLURRED_NUMBER: Id = Id::MAX;
const BLURRED: Id = Id::MAX - 1;

/// The end of the linked list.
const END: usize = usize::MAX;

/// A call or a return, an element of the linked list of pending operations.
#[derive(Clone, Copy, Debug)]
struct Endpoint {
    operation: usize,
    is_return: bool,
    next: usize,
    before: usize,
}

/// A configuration of the search with its candidates that are not tried yet.
#[derive(Debug)]
struct ChoicePoint {
    /// Number of linearized operations.
    linearized: usize,
    state: Id,
    /// The start of its candidates in the stack of all candidates.
    candidates: usize,
}

/// The kind of configuration that a step has reached.
enum Arrival {
    /// Every operation that must happen is linearized.
    Found,
    /// The cache holds it already.
    Visited,
    Open,
}

/// A configuration of the search: the linearized operations, the state that they leave, and the
/// pending rest of the history.
#[derive(Debug)]
struct OrderSearch<'a> {
    history: &'a mut PreparedHistory,
    /// The calls and returns of pending operations in the order of time, a linked list.
    endpoints: Vec<Endpoint>,
    head: usize,
    /// The call and the return of each operation in `endpoints`.
    ends: Vec<(usize, usize)>,
    /// For each state the pending operations that ask for it.
    wanted: Vec<u32>,
    /// Of those, the ones that must happen and accept no other state.
    needed: Vec<u32>,
    /// For each state the pending operations that may leave it.
    makers: Vec<u32>,
    /// Pending operations that may add to a number without an observed sum.
    adders: u32,
    /// The numbers that the other pending operations may leave.
    numbers: BTreeMap<i64, u32>,
    /// Pending operations that must happen.
    certain: usize,
    state: Id,
    /// The linearized operations in their order.
    linearized: Vec<usize>,
    /// The set of linearized operations as a Zobrist hash: the XOR of their random numbers.
    set_hash: u128,
    zobrist: Vec<u128>,
    /// For each shape, the choice point at which it was last a candidate.
    offered: Vec<u64>,
    offers: u64,
}

/// Searches for an order. Returns the verdict, the number of visited configurations and, for a
/// linearizable history, the order.
pub fn search(history: &mut PreparedHistory, budget: usize) -> (Verdict, usize, Vec<usize>) {
    if is_stale(history) {
        return (Verdict::Impossible, 0, Vec::new());
    }
    let mut search = OrderSearch::new(history);
    if search.has_starved_need() {
        return (Verdict::Impossible, 0, Vec::new());
    }
    let mut visited: HashSet<u128, foldhash::fast::FixedState> = HashSet::default();
    let (mut choice_points, mut candidates): (Vec<ChoicePoint>, Vec<usize>) =
        (Vec::new(), Vec::new());
    let mut has_moved = true;
    loop {
        if has_moved {
            match search.arrive(&mut visited) {
                Arrival::Found => return (Verdict::Linearizable, visited.len(), search.linearized),
                // Lowe (2017): the same set of operations with the same state has the same future.
                Arrival::Visited => {}
                Arrival::Open if visited.len() > budget => {
                    return (Verdict::Undecided, visited.len(), Vec::new());
                }
                Arrival::Open => {
                    let (linearized, state) = (search.linearized.len(), search.state);
                    choice_points.push(ChoicePoint {
                        linearized,
                        state,
                        candidates: candidates.len(),
                    });
                    search.push_candidates(&mut candidates);
                }
            }
        }
        let Some(choice_point) = choice_points.last() else {
            return (Verdict::Impossible, visited.len(), Vec::new());
        };
        search.backtrack(choice_point.linearized, choice_point.state);
        if candidates.len() > choice_point.candidates {
            let candidate = candidates.pop().expect("longer than something");
            has_moved = search.linearize(candidate);
        } else {
            choice_points.pop();
            has_moved = false;
        }
    }
}

impl OrderSearch<'_> {
    fn new(history: &mut PreparedHistory) -> OrderSearch<'_> {
        let count = history.transitions.len();
        let mut moments = Vec::with_capacity(2 * count);
        for (at, operation) in history.operations.iter().enumerate() {
            moments.push((operation.invoked, false, at));
            moments.extend(operation.returned.map(|returned| (returned, true, at)));
        }
        moments.sort_unstable();
        let mut ends = vec![(END, END); count];
        let mut endpoints = Vec::with_capacity(moments.len());
        for (index, (_, is_return, operation)) in moments.iter().copied().enumerate() {
            let next = if index + 1 < moments.len() { index + 1 } else { END };
            endpoints.push(Endpoint { operation, is_return, next, before: index.wrapping_sub(1) });
            let end = &mut ends[operation];
            *(if is_return { &mut end.1 } else { &mut end.0 }) = index;
        }
        let states = history.values.len();
        let shapes = history.facts.iter().map(|facts| facts.shape as usize + 1).max();
        let zobrist = |at: usize| xxh3_128_with_seed(&at.to_le_bytes(), 1);
        let mut search = OrderSearch {
            head: if endpoints.is_empty() { END } else { 0 },
            endpoints,
            ends,
            wanted: vec![0; states],
            needed: vec![0; states],
            makers: vec![0; states],
            adders: 0,
            numbers: BTreeMap::new(),
            certain: 0,
            state: ABSENT,
            linearized: Vec::new(),
            set_hash: 0,
            zobrist: (0..count).map(zobrist).collect(),
            offered: vec![0; shapes.unwrap_or(0)],
            offers: 0,
            history,
        };
        (0..count).for_each(|at| search.count(at, true));
        search
    }

    /// Counts an operation among the pending ones, or takes it out.
    fn count(&mut self, at: usize, is_pending: bool) {
        let change = |count: &mut u32| *count = if is_pending { *count + 1 } else { *count - 1 };
        let (transition, certain) = (&self.history.transitions[at], self.history.facts[at].certain);
        if certain {
            self.certain = if is_pending { self.certain + 1 } else { self.certain - 1 };
        }
        let asks_for_one = transition.wants().take(2).count() == 1;
        for id in transition.wants() {
            change(&mut self.wanted[id as usize]);
            if certain && asks_for_one {
                change(&mut self.needed[id as usize]);
            }
        }
        if transition.adds.is_some() {
            change(&mut self.adders);
        }
        for id in &transition.makes {
            change(&mut self.makers[*id as usize]);
            // For an increment an absent value is zero.
            let number = if *id == ABSENT { Some(0) } else { self.history.values.number(*id) };
            if self.history.numbers_matter
                && let Some(number) = number
            {
                let count = self.numbers.entry(number).or_insert(0);
                change(count);
                if *count == 0 {
                    self.numbers.remove(&number);
                }
            }
        }
    }

    /// Linearizes an operation: takes its call and its return out of the list (Lowe's `lift`).
    fn lift(&mut self, at: usize) {
        self.count(at, false);
        self.set_hash ^= self.zobrist[at];
        self.linearized.push(at);
        let (call, end) = self.ends[at];
        for index in [call, end].into_iter().filter(|index| *index != END) {
            let Endpoint { next, before, .. } = self.endpoints[index];
            if before == END {
                self.head = next;
            } else {
                self.endpoints[before].next = next;
            }
            if next != END {
                self.endpoints[next].before = before;
            }
        }
    }

    /// Puts operations back into the list until only the first `linearized` are left out.
    fn backtrack(&mut self, linearized: usize, state: Id) {
        while self.linearized.len() > linearized {
            let at = self.linearized.pop().expect("longer than something");
            let (call, end) = self.ends[at];
            // The reverse order of `lift`: each endpoint still knows its old neighbours.
            for index in [end, call].into_iter().filter(|index| *index != END) {
                let Endpoint { next, before, .. } = self.endpoints[index];
                if before == END {
                    self.head = index;
                } else {
                    self.endpoints[before].next = index;
                }
                if next != END {
                    self.endpoints[next].before = index;
                }
            }
            self.set_hash ^= self.zobrist[at];
            self.count(at, true);
        }
        self.state = state;
    }

    /// Linearizes all reads that fit, and looks the configuration up in the cache.
    fn arrive(&mut self, visited: &mut HashSet<u128, foldhash::fast::FixedState>) -> Arrival {
        let mut index = self.head;
        while index != END && !self.endpoints[index].is_return {
            let Endpoint { operation, next, .. } = self.endpoints[index];
            index = next;
            // Rule "reads at once": an operation that keeps the state wherever it fits may move to
            // the front of any order in which it fits now, so no other choice needs a trial.
            if self.history.transitions[operation].keeps && self.apply(operation).is_some() {
                self.lift(operation);
                // If the next endpoint was its return, that has left the list, too.
                index = match self.endpoints[self.ends[operation].0].next {
                    END => END,
                    next if self.ends[operation].1 == next => self.endpoints[next].next,
                    next => next,
                };
            }
        }
        if self.certain == 0 {
            return Arrival::Found;
        }
        let state = xxh3_128_with_seed(&self.blurred(self.state).to_le_bytes(), 2);
        if visited.insert(self.set_hash ^ state) { Arrival::Open } else { Arrival::Visited }
    }

    /// The state after the operation, if its results fit the state now.
    fn apply(&mut self, at: usize) -> Option<Id> {
        let history = &mut *self.history;
        history.transitions[at].apply(&history.operations[at], self.state, &mut history.values)
    }

    /// Pushes all operations that may be linearized next, the most urgent one last.
    fn push_candidates(&mut self, candidates: &mut Vec<usize>) {
        // Wing and Gong: an operation may come next if no pending operation returned before its
        // call. Those are the calls in front of the first return in the list.
        let start = candidates.len();
        let mut index = self.head;
        while index != END && !self.endpoints[index].is_return {
            candidates.push(self.endpoints[index].operation);
            index = self.endpoints[index].next;
        }
        let frontier = match self.endpoints.get(index) {
            Some(endpoint) => self.history.returned(endpoint.operation),
            None => NEVER,
        };
        let history = &*self.history;
        candidates[start..].sort_unstable_by_key(|at| history.facts[*at].rank);
        self.offers += 1;
        let (mut kept, opaque) = (start, history.opaque);
        for index in start..candidates.len() {
            let at = candidates[index];
            let facts = &history.facts[at];
            let offered = &mut self.offered[facts.shape as usize];
            // Rule "the most urgent of its kind": a value's own readers must all be called before
            // the first pending return, or the exchange of two writes could delay one of them.
            let is_exchangeable = !opaque && facts.served_from < frontier;
            if is_exchangeable && *offered == self.offers {
                continue;
            }
            if is_exchangeable {
                *offered = self.offers;
            }
            candidates[kept] = at;
            kept += 1;
        }
        candidates.truncate(kept);
        candidates[start..].reverse();
    }

    /// Linearizes an operation. False if its results do not fit, or a rule excludes the step.
    fn linearize(&mut self, at: usize) -> bool {
        let before = self.state;
        let Some(after) = self.apply(at) else { return false };
        let certain = self.history.facts[at].certain;
        // Rule "lost operations last": without an effect, a lost operation need not happen.
        if !certain && before == after {
            return false;
        }
        self.lift(at);
        self.state = after;
        // The same rule, if no pending operation can tell the new state from the old one.
        let is_idle = !certain && self.blurred(before) == self.blurred(after);
        // Rule "no value is left behind": a change must not destroy a state that a pending
        // operation needs and no other one can restore.
        !is_idle && (before == after || !self.is_starved(before))
    }

    /// The state as the pending operations can tell it from others (rule "values blur").
    fn blurred(&self, id: Id) -> Id {
        let wanted = self.wanted.get(id as usize).is_some_and(|count| *count > 0);
        match (wanted || !self.history.may_blur(id), self.history.is_number(id)) {
            (true, _) => id,
            (false, true) => BLURRED_NUMBER,
            (false, false) => BLURRED,
        }
    }

    /// True if a pending operation needs state `id`, which no pending operation can bring about.
    fn is_starved(&self, id: Id) -> bool {
        let at = id as usize;
        if self.needed.get(at).is_none_or(|count| *count == 0) || self.makers[at] > 0 {
            return false;
        }
        let Some(number) = self.history.values.number(id).filter(|_| self.adders > 0) else {
            return true;
        };
        // Increments without an observed sum may lead to the number from another one, if that one
        // is no farther away than all of them together reach.
        let now = self.history.values.number(self.state);
        let now = if self.state == ABSENT { Some(0) } else { now };
        let (down, up) = self.history.drift;
        let near = number.saturating_sub(up)..=number.saturating_sub(down);
        let is_near = now.is_some_and(|now| near.contains(&now));
        !is_near && self.numbers.range(near).next().is_none()
    }

    /// True if an operation needs a state that cannot come about at all.
    fn has_starved_need(&self) -> bool {
        let all = 0..self.needed.len() as Id;
        all.into_iter().any(|id| id != self.state && self.is_starved(id))
    }
}
