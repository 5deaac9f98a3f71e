//! Seeded runs of the simulator. A failing seed prints how to replay it; longer runs take their
//! seeds from the environment: `NODESYNC_SEEDS=1000..5000 cargo test --release --test simulation`.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use clap::ValueEnum;
use nodesync::sim::{Mutant, Options, Report, Told, run};

/// Why a lock is never poisoned.
const LOCK: &str = "nobody panics while holding it";

/// Few enough for every build, and the same ones each time.
const FIXED_SEEDS: std::ops::Range<u64> = 0..200;

fn seeds() -> std::ops::Range<u64> {
    let Ok(text) = std::env::var("NODESYNC_SEEDS") else { return FIXED_SEEDS };
    let bounds = text.split_once("..").and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)));
    let (first, end) = bounds.expect("NODESYNC_SEEDS has the form 1000..2000");
    first..end
}

/// Runs all seeds on all processors and returns the reports, in order.
fn run_all(seeds: std::ops::Range<u64>, options: &Options) -> Vec<Report> {
    let next = AtomicU64::new(seeds.start);
    let reports = Mutex::new(Vec::new());
    let failures = Mutex::new(Vec::new());
    let workers = std::thread::available_parallelism().map_or(2, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end {
                        return;
                    }
                    match run(seed, options) {
                        Ok(report) => reports.lock().expect(LOCK).push((seed, report)),
                        Err(violation) => failures.lock().expect(LOCK).push(violation),
                    }
                }
            });
        }
    });
    let mut failures = failures.into_inner().expect(LOCK);
    failures.sort_by_key(|violation| violation.seed);
    if let Some(first) = failures.first() {
        let lines: Vec<_> =
            failures.iter().map(|v| format!("{}: {}", v.seed, v.invariant)).collect();
        let (seed, end) = (first.seed, first.seed + 1);
        panic!(
            "{first}\n\nfailed seeds:\n{}\nreplay the first one:\n  \
             NODESYNC_SEEDS={seed}..{end} cargo test --release --test simulation promises",
            lines.join("\n")
        );
    }
    let mut reports = reports.into_inner().expect(LOCK);
    reports.sort_by_key(|(seed, _)| *seed);
    reports.into_iter().map(|(_, report)| report).collect()
}

#[test]
fn the_promises_hold_in_every_seeded_run() {
    let reports = run_all(seeds(), &Options::default());
    let sum = |field: fn(&Report) -> u64| reports.iter().map(field).sum::<u64>();
    println!(
        "{} runs: {} events, {} commits, {} terms led, {} snapshots, {} restored, {} requests, \
         {} answered, {} eventual writes, {} keys undecided",
        reports.len(),
        sum(|r| r.events),
        sum(|r| r.commits),
        sum(|r| r.terms_led),
        sum(|r| r.snapshots),
        sum(|r| r.restored),
        sum(|r| r.requests),
        sum(|r| r.answered),
        sum(|r| r.eventual),
        sum(|r| r.undecided),
    );
}

#[test]
fn a_seed_replays_exactly() {
    let options = Options { trouble: Duration::from_secs(3), ..Options::default() };
    let hashes = || -> Vec<_> {
        (0..6).map(|seed| run(seed, &options).map(|report| report.trace_hash).ok()).collect()
    };
    let first = hashes();
    assert_eq!(first, hashes());
    assert!(first.windows(2).all(|pair| pair[0] != pair[1]));
}

#[test]
fn every_mutant_is_found() {
    for &mutant in Mutant::value_variants() {
        let told = Told::Last(0);
        let options = Options { mutant: Some(mutant), told, ..Options::default() };
        let found = (0..300).find_map(|seed| run(seed, &options).err());
        let violation = found.unwrap_or_else(|| panic!("{mutant:?} was not found"));
        println!("{mutant:?}: seed {}: {}", violation.seed, violation.invariant);
    }
}
