//! Trust in this node's wall clock. A clock that runs ahead would give its writes versions that win
//! over all others until the other clocks have caught up.
//!
//! Three rules protect the versions:
//!
//! - The wall clock must advance with the monotonic clock. A jump is believed only if the new time
//!   is confirmed by as many peers as make a majority together with this node.
//! - Versions from peers must not lie further ahead than clocks may differ.
//! - Of the live members, more must show this node's time than another one (this node counts for
//!   itself). Otherwise it stamps nothing, and neither its clock nor its drained claims enter the
//!   log, until the clocks agree again. A heartbeat may be late, so requests wait for a moment
//!   before they are refused. A last survivor has only itself to believe.

use std::time::Duration;

use crate::clock::Now;
use crate::replica::detector::Liveness;
use crate::replica::{Effects, Event, Replica, quorum};

/// The time for which a doubt must last before requests are refused.
const CERTAIN_AFTER: Duration = Duration::from_secs(1);

/// The interval between two reports of the same trouble.
const REPORT_INTERVAL: Duration = Duration::from_secs(60);

/// The doubts about this node's clock.
#[derive(Debug, Default)]
pub(super) struct Skew {
    /// The moment since which too many peers have contradicted this node's clock.
    since: Option<Now>,
    /// True once the doubt has lasted.
    certain: bool,
    reported_at: Option<Now>,
    /// True while the wall clock shows a time that is not believed.
    jumped: bool,
}

impl Skew {
    /// True if this node's clock may be wrong.
    pub fn is_doubted(&self) -> bool {
        self.since.is_some()
    }

    /// True if the doubt has lasted.
    pub fn is_certain(&self) -> bool {
        self.certain
    }

    /// True if trouble should be reported now. Limits the reports to one in each interval.
    pub fn should_report(&mut self, now: Now) -> bool {
        let is_due = self.reported_at.is_none_or(|at| now.since(at) >= REPORT_INTERVAL);
        if is_due {
            self.reported_at = Some(now);
        }
        is_due
    }
}

impl Replica {
    /// Takes in a reading of the wall clock, in microseconds.
    pub(in crate::replica) fn wall_clock(&mut self, now: Now, wall: u64, effects: &mut Effects) {
        self.eventual.shown = (now, wall);
        let (agree, _) = self.peers_that_show(now, wall);
        let majority = quorum::majority(self.settings.members.len());
        // A node alone cannot confirm its own jump.
        let is_confirmed = agree > 0 && agree + 1 >= majority;
        let jump = self.eventual.clock.set(now, wall, is_confirmed);
        let skew = &mut self.eventual.skew;
        if let Err(by) = jump
            && (skew.should_report(now) || !skew.jumped)
        {
            effects.events.push(Event::ClockJumped { by });
        }
        skew.jumped = jump.is_err();
        self.compare_clocks(now, effects);
    }

    /// Compares this node's clock with the clocks in the peers' heartbeats.
    pub(in crate::replica) fn compare_clocks(&mut self, now: Now, effects: &mut Effects) {
        let own = self.eventual.clock.wall(now);
        let (agree, differ) = self.peers_that_show(now, own);
        let skew = &mut self.eventual.skew;
        // This node counts for itself; a tie is a doubt.
        if agree + 1 > differ {
            (skew.since, skew.certain) = (None, false);
            return;
        }
        let was_certain = skew.certain;
        skew.certain = now.since(*skew.since.get_or_insert(now)) >= CERTAIN_AFTER;
        if skew.certain && (skew.should_report(now) || !was_certain) {
            effects.events.push(Event::ClockDoubted { members: differ });
        }
    }

    /// The time on this node's wall clock, believed or not, in microseconds since 1970. Heartbeats
    /// carry it, so that nodes whose machines have all slept can confirm each other's jumps.
    pub(in crate::replica) fn shown_clock(&self, now: Now) -> u64 {
        let (at, wall) = self.eventual.shown;
        wall.saturating_add(now.since(at).as_micros() as u64)
    }

    /// The number of live peers that show the time `wall`, in microseconds, and of those that show
    /// another.
    fn peers_that_show(&self, now: Now, wall: u64) -> (usize, usize) {
        let offset_max = self.settings.clock_offset_max.as_micros() as u64;
        let (mut agree, mut differ) = (0, 0);
        for peer in self.peers.values().filter(|peer| peer.liveness == Liveness::Alive) {
            let Some(heartbeat) = &peer.heartbeat else { continue };
            let clock = heartbeat.clock.saturating_add(now.since(peer.heard_at).as_micros() as u64);
            let count = if clock.abs_diff(wall) <= offset_max { &mut agree } else { &mut differ };
            *count += 1;
        }
        (agree, differ)
    }
}
