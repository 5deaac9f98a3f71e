//! Snapshots (Raft §7): taken by each node on its own, to bound the log; sent to a follower whose next
//! entry the leader no longer has. The images themselves are the node's business; here is only what
//! they mean for the log.

use super::super::{AppendAck, Apply, Effects, Message, Record, Replica, Standing};
use crate::clock::Now;
use crate::types::{Index, NodeId, SnapshotMeta};

impl Replica {
    /// An image is durable here. The log on disk may end where the image ends; in memory a part of
    /// what lies before is kept for followers that are a little behind.
    pub(in super::super) fn snapshot_taken(&mut self, meta: SnapshotMeta, effects: &mut Effects) {
        self.snapshot_under_way = false;
        if meta.index <= self.log.snapshot().index
            || self.log.term_at(meta.index) != Some(meta.term)
        {
            return; // Overtaken by an image from the leader.
        }
        self.log.compact(meta, self.keep_after(meta.index));
        effects.persist.push(Record::Snapshot(meta));
    }

    fn keep_after(&self, snapshot: Index) -> Index {
        let (mut after, mut bytes) = (snapshot, 0);
        while after > self.log.base_index() {
            bytes += self.log.get(after).map_or(0, |entry| entry.encoded_len());
            if bytes > self.settings.log_retain_bytes {
                break;
            }
            after -= 1;
        }
        after
    }

    /// An image from the leader is durable here: it takes the place of the log up to it.
    pub(in super::super) fn snapshot_arrived(
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
            effects.persist.push(Record::Snapshot(meta));
            effects.apply.push(Apply::Restore(meta));
        }
        if self.leader() == Some(from) && !self.is_leader() {
            self.hear_leader(now, from, effects);
            self.verified = self.verified.max(self.commit.min(meta.index));
            let ack = Message::AppendAck(AppendAck::Matched(self.commit.min(meta.index)));
            effects.after_persist.push(self.envelope(from, ack));
        }
    }

    pub(in super::super) fn snapshot_sent(
        &mut self,
        to: NodeId,
        sent: bool,
        effects: &mut Effects,
    ) {
        let Some(leader) = self.leader_state() else { return };
        if let Some(progress) = leader.progress.get_mut(&to) {
            progress.snapshot_ended(sent);
            effects.pull.insert(to);
        }
    }
}
