//! # Raft, as it is done here
//!
//! This file holds the roles, and receives every message: `receive` judges sender and term once for
//! all of them. The other files hold the rules, one subject each.
//!
//! The names and most of the rules are those of Ongaro and Ousterhout, *In Search of an
//! Understandable Consensus Algorithm* (2014, "Raft"), and of Ongaro's thesis (2014, "thesis").
//!
//! **Terms and roles.** Time is divided into terms; a term has at most one leader, because a node
//! votes at most once in it and makes the vote durable before sending it (Raft §5.2). A node is a
//! *follower*, a *pre-candidate*, a *candidate* or the *leader*; each role holds only the state
//! that it needs ([`Role`]). A node enters a role by `become_*` in [`election`]. Three places make
//! it a follower without a leader directly, because no leadership ends there: the start
//! (`Replica::new`), the end of a blank node's questions ([`joining`](super::joining)), and a vote
//! granted by a node that collects pre-votes itself (`receive_vote`).
//!
//! **Elections** ([`election`]). A follower that hears no leader for its patience requests
//! pre-votes (thesis §9.6). A node that still hears a leader refuses, so a node with a bad link
//! deposes no leader. Patience grows with rank: of the alive nodes the one with the highest id
//! campaigns first. A vote goes only to a log that is at least as complete (Raft §5.4.1).
//!
//! **Replication** ([`append`]). The leader appends to its own log and sends at once; its disk and
//! its followers' disks sync in parallel (thesis §10.2.1). An entry is committed when a majority
//! holds it durably *and* the entry, or a later one that a majority holds, is of the leader's own
//! term (Raft §5.4.2). That is why a leader begins its term with a no-op. The link to a follower
//! pulls its appends when it can write, so an append holds all entries that have gathered.
//!
//! **Reads** ([`read`]). A linearizable read costs no log entry and trusts no clock (ReadIndex,
//! thesis §6.4). The leader notes its commit index and confirms its leadership by one round of
//! heartbeats, which all waiting reads share. The read is served when that index is applied. A
//! follower requests the index from the leader and then reads its own store.
//!
//! **Leadership goes to the highest id** ([`transfer`]): by rank in elections, and by a transfer
//! when a node of higher rank has come back and caught up (thesis §3.10).
//!
//! **Heartbeats** ([`heartbeat`]). Every node sends every other a heartbeat, at a fixed interval
//! and ahead of bulk data, so that a slow disk or a long append never looks like death. A leader
//! that does not hear from a majority within the election timeout steps down (check-quorum, thesis
//! §6.2).
//!
//! **Snapshots** ([`snapshot`]) bound the log (Raft §7).
//!
//! **Left out**: changes of membership (the members are fixed when the cluster is founded),
//! learners, reads by lease.

pub mod append;
pub mod election;
pub mod heartbeat;
pub mod read;
pub mod snapshot;
pub mod transfer;

use std::collections::{BTreeMap, BTreeSet};

use super::progress::Progress;
use super::{Cause, Effects, Envelope, Event, Message, Replica, Standing};
use crate::clock::Now;
use crate::types::{Index, NodeId, Proposal, RequestId, Term};
use read::LeaderReads;

/// The highest term that is believed. No honest cluster gets there, and adding 1 never overflows.
const TERM_MAX: Term = 1 << 62;

/// A node's role in its term, with the state that the role needs.
#[derive(Debug)]
pub enum Role {
    /// Follows a leader, or waits for one.
    Follower(Follower),
    /// Collects pre-votes.
    PreCandidate(Votes),
    /// Collects votes.
    Candidate(Votes),
    /// Leads.
    Leader(Leader),
}

/// A follower's state.
#[derive(Debug)]
pub struct Follower {
    /// The leader of this term, if it is known and not gone.
    pub leader: Option<NodeId>,
    /// The moment at which the leader was last heard, or at which waiting for one began.
    pub heard_at: Now,
}

/// The votes that a (pre-)candidate has received.
#[derive(Debug, Default)]
pub struct Votes {
    replies: BTreeMap<NodeId, bool>,
}

/// A leader's state.
#[derive(Debug)]
pub struct Leader {
    /// The replication progress of each peer.
    pub progress: BTreeMap<NodeId, Progress>,
    /// The index of this term's first entry. Before it is committed, nothing is committed or read.
    pub term_start: Index,
    /// The reads that wait for an index.
    pub reads: LeaderReads,
    /// The transfer under way: the leader appends nothing meanwhile.
    pub transfer: Option<transfer::Transfer>,
    /// Forwarded proposals that wait for the end of the transfer.
    pub held: Vec<Proposal>,
    /// No transfer to a node of higher rank before this moment.
    pub no_transfer_before: Now,
    /// The number of transfers that failed.
    pub transfers_failed: u32,
    /// The requests in the log that are not committed yet: a second copy is not appended.
    pub uncommitted: BTreeSet<RequestId>,
    /// The bytes of all entries that are not committed yet.
    pub uncommitted_bytes: usize,
}

impl Role {
    /// A follower without a leader, whose patience began at `heard_at`.
    pub fn follower(heard_at: Now) -> Role {
        Role::Follower(Follower { leader: None, heard_at })
    }
}

impl Replica {
    /// Takes in a message of a peer: judges its sender and its term, then hands it to the file that
    /// knows it.
    pub(super) fn receive(&mut self, now: Now, envelope: Envelope, effects: &mut Effects) {
        let Envelope { from, to, term, message } = envelope;
        // A peer may send anything: strangers and absurd terms are ignored.
        if !self.peers.contains_key(&from) || to != self.settings.id || term > TERM_MAX {
            return;
        }
        if let Message::Heartbeat(heartbeat) = &message {
            self.note_heartbeat(now, from, term, heartbeat, effects);
        }
        // A blank node may have forgotten promises; it takes part in nothing (joining.rs).
        if self.hard.standing == Standing::Blank {
            return;
        }
        // Versions order eventual writes, so the term of their messages is ignored.
        if let Message::Stamp { .. } | Message::Stamped(_) | Message::Spread(_) = message {
            return self.receive_eventual(now, from, message, effects);
        }
        if term > self.hard.term {
            // Thesis §4.2.3: while this node hears a leader it ignores candidates of newer terms,
            // unless the leader itself started the election. Every other message, a pre-vote too,
            // comes from a term that its sender has entered for good.
            let is_vote = matches!(&message, Message::Vote(v) if !v.pre && !v.transfer);
            if is_vote && self.has_live_leader(now) {
                return;
            }
            // Raft §5.1: the higher term wins.
            self.adopt_term(now, term, effects);
        }
        if term < self.hard.term {
            // Raft §5.1: a deposed leader or an old candidate learns the new term from a heartbeat.
            // Any other message of an old term is stale.
            if matches!(message, Message::Append(_) | Message::Vote(_)) {
                effects.send.push(self.heartbeat(now, from));
            }
            return;
        }
        // Check-quorum (thesis §6.2) counts every message of this term as a sign of the peer.
        if let Some(leader) = self.leader_state()
            && let Some(progress) = leader.progress.get_mut(&from)
        {
            progress.heard_at = now;
        }
        self.receive_of_this_term(now, from, message, effects);
    }

    fn receive_of_this_term(
        &mut self,
        now: Now,
        from: NodeId,
        message: Message,
        effects: &mut Effects,
    ) {
        match message {
            Message::Heartbeat(heartbeat) => {
                self.receive_heartbeat(now, from, &heartbeat, effects);
            }
            Message::Append(append) => self.receive_append(now, from, append, effects),
            Message::AppendAck(ack) => self.receive_append_ack(now, from, ack, effects),
            Message::Vote(request) => self.receive_vote(now, from, request, effects),
            Message::VoteReply(reply) => self.receive_vote_reply(now, from, reply, effects),
            Message::Forward(proposals) => self.receive_forward(now, from, proposals, effects),
            Message::Refuse { ids, reason } => {
                for id in ids {
                    // Only a certain refusal reaches the client; any other request stays pending.
                    if self.pending.refused(id) {
                        effects.refuse.push((id, reason.into()));
                    }
                }
            }
            Message::ReadIndex { position } => {
                self.receive_read_index(now, from, position, effects);
            }
            Message::ReadIndexReply { position, index } => {
                self.receive_read_index_reply(from, position, index, effects);
            }
            Message::Campaign => self.receive_campaign(now, from, effects),
            Message::Stamp { .. } | Message::Stamped(_) | Message::Spread(_) => {}
        }
    }

    /// True if this node leads, or has heard its leader within the election timeout.
    fn has_live_leader(&self, now: Now) -> bool {
        match &self.role {
            Role::Leader(_) => true,
            Role::Follower(follower) => {
                follower.leader.is_some()
                    && now.since(follower.heard_at) < self.settings.election_timeout
            }
            Role::PreCandidate(_) | Role::Candidate(_) => false,
        }
    }

    /// Enters a term with a vote, and forgets all that was known of the former term's leader.
    pub(super) fn enter_term(&mut self, term: Term, vote: Option<NodeId>) {
        self.hard.term = term;
        self.hard.vote = vote;
        self.verified = 0;
        self.read_round = 0;
    }

    /// Enters a higher term that another member is in already.
    pub(super) fn adopt_term(&mut self, now: Now, term: Term, effects: &mut Effects) {
        self.enter_term(term, None);
        effects.persist.push(super::WalRecord::Hard(self.hard.clone()));
        if self.is_leader() {
            effects.events.push(Event::SteppedDown(Cause::NewerTerm));
        }
        self.become_follower(now, None, effects);
    }
}
