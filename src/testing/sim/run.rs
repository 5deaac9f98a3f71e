//! One run of one seed.

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::rng::Rng;
use crate::testing::sim::cluster::World;
use crate::testing::sim::options::{Options, TraceDetail};
use crate::testing::sim::plan::Plan;
use crate::testing::sim::report::{NO_PANIC, Report, Violation};
use crate::testing::sim::trace::Trace;

/// Runs the world of `seed`. The result carries as much of the trace as the options ask for.
///
/// # Errors
/// The first promise that the run has broken.
pub fn run(seed: u64, options: &Options) -> Result<Report, Box<Violation>> {
    match options.trace {
        TraceDetail::Last(0) => attempt(seed, options, Trace::new(0, false)),
        // Text costs time. So only a run that fails writes any: it runs once more, with the same
        // events, because the same seed gives the same run.
        TraceDetail::Last(lines) => attempt(seed, options, Trace::new(0, false))
            .or_else(|_| attempt(seed, options, Trace::new(lines, false))),
        TraceDetail::Headlines => attempt(seed, options, Trace::new(usize::MAX, true)),
        TraceDetail::Everything => attempt(seed, options, Trace::new(usize::MAX, false)),
    }
}

fn attempt(seed: u64, options: &Options, trace: Trace) -> Result<Report, Box<Violation>> {
    let mut rng = Rng::new(seed);
    let plan = Plan::draw(&mut rng, options);
    let mut world = World::new(rng, plan, trace, options);
    // A panic may leave the world in any state. That is sound: only its trace is read afterwards.
    let report = catch_unwind(AssertUnwindSafe(|| world.live(options))).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("a panic");
        world.failure = Some((NO_PANIC, text.to_owned()));
        Report::default()
    });
    match world.failure.take() {
        None => Ok(Report { lines: world.trace.into_lines(), ..report }),
        Some((invariant, how)) => Err(Box::new(Violation {
            seed,
            at_micros: world.age_micros(),
            invariant,
            how,
            plan: format!("{:?}", world.plan),
            struck: world.struck,
            steps: world.steps,
            lines: world.trace.into_lines(),
        })),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::testing::sim::report::Coverage;

    /// A later change must not lose these paths unnoticed: without them the simulator would still
    /// pass, and try less.
    #[test]
    fn a_few_seeds_take_every_path_through_the_service_room() {
        let trouble = Duration::from_secs(2);
        let options = Options { trouble, trace: TraceDetail::Last(0), ..Options::default() };
        let mut sum = Coverage::default();
        for seed in 0..12 {
            let coverage = run(seed, &options).expect("every promise holds").coverage;
            sum.joined += coverage.joined;
            sum.answered_by_loops += coverage.answered_by_loops;
            sum.answered_by_threads += coverage.answered_by_threads;
            sum.stamped_in_parts += coverage.stamped_in_parts;
        }
        let Coverage { joined, answered_by_loops, answered_by_threads, stamped_in_parts } = sum;
        assert!(joined > 0, "no round had the requests of several clients: {sum:?}");
        assert!(answered_by_loops > 0, "no loop has answered its clients: {sum:?}");
        assert!(answered_by_threads > 0, "no thread has answered its client: {sum:?}");
        assert!(stamped_in_parts > 0, "no eventual writes were stamped in parts: {sum:?}");
    }
}
