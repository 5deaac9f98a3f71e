//! The promises of Raft and of the node, checked after each step. The checks see all nodes at once.

use crate::replica::{Envelope, Input, Message, Status, WalRecord};
use crate::service::{
    Answers, ApplyWork, Consequence, ReplyTo, RequestHandle, Superseded, consequence, own_request,
};
use crate::store::Applied;
use crate::testing::sim::cluster::{SimNode, World};
use crate::testing::sim::oracle::{Committed, hash, hash_applied, versions_before};
use crate::testing::sim::trace::{mix, mix_bytes};
use crate::types::{Entry, Index, Payload, RequestId, SnapshotMeta, Term};

impl World {
    /// A vote leaves its node. It must be that node's only one in its term, in all its lives
    /// (§5.2).
    pub fn check_vote(&mut self, envelope: &Envelope) {
        let vote = match &envelope.message {
            // A candidate votes for itself. A pre-vote promises nothing (thesis §9.6).
            Message::Vote(request) if !request.pre => envelope.from,
            Message::VoteReply(reply) if !reply.pre && reply.granted => envelope.to,
            _ => return,
        };
        let (voter, term) = (envelope.from, envelope.term);
        let first = *self.oracle.votes.entry((voter, term)).or_insert(vote);
        let latest = self.oracle.voted.entry(voter).or_default();
        *latest = term.max(*latest);
        if first != vote {
            let how = format!("{voter} voted in term {term} for {first}, then for {vote}");
            self.fail("a node votes once in a term", how);
        }
        self.after_vote(self.position(voter));
    }

    /// A node has lost its directory. Its votes for itself are void: they counted only in its own
    /// candidacies, which are lost as well. Its votes for others still bind it.
    pub fn forget_candidacies(&mut self, node: usize) {
        let id = self.nodes[node].id;
        self.oracle.votes.retain(|(voter, _), vote| *voter != id || *vote != id);
        let terms = self.oracle.votes.keys().filter(|(voter, _)| *voter == id).map(|key| key.1);
        let latest = terms.max().unwrap_or(0);
        self.oracle.voted.insert(id, latest);
    }

    /// A node that starts finds its votes again, unless its directory was lost and it has not
    /// caught up since: then it does not vote.
    pub fn check_found(&mut self, node: usize) {
        let machine = &self.nodes[node];
        let hard = &machine.disk.synced.hard;
        let voted = self.oracle.voted.get(&machine.id).copied().unwrap_or(0);
        let spent = hard.term > voted || (hard.term == voted && hard.vote.is_some());
        if voted > 0 && machine.ghosts.is_empty() && !spent {
            let how = format!("{} voted in term {voted} and finds {hard:?}", machine.id);
            self.fail("a vote that has left its node is found again", how);
        }
    }

    /// Log Matching (§5.3): an index and a term name one entry with one predecessor, on every node.
    /// A cluster of one is exempt. Its member leads before its term is durable, because no other
    /// node can see that term, and may begin it again after a crash.
    pub fn check_records(&mut self, node: usize, records: &[WalRecord]) {
        let Some(process) = &mut self.nodes[node].process else { return };
        let (mut broken, mut fallen) = (None, None);
        for record in records {
            if let WalRecord::Hard(hard) = record {
                let falls = hard.term < process.log_model.hard.term;
                fallen = fallen.or(falls.then_some(hard.term));
            }
            if let Err(how) = process.log_model.apply(record) {
                broken.get_or_insert(("records make sense", how));
                break;
            }
            let WalRecord::Entry(entry) = record else { continue };
            let before = process.log_model.term_at(entry.index - 1).unwrap_or(0);
            let seen = (hash(entry), before);
            let key = (entry.index, entry.term);
            let first = *self.oracle.entries.entry(key).or_insert(seen);
            if first != seen && self.oracle.majority > 1 {
                broken.get_or_insert(("log matching", format!("{entry:?} after term {before}")));
            }
        }
        if let Some(term) = fallen {
            broken.get_or_insert(("a term never falls", format!("to {term}")));
        }
        if let Some((invariant, how)) = broken {
            self.fail(invariant, format!("#{node}: {how}"));
        }
    }

    /// The apply thread gets only committed entries. They are the same on every node and for ever,
    /// and durable on a majority when the first node learns of their commit.
    pub fn check_apply(&mut self, node: usize, work: &ApplyWork) {
        match work {
            ApplyWork::Entries(entries) => {
                entries.iter().for_each(|entry| self.check_committed(node, entry));
            }
            ApplyWork::Restore(image) => {
                let meta = image.meta();
                let known = self.oracle.committed(meta.index).map(|known| known.term);
                // A snapshot replaces only committed entries (§7).
                if known != Some(meta.term) {
                    let how = format!("#{node} restores {meta:?}, committed is {known:?}");
                    self.fail("an image holds only what is committed", how);
                }
                self.oracle.restored += 1;
                if let Some(process) = &mut self.nodes[node].process {
                    process.handed = meta.index;
                }
            }
            ApplyWork::Read(index, reply_to) => self.check_granted(node, *index, reply_to),
            ApplyWork::Snapshot(_) => {}
        }
    }

    /// A read may go ahead at an index that covers every commit known to any node when the read was
    /// requested (thesis §6.4).
    pub fn check_granted(&mut self, node: usize, index: Index, reply_to: &ReplyTo) {
        let floor = self.read_floor(node, reply_to);
        if let Some(floor) = floor.filter(|floor| *floor > index) {
            let how = format!("#{node}: granted at {index}, requested at {floor}");
            self.fail("a read covers what was committed before it", how);
        }
    }

    fn check_committed(&mut self, node: usize, entry: &Entry) {
        let Some(process) = &mut self.nodes[node].process else { return };
        let (index, term, since) = (entry.index, entry.term, process.log_model.hard.term);
        if index != process.handed + 1 {
            let how = format!("#{node}: {index} after {}", process.handed);
            return self.fail("entries are applied in order", how);
        }
        process.handed = index;
        let (is, hash) = (self.oracle.committed(index).copied(), hash(entry));
        // The first node to learn of the commit.
        let Some(known) = is else {
            self.promises.commit(&entry.payload);
            self.oracle.committed.push(Committed { term, hash, since, digest: None });
            return self.check_majority(index, term);
        };
        if (known.term, known.hash) != (term, hash) {
            let how =
                format!("{index} was committed in term {}, #{node} has {entry:?}", known.term);
            self.fail("what is committed never changes", how);
        }
    }

    /// A committed entry is on the disks of a majority. A lost directory still counts until its
    /// node has caught up.
    fn check_majority(&mut self, index: Index, term: Term) {
        let holds = |node: &&SimNode| {
            node.disk.synced.holds(index, term)
                || node.ghosts.iter().any(|ghost| ghost.holds(index, term))
        };
        let holders = self.nodes.iter().filter(holds).count();
        if holders < self.oracle.majority {
            let how = format!("entry {index} of term {term} is on {holders} disks");
            self.fail("what is committed is durable on a majority", how);
        }
    }

    /// Checks a replica after each of its steps.
    pub fn check_step(&mut self, node: usize) {
        let Some(process) = &mut self.nodes[node].process else { return };
        let status = process.shell.replica().status();
        let leads = process.shell.replica().is_leader();
        let has_begun = leads && !std::mem::replace(&mut process.led, leads);
        process.led = leads;
        if has_begun {
            process.led_from = status.last;
        }
        let term_start = process.led_from;
        let before = std::mem::replace(&mut process.reached, (status.term, status.commit));
        let text = || format!("#{node}: {status:?}");
        let is_write = |handle: &&RequestHandle| matches!(handle, RequestHandle::Write(_));
        let waiting = process.shell.waiting().filter(is_write).count();
        let broken = if status.term < before.0 || status.commit < before.1 {
            Some("term and commit never fall")
        } else if status.commit != process.handed {
            Some("all that is committed is applied")
        } else if status.pending.0 > waiting {
            // A cancelled request must not stay pending: no client would learn that it is done.
            Some("only what is waited for is pending")
        } else if process.shell.unclaimed_refusals() > 0 {
            // A second answer, or one after a result: the client may already have acted on it.
            Some("only waiting requests are refused")
        } else if (status.term, status.last)
            != (process.log_model.hard.term, process.log_model.last_index())
        {
            Some("all that is decided is written")
        } else {
            None
        };
        if let Some(failure) = broken.map(|invariant| (invariant, text())) {
            self.fail(failure.0, failure.1);
        }
        self.check_bounds(node, &status);
        if leads {
            self.check_leader(node, status.term, has_begun);
            // The first commits of its term.
            if status.commit > before.1 && before.1 < term_start {
                self.after_leading(node);
            }
        }
    }

    /// Queues and disks stay within their limits. Each queue admits one item more than fits,
    /// because an empty queue takes an item of any length.
    fn check_bounds(&mut self, node: usize, status: &Status) {
        /// Longer than any item.
        const ONE: usize = 4_096;
        let settings = &self.plan.settings;
        // Each peer may hand over all eventual writes that it holds.
        let backlog_max = (settings.backlog_bytes_max + ONE) * self.nodes.len();
        let used = self.nodes[node].disk.files.used_bytes();
        let images = self.oracle.image_bytes * 8;
        let segments = 16 * self.plan.segment_bytes.max(ONE as u64);
        let log =
            16 * (settings.snapshot_log_bytes + settings.backlog_bytes_max.min(1 << 15)) as u64;
        let disk_max = images + segments + log;
        let broken = if status.pending.1 > settings.pending_bytes_max + ONE {
            Some(format!("{} bytes pending", status.pending.1))
        } else if status.backlog.1 > backlog_max {
            Some(format!("{} bytes of eventual writes", status.backlog.1))
        } else if used > disk_max {
            Some(format!("{used} bytes on the disk, expected at most {disk_max}"))
        } else {
            None
        };
        if let Some(how) = broken {
            self.fail("nothing grows without bound", format!("#{node}: {how}"));
        }
    }

    /// Election Safety and Leader Completeness (§5.2, §5.4).
    fn check_leader(&mut self, node: usize, term: Term, has_begun: bool) {
        let id = self.nodes[node].id;
        let first = *self.oracle.leaders.entry(term).or_insert(id);
        if first != id {
            let how = format!("{first} and {id} lead term {term}");
            return self.fail("a term has one leader", how);
        }
        if has_begun {
            self.after_leading(node);
        }
        let Some(process) = self.nodes[node].process.as_ref().filter(|_| has_begun) else { return };
        let log = &process.log_model;
        // §5.4: all entries that were committed before this term began.
        let missing = self
            .oracle
            .committed
            .iter()
            .zip(1..)
            .find(|(known, index)| known.since < term && !log.holds(*index, known.term));
        if let Some((known, index)) = missing {
            let how = format!("{id} leads term {term} without entry {index} of {}", known.term);
            self.fail("a leader holds all that is committed", how);
        }
    }

    /// A node's store applies an entry, and the node's clients get their results.
    pub fn apply_entry(&mut self, node: usize, entry: &Entry, answers: &mut Answers) {
        self.check_merge(node, entry);
        let spoilt = self.spoil_entry(node, entry);
        let id = self.nodes[node].id;
        let Some(process) = &mut self.nodes[node].process else { return };
        let store = process.writer.store();
        let least = versions_before(entry, |key| store.version(key));
        let applied = match process.writer.apply(spoilt.as_ref().unwrap_or(entry), true) {
            Ok(applied) => applied,
            Err(error) => return self.fail("committed entries can be applied", error.to_string()),
        };
        process.digest =
            mix(mix(mix(process.digest, entry.index), entry.term), hash_applied(&applied));
        let (digest, life) = (process.digest, process.life);
        if matches!(applied, Applied::Done(_))
            && let Some((key, version)) =
                least.iter().find(|(key, least)| store.version(key) < *least)
        {
            let how = format!("#{node}: {key:?} at {}, after {version:?}", entry.index);
            return self.fail("versions do not fall", how);
        }
        self.check_digest(node, entry.index, digest);
        if let (Payload::Batch { proposal, .. }, Applied::Done(_)) = (&entry.payload, &applied) {
            self.check_executed(proposal.id, entry.index);
        }
        // A client still waits, so no earlier copy of its request may have been executed: that one
        // would have answered it.
        let own = own_request(entry, id, life);
        let copy = matches!(applied, Applied::Duplicate | Applied::Stale);
        if let Some(own) = own.filter(|own| copy && self.is_waited_for(node, *own)) {
            let how = format!("{own:?} at {}", entry.index);
            return self.fail("the first copy of a request is answered", how);
        }
        match consequence(entry.index, own, applied) {
            Ok(Some(Consequence::Outcomes(own, outcomes))) => {
                // A client is about to get its answer: the write must survive any minority.
                if self.is_waited_for(node, own) {
                    self.check_majority(entry.index, entry.term);
                }
                if let Some(process) = &mut self.nodes[node].process {
                    process.shell.applied([(own, outcomes)], answers);
                }
            }
            Ok(Some(Consequence::Tell(input))) => {
                if let Input::CheckpointApplied { index, digest } = input {
                    self.check_checkpoint(node, index, digest);
                }
                self.step(node, vec![input]);
            }
            Ok(None) => {}
            Err(Superseded) => self.fail("no process is superseded", format!("#{node}: {own:?}")),
        }
    }

    /// True if a client of the node waits for this request.
    fn is_waited_for(&self, node: usize, id: RequestId) -> bool {
        let process = self.nodes[node].process.as_ref();
        process.is_some_and(|process| process.shell.waits_for(RequestHandle::Write(id)))
    }

    /// The digest of the state at `index`, which a node has applied.
    pub fn digest_at(&self, index: Index) -> u64 {
        self.oracle.committed(index).and_then(|known| known.digest).unwrap_or_default()
    }

    /// State Machine Safety (§5.4.3): equal logs give equal states.
    fn check_digest(&mut self, node: usize, index: Index, digest: u64) {
        let at = (index as usize).wrapping_sub(1);
        let Some(known) = self.oracle.committed.get_mut(at) else {
            return self.fail("only what is committed is applied", format!("{index}"));
        };
        if *known.digest.get_or_insert(digest) != digest {
            self.fail("equal logs give equal states", format!("#{node} differs at {index}"));
        }
    }

    /// No request is executed twice, nor after a request of a later process of its node.
    fn check_executed(&mut self, id: RequestId, index: Index) {
        let (boot, since) = *self.oracle.boots.entry(id.node).or_default();
        if id.boot > boot {
            self.oracle.boots.insert(id.node, (id.boot, index));
        } else if id.boot < boot && index > since {
            let how = format!("{id:?} at {index}, after one of boot {boot} at {since}");
            self.fail("nothing of an earlier life is executed after a later one's", how);
        }
        let first = *self.oracle.executed.entry(id).or_insert(index);
        if first != index {
            let how = format!("{id:?} at {first} and at {index}");
            self.fail("a request is executed once", how);
        }
    }

    /// All images of one index are equal, byte for byte.
    pub fn check_image(&mut self, meta: SnapshotMeta, bytes: &[u8]) {
        let hash = mix_bytes(0, bytes);
        self.oracle.image_bytes = self.oracle.image_bytes.max(bytes.len() as u64);
        if *self.oracle.images.entry(meta.index).or_insert(hash) != hash {
            self.fail("equal states have equal images", format!("{meta:?}"));
        }
    }
}
