//! `nodesync sim`: seeds on all processors, a summary, and for a violation the way to replay it.
//!
//! Every run is as fast as can be and keeps no text. The lowest failing seed is run again with as
//! much text as was asked for: the same seed gives the same run. A panic within a run is a
//! violation like any other.
//!
//! The first signal ends the command after the runs that are under way; the second one at once.

mod args;
mod runs;

use std::fmt::Write as _;
use std::io::Write as _;

pub use args::Args;

use crate::testing::sim::{Options, Violation};
use args::{Plan, Replay, What, name_of, write_options};
use runs::{Signals, Tally};

const VIOLATION: u8 = 1;
const USAGE: u8 = 2;
const INCONCLUSIVE: u8 = 3;
const IO: u8 = 74;

/// Seeds that are named in a list.
const NAMED_MAX: usize = 20;

/// Runs the command; the exit code.
pub fn run(args: &Args) -> u8 {
    let ready = Plan::new(args).map_err(|error| (USAGE, error)).and_then(|plan| {
        let signals = Signals::catch().map_err(|error| (IO, error.to_string()))?;
        Ok((plan, signals))
    });
    match ready {
        Ok((plan, signals)) => carry_out(&plan, &signals),
        Err((code, error)) => {
            eprintln!("nodesync sim: {error}");
            code
        }
    }
}

fn carry_out(plan: &Plan, signals: &Signals) -> u8 {
    runs::keep_panics();
    let (seeds, time, options) = match plan.what.clone() {
        // The one run is the one that is shown.
        What::Seed(seed) => {
            (seed..=seed, None, Options { trace: plan.trace, ..plan.options.clone() })
        }
        What::Seeds(seeds) => (seeds, None, plan.options.clone()),
        What::Fresh(first, time) => {
            eprintln!("nodesync sim: fresh seeds, from {first} on");
            (first..=u64::MAX, Some(time), plan.options.clone())
        }
    };
    let tally = runs::run_all(seeds, time, &options, plan.jobs, signals);
    let mut page = tally.sum.lines.join("\n");
    page += if page.is_empty() { "" } else { "\n\n" };
    let code = tell(&mut page, plan, &tally);
    say(&page);
    if let Some(&(seed, _)) = tally.failed.first() {
        say(&details(seed, plan, signals));
    }
    code
}

/// Prints; a reader who has gone does not miss anything.
fn say(page: &str) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(page.as_bytes()).and_then(|()| out.flush());
}

/// The summary and the verdict; the exit code.
fn tell(page: &mut String, plan: &Plan, tally: &Tally) -> u8 {
    let _ = write_summary(page, plan, tally);
    if !tally.failed.is_empty() {
        let count = tally.failed.len();
        let _ = writeln!(page, "VIOLATION: {}", counted(count, "failing seed"));
        for (seed, invariant) in tally.failed.iter().take(NAMED_MAX) {
            let _ = writeln!(page, "  seed {seed}: {invariant}");
        }
        if count > NAMED_MAX {
            let _ = writeln!(page, "  and {} more", count - NAMED_MAX);
        }
        return VIOLATION;
    }
    if !tally.undecided.is_empty() {
        let named: Vec<_> = tally.undecided.iter().take(NAMED_MAX).map(u64::to_string).collect();
        let seeds = counted(tally.undecided.len(), "seed");
        let named = named.join(", ");
        let _ = writeln!(page, "INCONCLUSIVE: histories too hard to decide in {seeds}: {named}");
    }
    if tally.cut_short {
        let _ = writeln!(page, "INCONCLUSIVE: stopped early");
    }
    if tally.cut_short || !tally.undecided.is_empty() {
        return INCONCLUSIVE;
    }
    let _ = writeln!(page, "proven: every invariant held in {}", counted(tally.runs, "run"));
    0
}

fn counted(count: impl TryInto<u64>, what: &str) -> String {
    let count = count.try_into().unwrap_or(u64::MAX);
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

fn write_summary(page: &mut String, plan: &Plan, tally: &Tally) -> std::fmt::Result {
    let (runs, sum) = (tally.runs, &tally.sum);
    let seeds = match &plan.what {
        What::Seed(seed) => format!("--seed {seed}"),
        What::Seeds(seeds) => format!("--seeds {}..={}", seeds.start(), seeds.end()),
        What::Fresh(first, _) => format!("--seeds {first}..{}", first.saturating_add(runs)),
    };
    write!(page, "nodesync sim {seeds}")?;
    write_options(page, &plan.options)?;
    let (seconds, jobs) = (tally.time.as_secs_f64(), counted(plan.jobs, "job"));
    let rate = runs as f64 / seconds.max(0.001);
    writeln!(page, "\n\nruns            {runs:>12}   {seconds:.1} s, {rate:.1} seeds/s, {jobs}")?;
    if tally.failed.len() as u64 == runs {
        return writeln!(page);
    }
    if let What::Seed(_) = plan.what {
        writeln!(page, "nodes           {:>12}", sum.nodes)?;
    }
    writeln!(page, "faults          {:>12}", sum.faults)?;
    writeln!(page, "events          {:>12}", sum.events)?;
    writeln!(page, "commits         {:>12}", sum.commits)?;
    writeln!(page, "terms led       {:>12}", sum.terms_led)?;
    writeln!(page, "snapshots       {:>12}   taken", sum.snapshots)?;
    writeln!(page, "                {:>12}   restored from a peer", sum.restored)?;
    writeln!(page, "requests        {:>12}", sum.requests)?;
    writeln!(page, "                {:>12}   answered", sum.answered)?;
    writeln!(page, "eventual writes {:>12}", sum.eventual)?;
    writeln!(page, "undecided keys  {:>12}", sum.undecided)?;
    if let What::Seed(_) = plan.what {
        writeln!(page, "trace hash  {:016x}", sum.trace_hash)?;
    }
    writeln!(page)
}

/// What happened in a failing run, or in a smaller one, and how to replay it.
fn details(seed: u64, plan: &Plan, signals: &Signals) -> String {
    let options = Options { trace: plan.trace, ..plan.options.clone() };
    let found = if plan.shrink {
        runs::shrink(seed, &options, signals)
    } else {
        runs::run(seed, &options).err().map(|violation| (options, violation))
    };
    match found {
        Some((options, violation)) => page_of(&violation, &options),
        None => {
            format!("\nseed {seed} does not fail a second time: the run is not deterministic\n")
        }
    }
}

fn page_of(violation: &Violation, options: &Options) -> String {
    let mut page = String::new();
    for line in &violation.lines {
        let _ = writeln!(page, "{line}");
    }
    let at_ms = violation.at_micros as f64 / 1000.0;
    let _ = writeln!(page, "\nseed {}, after {} events:", violation.seed, violation.steps);
    let _ =
        writeln!(page, "{at_ms:>10.3} ms  BROKEN: {}\n  {}", violation.invariant, violation.how);
    let _ = writeln!(page, "\n{} struck before", counted(violation.struck.len(), "fault"));
    for struck in &violation.struck {
        let (at_ms, fault) = (struck.at_micros as f64 / 1000.0, name_of(struck.fault));
        let _ = writeln!(page, "{at_ms:>10.3} ms  {:>4} {fault}", struck.number);
    }
    let _ = writeln!(page, "\nagain: {}", Replay(violation.seed, options));
    page
}
