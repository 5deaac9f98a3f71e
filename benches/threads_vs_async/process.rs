//! Resource usage of a process, from `/proc`: processor time, context switches, memory.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::time::{Duration, Instant};

/// Unit of processor time in `/proc/*/stat`: a hundredth of a second on every Linux system.
const TICK: Duration = Duration::from_millis(10);

/// Resource usage of a process up to a moment.
#[derive(Clone, Debug)]
pub struct Usage {
    at: Instant,
    cpu: Duration,
    /// Context switches of each living thread, by thread id.
    switches: BTreeMap<OsString, u64>,
}

/// Resource usage per second, between two moments.
#[derive(Clone, Copy, Debug)]
pub struct Rate {
    /// Microseconds of processor time.
    pub cpu_micros: f64,
    /// Context switches, wanted and unwanted, of all threads.
    pub switches: f64,
}

impl Usage {
    /// Measures the usage up to now.
    pub fn of(pid: u32) -> Usage {
        // Slow with a thousand threads, so first: the time stands beside the CPU time, which must
        // be exact.
        let switches = switches(pid);
        Usage { at: Instant::now(), cpu: cpu(pid), switches }
    }

    /// Rate since an earlier measurement. Threads that have ended count with their processor time
    /// only.
    pub fn since(&self, earlier: &Usage) -> Rate {
        let before = |thread| earlier.switches.get(thread).copied().unwrap_or_default();
        let more = |(thread, count): (_, &u64)| count.saturating_sub(before(thread));
        let switches: u64 = self.switches.iter().map(more).sum();
        let seconds = (self.at - earlier.at).as_secs_f64();
        Rate {
            cpu_micros: (self.cpu - earlier.cpu).as_secs_f64() * 1e6 / seconds,
            switches: switches as f64 / seconds,
        }
    }
}

fn cpu(pid: u32) -> Duration {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).expect("the process runs");
    // The name may hold any character and ends with the last bracket; state and numbers follow.
    let (_, fields) = text.rsplit_once(')').expect("the name stands in brackets");
    let fields: Vec<&str> = fields.split_whitespace().collect();
    let ticks = |at: usize| fields[at].parse::<u32>().expect("ticks are a number");
    TICK * (ticks(11) + ticks(12))
}

fn switches(pid: u32) -> BTreeMap<OsString, u64> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).expect("the process runs");
    let of_thread = |path: std::path::PathBuf| {
        // The thread may have ended meanwhile.
        let text = fs::read_to_string(path.join("status")).unwrap_or_default();
        let switches = text.lines().filter(|line| line.contains("voluntary_ctxt_switches"));
        switches.filter_map(number).sum::<u64>()
    };
    threads.flatten().map(|thread| (thread.file_name(), of_thread(thread.path()))).collect()
}

/// Resident memory of the process, in KiB.
pub fn resident_kib(pid: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).expect("the process runs");
    let line = text.lines().find(|line| line.starts_with("VmRSS"));
    line.and_then(number).expect("the kernel reports the resident memory")
}

fn number(line: &str) -> Option<u64> {
    line.split_whitespace().nth(1)?.parse().ok()
}
