//! The rights of a node with an empty directory.
//!
//! An empty directory has two possible causes. Either the cluster is being founded, and all
//! directories are empty. Or the node has lost its disk, and with it votes and acknowledgements
//! that other members rely on. If it voted again, a leader without some committed entries could
//! win. The node itself cannot tell the two causes apart; the other members can. So:
//!
//! **A node with an empty directory first hears every other member.** Its heartbeats carry its
//! *incarnation*, the random number that its directory was created with, and the other members'
//! heartbeats answer that number.
//!
//! - If each member is empty too, or founded the cluster with this very incarnation, then this
//!   directory has never promised anything: the node is a founder and a full member.
//! - Otherwise the node may have promised anything up to the highest term that any member is in. It
//!   enters that term with its vote spent, so it cannot contradict a forgotten vote of that term or
//!   an earlier one. Then it *catches up*: it stores the leader's entries, but neither votes nor
//!   campaigns. The log of a leader of that term or a later one holds every entry that was
//!   committed with the help of a forgotten acknowledgement. The node notes that leader's last
//!   index when it first hears it after the restart; once it holds the log durably up to there, it
//!   is a full member again.
//!
//! *Every* member must answer, not just a majority: a candidate that holds a forgotten vote of this
//! node is in that vote's term, and it may be any one of the members. Answers name the incarnation,
//! because a heartbeat that was sent before the disk was lost must not count.
//!
//! The price: a cluster can be founded, and a lost disk replaced, only while all members are up.

use std::collections::BTreeMap;

use super::raft::Role;
use super::{Effects, Event, Heartbeat, Replica, Standing, WalRecord};
use crate::clock::Now;
use crate::types::{Index, NodeId, Term};

/// The answers of the other members, and the goal of catching up.
#[derive(Clone, Debug, Default)]
pub struct Joining {
    answers: BTreeMap<NodeId, MemberAnswer>,
    /// While catching up: the leader's term, and its last index when it was first heard.
    goal: Option<(Term, Index)>,
}

/// A member's answer to this node's incarnation.
#[derive(Clone, Copy, Debug)]
struct MemberAnswer {
    term: Term,
    incarnation: u64,
    /// True if the member relies on no forgotten promise: it is empty too, or it knows this
    /// incarnation as a founder.
    relies_on_nothing: bool,
}

impl Replica {
    /// The members whose answers a blank node still waits for; none at any other node.
    pub fn unanswered(&self) -> Vec<NodeId> {
        if self.hard.standing != Standing::Blank {
            return Vec::new();
        }
        let answers = &self.joining.answers;
        self.settings.peers().filter(|peer| !answers.contains_key(peer)).collect()
    }

    /// Takes in a heartbeat at a node that is not a full member yet.
    pub(super) fn hear_while_joining(
        &mut self,
        now: Now,
        from: NodeId,
        term: Term,
        heartbeat: &Heartbeat,
        effects: &mut Effects,
    ) {
        // A heartbeat that answers another incarnation was sent before this directory existed.
        if self.is_voter() || heartbeat.answers != Some(self.settings.incarnation) {
            return;
        }
        if self.hard.standing == Standing::CatchingUp {
            // The goal is the log of a leader of the entered term or a later one; a still later
            // leader sets a new goal.
            let has_goal = self.joining.goal.is_some_and(|(goal_term, _)| goal_term >= term);
            if heartbeat.leader == Some(from) && term >= self.hard.term && !has_goal {
                self.joining.goal = Some((term, heartbeat.last));
                // On an idle cluster no later event would trigger this check.
                self.try_to_finish_catching_up(effects);
            }
            return;
        }
        let relies_on_nothing =
            !heartbeat.admitted || heartbeat.founder == Some(self.settings.incarnation);
        let incarnation = heartbeat.incarnation;
        let answer = MemberAnswer { term, incarnation, relies_on_nothing };
        self.joining.answers.insert(from, answer);
        // Any single member may rely on a forgotten promise, so all must have answered.
        if self.joining.answers.len() + 1 == self.settings.members.len() {
            self.decide_standing(now, effects);
        }
    }

    /// Founds a cluster of one: there is no member to hear.
    pub(super) fn found_alone(&mut self, now: Now, effects: &mut Effects) {
        if self.hard.standing == Standing::Blank && self.settings.members.len() == 1 {
            self.decide_standing(now, effects);
        }
    }

    /// Decides between founding and catching up, once all members have answered.
    fn decide_standing(&mut self, now: Now, effects: &mut Effects) {
        let answers = &self.joining.answers;
        if answers.values().all(|answer| answer.relies_on_nothing) {
            let founders = answers.iter().map(|(peer, answer)| (*peer, answer.incarnation));
            self.hard.standing = Standing::Voter { founders: founders.collect() };
            effects.events.push(Event::Founded);
        } else {
            // A forgotten vote or acknowledgement is of this term at most. The vote for itself
            // spends the vote but elects no leader: a node that catches up never campaigns.
            let term = answers.values().map(|answer| answer.term).max().unwrap_or(0);
            self.enter_term(term.max(self.hard.term), Some(self.settings.id));
            self.hard.standing = Standing::CatchingUp;
            effects.events.push(Event::CatchingUp);
        }
        effects.persist.push(WalRecord::Hard(self.hard.clone()));
        // Patience begins now, so that rank decides who campaigns first, not the order of founding.
        self.role = Role::follower(now);
        self.reset_election_alarm(now);
    }

    /// Makes a node that catches up a full member, once its durable log reaches the goal.
    pub(super) fn try_to_finish_catching_up(&mut self, effects: &mut Effects) {
        let Some((term, last)) = self.joining.goal else { return };
        if self.hard.standing != Standing::CatchingUp || term != self.hard.term {
            return;
        }
        // `verified` is about the log of this term's leader, `durable` about this node's own disk.
        if self.verified.min(self.durable) >= last {
            self.hard.standing = Standing::Voter { founders: BTreeMap::new() };
            effects.persist.push(WalRecord::Hard(self.hard.clone()));
            effects.events.push(Event::CaughtUp);
        }
    }
}
