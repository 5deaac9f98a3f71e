//! Runs cases, watches their time and memory, and keeps failing inputs.

use std::fs;
use std::panic::{self, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use nodesync::rng::Rng;

use super::{Case, Target, corpus, mutate};

/// Time after which a case counts as hanging.
const HANG: Duration = Duration::from_secs(60);

/// Growth of the process's address space that is allowed while cases run, in KiB. A thread's arena
/// and the largest buffers fit; an allocation by a damaged u32 length does not.
const GROWTH_KIB_MAX: u64 = 1 << 20;

/// The number of cases between two checks of the address space.
const CASES_PER_CHECK: u64 = 256;

/// Running case: its start, target and bytes.
type Current = Mutex<Option<(Instant, &'static str, Vec<u8>)>>;

/// Runs cases one after the other.
pub struct Runner {
    current: Arc<Current>,
    peak_kib: Option<u64>,
    cases: u64,
}

impl Runner {
    /// Starts a watchdog thread, which ends the process if a case hangs.
    pub fn new() -> Runner {
        let current: Arc<Current> = Arc::default();
        let watched = Arc::downgrade(&current);
        thread::spawn(move || {
            while let Some(current) = watched.upgrade() {
                if let Some((since, target, bytes)) = &*current.lock().unwrap()
                    && since.elapsed() > HANG
                {
                    eprintln!("a case hangs; {}", kept(target, bytes));
                    std::process::exit(101);
                }
                drop(current);
                thread::sleep(Duration::from_millis(500));
            }
        });
        Runner { current, peak_kib: peak_kib(), cases: 0 }
    }

    /// Runs one case; true if its target accepted it.
    ///
    /// # Panics
    /// If the case fails; its input is kept.
    pub fn run(&mut self, target: &Target, case: &Case<'_>) -> bool {
        let now = (Instant::now(), target.name, case.bytes.to_vec());
        *self.current.lock().unwrap() = Some(now);
        let result = panic::catch_unwind(AssertUnwindSafe(|| (target.run)(case)));
        *self.current.lock().unwrap() = None;
        let accepted = result.unwrap_or_else(|failure| {
            eprintln!("{}", kept(target.name, case.bytes));
            panic::resume_unwind(failure)
        });
        self.cases += 1;
        if self.cases.is_multiple_of(CASES_PER_CHECK)
            && let (Some(before), Some(after)) = (self.peak_kib, peak_kib())
        {
            let grown = after.saturating_sub(before);
            assert!(grown < GROWTH_KIB_MAX, "{}: {grown} KiB of address space", target.name);
        }
        accepted
    }
}

/// Peak of this process's address space, in KiB, where the system reports it.
fn peak_kib() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmPeak:"))?;
    line.trim().strip_suffix(" kB")?.parse().ok()
}

/// Writes a failing input to a file; returns a message with its path and the command that keeps it.
fn kept(target: &str, bytes: &[u8]) -> String {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("inputs");
    let name = format!("found-{:08x}", crc32fast::hash(bytes));
    let file: PathBuf = dir.join(format!("{target}-{name}"));
    let written = fs::create_dir_all(&dir).and_then(|()| fs::write(&file, bytes));
    let mut text = format!(
        "this input of the target \"{target}\" fails ({written:?}); to keep it:\n    \
         cp {} tests/inputs/corpus/{target}/{name}",
        file.display()
    );
    if bytes.len() <= 256 {
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        text += &format!("\n    {hex}");
    }
    text
}

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")))
}

/// Damages inputs of the corpus and runs them, for as long as the environment says.
pub fn fresh_run(targets: &[Target]) {
    let clock = || SystemTime::UNIX_EPOCH.elapsed().map_or(0, |time| time.as_nanos() as u64);
    let seed = number("NODESYNC_FUZZ_SEED").unwrap_or_else(clock);
    let seconds = number("NODESYNC_FUZZ_SECONDS").unwrap_or(10);
    let only = std::env::var("NODESYNC_FUZZ_TARGET").ok();
    let chosen: Vec<&Target> = targets
        .iter()
        .filter(|target| only.as_ref().is_none_or(|name| name == target.name))
        .collect();
    assert!(!chosen.is_empty(), "there is no target {only:?}");
    println!("NODESYNC_FUZZ_SEED={seed} NODESYNC_FUZZ_SECONDS={seconds}");
    let slice = Duration::from_secs(seconds) / chosen.len() as u32;
    let mut runner = Runner::new();
    for target in chosen {
        let mut rng = Rng::new(seed);
        let corpus: Vec<Vec<u8>> = corpus(target).into_values().collect();
        let started = Instant::now();
        let (mut cases, mut accepted) = (0_u64, 0_u64);
        while started.elapsed() < slice {
            let input = mutate::damaged_input(&mut rng, &corpus, target.repair);
            let origin = input.origin.map(|at| &corpus[at][..]);
            accepted += u64::from(runner.run(target, &Case { bytes: &input.bytes, origin }));
            cases += 1;
        }
        let rate = cases as f64 / started.elapsed().as_secs_f64();
        println!("{:>10}: {cases} cases, {accepted} accepted, {rate:.0} a second", target.name);
        assert!(
            cases == 0 || seconds == 0 || accepted < cases,
            "{}: every input was accepted",
            target.name
        );
    }
}
