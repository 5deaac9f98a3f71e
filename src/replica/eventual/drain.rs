//! The ways out of the outbox: into the log (drain), to the peers (spread), to the disk.

use std::borrow::Cow;

use super::{Eventual, newest, outbox};
use crate::clock::Now;
use crate::replica::{Effects, Envelope, Event, Message, Replica, WalRecord};
use crate::types::{Entry, NodeId, Payload, Version, Write};

/// The bytes of writes in one entry, or in one message to a peer.
const BATCH_BYTES_MAX: usize = 512 << 10;

/// The bytes of uncommitted entries beyond which a leader lets eventual writes wait.
const IN_FLIGHT_BYTES_MAX: usize = 2 << 20;

/// The time, in election timeouts, after which a write that is still not in the log is spread to
/// the leader again: the message was lost, or the leader had no room.
const SPREAD_RESEND_TIMEOUTS: u32 = 5;

/// The time without an answer, in election timeouts, after which a stamp request is sent again.
const STAMP_RESEND_TIMEOUTS: u32 = 2;

/// The bytes of stamp requests that are sent again at each heartbeat: other messages share the
/// link.
const STAMP_RESEND_BYTES_MAX: usize = 1 << 20;

/// The bytes of writes on the disk from which on the whole outbox is written anew, if they are also
/// twice the bytes held. Then the log's older segments can go.
const REWRITE_BYTES_MIN: usize = 16 << 20;

impl Replica {
    /// Schedules new writes in the outbox for their next way out.
    pub(super) fn schedule_outbox(&mut self, now: Now, effects: &mut Effects) {
        if self.eventual.outbox.is_empty() {
            return;
        }
        // A leader lets writes gather for a moment: one entry, and one write of each key.
        if self.is_leader() {
            if self.eventual.outbox.has_news(self.eventual.logged) {
                let soon = now + self.settings.drain_interval;
                self.eventual.drain_at = self.eventual.drain_at.min(soon);
            }
            return;
        }
        // To the leader; without one to every peer, so that a write survives on many nodes.
        let leader = self.leader();
        for peer in self.settings.peers().filter(|peer| leader.is_none_or(|l| l == *peer)) {
            let spread = self.eventual.spread.get(&peer).copied().unwrap_or(0);
            if self.eventual.outbox.has_news(spread) {
                effects.pull.insert(peer);
            }
        }
        if self.is_withholding() {
            self.reserve(effects);
        }
    }

    /// True if this node has stamped versions above the bound on its disk.
    pub(super) fn is_withholding(&self) -> bool {
        self.eventual.stamped > self.eventual.reserved
    }

    /// The next writes after `cursor` that may leave this node; moves the cursor.
    fn take_next(&self, now: Now, cursor: &mut outbox::Cursor) -> Vec<Write> {
        let Eventual { place, reserved, stamped, clock, .. } = &self.eventual;
        let may_leave = |version: Version| {
            // An own version above the bound on the disk could be stamped again after a crash. A
            // version with this node's origin above `stamped` is from an earlier directory: it may
            // leave.
            let is_unreserved =
                version.origin() == *place && (*reserved + 1..=*stamped).contains(&version.tick());
            // A version from the future would push the clocks of all other nodes ahead.
            let is_ahead = clock.ahead(now, version.tick()).is_some();
            !is_unreserved && !is_ahead
        };
        self.eventual.outbox.take(cursor, BATCH_BYTES_MAX, may_leave)
    }

    /// Appends the writes that have gathered to the log, at a leader.
    pub(in crate::replica) fn drain(&mut self, now: Now, effects: &mut Effects) {
        if now < self.eventual.drain_at {
            return;
        }
        self.eventual.drain_at = Now(u64::MAX);
        // The next heartbeat schedules the drain again.
        if !self.may_append() || self.eventual.skew.is_doubted() {
            return;
        }
        // Reserve ahead of need, so that the next drain does not wait for the disk.
        let stamped = self.eventual.stamped;
        if stamped > 0 && stamped + self.reservation() / 2 > self.eventual.reserved {
            self.reserve(effects);
        }
        // Bounded, so that strong writes do not queue behind a backlog of eventual ones.
        while self.bytes_in_flight() < IN_FLIGHT_BYTES_MAX {
            let mut logged = self.eventual.logged;
            let writes = self.take_next(now, &mut logged);
            self.eventual.logged = logged;
            if writes.is_empty() {
                break;
            }
            let (index, term) = (self.log.last_index() + 1, self.hard.term);
            let payload = Payload::Merge(writes.into());
            self.append_entry(Entry { index, term, payload }, effects);
        }
        // Writes that wait for the disk are scheduled when the disk reports.
        if !self.is_withholding() {
            self.schedule_outbox(now, effects);
        }
    }

    /// The next writes that this node holds for `peer`: the leader, or any peer without a leader.
    pub(in crate::replica) fn pull_spread(&mut self, now: Now, peer: NodeId) -> Option<Envelope> {
        if self.leader().is_some_and(|leader| leader != peer) || self.is_leader() {
            return None;
        }
        let mut spread = self.eventual.spread.get(&peer).copied().unwrap_or(0);
        let writes = self.take_next(now, &mut spread);
        self.eventual.spread.insert(peer, spread);
        if writes.is_empty() {
            return None;
        }
        Some(self.envelope(peer, Message::Spread(writes.into())))
    }

    /// Holds the writes of a peer, as far as they are sound and there is room. The peer holds them
    /// until they are in the log and spreads them again, so none is lost.
    pub(super) fn receive_spread(
        &mut self,
        now: Now,
        from: NodeId,
        writes: &[Write],
        effects: &mut Effects,
    ) {
        // A version from the future would push this node's clock ahead with it.
        let ahead = |write: &Write| self.eventual.clock.ahead(now, write.version.tick());
        let future = writes.iter().filter_map(ahead).max();
        let sound: Cow<'_, [Write]> = match future {
            None => writes.into(),
            Some(_) => writes.iter().filter(|write| ahead(write).is_none()).cloned().collect(),
        };
        if let Some(ahead) = future {
            self.report_future_writes(now, from, ahead, effects);
        }
        // Stamped writes may fill the outbox to twice the bound for new requests.
        let fitting = self.eventual.fitting(&sound, 2 * self.settings.backlog_bytes_max);
        self.eventual.clock.observe(newest(fitting).tick());
        let news = self.eventual.hold(Some(from), fitting);
        if !news.is_empty() {
            effects.spread.push(news.into());
            self.schedule_outbox(now, effects);
        }
    }

    /// Reports that a peer's writes lie `ahead` microseconds ahead, more than clocks may differ.
    pub(super) fn report_future_writes(
        &mut self,
        now: Now,
        from: NodeId,
        ahead: u64,
        effects: &mut Effects,
    ) {
        if self.eventual.skew.should_report(now) {
            effects.events.push(Event::FutureWrites { from, ahead });
        }
    }

    /// At each heartbeat: writes overdue writes to the disk, and sends lost requests and writes
    /// again.
    pub(in crate::replica) fn maintain_outbox(&mut self, now: Now, effects: &mut Effects) {
        self.write_overdue(now, effects);
        let since = now - self.settings.election_timeout * STAMP_RESEND_TIMEOUTS;
        let stamper = self.stamper();
        self.eventual.requests.send_again(now, since, stamper, STAMP_RESEND_BYTES_MAX);
        let valid_since = self.valid_since(now);
        self.eventual.forwarded.expire(valid_since);
        self.spread_overdue(now);
        self.schedule_outbox(now, effects);
    }

    /// Spreads the whole outbox to the leader again, if the write held longest should be in the log
    /// by now.
    fn spread_overdue(&mut self, now: Now) {
        let first = self.eventual.outbox.first();
        let (since, watched) = self.eventual.longest_held;
        let is_late = now.since(since) > self.settings.election_timeout * SPREAD_RESEND_TIMEOUTS;
        if first == watched && !is_late {
            return;
        }
        self.eventual.longest_held = (now, first);
        if first == watched
            && let Some(leader) = self.leader()
        {
            self.eventual.spread.remove(&leader);
        }
    }

    /// Writes the writes that were held for longer than the sync interval to the disk.
    fn write_overdue(&mut self, now: Now, effects: &mut Effects) {
        if self.disk_full {
            return;
        }
        // Ages are counted in heartbeats: the outbox ended at `end` at this one.
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

    /// Makes the next write to the disk write the whole outbox. After a snapshot only eventual
    /// writes keep old segments of the log, and writing them anew frees the segments.
    pub(in crate::replica) fn schedule_rewrite(&mut self) {
        self.eventual.disk.must_rewrite = true;
    }

    /// Writes all writes to the disk that are not there yet.
    pub(in crate::replica) fn write_outbox(&mut self, now: Now, effects: &mut Effects) {
        self.write_up_to(now, self.eventual.outbox.end(), effects);
    }

    /// Writes the writes that arrived before `due`, or the whole outbox if that is due.
    fn write_up_to(&mut self, now: Now, due: outbox::Cursor, effects: &mut Effects) {
        let (eventual, interval) = (&mut self.eventual, self.settings.sync_interval);
        let (disk, outbox) = (&mut eventual.disk, &mut eventual.outbox);
        // No write on the disk is held any more: a rewrite makes recovery forget them all. While
        // other writes are held, once an interval is enough.
        let may_rewrite = outbox.is_empty() || now.since(disk.rewritten_at) >= interval;
        let is_outdated = may_rewrite && !outbox.is_written();
        let is_too_large = disk.bytes > REWRITE_BYTES_MIN.max(2 * outbox.bytes());
        if disk.bytes > 0 && (is_outdated || is_too_large || disk.must_rewrite) {
            // The whole outbox, due or not: a write that is not due may have replaced one on the
            // disk.
            let held = outbox.take_all();
            (disk.bytes, disk.rewritten_at) = (outbox::size_of(&held), now);
            disk.must_rewrite = false;
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
