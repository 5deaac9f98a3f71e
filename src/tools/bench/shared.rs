//! What the generator's threads and the one who guides them tell each other: where to connect, when
//! a run begins and ends, and what has been answered so far.

use std::net::SocketAddr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// No node.
const NOBODY: usize = usize::MAX;

/// When a run begins and ends, in nanoseconds since [`RunShared::started`].
#[derive(Clone, Copy, Debug)]
pub struct Times {
    /// The load begins.
    pub load: u64,
    /// The measured time begins.
    pub measured: u64,
    /// It ends. Without an end: when the requests are used up.
    pub end: u64,
}

/// The longest time without an answer, in nanoseconds.
#[derive(Clone, Copy, Debug, Default)]
pub struct AnswerGap {
    /// How long.
    pub length: u64,
    /// When it began, since [`RunShared::started`].
    pub since: u64,
}

/// Where to connect, by the nodes' places in the list.
#[derive(Clone, Debug)]
pub struct Targets {
    /// Nodes that take clients, never none.
    pub nodes: Vec<usize>,
    /// Rises with every change.
    pub generation: u64,
}

/// One for each run.
#[derive(Debug)]
pub struct RunShared {
    /// All nodes.
    pub addresses: Vec<SocketAddr>,
    /// Zero of all times.
    pub started: Instant,
    /// Set once all connections stand.
    pub times: OnceLock<Times>,
    /// Connections that have stood at least once.
    pub ready: AtomicUsize,
    /// Answers so far, with those that do not count.
    pub answered: AtomicU64,
    /// No more operations.
    pub stop: AtomicBool,
    /// Do not wait for answers, either.
    pub abandon: AtomicBool,
    /// A connection was lost or an error came: does the same node lead?
    pub doubt: AtomicBool,
    killed: AtomicUsize,
    targets: Mutex<Targets>,
    generation: AtomicU64,
    last_answer: AtomicU64,
    longest: AtomicU64,
    gap: Mutex<AnswerGap>,
}

impl RunShared {
    /// Before a run.
    pub fn new(addresses: Vec<SocketAddr>, nodes: Vec<usize>) -> RunShared {
        RunShared {
            addresses,
            started: Instant::now(),
            times: OnceLock::new(),
            ready: AtomicUsize::new(0),
            answered: AtomicU64::new(0),
            stop: AtomicBool::new(false),
            abandon: AtomicBool::new(false),
            doubt: AtomicBool::new(false),
            killed: AtomicUsize::new(NOBODY),
            targets: Mutex::new(Targets { nodes, generation: 0 }),
            generation: AtomicU64::new(0),
            last_answer: AtomicU64::new(0),
            longest: AtomicU64::new(0),
            gap: Mutex::new(AnswerGap::default()),
        }
    }

    /// Nanoseconds since it was made.
    #[inline]
    pub fn now(&self) -> u64 {
        nanos(self.started.elapsed())
    }

    /// Sets the load going: a warm-up, then the measured time.
    pub fn begin(&self, warmup: Duration, time: Option<Duration>) -> Times {
        let load = self.now();
        let measured = load + nanos(warmup);
        let end = time.map_or(u64::MAX, |time| measured + nanos(time));
        self.last_answer.store(measured, Ordering::Relaxed);
        *self.times.get_or_init(|| Times { load, measured, end })
    }

    /// The targets, if they are not those of `generation`.
    pub fn targets_after(&self, generation: u64) -> Option<Targets> {
        let changed = self.generation.load(Ordering::Acquire) != generation;
        changed.then(|| self.targets.lock().clone())
    }

    /// The targets.
    pub fn targets(&self) -> Targets {
        self.targets.lock().clone()
    }

    /// Sends clients elsewhere from now on. Nothing changes if there would be no target.
    pub fn set_targets(&self, nodes: Vec<usize>) {
        let mut targets = self.targets.lock();
        if nodes.is_empty() || targets.nodes == nodes {
            return;
        }
        targets.nodes = nodes;
        targets.generation += 1;
        self.generation.store(targets.generation, Ordering::Release);
    }

    /// This node is killed, in a moment.
    pub fn set_killed(&self, node: usize) {
        self.killed.store(node, Ordering::Relaxed);
    }

    /// True if it is the one that was killed.
    pub fn is_killed(&self, node: usize) -> bool {
        self.killed.load(Ordering::Relaxed) == node
    }

    /// Answers came at this time, or the measured time is over.
    pub fn note_answers(&self, at: u64) {
        let Some(times) = self.times.get() else { return };
        let at = at.min(times.end);
        let before = self.last_answer.fetch_max(at, Ordering::Relaxed);
        let length = at.saturating_sub(before);
        if length > self.longest.load(Ordering::Relaxed) {
            let mut gap = self.gap.lock();
            if length > gap.length {
                *gap = AnswerGap { length, since: before };
                self.longest.store(length, Ordering::Relaxed);
            }
        }
    }

    /// The longest time without an answer within the measured time.
    pub fn gap(&self) -> AnswerGap {
        *self.gap.lock()
    }
}

/// As nanoseconds; longer than some centuries does not happen.
pub fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_gap_is_found_across_threads_and_within_the_measured_time() {
        let shared = RunShared::new(Vec::new(), vec![0]);
        let Times { measured, end, .. } =
            shared.begin(Duration::from_secs(1), Some(Duration::from_secs(10)));
        shared.note_answers(measured - 500);
        for at in [100, 400, 300, 900, 1000] {
            shared.note_answers(measured + at);
        }
        assert_eq!((shared.gap().length, shared.gap().since), (500, measured + 400));
        shared.note_answers(end + 7);
        assert_eq!(shared.gap().length, end - measured - 1000);
    }

    #[test]
    fn targets_never_become_none() {
        let shared = RunShared::new(Vec::new(), vec![2]);
        shared.set_targets(Vec::new());
        assert!(shared.targets_after(0).is_none());
        shared.set_targets(vec![1]);
        assert_eq!(shared.targets_after(0).unwrap().nodes, [1]);
    }
}
