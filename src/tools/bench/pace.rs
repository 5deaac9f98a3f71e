//! The start times of operations: in a closed loop as soon as a client is idle, in an open loop at
//! fixed moments, whether or not a client is idle.

use crate::tools::bench::shared::Times;

/// A thread's share of the operations of a run.
#[derive(Clone, Debug)]
pub struct Pace {
    /// Open loop: nanoseconds between two operations of all threads together.
    interval: Option<f64>,
    threads: u64,
    thread: u64,
    /// Number of operations taken, in an open loop.
    taken: u64,
    /// Counted operations still to take, if their number is limited.
    left: Option<u64>,
    times: Times,
}

impl Pace {
    /// The pace of one thread. `rate` is that of all threads together, `requests` this thread's
    /// own.
    pub fn new(
        times: Times,
        rate: Option<f64>,
        (thread, threads): (usize, usize),
        requests: Option<u64>,
    ) -> Pace {
        let interval = rate.map(|rate| 1e9 / rate);
        let (thread, threads) = (thread as u64, threads as u64);
        Pace { interval, threads, thread, taken: 0, left: requests, times }
    }

    /// The start of the next operation; `None` after the last one.
    pub fn next(&self, now: u64) -> Option<u64> {
        let start = match self.interval {
            None => now,
            Some(interval) => {
                let before = self.number(now) * self.threads + self.thread;
                self.times.load + (before as f64 * interval) as u64
            }
        };
        let over = start >= self.times.end || start >= self.times.measured && self.left == Some(0);
        (!over).then_some(start)
    }

    /// The number of this thread's next operation in an open loop. Once the measured time has
    /// begun, the late operations of the warm-up are skipped: they would delay the counted ones.
    fn number(&self, now: u64) -> u64 {
        let Some(interval) = self.interval.filter(|_| now >= self.times.measured) else {
            return self.taken;
        };
        let before = ((self.times.measured - self.times.load) as f64 / interval).ceil() as u64;
        self.taken.max(before.saturating_sub(self.thread).div_ceil(self.threads))
    }

    /// Takes the next operation if it is due. Returns its intended start.
    #[inline]
    pub fn take(&mut self, now: u64) -> Option<u64> {
        let start = self.next(now).filter(|start| *start <= now)?;
        self.taken = self.number(now) + 1;
        if start >= self.times.measured
            && let Some(left) = &mut self.left
        {
            *left -= 1;
        }
        Some(start)
    }

    /// Number of due operations that were not taken.
    pub fn due(&self, now: u64) -> u64 {
        if self.interval.is_none() {
            return 0;
        }
        let mut rest = self.clone();
        std::iter::from_fn(|| rest.take(now)).count() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMES: Times = Times { load: 1000, measured: 1_001_000, end: 5_001_000 };

    #[test]
    fn in_an_open_loop_threads_share_evenly_spaced_starts() {
        // One each 100 µs.
        let mut threads: Vec<Pace> =
            (0..3).map(|thread| Pace::new(TIMES, Some(10_000.0), (thread, 3), None)).collect();
        let mut starts: Vec<u64> = threads
            .iter_mut()
            .flat_map(|pace| std::iter::from_fn(|| pace.take(pace.next(0)?)))
            .collect();
        starts.sort_unstable();
        let expected: Vec<u64> = (0..50).map(|at| 1000 + at * 100_000).collect();
        assert_eq!(starts, expected);
    }

    #[test]
    fn an_operation_that_is_sent_late_keeps_its_intended_start() {
        let mut pace = Pace::new(TIMES, Some(10_000.0), (0, 1), None);
        assert_eq!(pace.take(999), None);
        assert_eq!(pace.take(1000), Some(1000));
        assert_eq!(pace.next(1000), Some(101_000));
        assert_eq!(pace.due(401_000), 4);
        assert_eq!(pace.take(401_000), Some(101_000));
        assert_eq!(pace.take(401_000), Some(201_000));
    }

    #[test]
    fn only_operations_of_the_measured_time_use_up_requests() {
        let mut open = Pace::new(TIMES, Some(10_000.0), (0, 1), Some(5));
        assert_eq!(std::iter::from_fn(|| open.take(open.next(0)?)).count(), 10 + 5);
        let mut closed = Pace::new(TIMES, None, (0, 1), Some(5));
        assert!((0..100).all(|_| closed.take(2000) == Some(2000)));
        assert_eq!(std::iter::from_fn(|| closed.take(1_001_000)).count(), 5);
    }

    #[test]
    fn late_operations_of_the_warm_up_are_skipped() {
        for thread in 0..3 {
            let mut pace = Pace::new(TIMES, Some(10_000.0), (thread, 3), None);
            assert!(pace.take(401_000).is_some());
            let starts: Vec<u64> = std::iter::from_fn(|| pace.take(1_601_000)).collect();
            // The first at or after 1,001,000 that are this thread's.
            let all = (10..17).filter(|at| at % 3 == thread as u64);
            assert_eq!(starts, all.map(|at| 1000 + at * 100_000).collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_closed_loop_ends_in_time() {
        let mut pace = Pace::new(TIMES, None, (0, 1), None);
        assert_eq!(pace.take(5_000_999), Some(5_000_999));
        assert_eq!(pace.take(5_001_000), None);
        assert_eq!(pace.due(5_000_000), 0);
    }
}
