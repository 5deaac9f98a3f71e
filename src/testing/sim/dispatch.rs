//! Takes one event after the other from the queue and calls its handler.
//!
//! An event of a process is dropped if that process is gone. While the process is stopped (SIGSTOP)
//! its events wait.

use std::cmp::Reverse;

use crate::clock::Now;
use crate::testing::sim::cluster::World;
use crate::testing::sim::events::SimEvent;

impl World {
    /// Lets the world go on until `until`, or until an invariant is broken.
    pub fn run_until(&mut self, until: Now) {
        self.run_for(until, u64::MAX);
        self.now = self.now.max(until);
    }

    /// Lets the world go on until `until`, until it has made `steps` steps in all, or until an
    /// invariant is broken.
    pub fn run_for(&mut self, until: Now, steps: u64) {
        while self.failure.is_none()
            && self.steps < steps
            && let Some(Reverse(next)) = self.queue.peek()
            && next.at <= until
            && let Some(Reverse(next)) = self.queue.pop()
        {
            self.now = next.at;
            self.steps += 1;
            self.happen(next.event);
        }
    }

    fn happen(&mut self, event: SimEvent) {
        let owner = match &event {
            // A message to a process that is gone reaches the machine: its link must learn of that.
            SimEvent::Arrive(packet) if self.life(packet.to) == Some(packet.life) => {
                Some((packet.to, packet.life))
            }
            event => event.owner(),
        };
        if let Some((node, life)) = owner {
            // The thread that would handle the event has died with its process.
            if self.life(node) != Some(life) {
                return;
            }
            // SIGSTOP: no thread runs until the process goes on.
            if self.nodes[node].paused {
                self.nodes[node].deferred.push(event);
                return;
            }
        }
        match event {
            SimEvent::Start(node) => self.start(node),
            SimEvent::Timer { node, timer, .. } => self.timer(node, timer),
            SimEvent::Arrive(packet) => self.arrive(packet),
            SimEvent::Connect { from, to, .. } => self.connect(from, to),
            SimEvent::DetectorNews { node, peer, refused, .. } => {
                self.detector_news(node, peer, refused)
            }
            SimEvent::LinkBroken { from, to, generation } => self.link_broken(from, to, generation),
            SimEvent::Pull { from, to, .. } => self.pull(from, to),
            SimEvent::Synced { node, .. } => self.synced(node),
            SimEvent::SyncAgain { node, .. } => self.synced(node),
            SimEvent::MakeSpare { node, .. } => self.make_spare(node),
            SimEvent::Complete { node, after, .. } => self.complete(node, *after),
            SimEvent::Apply { node, .. } => self.apply_next(node),
            SimEvent::ImageWritten { node, .. } => self.image_written(node),
            SimEvent::SendChunk { from, to, generation, .. } => {
                self.send_chunk(from, to, generation)
            }
            SimEvent::ChunkArrives(packet) => self.chunk_arrives(&packet),
            SimEvent::ImageVerified { node, .. } => self.image_verified(node),
            SimEvent::StopCheck { node, patience, .. } => self.stop_check(node, patience),
            SimEvent::ClientBytes { connection, bytes, .. } => self.client_bytes(connection, bytes),
            SimEvent::LoopTurn { node, client_loop, .. } => self.loop_turn(node, client_loop),
            SimEvent::RepliesTaken { connection, .. } => self.replies_taken(connection),
            SimEvent::Replies { connection, bytes } => self.replies(connection, &bytes),
            SimEvent::ClientTurn(client) => self.client_turn(client),
            SimEvent::HangUp { connection, request } => {
                self.hang_up_unanswered(connection, request)
            }
            SimEvent::Fault => self.fault(),
            SimEvent::FaultStep(step) => self.fault_step(step),
        }
    }

    /// A stopped process goes on. The events that have piled up happen at once. Chance decides
    /// whether its own deadlines come before or after the messages of others.
    pub fn resume(&mut self, node: usize) {
        self.nodes[node].paused = false;
        let deferred = std::mem::take(&mut self.nodes[node].deferred);
        let is_timer = |event: &SimEvent| matches!(event, SimEvent::Timer { .. });
        let (mut first, mut last): (Vec<_>, Vec<_>) = deferred.into_iter().partition(is_timer);
        if self.rng.chance(1, 2) {
            std::mem::swap(&mut first, &mut last);
        }
        for event in first.into_iter().chain(last) {
            self.schedule(self.now, event);
        }
    }

    /// A process has ended, and the events that waited for it are dropped.
    pub fn forget_deferred(&mut self, node: usize) {
        self.nodes[node].paused = false;
        self.nodes[node].deferred.clear();
    }
}
