//! Parallel runs: each job takes the next seed; the main thread counts results and shows progress.

use std::cell::{Cell, RefCell};
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{RecvTimeoutError, bounded};
use indicatif::{ProgressBar, ProgressStyle};

use crate::testing::sim::{self, NO_PANIC, Options, Report, Violation};
use crate::tools::exit::INCONCLUSIVE;

/// Time between two updates of the progress bar.
const TICK: Duration = Duration::from_millis(100);

/// The number of signals received.
#[derive(Clone, Debug, Default)]
pub struct Signals(Arc<AtomicU32>);

impl Signals {
    /// Installs a handler for SIGINT and SIGTERM. The second signal ends the process.
    pub fn catch() -> Result<Signals, ctrlc::Error> {
        let signals = Signals::default();
        let counted = signals.clone();
        ctrlc::set_handler(move || {
            if counted.0.fetch_add(1, Ordering::Relaxed) > 0 {
                std::process::exit(INCONCLUSIVE.into());
            }
        })?;
        Ok(signals)
    }

    /// True after the first signal: the command must end early.
    pub fn must_stop(&self) -> bool {
        self.0.load(Ordering::Relaxed) > 0
    }
}

/// The results of many runs.
#[derive(Debug, Default)]
pub struct RunsSummary {
    /// Number of runs that ended.
    pub runs: u64,
    /// The sums over the runs that passed; for a single run, its report.
    pub sum: Report,
    /// The failed seeds with the invariants that they broke, in order.
    pub failed: Vec<(u64, &'static str)>,
    /// The seeds with keys whose history could not be decided, in order.
    pub undecided: Vec<u64>,
    /// The time of all runs together.
    pub time: Duration,
    /// True if a signal came before all seeds were run.
    pub cut_short: bool,
}

impl RunsSummary {
    fn add(&mut self, seed: u64, result: Result<Report, Box<Violation>>) {
        self.runs += 1;
        match result {
            Ok(report) if self.runs == 1 => {
                self.undecided.extend((report.undecided > 0).then_some(seed));
                self.sum = report;
            }
            Ok(report) => {
                self.undecided.extend((report.undecided > 0).then_some(seed));
                let sum = &mut self.sum;
                sum.faults += report.faults;
                sum.events += report.events;
                sum.commits += report.commits;
                sum.terms_led += report.terms_led;
                sum.snapshots += report.snapshots;
                sum.restored += report.restored;
                sum.requests += report.requests;
                sum.answered += report.answered;
                sum.eventual += report.eventual;
                sum.undecided += report.undecided;
            }
            Err(violation) => self.failed.push((seed, violation.invariant)),
        }
    }
}

/// Runs seeds until the range or the time is over, or a signal comes.
pub fn run_all(
    seeds: RangeInclusive<u64>,
    time: Option<Duration>,
    options: &Options,
    jobs: usize,
    signals: &Signals,
) -> RunsSummary {
    let (started, stop, taken) = (Instant::now(), AtomicBool::new(false), AtomicU64::new(0));
    let count = (seeds.end() - seeds.start()).saturating_add(1);
    let bar = bar(time, count);
    let mut tally = RunsSummary::default();
    std::thread::scope(|scope| {
        let (done, results) = bounded(jobs);
        for _ in 0..jobs {
            let (done, first, stop, taken) = (done.clone(), *seeds.start(), &stop, &taken);
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let next = taken.fetch_add(1, Ordering::Relaxed);
                    let seed = first.wrapping_add(next);
                    if next >= count || done.send((seed, run(seed, options))).is_err() {
                        return;
                    }
                }
            });
        }
        drop(done);
        loop {
            match results.recv_timeout(TICK) {
                Ok((seed, result)) => tally.add(seed, result),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            let elapsed = started.elapsed();
            if signals.must_stop() || time.is_some_and(|time| elapsed >= time) {
                stop.store(true, Ordering::Relaxed);
            }
            let rate = tally.runs as f64 / elapsed.as_secs_f64();
            let violations = tally.failed.len();
            bar.set_message(format!("{rate:.0} seeds/s, violations: {violations}"));
            bar.set_position(if time.is_some() { elapsed.as_secs() } else { tally.runs });
        }
    });
    bar.finish_and_clear();
    tally.time = started.elapsed();
    tally.cut_short = signals.must_stop() && (time.is_some() || tally.runs < count);
    tally.failed.sort_unstable();
    tally.undecided.sort_unstable();
    tally
}

/// A progress bar on a terminal; nothing elsewhere.
fn bar(time: Option<Duration>, count: u64) -> ProgressBar {
    let (length, unit) = time.map_or((count, "seeds"), |time| (time.as_secs(), "s"));
    let bar = if count == 1 { ProgressBar::hidden() } else { ProgressBar::new(length) };
    let style =
        ProgressStyle::with_template(&format!("{{bar:30}} {{pos}}/{{len}} {unit}  {{msg}}"));
    if let Ok(style) = style {
        bar.set_style(style);
    }
    bar
}

thread_local! {
    /// True while this thread runs a seed.
    static RUNS: Cell<bool> = const { Cell::new(false) };
    /// The place of this thread's last panic inside a run.
    static PLACE: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Silences panics inside runs from now on: they are violations, which the report shows.
pub fn silence_panics() {
    let others = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if RUNS.get() {
            PLACE.set(info.location().map(ToString::to_string));
        } else {
            others(info);
        }
    }));
}

/// Runs a seed. A panic is a violation that names its place.
pub fn run(seed: u64, options: &Options) -> Result<Report, Box<Violation>> {
    quietly(|| sim::run(seed, options)).map_err(placed)
}

/// Searches for a smaller run that fails like this one.
pub fn shrink(
    seed: u64,
    options: &Options,
    signals: &Signals,
) -> Option<(Options, Box<Violation>)> {
    let bar = ProgressBar::new_spinner();
    let mut tell = |attempts: usize, smallest: &Violation| {
        let (faults, steps) = (smallest.struck.len(), smallest.steps);
        bar.set_message(format!("shrinking, attempt {attempts}: {faults} faults, {steps} steps"));
        bar.tick();
        !signals.must_stop()
    };
    let found = quietly(|| sim::shrink(seed, options, &mut tell));
    bar.finish_and_clear();
    found.map(|(options, violation)| (options, placed(violation)))
}

fn quietly<T>(runs: impl FnOnce() -> T) -> T {
    RUNS.set(true);
    let result = runs();
    RUNS.set(false);
    result
}

fn placed(mut violation: Box<Violation>) -> Box<Violation> {
    if violation.invariant == NO_PANIC
        && let Some(place) = PLACE.take()
    {
        violation.how = format!("at {place}: {}", violation.how);
    }
    violation
}
