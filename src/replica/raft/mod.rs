//! # Raft, as it is done here
//!
//! The names and most of the rules are those of Ongaro and Ousterhout, *In Search of an
//! Understandable Consensus Algorithm* (2014, "Raft"), and of Ongaro's thesis (2014, "thesis").
//!
//! **Terms and roles.** Time is cut into terms; a term has at most one leader, because a node votes
//! at most once in it and makes the vote durable before it says so (Raft §5.2). A node is a
//! *follower*, a *pre-candidate*, a *candidate* or the *leader*; each role holds only the state
//! that it needs ([`Role`]), and there is one way into each (`become_*` in [`election`]).
//!
//! **Elections** ([`election`]). A follower that hears no leader for its patience asks the others
//! whether they would vote for it (pre-vote, thesis §9.6): nobody who still hears a leader says
//! yes, so a node with a bad link deposes nobody. Patience grows with rank: of the alive nodes the
//! one with the highest id stands first. A vote goes only to a log that is at least as complete
//! (Raft §5.4.1).
//!
//! **Replication** ([`append`]). The leader appends to its own log and sends at once; its disk and
//! its followers' disks sync side by side (thesis §10.2.1). An entry is committed when a majority
//! holds it durably *and* it is of the leader's own term (Raft §5.4.2), which is why a leader
//! begins with a no-op. Appends are pulled by the thread that owns the link and hold whatever has
//! gathered since.
//!
//! **Reads** ([`read`]). A linearizable read costs no log entry and trusts no clock: the leader
//! notes its commit index, makes sure that it still leads by one round of beats that all waiting
//! reads share, and the read waits until that index is applied (thesis §6.4). A follower asks the
//! leader for the index and then reads its own store.
//!
//! **Leadership goes to the highest id** ([`transfer`]): by rank in elections, and by transfer when
//! a higher node has come back and caught up (thesis §3.10).
//!
//! **Beats** ([`heartbeat`]). All nodes tell all others that they are alive, on a rhythm of their own
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

/// No honest cluster gets here: it leaves room to count on.
const TERM_MAX: Term = 1 << 62;

/// What a node is in its term, with what it needs to be it.
#[derive(Debug)]
pub enum Role {
    /// Follows a leader, or waits for one.
    Follower(Follower),
    /// Asks whether it would be elected.
    PreCandidate(Votes),
    /// Asks to be elected.
    Candidate(Votes),
    /// Leads.
    Leader(Leader),
}

/// A follower's state.
#[derive(Debug)]
pub struct Follower {
    /// The leader of this term, if known and not given up.
    pub leader: Option<NodeId>,
    /// When it was last heard of, or when patience with having none began.
    pub heard: Now,
}

/// The answers that a (pre-)candidate has.
#[derive(Debug, Default)]
pub struct Votes {
    answers: BTreeMap<NodeId, bool>,
}

/// A leader's state.
#[derive(Debug)]
pub struct Leader {
    /// What is known of each peer.
    pub progress: BTreeMap<NodeId, Progress>,
    /// The index of this term's first entry: nothing is committed or read before it is committed.
    pub term_start: Index,
    /// Reads that wait.
    pub reads: LeaderReads,
    /// A hand-over under way: nothing is appended meanwhile.
    pub transfer: Option<transfer::Transfer>,
    /// Forwarded proposals that wait for the end of the transfer.
    pub held: Vec<Proposal>,
    /// No transfer for rank's sake before this moment.
    pub no_transfer_before: Now,
    /// How many transfers came to nothing.
    pub transfers_failed: u32,
    /// The requests in the log that are not committed yet: a copy of one is not appended.
    pub uncommitted: BTreeSet<RequestId>,
    /// Bytes of the entries that are not committed yet.
    pub uncommitted_bytes: usize,
}

impl Role {
    /// A follower that knows no leader, and whose patience began at `heard`.
    pub fn follower(heard: Now) -> Role {
        Role::Follower(Follower { leader: None, heard })
    }
}

impl Replica {
    pub(super) fn receive(&mut self, now: Now, envelope: Envelope, effects: &mut Effects) {
        let Envelope { from, to, term, message } = envelope;
        if !self.peers.contains_key(&from) || to != self.settings.id || term > TERM_MAX {
            return;
        }
        if let Message::Heartbeat(heartbeat) = &message {
            self.note_beat(now, from, term, heartbeat, effects);
        }
        if self.hard.standing == Standing::Blank {
            return;
        }
        if let Message::Stamp { .. } | Message::Stamped(_) | Message::Spread(_) = message {
            return self.receive_eventual(now, from, message, effects);
        }
        if term > self.hard.term {
            // A candidate that lost touch with a leader that the rest of us hear (thesis §4.2.3).
            let intruder = matches!(&message, Message::Vote(v) if !v.pre && !v.transfer);
            if intruder && self.hears_leader(now) {
                return;
            }
            self.adopt_term(now, term, effects);
        }
        if term < self.hard.term {
            // Whoever acts on an old term shall learn of the new one; the rest is too late.
            if matches!(message, Message::Append(_) | Message::Vote(_)) {
                effects.send.push(self.heartbeat(now, from));
            }
            return;
        }
        if let Some(leader) = self.leader_state()
            && let Some(progress) = leader.progress.get_mut(&from)
        {
            progress.heard = now;
        }
        match message {
            Message::Heartbeat(heartbeat) => self.receive_beat(now, from, &heartbeat, effects),
            Message::Append(append) => self.receive_append(now, from, append, effects),
            Message::AppendAck(ack) => self.receive_append_ack(now, from, ack, effects),
            Message::Vote(request) => self.receive_vote(now, from, request, effects),
            Message::VoteReply(reply) => self.receive_vote_reply(now, from, reply, effects),
            Message::Forward(proposals) => self.receive_forward(now, from, proposals, effects),
            Message::Refuse { ids, reason } => {
                for id in ids {
                    if self.pending.refused(id) {
                        effects.refuse.push((id, reason.into()));
                    }
                }
            }
            Message::ReadIndex { position } => self.receive_read_ask(now, from, position, effects),
            Message::ReadIndexReply { position, index } => {
                self.receive_read_answer(from, position, index, effects);
            }
            Message::Campaign => self.receive_campaign(now, from, effects),
            Message::Stamp { .. } | Message::Stamped(_) | Message::Spread(_) => {}
        }
    }

    /// True if this node leads, or has heard the leader within the election timeout.
    fn hears_leader(&self, now: Now) -> bool {
        match &self.role {
            Role::Leader(_) => true,
            Role::Follower(follower) => {
                follower.leader.is_some()
                    && now.since(follower.heard) < self.settings.election_timeout
            }
            Role::PreCandidate(_) | Role::Candidate(_) => false,
        }
    }

    /// What a node knows of a term's leader does not outlive the term.
    pub(super) fn enter_term(&mut self, term: Term, vote: Option<NodeId>) {
        self.hard.term = term;
        self.hard.vote = vote;
        self.verified = 0;
        self.round = 0;
    }

    /// Enters a term that somebody else is in already.
    pub(super) fn adopt_term(&mut self, now: Now, term: Term, effects: &mut Effects) {
        self.enter_term(term, None);
        effects.persist.push(super::WalRecord::Hard(self.hard.clone()));
        if self.is_leader() {
            effects.events.push(Event::SteppedDown(Cause::NewerTerm));
        }
        self.become_follower(now, None, effects);
    }
}
