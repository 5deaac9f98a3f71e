//! The connections of a loop that have a deadline, and the time at which to check them. Deadlines
//! are coarse: a check visits all of these connections, so one timer is enough.

use std::mem;
use std::time::{Duration, Instant};

/// The interval between two checks.
pub const WATCH_INTERVAL: Duration = Duration::from_millis(100);

/// Connections to be checked.
pub struct Watched {
    /// Connections that had a deadline at the latest check, or got one since. A connection may be
    /// here twice.
    keys: Vec<usize>,
    check_at: Instant,
}

impl Watched {
    /// No connection has a deadline.
    pub fn new() -> Watched {
        Watched { keys: Vec::new(), check_at: Instant::now() }
    }

    /// Has `key` checked after `interval`, or earlier.
    pub fn watch(&mut self, key: usize, interval: Duration) {
        let at = Instant::now() + interval;
        self.check_at = if self.keys.is_empty() { at } else { self.check_at.min(at) };
        self.keys.push(key);
    }

    /// The time of the next check; `None` if no connection has a deadline.
    pub fn check_at(&self) -> Option<Instant> {
        (!self.keys.is_empty()).then_some(self.check_at)
    }

    /// The connections to be checked at `now`. Those that still have a deadline must be watched
    /// again.
    pub fn take_due(&mut self, now: Instant) -> Vec<usize> {
        if self.keys.is_empty() || now < self.check_at {
            return Vec::new();
        }
        self.check_at = now + WATCH_INTERVAL;
        let mut keys = mem::take(&mut self.keys);
        keys.sort_unstable();
        keys.dedup();
        keys
    }
}
