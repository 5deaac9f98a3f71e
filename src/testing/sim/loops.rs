//! The loops that serve a node's clients, with the real [`Rounds`]: what `node/clients/loops.rs`
//! does around them, without sockets. A seed chooses whether all clients of a node share one or two
//! loops, or each client has a loop of its own, which is what a thread for each client comes to.
//!
//! A loop sleeps until bytes or answers come or a deadline passes, and wakes up a little later than
//! it could. What comes in between joins its round.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::mem;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use crate::clock::Now;
use crate::service::{Answer, Inbox, ReplyTo, Request, Rounds, Settled, Share, Taken, Ticket};
use crate::testing::sim::Mutant;
use crate::testing::sim::cluster::World;
use crate::testing::sim::events::Event;
use crate::testing::sim::process::Process;
use crate::types::{Index, Write, Writes};

/// Answers that a loop has not taken yet.
#[derive(Default)]
struct Mailbox(Mutex<Vec<(Ticket, Answer)>>);

impl Inbox for Mailbox {
    fn put(&self, ticket: Ticket, answer: Answer) -> bool {
        self.0.lock().push((ticket, answer));
        false // `World::wake_lanes` finds it.
    }

    fn wake(&self) {}
}

/// A loop, or the thread of one client.
pub struct Lane {
    rounds: Rounds,
    mailbox: Arc<Mailbox>,
    /// Connections that may go on.
    ready: BTreeSet<usize>,
    /// The next turn, in true time.
    turn_at: Option<Now>,
    /// For each read under way: the commits that anybody knew when it was asked for.
    asked: BTreeMap<Ticket, Index>,
    /// For each stamping that is done and not answered yet: its writes.
    stamped: BTreeMap<Ticket, Writes>,
}

impl fmt::Debug for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ready {:?}, deadline {:?}", self.ready, self.rounds.deadline())
    }
}

impl World {
    /// The loops of a process that starts. Threads come with their clients.
    pub fn lanes(&self) -> Vec<Lane> {
        (0..self.plan.loops).map(|_| self.lane()).collect()
    }

    fn lane(&self) -> Lane {
        let mailbox = Arc::<Mailbox>::default();
        let inbox = Arc::clone(&mailbox) as Arc<dyn Inbox>;
        Lane {
            rounds: Rounds::new(inbox, self.plan.request_timeout, &self.plan.limits),
            mailbox,
            ready: BTreeSet::new(),
            turn_at: None,
            asked: BTreeMap::new(),
            stamped: BTreeMap::new(),
        }
    }

    /// The lane that serves a new connection.
    pub fn lane_for(&mut self, node: usize, connection: usize) -> usize {
        if self.plan.loops > 0 {
            return connection % self.plan.loops;
        }
        let lane = self.lane();
        let Some(process) = &mut self.nodes[node].process else { return 0 };
        process.lanes.push(lane);
        process.lanes.len() - 1
    }

    fn lane_of(&mut self, node: usize, lane: usize) -> Option<&mut Lane> {
        self.nodes[node].process.as_mut()?.lanes.get_mut(lane)
    }

    /// A connection may go on: its loop wakes up soon.
    pub fn has_turn_soon(&mut self, connection: usize) {
        let (node, lane) = (self.connections[connection].node, self.connections[connection].lane);
        if let Some(lane) = self.lane_of(node, lane) {
            lane.ready.insert(connection);
        }
        let late = Duration::from_micros(self.rng.below(self.plan.wake_micros));
        self.schedule_lane(node, lane, self.now + late);
    }

    /// Wakes the loops that answers have come for.
    pub fn wake_lanes(&mut self, node: usize) {
        let Some(process) = &self.nodes[node].process else { return };
        let has_mail = |lane: &Lane| !lane.mailbox.0.lock().is_empty();
        let lanes = process.lanes.iter().enumerate().filter(|(_, lane)| has_mail(lane));
        let woken: Vec<usize> = lanes.map(|(at, _)| at).collect();
        for lane in woken {
            let late = Duration::from_micros(self.rng.below(self.plan.wake_micros));
            self.schedule_lane(node, lane, self.now + late);
        }
    }

    /// A loop has a turn at `at`, unless it has an earlier one.
    fn schedule_lane(&mut self, node: usize, lane: usize, at: Now) {
        let Some(life) = self.life(node) else { return };
        let Some(known) = self.lane_of(node, lane) else { return };
        if known.turn_at.is_none_or(|turn_at| at < turn_at) {
            known.turn_at = Some(at);
            self.schedule(at, Event::Lane { node, life, lane });
        }
    }

    /// A turn of a loop.
    pub fn lane_turn(&mut self, node: usize, lane: usize) {
        let Some(known) = self.lane_of(node, lane) else { return };
        known.turn_at = None;
        let mail = mem::take(&mut *known.mailbox.0.lock());
        for (ticket, answer) in mail {
            self.take_answer(node, lane, ticket, answer);
        }
        let ready = self.lane_of(node, lane).map(|lane| mem::take(&mut lane.ready));
        let mut joined = 0;
        for connection in ready.unwrap_or_default() {
            if let Some((request, commands)) = self.serve(connection)
                && let Some(lane) = self.lane_of(node, lane)
            {
                lane.rounds.join(connection, request, commands);
                joined += 1;
            }
        }
        if joined > 1 {
            self.joined += joined;
        }
        self.cancel_overdue(node, lane);
        self.ask_round(node, lane);
        let Some(deadline) = self.lane_of(node, lane).and_then(|lane| lane.rounds.deadline())
        else {
            return;
        };
        let late = Duration::from_micros(1 + self.rng.below(self.plan.wake_micros));
        let at = self.globally(node, deadline).max(self.now) + late;
        self.schedule_lane(node, lane, at);
    }

    fn ask_round(&mut self, node: usize, lane: usize) {
        let commits = self.oracle.commits();
        let unconfirmed = self.mutant == Some(Mutant::ReadWithoutQuorum);
        self.turn(node, |Process { shell, lanes, .. }, now| {
            let Some(Lane { rounds, asked, mailbox, .. }) = lanes.get_mut(lane) else { return };
            rounds.ask(now, |requests| {
                let ask = |(request, reply_to): (Request, ReplyTo)| {
                    if matches!(request, Request::Read) {
                        asked.insert(reply_to.ticket, commits);
                        if unconfirmed {
                            mailbox.put(reply_to.ticket, Answer::MayRead);
                        }
                    }
                    shell.ask(now, request, reply_to)
                };
                requests.into_iter().map(ask).collect()
            });
        });
        if unconfirmed {
            self.wake_lanes(node);
        }
    }

    fn cancel_overdue(&mut self, node: usize, lane: usize) {
        let settled = self.turn(node, |Process { shell, lanes, .. }, now| {
            let Some(Lane { rounds, .. }) = lanes.get_mut(lane) else { return Vec::new() };
            rounds.cancel_overdue(now, |handle| shell.cancel(now, handle))
        });
        for settled in settled.unwrap_or_default() {
            self.settle(node, lane, settled, &[]);
        }
    }

    /// A loop takes an answer out of its mailbox.
    fn take_answer(&mut self, node: usize, lane: usize, ticket: Ticket, answer: Answer) {
        let Some(process) = &mut self.nodes[node].process else { return };
        let applied = process.writer.applied().index;
        let Some(known) = process.lanes.get_mut(lane) else { return };
        let (asked, stamped) = (known.asked.remove(&ticket), known.stamped.remove(&ticket));
        let settled = known.rounds.answered(ticket, answer);
        let Some(settled) = settled else { return };
        if matches!(settled.answer(), Answer::MayRead)
            && let Some(asked) = asked.filter(|asked| *asked > applied)
            && self.mutant != Some(Mutant::ReadWithoutQuorum)
        {
            let how = format!("#{node} has applied {applied}, a read was asked for at {asked}");
            return self.fail("a read covers what was committed before it", how);
        }
        self.settle(node, lane, settled, &stamped.unwrap_or_else(|| Vec::new().into()));
    }

    /// Splits an answer among its connections, which go on in this turn.
    fn settle(&mut self, node: usize, lane: usize, settled: Settled, writes: &[Write]) {
        let mut rest = writes;
        let members = settled.share_out(|connection, share| {
            let count = match &share {
                Share::Stamped { existed, .. } => existed.len().min(rest.len()),
                _ => 0,
            };
            let (own, others) = rest.split_at(count);
            rest = others;
            self.answered(connection, share, own);
            if let Some(lane) = self.lane_of(node, lane) {
                lane.ready.insert(connection);
            }
        });
        if let Some(lane) = self.lane_of(node, lane) {
            lane.rounds.reuse(members);
        }
        self.schedule_lane(node, lane, self.now);
    }

    /// Stamped writes of this node's clients, for the checks when they are answered.
    pub fn note_stamped(&mut self, node: usize, taken: &Taken) {
        let Some(reply_to) = &taken.reply_to else { return };
        let Some(process) = &mut self.nodes[node].process else { return };
        let own = |lane: &&mut Lane| {
            std::ptr::addr_eq(Arc::as_ptr(&lane.mailbox), Arc::as_ptr(&reply_to.inbox))
        };
        if let Some(lane) = process.lanes.iter_mut().find(own) {
            lane.stamped.insert(reply_to.ticket, taken.writes.clone());
        }
    }
}
