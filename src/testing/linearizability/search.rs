//! The search for an order: see the module above for the rules that keep it small.

use std::collections::{BTreeMap, HashSet};

use xxhash_rust::xxh3::xxh3_128_with_seed;

use crate::testing::linearizability::Verdict;
use crate::testing::linearizability::history::{NEVER, PreparedHistory};
use crate::testing::linearizability::model::{ABSENT, Id};
use crate::testing::linearizability::stale::is_stale;

/// Stand for all numbers, and all other values, that no operation still to come asks for.
const BLURRED_NUMBER: Id = Id::MAX;
const BLURRED: Id = Id::MAX - 1;

/// The end of the list.
const END: usize = usize::MAX;

/// A call or a return in the list.
#[derive(Clone, Copy, Debug)]
struct Endpoint {
    operation: usize,
    is_return: bool,
    next: usize,
    before: usize,
}

/// A set_hash where a choice was made.
#[derive(Debug)]
struct ChoicePoint {
    linearized: usize,
    state: Id,
    /// Where its choices begin.
    candidates: usize,
}

/// What became of a transition forward.
enum Arrival {
    Found,
    Visited,
    Open,
}

/// What is left of the history at a set_hash of the search.
#[derive(Debug)]
struct OrderSearch<'a> {
    history: &'a mut PreparedHistory,
    endpoints: Vec<Endpoint>,
    head: usize,
    /// The call and the return of each operation in `endpoints`.
    ends: Vec<(usize, usize)>,
    /// By state: operations that ask for it, those of them that must happen and fit no other
    /// state, and operations that may leave it.
    wanted: Vec<u32>,
    needed: Vec<u32>,
    makers: Vec<u32>,
    /// Operations that add to a number unseen, and all numbers that the others may leave.
    adders: u32,
    numbers: BTreeMap<i64, u32>,
    certain: usize,
    state: Id,
    /// The operations that have happened, in their order, and as one number.
    linearized: Vec<usize>,
    set_hash: u128,
    zobrist: Vec<u128>,
    /// For each shape, the set_hash where it was last a choice.
    offered: Vec<u64>,
    offers: u64,
}

/// Searches for an order; also tells how many states it visited and, if there is an order, which.
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
    let mut moved = true;
    loop {
        if moved {
            match search.arrive(&mut visited) {
                Arrival::Found => return (Verdict::Linearizable, visited.len(), search.linearized),
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
            moved = search.linearize(candidate);
        } else {
            choice_points.pop();
            moved = false;
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

    /// An operation is still to come, or no longer.
    fn count(&mut self, at: usize, comes: bool) {
        let change = |count: &mut u32| *count = if comes { *count + 1 } else { *count - 1 };
        let (transition, certain) = (&self.history.transitions[at], self.history.facts[at].certain);
        if certain {
            self.certain = if comes { self.certain + 1 } else { self.certain - 1 };
        }
        let alone = transition.wants().take(2).count() == 1;
        for id in transition.wants() {
            change(&mut self.wanted[id as usize]);
            if certain && alone {
                change(&mut self.needed[id as usize]);
            }
        }
        if transition.adds.is_some() {
            change(&mut self.adders);
        }
        for id in &transition.makes {
            change(&mut self.makers[*id as usize]);
            // An increment takes an absent value for zero.
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

    /// Puts operations back until only `linearized` have happened.
    fn backtrack(&mut self, linearized: usize, state: Id) {
        while self.linearized.len() > linearized {
            let at = self.linearized.pop().expect("longer than something");
            let (call, end) = self.ends[at];
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

    /// Takes all reads that fit, and looks whether this set_hash is new.
    fn arrive(&mut self, visited: &mut HashSet<u128, foldhash::fast::FixedState>) -> Arrival {
        let mut index = self.head;
        while index != END && !self.endpoints[index].is_return {
            let Endpoint { operation, next, .. } = self.endpoints[index];
            index = next;
            if self.history.transitions[operation].keeps && self.apply(operation).is_some() {
                self.lift(operation);
                // Its return may have stood right behind its call.
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

    fn apply(&mut self, at: usize) -> Option<Id> {
        let history = &mut *self.history;
        history.transitions[at].apply(&history.operations[at], self.state, &mut history.values)
    }

    /// Pushes all operations that may come next, the best one last.
    fn push_candidates(&mut self, candidates: &mut Vec<usize>) {
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
            let exchangeable = !opaque && facts.served_from < frontier;
            if exchangeable && *offered == self.offers {
                continue;
            }
            if exchangeable {
                *offered = self.offers;
            }
            candidates[kept] = at;
            kept += 1;
        }
        candidates.truncate(kept);
        candidates[start..].reverse();
    }

    /// Lets an operation happen; false if that leads nowhere.
    fn linearize(&mut self, at: usize) -> bool {
        let before = self.state;
        let Some(after) = self.apply(at) else { return false };
        let certain = self.history.facts[at].certain;
        if !certain && before == after {
            return false;
        }
        self.lift(at);
        self.state = after;
        let idle = !certain && self.blurred(before) == self.blurred(after);
        !idle && (before == after || !self.is_starved(before))
    }

    /// What the operations still to come can tell of a state.
    fn blurred(&self, id: Id) -> Id {
        let wanted = self.wanted.get(id as usize).is_some_and(|count| *count > 0);
        match (wanted || !self.history.may_blur(id), self.history.is_number(id)) {
            (true, _) => id,
            (false, true) => BLURRED_NUMBER,
            (false, false) => BLURRED,
        }
    }

    /// True if an operation needs `id`, which is not the state now and never will be again.
    fn is_starved(&self, id: Id) -> bool {
        let at = id as usize;
        if self.needed.get(at).is_none_or(|count| *count == 0) || self.makers[at] > 0 {
            return false;
        }
        let Some(number) = self.history.values.number(id).filter(|_| self.adders > 0) else {
            return true;
        };
        // A sum that nobody saw may be it, if it begins near enough.
        let now = self.history.values.number(self.state);
        let now = if self.state == ABSENT { Some(0) } else { now };
        let (down, up) = self.history.drift;
        let near = number.saturating_sub(up)..=number.saturating_sub(down);
        let is_near = now.is_some_and(|now| near.contains(&now));
        !is_near && self.numbers.range(near).next().is_none()
    }

    /// True if an operation needs a value that cannot come about.
    fn has_starved_need(&self) -> bool {
        let all = 0..self.needed.len() as Id;
        all.into_iter().any(|id| id != self.state && self.is_starved(id))
    }
}
