//! Snapshots (Raft §7): each node takes its own, to bound the log; a leader sends one to a follower
//! whose next entry it no longer has. The store makes the images and `wal` keeps them; this file
//! holds their consequences for the log.

use super::Role;
use crate::clock::Now;
use crate::replica::{Append, AppendAck, Apply, Effects, Message, Replica, Standing, WalRecord};
use crate::types::{Index, NodeId, SnapshotMeta};

/// An image is due when the log since the last one is at least the last image's length divided by
/// this, …
const IMAGE_PART: u64 = 4;

/// … but no later than after this many times `snapshot_log_bytes`, because that log is in memory.
const IMAGE_LOGS_MAX: u64 = 8;

/// The bound on entries before the snapshot that are kept for live followers, as a multiple of
/// `snapshot_log_bytes`.
const RETENTION_LOGS_MAX: usize = 4;

impl Replica {
    /// Compacts the log up to a snapshot of this node whose image is durable. On disk the log may
    /// begin after the image; in memory some entries before it stay for followers a little behind.
    pub(in crate::replica) fn snapshot_taken(
        &mut self,
        meta: SnapshotMeta,
        bytes: u64,
        effects: &mut Effects,
    ) {
        self.snapshot_under_way = false;
        self.image_bytes = bytes;
        // An image from the leader has replaced this one meanwhile.
        if meta.index <= self.log.snapshot().index
            || self.log.term_at(meta.index) != Some(meta.term)
        {
            return;
        }
        self.log.compact(meta, self.retain_after(meta.index));
        self.schedule_rewrite();
        effects.persist.push(WalRecord::Snapshot(meta));
    }

    /// True if the log has grown enough to be worth an image. An image holds the whole state, so
    /// with a large state more log must come first.
    pub(super) fn is_snapshot_due(&self) -> bool {
        let least = self.settings.snapshot_log_bytes as u64;
        let due =
            (self.image_bytes / IMAGE_PART).clamp(least, least.saturating_mul(IMAGE_LOGS_MAX));
        self.bytes_since_snapshot as u64 >= due && !self.snapshot_under_way
    }

    /// Takes a new image from memory, because a follower received the present one and never
    /// installed it: it may be damaged on this node's disk.
    pub(super) fn renew_image(&mut self, effects: &mut Effects) {
        if let Some(term) = self.log.term_at(self.commit)
            && !self.snapshot_under_way
        {
            self.snapshot_under_way = true;
            self.bytes_since_snapshot = 0;
            let index = self.commit;
            effects.apply.push(Apply::Snapshot(SnapshotMeta { index, term }));
        }
    }

    /// The index after which the log in memory is kept when the log on disk begins after
    /// `snapshot`. At least one entry before `snapshot` stays, and within a bound all that a live
    /// follower needs.
    fn retain_after(&self, snapshot: Index) -> Index {
        // A follower that is installing an image will need the entries after that image.
        let needed_after = match &self.role {
            Role::Leader(leader) => {
                let live = leader.progress.iter().filter(|(peer, _)| self.peer_is_alive(**peer));
                live.map(|(_, progress)| progress.image().unwrap_or(progress.matched)).min()
            }
            _ => None,
        };
        let (retain, log_bytes) =
            (self.settings.log_retain_bytes, self.settings.snapshot_log_bytes);
        let (mut after, mut bytes) = (snapshot, 0);
        while after > self.log.base_index() {
            bytes += self.log.get(after).map_or(0, |entry| entry.encoded_len());
            let is_needed = needed_after.is_some_and(|needed| after > needed);
            let bound = if is_needed { log_bytes * RETENTION_LOGS_MAX } else { retain };
            if bytes > bound && after < snapshot {
                break;
            }
            after -= 1;
        }
        after
    }

    /// Replaces the log up to an image from the leader that is durable here (InstallSnapshot, Raft
    /// figure 13).
    pub(in crate::replica) fn snapshot_arrived(
        &mut self,
        now: Now,
        from: NodeId,
        meta: SnapshotMeta,
        effects: &mut Effects,
    ) {
        // A blank node may have forgotten promises; it stores nothing yet (joining.rs).
        if self.hard.standing == Standing::Blank {
            return;
        }
        // An entry of that term exists, so the term has begun.
        if meta.term > self.hard.term {
            self.adopt_term(now, meta.term, effects);
        }
        // A snapshot behind the commit index says nothing new; a leader holds all committed
        // entries.
        if meta.index > self.commit && !self.is_leader() {
            // Raft §7: without a matching entry the snapshot replaces the whole log.
            if !self.log.restore(meta) {
                self.forget_durable_from(meta.index);
                self.verified = self.verified.min(meta.index);
            }
            self.commit = meta.index;
            self.bytes_since_snapshot = 0;
            self.schedule_rewrite();
            effects.persist.push(WalRecord::Snapshot(meta));
            effects.apply.push(Apply::Restore(meta));
        }
        // Acknowledge to the leader of this term: the log up to the commit index equals its log.
        if self.leader() == Some(from) && !self.is_leader() {
            self.hear_leader(now, from, effects);
            self.verified = self.verified.max(self.commit.min(meta.index));
            let ack = Message::AppendAck(AppendAck::Matched(self.commit.min(meta.index)));
            effects.after_persist.push(self.envelope(from, ack));
        }
    }

    pub(in crate::replica) fn snapshot_sent(
        &mut self,
        now: Now,
        to: NodeId,
        sent: bool,
        effects: &mut Effects,
    ) {
        let Some(leader) = self.leader_state() else { return };
        if let Some(progress) = leader.progress.get_mut(&to) {
            progress.snapshot_ended(now, sent);
            effects.pull.insert(to);
        }
    }

    /// Sends an empty append behind an image, to learn whether the follower has installed it. A
    /// follower that did not know its leader when the image arrived has acknowledged it to no one.
    pub(super) fn probe_behind_image(&mut self, peer: NodeId, image: Index, effects: &mut Effects) {
        let Some(prev_term) = self.log.term_at(image) else { return };
        let (prev_index, commit, entries) = (image, self.commit, Vec::new());
        let append = Append { prev_index, prev_term, commit, entries };
        effects.send.push(self.envelope(peer, Message::Append(append)));
    }
}
