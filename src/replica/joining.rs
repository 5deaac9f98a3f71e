//! What a node with an empty directory may do.
//!
//! An empty directory has two possible reasons. Either the cluster is being founded, and nobody
//! holds anything. Or the node has lost its disk, and with it votes and acknowledgements that
//! others rely on: if it voted again as if nothing had been, a leader without committed entries
//! could be elected. The node itself cannot tell; the others can. So:
//!
//! **A node with an empty directory first asks every other member**, by its beats, under the random
//! number (*incarnation*) that its directory was created with.
//!
//! - If each of them is empty too, or founded the cluster knowing this very incarnation, then
//!   nothing was ever promised from here: the node is a founder and a full member.
//! - Else it may have promised anything up to the highest term that any member is in. It enters
//!   that term with its vote spent, so that no promise made in it or before can be broken, and
//!   *catches up*: it stores what the leader sends, but neither votes nor stands. The log of a
//!   leader of that term or a later one holds everything that was committed with the help of
//!   forgotten acknowledgements; when the node holds durably what the leader held when it was first
//!   heard after the restart, it is a full member again.
//!
//! Why *every* member and not a majority: a candidate that holds a forgotten vote of this node is
//! in that vote's term, and it may be any one of them. Why answers name the incarnation: a beat
//! that was sent before the disk was lost must not count.
//!
//! The price: a cluster is founded, and a lost disk replaced, only while all members are up.

use std::collections::BTreeMap;

use super::raft::Role;
use super::{Effects, Event, Heartbeat, Replica, Standing, WalRecord};
use crate::clock::Now;
use crate::types::{Index, NodeId, Term};

/// What has been learned so far.
#[derive(Clone, Debug, Default)]
pub struct Joining {
    answers: BTreeMap<NodeId, Answer>,
    /// While catching up: the leader's term, and the last index it had when it was first heard.
    goal: Option<(Term, Index)>,
}

#[derive(Clone, Copy, Debug)]
struct Answer {
    term: Term,
    incarnation: u64,
    /// It holds nothing that could rely on this node, or knows this node as a founder.
    innocent: bool,
}

impl Replica {
    /// The members that an empty node has not heard the answer of; empty otherwise.
    pub fn unanswered(&self) -> Vec<NodeId> {
        if self.hard.standing != Standing::Blank {
            return Vec::new();
        }
        let answers = &self.joining.answers;
        self.settings.peers().filter(|peer| !answers.contains_key(peer)).collect()
    }

    pub(super) fn hear_while_joining(
        &mut self,
        now: Now,
        from: NodeId,
        term: Term,
        heartbeat: &Heartbeat,
        effects: &mut Effects,
    ) {
        if self.is_voter() || heartbeat.answers != Some(self.settings.incarnation) {
            return;
        }
        if self.hard.standing == Standing::CatchingUp {
            let known = self.joining.goal.is_some_and(|(goal_term, _)| goal_term >= term);
            if heartbeat.leader == Some(from) && term >= self.hard.term && !known {
                self.joining.goal = Some((term, heartbeat.last));
                // Where nobody writes, nothing else may happen that would tell.
                self.try_to_finish_catching_up(effects);
            }
            return;
        }
        let innocent = !heartbeat.admitted || heartbeat.founder == Some(self.settings.incarnation);
        let answer = Answer { term, incarnation: heartbeat.incarnation, innocent };
        self.joining.answers.insert(from, answer);
        if self.joining.answers.len() + 1 == self.settings.members.len() {
            self.decide_standing(now, effects);
        }
    }

    /// The only member of a cluster has nobody to ask.
    pub(super) fn found_alone(&mut self, now: Now, effects: &mut Effects) {
        if self.hard.standing == Standing::Blank && self.settings.members.len() == 1 {
            self.decide_standing(now, effects);
        }
    }

    fn decide_standing(&mut self, now: Now, effects: &mut Effects) {
        let answers = &self.joining.answers;
        if answers.values().all(|answer| answer.innocent) {
            let founders = answers.iter().map(|(peer, answer)| (*peer, answer.incarnation));
            self.hard.standing = Standing::Voter { founders: founders.collect() };
            effects.events.push(Event::Founded);
        } else {
            let term = answers.values().map(|answer| answer.term).max().unwrap_or(0);
            self.enter_term(term.max(self.hard.term), Some(self.settings.id));
            self.hard.standing = Standing::CatchingUp;
            effects.events.push(Event::CatchingUp);
        }
        effects.persist.push(WalRecord::Hard(self.hard.clone()));
        // Patience begins now: rank shall decide who stands first, not who was founded first.
        self.role = Role::follower(now);
        self.reset_election_alarm(now);
    }

    /// A node that catches up becomes a full member when it holds durably what the leader held.
    pub(super) fn try_to_finish_catching_up(&mut self, effects: &mut Effects) {
        let Some((term, last)) = self.joining.goal else { return };
        if self.hard.standing != Standing::CatchingUp || term != self.hard.term {
            return;
        }
        if self.verified.min(self.durable) >= last {
            self.hard.standing = Standing::Voter { founders: BTreeMap::new() };
            effects.persist.push(WalRecord::Hard(self.hard.clone()));
            effects.events.push(Event::CaughtUp);
        }
    }
}
