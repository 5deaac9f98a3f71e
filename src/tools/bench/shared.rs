//! The state that the load threads and the guide share: targets, times of the run, and progress.

use std::net::SocketAddr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// The value of `killed` while no node is killed.
const NO_NODE: usize = usize::MAX;

/// The times of a run, in nanoseconds since [`RunShared::started`].
#[derive(Clone, Copy, Debug)]
pub struct Times {
    /// The load begins.
    pub load: u64,
    /// The measured time begins.
    pub measured: u64,
    /// The measured time ends; `u64::MAX` if the number of requests ends it.
    pub end: u64,
}

/// The longest time without an answer, in nanoseconds.
#[derive(Clone, Copy, Debug, Default)]
pub struct AnswerGap {
    /// Its length.
    pub length: u64,
    /// Its start, since [`RunShared::started`].
    pub since: u64,
}

/// The nodes to connect to, by their places in the list.
#[derive(Clone, Debug)]
pub struct Targets {
    /// The nodes that take clients, at least one.
    pub nodes: Vec<usize>,
    /// Rises with every change.
    pub generation: u64,
}

/// The shared state of one run.
#[derive(Debug)]
pub struct RunShared {
    /// All nodes.
    pub addresses: Vec<SocketAddr>,
    /// The zero of all times.
    pub started: Instant,
    /// Set once all connections are ready.
    pub times: OnceLock<Times>,
    /// Number of connections that have been ready at least once.
    pub ready: AtomicUsize,
    /// Number of answers so far, warm-up included.
    pub answered: AtomicU64,
    /// True once no further operation may start.
    pub stop: AtomicBool,
    /// True once the threads must not wait for answers, either.
    pub abandon: AtomicBool,
    /// True after a lost connection or an error: the leader may have changed.
    pub doubt: AtomicBool,
    killed: AtomicUsize,
    targets: Mutex<Targets>,
    generation: AtomicU64,
    last_answer: AtomicU64,
    longest: AtomicU64,
    gap: Mutex<AnswerGap>,
}

impl RunShared {
    /// The state before the run.
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
            killed: AtomicUsize::new(NO_NODE),
            targets: Mutex::new(Targets { nodes, generation: 0 }),
            generation: AtomicU64::new(0),
            last_answer: AtomicU64::new(0),
            longest: AtomicU64::new(0),
            gap: Mutex::new(AnswerGap::default()),
        }
    }

    /// Nanoseconds since [`RunShared::started`].
    #[inline]
    pub fn now(&self) -> u64 {
        nanos(self.started.elapsed())
    }

    /// Starts the load: the warm-up, then the measured time.
    pub fn begin(&self, warmup: Duration, time: Option<Duration>) -> Times {
        let load = self.now();
        let measured = load + nanos(warmup);
        let end = time.map_or(u64::MAX, |time| measured + nanos(time));
        self.last_answer.store(measured, Ordering::Relaxed);
        *self.times.get_or_init(|| Times { load, measured, end })
    }

    /// The targets, if they have changed since `generation`.
    pub fn targets_after(&self, generation: u64) -> Option<Targets> {
        let changed = self.generation.load(Ordering::Acquire) != generation;
        changed.then(|| self.targets.lock().clone())
    }

    /// The current targets.
    pub fn targets(&self) -> Targets {
        self.targets.lock().clone()
    }

    /// Sets the targets. An empty list changes nothing.
    pub fn set_targets(&self, nodes: Vec<usize>) {
        let mut targets = self.targets.lock();
        if nodes.is_empty() || targets.nodes == nodes {
            return;
        }
        targets.nodes = nodes;
        targets.generation += 1;
        // Pairs with the load in `targets_after`; the lock protects the list itself.
        self.generation.store(targets.generation, Ordering::Release);
    }

    /// Notes the node that is about to be killed.
    pub fn set_killed(&self, node: usize) {
        self.killed.store(node, Ordering::Relaxed);
    }

    /// True if the node is the killed one.
    pub fn is_killed(&self, node: usize) -> bool {
        self.killed.load(Ordering::Relaxed) == node
    }

    /// Notes answers at this time, or the end of the measured time.
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

/// A duration in nanoseconds; those above five centuries are cut.
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
