//! Time as a value. Everything below `node` is told what time it is and never asks, so that a
//! simulator can be the clock. Wall-clock time is not here: nothing that decides may trust it.

use std::ops::{Add, AddAssign, Sub};
use std::time::{Duration, Instant as StdInstant};

/// A moment of a monotonic clock: microseconds since an arbitrary start, which differs per process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Now(pub u64);

impl Now {
    /// Time passed since `earlier`; zero if `earlier` lies ahead.
    pub fn since(self, earlier: Now) -> Duration {
        Duration::from_micros(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for Now {
    type Output = Now;

    fn add(self, duration: Duration) -> Now {
        let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        Now(self.0.saturating_add(micros))
    }
}

impl AddAssign<Duration> for Now {
    fn add_assign(&mut self, duration: Duration) {
        *self = *self + duration;
    }
}

impl Sub<Duration> for Now {
    type Output = Now;

    fn sub(self, duration: Duration) -> Now {
        let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        Now(self.0.saturating_sub(micros))
    }
}

/// The only real clock of the process.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    start: StdInstant,
}

impl Clock {
    /// How far ahead of zero a clock starts, so that "long ago" can be written as a subtraction.
    const HEAD_START: Duration = Duration::from_secs(3600);

    /// A clock that begins to run now.
    pub fn start() -> Clock {
        Clock { start: StdInstant::now() }
    }

    /// The present moment.
    pub fn now(&self) -> Now {
        Now(0) + Clock::HEAD_START + self.start.elapsed()
    }

    /// The standard library's moment for `at`, to be handed to a wait with a deadline.
    pub fn instant(&self, at: Now) -> StdInstant {
        self.start + at.since(Now(0) + Clock::HEAD_START)
    }
}
