//! Replication: proposals become entries, entries become appends, acknowledgements become commits.

use super::Role;
use crate::clock::Now;
use crate::replica::{
    Append, AppendAck, Apply, Effects, Message, Mutant, Pull, Replica, WalRecord, quorum,
};
use crate::types::{Entry, Index, NodeId, Payload, Proposal, Rejected, SnapshotMeta};

impl Replica {
    /// The leader appends a proposal to its log and to whatever its followers fetch next, unless a
    /// copy of it is on its way already.
    pub(in crate::replica) fn append_batch(
        &mut self,
        now: Now,
        proposal: Proposal,
        effects: &mut Effects,
    ) {
        let Role::Leader(leader) = &mut self.role else { return };
        if !leader.uncommitted.insert(proposal.id) {
            return;
        }
        let (index, term) = (self.log.last_index() + 1, self.hard.term);
        let payload = Payload::Batch { stamp: self.entry_stamp(now), proposal };
        self.append_entry(Entry { index, term, payload }, effects);
    }

    pub(in crate::replica) fn append_entry(&mut self, entry: Entry, effects: &mut Effects) {
        if let Role::Leader(leader) = &mut self.role {
            leader.uncommitted_bytes += entry.encoded_len();
        }
        effects.persist.push(WalRecord::Entry(entry.clone()));
        self.log.push(entry);
        effects.pull.extend(self.settings.peers());
    }

    /// What a new leader finds in its log behind the commit index.
    pub(super) fn note_uncommitted(&mut self) {
        let Role::Leader(leader) = &mut self.role else { return };
        for entry in self.log.range(self.commit + 1, self.log.last_index()) {
            leader.uncommitted_bytes += entry.encoded_len();
            if let Payload::Batch { proposal, .. } = &entry.payload {
                leader.uncommitted.insert(proposal.id);
            }
        }
    }

    /// Why this leader takes no proposals now, if it does not. While it hands over they wait.
    pub(in crate::replica) fn refusal(&self) -> Option<Rejected> {
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

    /// True if this node leads and may put something of its own into the log.
    pub(in crate::replica) fn may_append(&self) -> bool {
        let Role::Leader(leader) = &self.role else { return false };
        leader.transfer.is_none() && self.refusal().is_none()
    }

    /// Bytes of entries that this leader has appended and not committed.
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
        let refusal = self.refusal();
        let Some(leader) = self.leader_state() else { return };
        if leader.transfer.is_some() {
            leader.held.extend(proposals);
        } else if let Some(reason) = refusal {
            let known = |proposal: &&Proposal| !leader.uncommitted.contains(&proposal.id);
            let ids = proposals.iter().filter(known).map(|proposal| proposal.id).collect();
            let message = Message::Refuse { ids, reason };
            effects.send.push(self.envelope(from, message));
        } else {
            for proposal in proposals {
                self.append_batch(now, proposal, effects);
            }
            self.advance_commit(now, effects);
        }
    }

    /// The next append for `peer`, if its window is open and there is news for it: entries, or a
    /// commit index that its own clients wait for.
    pub(in crate::replica) fn pull_append(
        &mut self,
        now: Now,
        peer: NodeId,
        bytes_max: usize,
    ) -> Option<Pull> {
        let (last, commit, window) = (self.log.last_index(), self.commit, self.settings.window);
        let (base, snapshot) = (self.log.base_index(), self.log.snapshot());
        // A node that does not know yet whether it has lost something takes nothing in.
        let heartbeat = self.peers.get(&peer).and_then(|known| known.heartbeat.as_ref());
        let blank = heartbeat.is_some_and(|heartbeat| !heartbeat.admitted);
        let progress = self.leader_state()?.progress.get_mut(&peer)?;
        if !progress.may_send(window) {
            return None;
        }
        let probing = matches!(progress.state, crate::replica::progress::State::Probe { .. });
        let commit_news = progress.commit_sent < commit.min(progress.commit_wanted);
        if !probing && progress.next > last && !commit_news {
            return None;
        }
        if progress.next <= base {
            if blank {
                return None;
            }
            progress.snapshot(now, snapshot.index);
            return Some(Pull::Snapshot(snapshot));
        }
        let prev_index = progress.next - 1;
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
        if self.is_leader() {
            return; // Two leaders in one term cannot be; a peer that says so is not believed.
        }
        self.hear_leader(now, from, effects);
        let Append { mut prev_index, mut prev_term, commit, mut entries } = append;
        if !is_contiguous(prev_index, prev_term, self.hard.term, &entries) {
            return;
        }
        // What is committed here is the same there: only what follows it needs a look.
        if prev_index < self.commit {
            let known = (self.commit - prev_index).min(entries.len() as Index);
            entries.drain(..known as usize);
            prev_index = self.commit;
            prev_term = self.log.term_at(self.commit).unwrap_or(prev_term);
        }
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
        let ack = Message::AppendAck(AppendAck::Matched(matched));
        effects.after_persist.push(self.envelope(from, ack));
    }

    /// Puts entries behind the agreed part of the log; where they differ from what is there, the
    /// leader's replace it and all that follows (Raft §5.3).
    fn store_entries(&mut self, entries: Vec<Entry>, effects: &mut Effects) {
        for entry in entries {
            match self.log.term_at(entry.index) {
                Some(term) if term == entry.term => continue,
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
                self.peer_accepted(now, from, index, effects);
            }
            AppendAck::Matched(_) => {}
            AppendAck::Missing { prev_index, hint_index, hint_term } => {
                let agreed = self.log.last_with_term_at_most(hint_index, hint_term);
                let Some(leader) = self.leader_state() else { return };
                let Some(progress) = leader.progress.get_mut(&from) else { return };
                progress.refused(prev_index, agreed.min(hint_index) + 1);
                effects.pull.insert(from);
            }
        }
    }

    /// `peer` holds this leader's log durably up to `index`.
    pub(super) fn peer_accepted(
        &mut self,
        now: Now,
        peer: NodeId,
        index: Index,
        effects: &mut Effects,
    ) {
        let last = self.log.last_index();
        let Some(leader) = self.leader_state() else { return };
        let Some(progress) = leader.progress.get_mut(&peer) else { return };
        let news = progress.accepted(now, index);
        if progress.next <= last {
            effects.pull.insert(peer);
        }
        if news {
            self.advance_commit(now, effects);
            self.try_to_hand_over(peer, effects);
        }
    }

    /// The leader commits what a majority holds durably, if it is of its own term (Raft §5.4.2).
    pub(in crate::replica) fn advance_commit(&mut self, now: Now, effects: &mut Effects) {
        let durable = self.durable;
        let Role::Leader(leader) = &self.role else { return };
        let mut positions: Vec<Index> = leader.progress.values().map(|p| p.matched).collect();
        positions.push(durable);
        let reached = quorum::reached_by_majority(&mut positions);
        let own = self.log.term_at(reached) == Some(self.hard.term)
            || self.settings.has(Mutant::CommitByCounting);
        if reached > self.commit && own {
            self.commit_to(reached, effects);
            self.start_read_round(now, effects);
        }
    }

    /// A follower learns how far the leader has committed; it believes it for the part of the log
    /// that it knows to be the leader's.
    pub(super) fn learn_commit(&mut self, commit: Index, effects: &mut Effects) {
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

/// True if the entries follow `prev_index` without a gap, in terms that never fall nor pass `term`.
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
