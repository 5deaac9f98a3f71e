//! Whether this node's wall clock may be trusted with versions. A clock that runs ahead would make
//! writes that beat all others until the rest of the world has caught up.
//!
//! Three things are watched. The node's own clock must go along with the monotonic one; a jump is
//! believed only if so many peers' clocks show the new time that they and this node are a majority.
//! What peers send must not lie too far ahead. And of the members that are alive, more must show
//! the time of this node, itself included, than another one: else it stamps nothing, and neither
//! its clock nor its claims get into the log, until that has changed. (A beat may be late, so for a
//! moment requests wait before they are refused.) A last survivor has only itself to believe.

use std::time::Duration;

use crate::clock::Now;
use crate::replica::detector::Liveness;
use crate::replica::{Effects, Event, Replica, quorum};

/// For how long others must have shown another time before requests are refused.
const CERTAIN_AFTER: Duration = Duration::from_secs(1);

/// How often the same trouble is told.
const TELL_INTERVAL: Duration = Duration::from_secs(60);

/// What is known of this node's clock being wrong.
#[derive(Debug, Default)]
pub(super) struct Skew {
    /// Since when too many others have shown another time.
    since: Option<Now>,
    /// That has lasted.
    certain: bool,
    told: Option<Now>,
    /// The wall clock shows a time that is not believed.
    jumped: bool,
}

impl Skew {
    /// True if this node's clock may be wrong.
    pub fn is_doubted(&self) -> bool {
        self.since.is_some()
    }

    /// True if this node's clock has been doubted for a while.
    pub fn is_certain(&self) -> bool {
        self.certain
    }

    /// True if it is time to tell of the trouble again.
    pub fn should_tell(&mut self, now: Now) -> bool {
        let quiet = self.told.is_none_or(|told| now.since(told) >= TELL_INTERVAL);
        if quiet {
            self.told = Some(now);
        }
        quiet
    }
}

impl Replica {
    /// The wall clock shows `wall`, in microseconds.
    pub(in crate::replica) fn wall_clock(&mut self, now: Now, wall: u64, effects: &mut Effects) {
        self.eventual.shown = (now, wall);
        let (agree, _) = self.peers_that_show(now, wall);
        let majority = quorum::majority(self.settings.members.len());
        let confirmed = agree > 0 && agree + 1 >= majority;
        let jump = self.eventual.clock.set(now, wall, confirmed);
        let skew = &mut self.eventual.skew;
        if let Err(by) = jump
            && (skew.should_tell(now) || !skew.jumped)
        {
            effects.events.push(Event::ClockJumped { by });
        }
        skew.jumped = jump.is_err();
        self.compare_clocks(now, effects);
    }

    /// A beat or a look at the own clock has changed what is known.
    pub(in crate::replica) fn compare_clocks(&mut self, now: Now, effects: &mut Effects) {
        let own = self.eventual.clock.wall(now);
        let (agree, differ) = self.peers_that_show(now, own);
        let skew = &mut self.eventual.skew;
        if agree + 1 > differ {
            (skew.since, skew.certain) = (None, false);
            return;
        }
        let was_certain = skew.certain;
        skew.certain = now.since(*skew.since.get_or_insert(now)) >= CERTAIN_AFTER;
        if skew.certain && (skew.should_tell(now) || !was_certain) {
            effects.events.push(Event::ClockDoubted { members: differ });
        }
    }

    /// What this node's wall clock shows, whether it is believed or not, in microseconds since
    /// 1970. Where all machines have slept, all must be able to see that the others' clocks jumped
    /// alike.
    pub(in crate::replica) fn shown_clock(&self, now: Now) -> u64 {
        let (at, wall) = self.eventual.shown;
        wall.saturating_add(now.since(at).as_micros() as u64)
    }

    /// How many peers that are alive show the time `wall`, in microseconds, and how many another.
    fn peers_that_show(&self, now: Now, wall: u64) -> (usize, usize) {
        let offset_max = self.settings.clock_offset_max.as_micros() as u64;
        let (mut agree, mut differ) = (0, 0);
        for peer in self.peers.values().filter(|peer| peer.liveness == Liveness::Alive) {
            let Some(heartbeat) = &peer.heartbeat else { continue };
            let clock = heartbeat.clock.saturating_add(now.since(peer.heard).as_micros() as u64);
            let count = if clock.abs_diff(wall) <= offset_max { &mut agree } else { &mut differ };
            *count += 1;
        }
        (agree, differ)
    }
}
