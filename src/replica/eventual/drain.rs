//! The ways out of the outbox: into the log, to the peers, to the disk.

use std::borrow::Cow;

use super::{Eventual, newest, outbox};
use crate::clock::Now;
use crate::replica::{Effects, Envelope, Event, Message, Replica, WalRecord};
use crate::types::{Entry, NodeId, Payload, Version, Write};

/// Bytes of writes in one entry, or in one message to a peer.
const BATCH_BYTES_MAX: usize = 512 << 10;

/// Bytes of entries that a leader has not committed yet beyond which it lets writes wait.
const IN_FLIGHT_BYTES_MAX: usize = 2 << 20;

/// After how many election timeouts a leader that was sent a write, and has not brought it into the
/// log, is sent it again: it was lost, or the leader had no room.
const RESEND_TIMEOUTS: u32 = 5;

/// After how many election timeouts without an answer writes are handed over for stamping again.
const ASK_TIMEOUTS: u32 = 2;

/// How many of them at each heartbeat, in bytes: beats and reads share the way.
const ASK_AGAIN_BYTES_MAX: usize = 1 << 20;

/// With more bytes of writes than this on the disk, twice as many as are held, they are written
/// anew, so that the log's older segments can go.
const REWRITE_BYTES_MIN: usize = 16 << 20;

impl Replica {
    /// There may be something in the outbox that can go on its way.
    pub(super) fn hand_out(&mut self, now: Now, effects: &mut Effects) {
        if self.eventual.outbox.is_empty() {
            return;
        }
        if self.is_leader() {
            if self.eventual.outbox.has_news(self.eventual.logged) {
                let soon = now + self.settings.drain_interval;
                self.eventual.drain_at = self.eventual.drain_at.min(soon);
            }
            return;
        }
        let leader = self.leader();
        for peer in self.settings.peers().filter(|peer| leader.is_none_or(|l| l == *peer)) {
            let sent = self.eventual.sent.get(&peer).copied().unwrap_or(0);
            if self.eventual.outbox.has_news(sent) {
                effects.pull.insert(peer);
            }
        }
        if self.is_withholding() {
            self.reserve(effects);
        }
    }

    /// True if this node has made versions that the disk does not know of.
    pub(super) fn is_withholding(&self) -> bool {
        self.eventual.stamped > self.eventual.reserved
    }

    /// The next writes from the outbox for `cursor`'s owner. Those that the disk does not know of
    /// yet, and those from too far in the future, have to wait here.
    fn take_out(&self, now: Now, cursor: &mut outbox::Cursor) -> Vec<Write> {
        let Eventual { place, reserved, stamped, clock, .. } = &self.eventual;
        let may_leave = |version: Version| {
            // What an earlier directory of this node has stamped comes back from others.
            let unknown = (*reserved + 1..=*stamped).contains(&version.tick());
            let own = version.origin() == *place;
            !(own && unknown) && clock.ahead(now, version.tick()).is_none()
        };
        self.eventual.outbox.take(cursor, BATCH_BYTES_MAX, may_leave)
    }

    /// The leader brings what has gathered into the log.
    pub(in crate::replica) fn drain(&mut self, now: Now, effects: &mut Effects) {
        if now < self.eventual.drain_at {
            return;
        }
        self.eventual.drain_at = Now(u64::MAX);
        if !self.may_append() || self.eventual.skew.is_doubted() {
            return; // The heartbeat requests again.
        }
        let stamped = self.eventual.stamped;
        if stamped > 0 && stamped + self.reservation() / 2 > self.eventual.reserved {
            self.reserve(effects);
        }
        while self.bytes_in_flight() < IN_FLIGHT_BYTES_MAX {
            let mut logged = self.eventual.logged;
            let writes = self.take_out(now, &mut logged);
            self.eventual.logged = logged;
            if writes.is_empty() {
                break;
            }
            let (index, term) = (self.log.last_index() + 1, self.hard.term);
            let payload = Payload::Merge(writes.into());
            self.append_entry(Entry { index, term, payload }, effects);
        }
        if !self.is_withholding() {
            self.hand_out(now, effects);
        }
    }

    /// What this node holds and `peer` should: the leader, or anybody while there is none.
    pub(in crate::replica) fn pull_spread(&mut self, now: Now, peer: NodeId) -> Option<Envelope> {
        if self.leader().is_some_and(|leader| leader != peer) || self.is_leader() {
            return None;
        }
        let mut sent = self.eventual.sent.get(&peer).copied().unwrap_or(0);
        let writes = self.take_out(now, &mut sent);
        self.eventual.sent.insert(peer, sent);
        if writes.is_empty() {
            return None;
        }
        Some(self.envelope(peer, Message::Spread(writes.into())))
    }

    /// A peer holds these writes. It keeps them until they are in the log, so none is lost if there
    /// is no room for it here: what there is room for is taken, and the rest comes again.
    pub(super) fn receive_spread(
        &mut self,
        now: Now,
        from: NodeId,
        writes: &[Write],
        effects: &mut Effects,
    ) {
        let ahead = |write: &Write| self.eventual.clock.ahead(now, write.version.tick());
        let future = writes.iter().filter_map(ahead).max();
        let sound: Cow<'_, [Write]> = match future {
            None => writes.into(),
            Some(_) => writes.iter().filter(|write| ahead(write).is_none()).cloned().collect(),
        };
        if let Some(ahead) = future {
            self.tell_of_the_future(now, from, ahead, effects);
        }
        let fitting = self.eventual.fitting(&sound, 2 * self.settings.backlog_bytes_max);
        self.eventual.clock.observe(newest(fitting).tick());
        let news = self.eventual.take_in(Some(from), fitting);
        if !news.is_empty() {
            effects.spread.push(news.into());
            self.hand_out(now, effects);
        }
    }

    /// A peer's writes lie further ahead than clocks may differ, in microseconds.
    pub(super) fn tell_of_the_future(
        &mut self,
        now: Now,
        from: NodeId,
        ahead: u64,
        effects: &mut Effects,
    ) {
        if self.eventual.skew.should_tell(now) {
            effects.events.push(Event::FutureWrites { from, ahead });
        }
    }

    /// At each heartbeat: what was not drained in time goes to the disk, or to the leader again.
    pub(in crate::replica) fn look_after_outbox(&mut self, now: Now, effects: &mut Effects) {
        self.write_held(now, effects);
        let (unanswered, stamper) =
            (now - self.settings.election_timeout * ASK_TIMEOUTS, self.stamper());
        self.eventual.requests.ask_again(now, unanswered, stamper, ASK_AGAIN_BYTES_MAX);
        let since = self.valid_since(now);
        self.eventual.forwarded.expire(since);
        self.notice_lost(now);
        self.hand_out(now, effects);
    }

    /// The write that has been here longest should have come back in the log by now.
    fn notice_lost(&mut self, now: Now) {
        let first = self.eventual.outbox.first();
        let (since, watched) = self.eventual.overdue;
        let is_late = now.since(since) > self.settings.election_timeout * RESEND_TIMEOUTS;
        if first == watched && !is_late {
            return;
        }
        self.eventual.overdue = (now, first);
        if first == watched
            && let Some(leader) = self.leader()
        {
            self.eventual.sent.remove(&leader);
        }
    }

    /// Writes to the disk what has been held for longer than the sync interval, and now and then
    /// all that is held, so that the disk may forget what came before.
    fn write_held(&mut self, now: Now, effects: &mut Effects) {
        if self.disk_full {
            return;
        }
        let (eventual, interval) = (&mut self.eventual, self.settings.sync_interval);
        let end = eventual.outbox.end();
        if eventual.disk.ends.back().is_none_or(|(_, last)| *last != end) {
            eventual.disk.ends.push_back((now, end));
        }
        let mut due = 0;
        while let Some((_, end)) =
            eventual.disk.ends.pop_front_if(|(at, _)| now.since(*at) >= interval)
        {
            due = end;
        }
        self.write_up_to(now, due, effects);
    }

    /// A snapshot has been taken: the log's segments could go, but for eventual writes in them.
    pub(in crate::replica) fn outlive_held(&mut self) {
        self.eventual.disk.is_outlived = true;
    }

    /// Writes all that is held and not written.
    pub(in crate::replica) fn write_outbox(&mut self, now: Now, effects: &mut Effects) {
        self.write_up_to(now, self.eventual.outbox.end(), effects);
    }

    /// Writes what arrived before `due` and is held.
    fn write_up_to(&mut self, now: Now, due: outbox::Cursor, effects: &mut Effects) {
        let (eventual, interval) = (&mut self.eventual, self.settings.sync_interval);
        let (disk, outbox) = (&mut eventual.disk, &mut eventual.outbox);
        let rested = outbox.is_empty() || now.since(disk.rewritten_at) >= interval;
        let none_needed = rested && !outbox.is_written();
        let too_many = disk.bytes > REWRITE_BYTES_MIN.max(2 * outbox.bytes());
        if disk.bytes > 0 && (none_needed || too_many || disk.is_outlived) {
            // All of them: one that is not due yet may have taken the place of one on the disk.
            let held = outbox.take_all();
            (disk.bytes, disk.rewritten_at) = (outbox::size_of(&held), now);
            disk.is_outlived = false;
            disk.jobs.push_back((self.last_job + 1, held.len()));
            effects.persist.push(WalRecord::Held(held.into()));
            return;
        }
        let writes = outbox.take_unwritten(due);
        if !writes.is_empty() {
            disk.bytes += outbox::size_of(&writes);
            disk.jobs.push_back((self.last_job + 1, writes.len()));
            effects.persist.push(WalRecord::Stamped(writes.into()));
        }
    }
}
