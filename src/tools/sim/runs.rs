//! Many runs at once: each job takes the next seed, the main thread counts and shows.

use std::cell::{Cell, RefCell};
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{RecvTimeoutError, bounded};
use indicatif::{ProgressBar, ProgressStyle};

use crate::testing::sim::{self, NO_PANIC, Options, Report, Violation};
use crate::tools::exit::INCONCLUSIVE;

/// How often what is shown changes.
const TICK: Duration = Duration::from_millis(100);

/// Tells whether a signal has come.
#[derive(Clone, Debug, Default)]
pub struct Signals(Arc<AtomicU32>);

impl Signals {
    /// Takes SIGINT and SIGTERM over from the system. The second one ends the process.
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

    /// True if the command is to end early.
    pub fn came(&self) -> bool {
        self.0.load(Ordering::Relaxed) > 0
    }
}

/// What many runs came to.
#[derive(Debug, Default)]
pub struct RunsSummary {
    /// Runs that ended.
    pub runs: u64,
    /// The sums of the good ones; of a single run, its report.
    pub sum: Report,
    /// Failed seeds and the invariants that they broke, in order.
    pub failed: Vec<(u64, &'static str)>,
    /// Seeds with keys that could not be judged, in order.
    pub undecided: Vec<u64>,
    /// How long it took.
    pub time: Duration,
    /// Not all seeds were run.
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

/// Runs seeds until there are no more, the time is over, or a signal has come.
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
            if signals.came() || time.is_some_and(|time| elapsed >= time) {
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
    tally.cut_short = signals.came() && (time.is_some() || tally.runs < count);
    tally.failed.sort_unstable();
    tally.undecided.sort_unstable();
    tally
}

/// A bar on a terminal, nothing elsewhere.
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
    /// This thread runs a seed.
    static RUNS: Cell<bool> = const { Cell::new(false) };
    /// Where it has panicked.
    static PLACE: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// From now on the panics of runs are findings, and tell nothing by themselves.
pub fn keep_panics() {
    let others = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if RUNS.get() {
            PLACE.set(info.location().map(ToString::to_string));
        } else {
            others(info);
        }
    }));
}

/// Runs a seed; a panic is told with its place.
pub fn run(seed: u64, options: &Options) -> Result<Report, Box<Violation>> {
    quietly(|| sim::run(seed, options)).map_err(placed)
}

/// Makes a failing run smaller.
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
        !signals.came()
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
