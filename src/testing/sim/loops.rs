//! The loops that serve a node's clients, with the real [`Rounds`](crate::service::Rounds):
//! `node/clients/loops.rs` does the same with sockets. A seed chooses whether all clients of a node
//! share one or two loops, or each client has a loop of its own, as if by a thread.
//!
//! A loop sleeps until bytes or answers come or a deadline passes, and wakes up a little late. The
//! requests that become ready in the meantime join its round.

use std::mem;
use std::sync::Arc;
use std::time::Duration;

use crate::clock::Now;
use crate::service::{Answer, Inbox as _, ReplyTo, Request, Settled, Share, Taken, Ticket};
use crate::testing::sim::client_loop::ClientLoop;
use crate::testing::sim::cluster::World;
use crate::testing::sim::connection::SimConnection;
use crate::testing::sim::events::SimEvent;
use crate::testing::sim::mutant::Mutant;
use crate::testing::sim::process::Process;
use crate::types::{Index, Write};

impl World {
    /// Chooses the loop that serves a new connection, by its place in the process.
    pub fn loop_for(&mut self, node: usize, connection: usize) -> usize {
        if self.plan.loops > 0 {
            return connection % self.plan.loops;
        }
        // A thread for each client.
        let client_loop = ClientLoop::new(&self.plan);
        let Some(process) = &mut self.nodes[node].process else { return 0 };
        process.loops.push(client_loop);
        process.loops.len() - 1
    }

    fn loop_mut(&mut self, node: usize, place: usize) -> Option<&mut ClientLoop> {
        self.nodes[node].process.as_mut()?.loops.get_mut(place)
    }

    /// A connection may go on: its loop wakes up soon.
    pub fn has_turn_soon(&mut self, connection: usize) {
        let SimConnection { node, client_loop: place, .. } = self.connections[connection];
        if let Some(client_loop) = self.loop_mut(node, place) {
            client_loop.ready.insert(connection);
        }
        let late = Duration::from_micros(self.rng.below(self.plan.wake_micros));
        self.schedule_loop(node, place, self.now + late);
    }

    /// Wakes the loops that answers have come for.
    pub fn wake_loops(&mut self, node: usize) {
        let Some(process) = &self.nodes[node].process else { return };
        let has_answers = |client_loop: &ClientLoop| !client_loop.inbox.0.lock().is_empty();
        let woken: Vec<usize> =
            (0..process.loops.len()).filter(|&place| has_answers(&process.loops[place])).collect();
        for place in woken {
            let late = Duration::from_micros(self.rng.below(self.plan.wake_micros));
            self.schedule_loop(node, place, self.now + late);
        }
    }

    /// Gives a loop a turn at `at`, unless it has an earlier one.
    fn schedule_loop(&mut self, node: usize, place: usize, at: Now) {
        let Some(life) = self.life(node) else { return };
        let Some(client_loop) = self.loop_mut(node, place) else { return };
        if client_loop.turn_at.is_none_or(|turn_at| at < turn_at) {
            client_loop.turn_at = Some(at);
            self.schedule(at, SimEvent::LoopTurn { node, life, client_loop: place });
        }
    }

    /// A loop takes its turn: it takes answers in, serves the connections that may go on, and asks
    /// for their requests in one round.
    pub fn loop_turn(&mut self, node: usize, place: usize) {
        let Some(client_loop) = self.loop_mut(node, place) else { return };
        client_loop.turn_at = None;
        let answers = mem::take(&mut *client_loop.inbox.0.lock());
        for (ticket, answer) in answers {
            self.take_answer(node, place, ticket, answer);
        }
        let ready = self.loop_mut(node, place).map(|client_loop| mem::take(&mut client_loop.ready));
        let mut joined = 0;
        for connection in ready.unwrap_or_default() {
            if let Some((request, commands)) = self.serve(connection)
                && let Some(client_loop) = self.loop_mut(node, place)
            {
                client_loop.rounds.join(connection, request, commands);
                joined += 1;
            }
        }
        // Only now is it certain that the round joins the requests of several clients.
        if joined > 1 {
            self.coverage.joined += joined;
        }
        self.cancel_overdue(node, place);
        self.ask_round(node, place);
        let Some(deadline) =
            self.loop_mut(node, place).and_then(|client_loop| client_loop.rounds.deadline())
        else {
            return;
        };
        // Sleep until the first request is overdue.
        let late = Duration::from_micros(1 + self.rng.below(self.plan.wake_micros));
        let at = self.globally(node, deadline).max(self.now) + late;
        self.schedule_loop(node, place, at);
    }

    /// Asks the shell for all requests of the round, in one turn.
    fn ask_round(&mut self, node: usize, place: usize) {
        let commits = self.oracle.commits();
        let unconfirmed = self.mutant == Some(Mutant::ReadWithoutQuorum);
        self.turn(node, |Process { shell, loops, .. }, now| {
            let Some(ClientLoop { rounds, read_floors, inbox, .. }) = loops.get_mut(place) else {
                return;
            };
            rounds.ask(now, |requests| {
                let ask = |(request, reply_to): (Request, ReplyTo)| {
                    if matches!(request, Request::Read) {
                        read_floors.insert(reply_to.ticket, commits);
                        if unconfirmed {
                            inbox.put(reply_to.ticket, Answer::MayRead);
                        }
                    }
                    shell.ask(now, request, reply_to)
                };
                requests.into_iter().map(ask).collect()
            });
        });
        if unconfirmed {
            self.wake_loops(node);
        }
    }

    /// Cancels the requests whose time is over.
    fn cancel_overdue(&mut self, node: usize, place: usize) {
        let settled = self.turn(node, |Process { shell, loops, .. }, now| {
            let Some(ClientLoop { rounds, .. }) = loops.get_mut(place) else {
                return Vec::new();
            };
            rounds.cancel_overdue(now, |handle| shell.cancel(now, handle))
        });
        for settled in settled.unwrap_or_default() {
            self.settle(node, place, settled, &[]);
        }
    }

    /// A loop takes an answer out of its inbox.
    fn take_answer(&mut self, node: usize, place: usize, ticket: Ticket, answer: Answer) {
        let Some(process) = &mut self.nodes[node].process else { return };
        let applied = process.writer.applied().index;
        let Some(client_loop) = process.loops.get_mut(place) else { return };
        let floor = client_loop.read_floors.remove(&ticket);
        let stamped = client_loop.stamped.remove(&ticket);
        // `None`: the request was cancelled.
        let Some(settled) = client_loop.rounds.answered(ticket, answer) else { return };
        // Linearizability of reads (thesis §6.4): the store must cover all that any node knew to be
        // committed when the read was requested.
        if matches!(settled.answer(), Answer::MayRead)
            && let Some(floor) = floor.filter(|floor| *floor > applied)
            && self.mutant != Some(Mutant::ReadWithoutQuorum)
        {
            let how = format!("#{node} has applied {applied}, a read was requested at {floor}");
            return self.fail("a read covers what was committed before it", how);
        }
        self.settle(node, place, settled, &stamped.unwrap_or_else(|| Vec::new().into()));
    }

    /// Splits an answer among its connections, which may go on at once.
    fn settle(&mut self, node: usize, place: usize, settled: Settled, writes: &[Write]) {
        let mut rest = writes;
        let members = settled.share_out(|connection, share| {
            let count = match &share {
                Share::Stamped { existed, .. } => existed.len(),
                _ => 0,
            };
            let Some((own, others)) = rest.split_at_checked(count) else {
                let how = format!("#{node}: {count} of {} writes", rest.len());
                return self.fail("each stamped write has one answer", how);
            };
            rest = others;
            if self.plan.loops > 0 {
                self.coverage.answered_by_loops += 1;
            } else {
                self.coverage.answered_by_threads += 1;
            }
            self.answered(connection, share, own);
            if let Some(client_loop) = self.loop_mut(node, place) {
                client_loop.ready.insert(connection);
            }
        });
        if let Some(client_loop) = self.loop_mut(node, place) {
            client_loop.rounds.reuse(members);
        }
        self.schedule_loop(node, place, self.now);
    }

    /// Remembers the stamped writes of a client of this node until it has its answer.
    pub fn note_stamped(&mut self, node: usize, taken: &Taken) {
        if let Some(reply_to) = &taken.reply_to
            && let Some(client_loop) = self.loop_of(node, reply_to)
        {
            client_loop.stamped.insert(reply_to.ticket, taken.writes.clone());
        }
    }

    /// The commits known to any node when this read was requested.
    pub fn read_floor(&mut self, node: usize, reply_to: &ReplyTo) -> Option<Index> {
        self.loop_of(node, reply_to)?.read_floors.get(&reply_to.ticket).copied()
    }

    /// The loop that an answer goes to.
    fn loop_of(&mut self, node: usize, reply_to: &ReplyTo) -> Option<&mut ClientLoop> {
        let process = self.nodes[node].process.as_mut()?;
        let is_addressed = |client_loop: &&mut ClientLoop| {
            std::ptr::addr_eq(Arc::as_ptr(&client_loop.inbox), Arc::as_ptr(&reply_to.inbox))
        };
        process.loops.iter_mut().find(is_addressed)
    }
}
