//! Replication (Raft §5.3): proposals become entries, entries become appends, acknowledgements
//! become commits.

use super::Role;
use crate::clock::Now;
use crate::replica::progress::ProgressState;
use crate::replica::{
    Append, AppendAck, Apply, Effects, Message, Pull, Replica, WalRecord, quorum,
};
use crate::types::{Entry, Index, NodeId, Payload, Proposal, Rejected, SnapshotMeta};

impl Replica {
    /// Appends a proposal to the leader's log, unless an uncommitted copy is in the log already.
    pub(in crate::replica) fn append_batch(
        &mut self,
        now: Now,
        proposal: Proposal,
        effects: &mut Effects,
    ) {
        let Role::Leader(leader) = &mut self.role else { return };
        // A forwarded request may arrive twice. A copy of a committed one is appended and later
        // dropped by the state machine; a copy of an uncommitted one would only waste a log entry.
        if !leader.uncommitted.insert(proposal.id) {
            return;
        }
        let (index, term) = (self.log.last_index() + 1, self.hard.term);
        let payload = Payload::Batch { stamp: self.entry_stamp(now), proposal };
        self.append_entry(Entry { index, term, payload }, effects);
    }

    /// Appends an entry to the leader's log: to the disk and to the followers in parallel.
    pub(in crate::replica) fn append_entry(&mut self, entry: Entry, effects: &mut Effects) {
        if let Role::Leader(leader) = &mut self.role {
            leader.uncommitted_bytes += entry.encoded_len();
        }
        effects.persist.push(WalRecord::Entry(entry.clone()));
        self.log.push(entry);
        effects.pull.extend(self.settings.peers());
    }

    /// Records the uncommitted requests and bytes that a new leader finds in its log.
    pub(super) fn note_uncommitted(&mut self) {
        let Role::Leader(leader) = &mut self.role else { return };
        for entry in self.log.range(self.commit + 1, self.log.last_index()) {
            leader.uncommitted_bytes += entry.encoded_len();
            if let Payload::Batch { proposal, .. } = &entry.payload {
                leader.uncommitted.insert(proposal.id);
            }
        }
    }

    /// The reason for which a leader appends nothing now, if there is one. During a transfer
    /// proposals are not refused; they wait.
    pub(in crate::replica) fn append_refusal(&self) -> Option<Rejected> {
        let Role::Leader(leader) = &self.role else { return None };
        if leader.transfer.is_some() {
            return None;
        }
        let bytes_max = self.settings.pending_bytes_max * self.settings.members.len();
        if self.disk_full {
            Some(Rejected::DiskFull)
        } else if leader.uncommitted_bytes > bytes_max {
            Some(Rejected::Busy)
        } else {
            None
        }
    }

    /// True if this node leads and may append entries of its own to the log.
    pub(in crate::replica) fn may_append(&self) -> bool {
        let Role::Leader(leader) = &self.role else { return false };
        leader.transfer.is_none() && self.append_refusal().is_none()
    }

    /// The bytes of this leader's uncommitted entries; 0 at any other node.
    pub(in crate::replica) fn bytes_in_flight(&self) -> usize {
        match &self.role {
            Role::Leader(leader) => leader.uncommitted_bytes,
            _ => 0,
        }
    }

    pub(super) fn receive_forward(
        &mut self,
        now: Now,
        from: NodeId,
        proposals: Vec<Proposal>,
        effects: &mut Effects,
    ) {
        let refusal = self.append_refusal();
        let Some(leader) = self.leader_state() else { return };
        if leader.transfer.is_some() {
            // Thesis §3.10: new entries would keep the target from catching up.
            leader.held.extend(proposals);
        } else if let Some(reason) = refusal {
            // A request that is in the log already may still commit, so refusing it would lie.
            let is_absent = |proposal: &&Proposal| !leader.uncommitted.contains(&proposal.id);
            let ids = proposals.iter().filter(is_absent).map(|proposal| proposal.id).collect();
            let message = Message::Refuse { ids, reason };
            effects.send.push(self.envelope(from, message));
        } else {
            for proposal in proposals {
                self.append_batch(now, proposal, effects);
            }
            self.advance_commit(now, effects);
        }
    }

    /// The next append or snapshot for `peer`, if its window is open and there is news for it:
    /// entries, or a commit index that its own clients wait for.
    pub(in crate::replica) fn pull_append(
        &mut self,
        now: Now,
        peer: NodeId,
        bytes_max: usize,
    ) -> Option<Pull> {
        let (last, commit, window) = (self.log.last_index(), self.commit, self.settings.window);
        let (base, snapshot) = (self.log.base_index(), self.log.snapshot());
        let heartbeat = self.peers.get(&peer).and_then(|known| known.heartbeat.as_ref());
        let is_blank = heartbeat.is_some_and(|heartbeat| !heartbeat.admitted);
        let progress = self.leader_state()?.progress.get_mut(&peer)?;
        if !progress.may_send(window) {
            return None;
        }
        // A probe goes out even without entries: its answer shows where the logs agree.
        let is_probing = matches!(progress.state, ProgressState::Probe { .. });
        // Other peers learn the commit index from the next append or heartbeat.
        let has_commit_news = progress.commit_sent < commit.min(progress.commit_wanted);
        if !is_probing && progress.next > last && !has_commit_news {
            return None;
        }
        // Raft §7: the entries that the peer needs are compacted, so it gets the snapshot.
        if progress.next <= base {
            // A blank node drops every image: it does not know yet whether it has lost promises.
            if is_blank {
                return None;
            }
            progress.snapshot(now, snapshot.index);
            return Some(Pull::Snapshot(snapshot));
        }
        let prev_index = progress.next - 1;
        // All entries after `next`, up to the bound: the batch is as large as the load.
        let (mut entries, mut bytes) = (Vec::new(), 0);
        if prev_index < last {
            for entry in self.log.range(prev_index + 1, last) {
                if !entries.is_empty() && bytes + entry.encoded_len() > bytes_max {
                    break;
                }
                bytes += entry.encoded_len();
                entries.push(entry.clone());
            }
        }
        let sent_last = prev_index + entries.len() as Index;
        let prev_term = self.log.term_at(prev_index)?;
        self.leader_state()?.progress.get_mut(&peer)?.sent(now, sent_last, bytes, commit);
        let append = Append { prev_index, prev_term, commit, entries };
        Some(Pull::Message(self.envelope(peer, Message::Append(append))))
    }

    pub(super) fn receive_append(
        &mut self,
        now: Now,
        from: NodeId,
        append: Append,
        effects: &mut Effects,
    ) {
        // Election Safety (Raft §5.2): a term has one leader, so a peer that claims to lead this
        // node's own term is not believed.
        if self.is_leader() {
            return;
        }
        self.hear_leader(now, from, effects);
        let Append { mut prev_index, mut prev_term, commit, mut entries } = append;
        if !is_contiguous(prev_index, prev_term, self.hard.term, &entries) {
            return;
        }
        // Log Matching (Raft §5.3): committed entries agree already, so compare only the entries
        // after the commit index.
        if prev_index < self.commit {
            let known = (self.commit - prev_index).min(entries.len() as Index);
            entries.drain(..known as usize);
            prev_index = self.commit;
            prev_term = self.log.term_at(self.commit).unwrap_or(prev_term);
        }
        // Raft §5.3: without an entry at `prev_index` with `prev_term` the append is refused. The
        // hint lets the leader skip a whole term with each refusal.
        if self.log.term_at(prev_index) != Some(prev_term) {
            let (hint_index, hint_term) = self.log.hint(prev_index, prev_term);
            let ack = AppendAck::Missing { prev_index, hint_index, hint_term };
            effects.send.push(self.envelope(from, Message::AppendAck(ack)));
            return;
        }
        let matched = prev_index + entries.len() as Index;
        self.store_entries(entries, effects);
        self.verified = self.verified.max(matched);
        self.learn_commit(commit, effects);
        // The leader counts this answer as durable entries (Raft figure 2).
        let ack = Message::AppendAck(AppendAck::Matched(matched));
        effects.after_persist.push(self.envelope(from, ack));
    }

    /// Stores the leader's entries after the agreed part of the log.
    fn store_entries(&mut self, entries: Vec<Entry>, effects: &mut Effects) {
        for entry in entries {
            match self.log.term_at(entry.index) {
                // Log Matching (Raft §5.3): the same index and term mean the same entry. It stays,
                // or a reordered older append would remove entries after it.
                Some(term) if term == entry.term => continue,
                // Raft §5.3: a conflicting entry gives way, with all that follow it.
                Some(_) => {
                    self.forget_durable_from(entry.index);
                    self.log.truncate(entry.index);
                }
                None => {}
            }
            self.eventual.observe(&entry.payload);
            effects.persist.push(WalRecord::Entry(entry.clone()));
            self.log.push(entry);
        }
    }

    pub(super) fn receive_append_ack(
        &mut self,
        now: Now,
        from: NodeId,
        ack: AppendAck,
        effects: &mut Effects,
    ) {
        let log_last = self.log.last_index();
        match ack {
            AppendAck::Matched(index) if index <= log_last => {
                self.peer_matched(now, from, index, effects);
            }
            // No follower can match entries that this leader does not have.
            AppendAck::Matched(_) => {}
            AppendAck::Missing { prev_index, hint_index, hint_term } => {
                // Raft §5.3: below the hint, skip this log's entries of newer terms as well.
                let agreed = self.log.last_with_term_at_most(hint_index, hint_term);
                let Some(leader) = self.leader_state() else { return };
                let Some(progress) = leader.progress.get_mut(&from) else { return };
                progress.refused(prev_index, agreed.min(hint_index) + 1);
                effects.pull.insert(from);
            }
        }
    }

    /// Notes that `peer` holds this leader's log durably up to `index`.
    pub(super) fn peer_matched(
        &mut self,
        now: Now,
        peer: NodeId,
        index: Index,
        effects: &mut Effects,
    ) {
        let last = self.log.last_index();
        let Some(leader) = self.leader_state() else { return };
        let Some(progress) = leader.progress.get_mut(&peer) else { return };
        let is_news = progress.acknowledged(now, index);
        if progress.next <= last {
            effects.pull.insert(peer);
        }
        if is_news {
            self.advance_commit(now, effects);
            self.try_to_hand_over(peer, effects);
        }
    }

    /// Commits the entries that a majority holds durably.
    pub(in crate::replica) fn advance_commit(&mut self, now: Now, effects: &mut Effects) {
        let durable = self.durable;
        let Role::Leader(leader) = &self.role else { return };
        let mut positions: Vec<Index> = leader.progress.values().map(|p| p.matched).collect();
        // The leader is a member like the others: its own log counts once it is durable.
        positions.push(durable);
        let reached = quorum::reached_by_majority(&mut positions);
        // Raft §5.4.2, figure 8: an entry of a former term that a majority holds can still be
        // replaced. Counting copies commits only entries of the own term, and all before them.
        let is_of_own_term = self.log.term_at(reached) == Some(self.hard.term);
        if reached > self.commit && is_of_own_term {
            self.commit_to(reached, effects);
            // Reads may have waited for the first commit of this term.
            self.start_read_round(now, effects);
        }
    }

    /// Takes in the leader's commit index at a follower.
    pub(super) fn learn_commit(&mut self, commit: Index, effects: &mut Effects) {
        // Raft §5.3: the index is about the leader's log. It holds only for the part of this log
        // that is known to equal the leader's.
        let commit = commit.min(self.verified);
        if commit > self.commit {
            self.commit_to(commit, effects);
        }
    }

    fn commit_to(&mut self, index: Index, effects: &mut Effects) {
        let entries: Vec<Entry> = self.log.range(self.commit + 1, index).cloned().collect();
        self.commit = index;
        for entry in &entries {
            self.bytes_since_snapshot += entry.encoded_len();
            if let Role::Leader(leader) = &mut self.role {
                leader.uncommitted_bytes =
                    leader.uncommitted_bytes.saturating_sub(entry.encoded_len());
            }
            let proposal = match &entry.payload {
                Payload::Batch { proposal, .. } => proposal,
                Payload::Merge(writes) => {
                    self.eventual.settle(writes);
                    continue;
                }
                Payload::Noop | Payload::Checkpoint { .. } => continue,
            };
            if let Role::Leader(leader) = &mut self.role {
                leader.uncommitted.remove(&proposal.id);
            }
            if self.pending.committed(proposal.id) || proposal.id.node == self.settings.id {
                continue;
            }
            // A client of another node waits for this commit: tell that node at once.
            if let Role::Leader(leader) = &mut self.role
                && let Some(progress) = leader.progress.get_mut(&proposal.id.node)
            {
                progress.commit_wanted = entry.index;
                effects.pull.insert(proposal.id.node);
            }
        }
        let term = entries.last().map_or(0, |entry| entry.term);
        effects.apply.push(Apply::Entries(entries));
        if self.is_snapshot_due() {
            self.snapshot_under_way = true;
            self.bytes_since_snapshot = 0;
            effects.apply.push(Apply::Snapshot(SnapshotMeta { index, term }));
        }
    }
}

/// True if the entries follow `prev_index` without a gap, in terms that never fall and never exceed
/// `term`. A peer's entries are checked before they enter the log.
fn is_contiguous(prev_index: Index, prev_term: u64, term: u64, entries: &[Entry]) -> bool {
    let mut last = (prev_index, prev_term);
    entries.iter().all(|entry| {
        let follows = last.0.checked_add(1) == Some(entry.index)
            && entry.term >= last.1
            && entry.term <= term;
        last = (entry.index, entry.term);
        follows
    })
}
