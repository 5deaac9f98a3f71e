//! Time as a value. Code below `node` receives the time as an argument and never reads a clock, so
//! that a simulator can be the clock.
//!
//! [`Now`] is monotonic; all deadlines and all of Raft rest on it alone. Wall-clock time has one
//! purpose: through [`HybridClock`] it decides which of two eventual writes is the newer one.

use std::ops::{Add, AddAssign, Sub};
use std::time::{Duration, Instant as StdInstant, SystemTime, UNIX_EPOCH};

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
    /// The time at which a clock starts. It is above zero so that "long ago" is a plain
    /// subtraction.
    const HEAD_START: Duration = Duration::from_secs(3600);

    /// A clock that starts now.
    pub fn start() -> Clock {
        Clock { start: StdInstant::now() }
    }

    /// The present moment.
    pub fn now(&self) -> Now {
        Now(0) + Clock::HEAD_START + self.start.elapsed()
    }

    /// The standard library's instant for `at`, for a wait with a deadline.
    pub fn instant(&self, at: Now) -> StdInstant {
        self.start + at.since(Now(0) + Clock::HEAD_START)
    }
}

/// The machine's wall clock, in microseconds since 1970.
pub fn wall_micros() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

/// A hybrid logical clock (Kulkarni et al., *Logical Physical Clocks*, 2014): close to the wall
/// clock, yet every tick is above all ticks given or seen before. A tick is a sixteenth of a
/// microsecond, so that a batch of a million writes takes 63 ms of it.
///
/// The clock follows the wall clock as long as that agrees with the monotonic one. When the wall
/// clock jumps, the clock carries on the time before the jump, unless other nodes confirm the new
/// time.
#[derive(Clone, Debug)]
pub struct HybridClock {
    /// The last trusted reading of the wall clock, in microseconds since 1970.
    wall: u64,
    /// The moment of that reading.
    at: Now,
    /// The largest trusted jump of the wall clock, and the largest distance of a tick ahead of it.
    offset_max: Duration,
    /// The highest tick given or seen.
    last: u64,
    /// `stamp` gives no tick up to here any more.
    claimed: u64,
}

impl HybridClock {
    /// Ticks in a microsecond.
    pub const TICKS: u64 = 16;

    /// A clock whose ticks will lie above `last`.
    pub fn new(now: Now, wall: u64, offset_max: Duration, last: u64) -> HybridClock {
        HybridClock { wall, at: now, offset_max, last, claimed: 0 }
    }

    /// The trusted wall-clock time, in microseconds since 1970.
    pub fn wall(&self, now: Now) -> u64 {
        self.wall.saturating_add(micros(now.since(self.at)))
    }

    /// Takes a reading of the wall clock. A jump is not trusted unless it is `confirmed`; the error
    /// is the length of the jump in microseconds, negative backwards.
    pub fn set(&mut self, now: Now, wall: u64, confirmed: bool) -> Result<(), i64> {
        let trusted = self.wall(now);
        // A jump ahead would stamp versions that no later write could beat; a jump back, versions
        // that lose to writes before them.
        if wall.abs_diff(trusted) > micros(self.offset_max) && !confirmed {
            let by = i64::try_from(wall.abs_diff(trusted)).unwrap_or(i64::MAX);
            return Err(if wall > trusted { by } else { -by });
        }
        (self.wall, self.at) = (wall, now);
        Ok(())
    }

    /// The first of `count` successive ticks; `None` if they would lie too far ahead of the wall
    /// clock, which has to catch up first.
    pub fn stamp(&mut self, now: Now, count: u64) -> Option<u64> {
        let first = self.physical(now).max(self.last.max(self.claimed).saturating_add(1));
        let last = first.saturating_add(count.saturating_sub(1));
        if self.ahead(now, last).is_some() {
            return None;
        }
        self.last = last;
        Some(first)
    }

    /// The next tick, at any distance ahead of the wall clock. Without `trusted` the wall clock is
    /// not consulted.
    pub fn next(&mut self, now: Now, trusted: bool) -> u64 {
        // The log needs a stamp for each entry whether or not the clock is right: its own order
        // makes the version safe.
        let next = self.last.saturating_add(1);
        self.last = if trusted { next.max(self.physical(now)) } else { next };
        self.last
    }

    /// Claims the time up to a tick that [`stamp`](Self::stamp) will not give any more, also after
    /// a restart with the wall clock set back as far as it may jump.
    pub fn claim(&mut self, now: Now) -> u64 {
        let offset = micros(self.offset_max).saturating_mul(HybridClock::TICKS);
        self.claimed = self.claimed.max(self.physical(now).saturating_sub(offset));
        self.claimed
    }

    /// The highest tick given or seen.
    pub fn last(&self) -> u64 {
        self.last
    }

    /// Notes a tick that another node has given.
    pub fn observe(&mut self, tick: u64) {
        self.last = self.last.max(tick);
    }

    /// The distance of `tick` ahead of the wall clock in microseconds, if it is too large.
    pub fn ahead(&self, now: Now, tick: u64) -> Option<u64> {
        let ahead = (tick / HybridClock::TICKS).saturating_sub(self.wall(now));
        (ahead > micros(self.offset_max)).then_some(ahead)
    }

    fn physical(&self, now: Now) -> u64 {
        self.wall(now).saturating_mul(HybridClock::TICKS)
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OFFSET: Duration = Duration::from_millis(500);
    const SECOND: u64 = 1_000_000;

    fn clock(last: u64) -> HybridClock {
        HybridClock::new(Now(0), 1000 * SECOND, OFFSET, last)
    }

    #[test]
    fn ticks_always_rise_and_follow_the_wall_clock() {
        let mut clock = clock(0);
        let first = clock.stamp(Now(0), 10).expect("the clock is sound");
        assert_eq!(first, 1000 * SECOND * HybridClock::TICKS);
        assert_eq!(clock.stamp(Now(0), 1), Some(first + 10));
        assert_eq!(clock.stamp(Now(SECOND), 1), Some(first + SECOND * HybridClock::TICKS));
        clock.set(Now(SECOND), 1001 * SECOND - 400_000, false).expect("a small step back");
        let next = clock.stamp(Now(SECOND), 1).expect("within the offset");
        assert_eq!(next, first + SECOND * HybridClock::TICKS + 1);
    }

    #[test]
    fn a_jump_is_trusted_only_if_it_is_confirmed() {
        let mut clock = clock(0);
        let hour = 3600 * SECOND;
        assert_eq!(clock.set(Now(10), 1000 * SECOND + 10 + hour, false), Err(hour as i64));
        assert_eq!(clock.set(Now(10), 900 * SECOND + 10, false), Err(-100 * SECOND as i64));
        assert_eq!(clock.wall(Now(SECOND)), 1001 * SECOND);
        assert_eq!(clock.set(Now(SECOND), 1001 * SECOND + hour, true), Ok(()));
        assert_eq!(clock.wall(Now(SECOND)), 1001 * SECOND + hour);
    }

    #[test]
    fn a_clock_behind_its_own_ticks_has_to_catch_up() {
        let last = (1000 * SECOND + 700_000) * HybridClock::TICKS;
        let mut clock = clock(last);
        assert_eq!(clock.stamp(Now(0), 1), None);
        assert_eq!(clock.next(Now(0), true), last + 1);
        assert_eq!(clock.stamp(Now(300_000), 1), Some(last + 2));
        assert_eq!(clock.ahead(Now(0), last), Some(700_000));
        assert_eq!(clock.ahead(Now(300_000), last), None);
    }

    #[test]
    fn no_tick_is_stamped_up_to_what_was_claimed() {
        let mut clock = clock(0);
        let claimed = clock.claim(Now(400_000));
        for step in 1..4 {
            let wall = 1000 * SECOND + 400_000 - step * 400_000;
            clock.set(Now(400_000), wall, false).expect("a small step back");
        }
        assert_eq!(clock.stamp(Now(400_000), 1), None, "too far ahead of the wall clock");
        let later = clock.stamp(Now(1_400_000), 1).expect("within the offset");
        assert!(later > claimed && clock.claim(Now(400_000)) == claimed);
    }

    #[test]
    fn the_log_gets_its_ticks_without_the_wall_clock() {
        let mut clock = clock(7);
        assert_eq!(clock.next(Now(0), false), 8);
        clock.observe(100);
        assert_eq!(clock.next(Now(0), false), 101);
    }
}
