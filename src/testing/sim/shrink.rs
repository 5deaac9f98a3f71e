//! Makes a failing run smaller: two faults are easier to understand than hundreds.
//!
//! Coarse cuts come first: fewer nodes, a gentle network, strong clients only, fewer kinds of
//! faults. Each of them makes a different run of the seed. A cut is kept if the run still breaks
//! the same invariant. Fine cuts follow, which change nothing before the cut: an earlier end of the
//! trouble, and fewer faults, by delta debugging (Zeller and Hildebrandt, *Simplifying and
//! Isolating Failure-Inducing Input*, 2002). All cuts are tried again as long as one of them helps.
//!
//! Left out: a shorter time of trouble (fewer steps do that), fewer clients, smaller requests. The
//! result is small, not the smallest.

use std::collections::BTreeSet;

use crate::rng::Rng;
use crate::testing::sim::faults::Fault;
use crate::testing::sim::options::{Options, TraceDetail};
use crate::testing::sim::plan::Plan;
use crate::testing::sim::report::Violation;
use crate::testing::sim::run::run;

/// The greatest number of runs.
const ATTEMPTS_MAX: usize = 400;

/// Makes the failing run of `seed` smaller as long as the same invariant stays broken. Before each
/// attempt `tell` gets the number of attempts so far and the smallest failure; `false` ends the
/// search. Returns `None` if the run does not fail.
pub fn shrink(
    seed: u64,
    options: &Options,
    tell: &mut dyn FnMut(usize, &Violation) -> bool,
) -> Option<(Options, Box<Violation>)> {
    let quiet = Options { trace: TraceDetail::Last(0), ..options.clone() };
    let violation = run(seed, &quiet).err()?;
    let mut search = Shrinker { seed, options: quiet, violation, attempts: 0, ended: false, tell };
    loop {
        let before = search.options.clone();
        search.coarsely();
        search.finely();
        if search.ended || search.options == before {
            break;
        }
    }
    search.in_few_words();
    let smallest = Options { trace: options.trace, ..search.options };
    let violation = run(seed, &smallest).err()?;
    Some((smallest, violation))
}

/// The smallest failure so far, and the means to find a smaller one.
struct Shrinker<'a> {
    seed: u64,
    options: Options,
    violation: Box<Violation>,
    attempts: usize,
    ended: bool,
    tell: &'a mut dyn FnMut(usize, &Violation) -> bool,
}

impl Shrinker<'_> {
    /// Changes the options, and keeps the change if the run breaks the same invariant. True if so.
    fn attempt(&mut self, change: impl FnOnce(&mut Options)) -> bool {
        let mut options = self.options.clone();
        change(&mut options);
        self.ended |= self.attempts >= ATTEMPTS_MAX || !(self.tell)(self.attempts, &self.violation);
        if self.ended || options == self.options {
            return false;
        }
        self.attempts += 1;
        let failure = run(self.seed, &options).err();
        // A failure of another kind is another bug, or a consequence: it would lead astray.
        let same = failure.filter(|failure| failure.invariant == self.violation.invariant);
        let Some(violation) = same else { return false };
        (self.options, self.violation) = (options, violation);
        true
    }

    /// The world that the seed draws within the options.
    fn plan(&self) -> Plan {
        Plan::draw(&mut Rng::new(self.seed), &self.options)
    }

    /// Makes the cuts that change the whole run.
    fn coarsely(&mut self) {
        let nodes = self.plan().nodes;
        for fewer in [1, 3, 5].into_iter().filter(|fewer| *fewer < nodes) {
            if self.attempt(|options| options.nodes = Some(fewer)) {
                break;
            }
        }
        self.attempt(|options| options.gentle = true);
        self.attempt(|options| options.strong_only = true);
        let kinds: BTreeSet<Fault> = self.plan().faults.into_iter().collect();
        // No fault at all, before one kind after the other.
        if self.attempt(|options| options.without.extend(&kinds)) {
            return;
        }
        for kind in kinds {
            self.attempt(|options| _ = options.without.insert(kind));
        }
    }

    /// Makes the cuts that change nothing before them.
    fn finely(&mut self) {
        self.fewer_steps();
        if self.fewer_faults() {
            self.fewer_steps();
        }
    }

    /// Ends the trouble earlier, by bisection. A run that fails after n steps need not fail after
    /// n + 1; the search assumes it does, and may miss a smaller run.
    fn fewer_steps(&mut self) {
        let (mut passes, mut fails) = (0, self.steps());
        self.attempt(|options| options.steps = Some(fails));
        // Within two per cent: the last steps cost as many runs as all others.
        while fails - passes > 1 + fails / 50 && !self.ended {
            let middle = passes + (fails - passes) / 2;
            if self.attempt(|options| options.steps = Some(middle)) {
                fails = self.steps();
            } else {
                passes = middle;
            }
        }
    }

    /// The number of steps after which the trouble was over, or the invariant broken.
    fn steps(&self) -> u64 {
        self.options.steps.unwrap_or(u64::MAX).min(self.violation.steps)
    }

    /// Leaves out as many faults as possible. True if that were any.
    fn fewer_faults(&mut self) -> bool {
        let all = self.struck();
        if all.is_empty() || self.attempt(|options| options.only = Some(BTreeSet::new())) {
            return !all.is_empty();
        }
        let mut parts = 2;
        while !self.ended {
            let left = self.struck();
            let size = left.len().div_ceil(parts).max(1);
            let mut without_one = left.chunks(size).map(|chunk| {
                let kept = left.iter().filter(|number| !chunk.contains(number));
                kept.copied().collect::<BTreeSet<u64>>()
            });
            // A complement still fails: go on with it. Otherwise cut into smaller parts.
            if without_one.any(|kept| self.attempt(|options| options.only = Some(kept))) {
                parts = (parts - 1).max(2);
            } else if size == 1 {
                break;
            } else {
                parts = (2 * parts).min(left.len());
            }
        }
        self.struck().len() < all.len()
    }

    /// Names the faults that strike instead of the kinds that do not, if the run stays the same.
    /// The crashes of [`Fault::CrashVoters`] have no numbers, so that kind stays named.
    fn in_few_words(&mut self) {
        let (options, violation) = (self.options.clone(), self.violation.clone());
        let struck = self.struck();
        self.attempt(|options| {
            options.only = Some(struck.iter().copied().collect());
            options.without.retain(|kind| *kind == Fault::CrashVoters);
        });
        if self.struck().len() > struck.len() || self.violation.steps > violation.steps {
            (self.options, self.violation) = (options, violation);
        }
    }

    /// The numbers of the faults that have struck.
    fn struck(&self) -> Vec<u64> {
        self.violation.struck.iter().map(|struck| struck.number).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::testing::sim::mutant::Mutant;

    fn with(mutant: Mutant) -> Options {
        let trouble = Duration::from_secs(2);
        Options { mutant: Some(mutant), trouble, trace: TraceDetail::Last(0), ..Options::default() }
    }

    /// A seed that finds the mutant only behind several faults.
    fn failing(options: &Options) -> (u64, Box<Violation>) {
        let failed = (0..300).filter_map(|seed| Some((seed, run(seed, options).err()?)));
        let mut with_faults = failed.filter(|(_, violation)| violation.struck.len() > 3);
        with_faults.next().expect("the mutant is found")
    }

    #[test]
    fn a_smaller_run_breaks_the_same_invariant() {
        for mutant in [Mutant::LyingDisk, Mutant::AckBeforeSync] {
            let options = with(mutant);
            let (seed, large) = failing(&options);
            let mut counts = Vec::new();
            let mut tell = |attempts, _: &Violation| {
                counts.push(attempts);
                true
            };
            let (smaller, small) = shrink(seed, &options, &mut tell).unwrap();
            assert!(counts.len() <= ATTEMPTS_MAX + 2 && counts.is_sorted(), "{counts:?}");
            assert_eq!(small.invariant, large.invariant);
            assert!(small.struck.len() < large.struck.len(), "{mutant:?}: {:?}", small.struck);
            assert!(small.steps < large.steps, "{mutant:?}: {} steps", small.steps);
            let again = run(seed, &smaller).unwrap_err();
            let facts = |v: &Violation| (v.invariant, v.steps, v.struck.clone(), v.how.clone());
            assert_eq!(facts(&again), facts(&small));
            // Each fault that is left is needed.
            for struck in &small.struck {
                let only = small.struck.iter().map(|struck| struck.number);
                let fewer = only.filter(|number| *number != struck.number).collect();
                let fewer = Options { only: Some(fewer), ..smaller.clone() };
                let same = run(seed, &fewer).err().is_some_and(|v| v.invariant == large.invariant);
                assert!(!same, "{mutant:?}: {struck:?} is not needed");
            }
        }
    }

    #[test]
    fn a_search_that_is_stopped_gives_what_it_has() {
        let options = with(Mutant::LyingDisk);
        let (seed, large) = failing(&options);
        let (same, violation) = shrink(seed, &options, &mut |_, _| false).unwrap();
        assert_eq!((same, violation.steps), (options, large.steps));
    }

    #[test]
    fn a_run_that_does_not_fail_is_not_made_smaller() {
        assert!(shrink(0, &Options::default(), &mut |_, _| true).is_none());
    }
}
