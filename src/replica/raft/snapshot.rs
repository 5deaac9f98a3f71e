//! Snapshots (Raft §7): taken by each node on its own, to bound the log; sent to a follower whose
//! next entry the leader no longer has. The images themselves are the node's business; here is only
//! what they mean for the log.

use super::Role;
use crate::clock::Now;
use crate::replica::{Append, AppendAck, Apply, Effects, Message, Replica, Standing, WalRecord};
use crate::types::{Index, NodeId, SnapshotMeta};

/// An image is taken when the log since the last one is this part of that image long …
const IMAGE_PART: u64 = 4;

/// … but that log is in memory: no more than so many times what is asked for.
const IMAGE_LOGS_MAX: u64 = 8;

/// What followers that are up still need is kept up to so many times the log between two snapshots.
const NEEDED_LOGS_MAX: usize = 4;

impl Replica {
    /// An image is durable here. The log on disk may end where the image ends; in memory a part of
    /// what lies before is kept for followers that are a little behind.
    pub(in crate::replica) fn snapshot_taken(
        &mut self,
        meta: SnapshotMeta,
        bytes: u64,
        effects: &mut Effects,
    ) {
        self.snapshot_under_way = false;
        self.image_bytes = bytes;
        if meta.index <= self.log.snapshot().index
            || self.log.term_at(meta.index) != Some(meta.term)
        {
            return; // Overtaken by an image from the leader.
        }
        self.log.compact(meta, self.keep_after(meta.index));
        self.outlive_held();
        effects.persist.push(WalRecord::Snapshot(meta));
    }

    /// True if the log has grown by so much that an image is worth its cost: it holds the whole
    /// state, so with a large state it takes more of the log.
    pub(super) fn is_snapshot_due(&self) -> bool {
        let least = self.settings.snapshot_log_bytes as u64;
        let due =
            (self.image_bytes / IMAGE_PART).clamp(least, least.saturating_mul(IMAGE_LOGS_MAX));
        self.bytes_since_snapshot as u64 >= due && !self.snapshot_under_way
    }

    /// An image that a follower got and never installed may be damaged on this node's disk: another
    /// one is taken, from what is in memory.
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

    /// Where the log in memory may begin when the log on disk begins after `snapshot`: some way
    /// before it, at least one entry; and, within a bound, before what any follower that is up will
    /// need.
    fn keep_after(&self, snapshot: Index) -> Index {
        let needed_after = match &self.role {
            Role::Leader(leader) => {
                let up = leader.progress.iter().filter(|(peer, _)| self.peer_is_alive(**peer));
                up.map(|(_, progress)| progress.image().unwrap_or(progress.matched)).min()
            }
            _ => None,
        };
        let (retain, most) = (self.settings.log_retain_bytes, self.settings.snapshot_log_bytes);
        let (mut after, mut bytes) = (snapshot, 0);
        while after > self.log.base_index() {
            bytes += self.log.get(after).map_or(0, |entry| entry.encoded_len());
            let needed = needed_after.is_some_and(|needed| after > needed);
            let bound = if needed { most * NEEDED_LOGS_MAX } else { retain };
            if bytes > bound && after < snapshot {
                break;
            }
            after -= 1;
        }
        after
    }

    /// An image from the leader is durable here: it takes the place of the log up to it.
    pub(in crate::replica) fn snapshot_arrived(
        &mut self,
        now: Now,
        from: NodeId,
        meta: SnapshotMeta,
        effects: &mut Effects,
    ) {
        if self.hard.standing == Standing::Blank {
            return;
        }
        if meta.term > self.hard.term {
            self.adopt_term(now, meta.term, effects);
        }
        if meta.index > self.commit && !self.is_leader() {
            if !self.log.restore(meta) {
                self.forget_durable_from(meta.index);
                self.verified = self.verified.min(meta.index);
            }
            self.commit = meta.index;
            self.bytes_since_snapshot = 0;
            self.outlive_held();
            effects.persist.push(WalRecord::Snapshot(meta));
            effects.apply.push(Apply::Restore(meta));
        }
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

    /// Asks a follower whether it has installed an image, by an empty append behind it: it may not
    /// have known its leader when the image arrived, and then it has told nobody.
    pub(super) fn ask_behind_image(&mut self, peer: NodeId, image: Index, effects: &mut Effects) {
        let Some(prev_term) = self.log.term_at(image) else { return };
        let (prev_index, commit, entries) = (image, self.commit, Vec::new());
        let append = Append { prev_index, prev_term, commit, entries };
        effects.send.push(self.envelope(peer, Message::Append(append)));
    }
}
