//! Messages travel between nodes: late, lost, doubled, out of order; and links break and come back.
//!
//! A link is connected to one life of its peer. A message for that life never reaches a later one.
//! When a link breaks, the messages under way arrive late or never, perhaps after those of the next
//! connection; the sender connects again and steps [`Input::LinkUp`]. A blocked link keeps its
//! messages, as TCP does, until it is free again or breaks. A port without a process refuses.
//!
//! Within a connection messages keep their order and none is lost, unless the seed says otherwise:
//! the replica relies on neither. It relies on one property of a stream: a `Forward` arrives at
//! most once. Otherwise a leader could refuse one copy as not done and append the other one.

use std::rc::Rc;
use std::time::Duration;

use crate::replica::detector::Liveness;
use crate::replica::{Chunk, Envelope, Input, Message, Pull};
use crate::testing::sim::cluster::World;
use crate::testing::sim::events::SimEvent;
use crate::testing::sim::link::{ChunkPacket, Packet, SimLink};

/// A link with this many messages under way pulls no more of them.
const BACKLOG_MAX: usize = 64;

impl World {
    fn link(&mut self, from: usize, to: usize) -> &mut SimLink {
        let nodes = self.nodes.len();
        &mut self.links[from * nodes + to]
    }

    fn is_blocked(&mut self, from: usize, to: usize) -> bool {
        self.link(from, to).blocks > 0
    }

    /// Gives a message to its link.
    pub fn send(&mut self, envelope: Envelope) {
        let (from, to) = (self.position(envelope.from), self.position(envelope.to));
        let link = self.link(from, to);
        if !link.up {
            return;
        }
        let (life, generation) = (link.life, link.generation);
        let packet = Packet { from, to, life, generation, envelope };
        if link.blocks > 0 {
            // TCP keeps what it cannot deliver.
            link.parked.push(packet);
            return;
        }
        if !self.calm && self.rng.chance(self.plan.travel.lost, 1000) {
            return;
        }
        let is_forward = matches!(packet.envelope.message, Message::Forward(_));
        if !self.calm && !is_forward && self.rng.chance(self.plan.travel.doubled, 1000) {
            self.dispatch(packet.clone());
        }
        self.dispatch(packet);
    }

    /// Lets a message travel to the end of its link.
    fn dispatch(&mut self, packet: Packet) {
        let travel = self.plan.travel.clone();
        let mut micros = travel.delay_min_micros + self.rng.below(travel.delay_spread_micros);
        if !self.calm && self.rng.chance(travel.spikes, 1000) {
            micros += self.rng.below(travel.spike_micros);
        }
        let mut at = self.now + Duration::from_micros(micros);
        // A stream keeps the order. The replica must not rely on it, so some seeds do not.
        let in_order = self.calm || !travel.reorder;
        let link = self.link(packet.from, packet.to);
        if in_order {
            at = at.max(link.latest);
        }
        link.latest = link.latest.max(at);
        link.backlog += 1;
        self.schedule(at, SimEvent::Arrive(packet));
    }

    /// A message comes to the end of its link.
    pub fn arrive(&mut self, packet: Packet) {
        let Packet { from, to, life, generation, envelope } = packet;
        let link = self.link(from, to);
        link.backlog = link.backlog.saturating_sub(1);
        let is_current = link.generation == generation;
        // The process that the link was connected to is gone. The peer's system resets the link.
        if self.life(to) != Some(life) {
            if is_current {
                self.link_broken(from, to, generation);
            }
            return;
        }
        // The link has broken behind this message.
        if !is_current && self.rng.chance(1, 2) {
            return;
        }
        self.note(to, [10, from as u64, envelope.term], || format!("hears {envelope:?}"));
        let now = self.local(to);
        if let Some(process) = &mut self.nodes[to].process {
            // As in a node, the reader itself notes a peer that counts as alive. Only the
            // detector's thread may declare a peer alive again.
            if process.detector.counts_as_alive(envelope.from) {
                process.detector.heard(now, envelope.from);
            } else {
                self.send_to_detector(to, from, false);
            }
        }
        self.step(to, vec![Input::Message(envelope)]);
    }

    /// Sends news to the detector thread, behind the earlier ones.
    fn send_to_detector(&mut self, node: usize, peer: usize, refused: bool) {
        let late = Duration::from_micros(self.rng.below(self.plan.wake_micros));
        let now = self.now;
        let Some(process) = &mut self.nodes[node].process else { return };
        process.detector_news_at = process.detector_news_at.max(now + late);
        let (at, life) = (process.detector_news_at, process.life);
        self.schedule(at, SimEvent::DetectorNews { node, life, peer, refused });
    }

    /// The detector thread takes news from its queue.
    pub fn detector_news(&mut self, node: usize, peer: usize, refused: bool) {
        let (now, peer) = (self.local(node), self.nodes[peer].id);
        let Some(process) = &mut self.nodes[node].process else { return };
        if refused {
            process.detector.refused(peer);
            self.step(node, vec![Input::PeerGone(peer)]);
        } else if process.detector.heard(now, peer) {
            let liveness = Liveness::Alive;
            self.step(node, vec![Input::Peer { peer, liveness }]);
        }
    }

    /// A node tries to connect to a peer.
    pub fn connect(&mut self, from: usize, to: usize) {
        if self.link(from, to).up {
            return;
        }
        let life = self.life(from).unwrap_or(0);
        let retry = Duration::from_micros(20_000 + self.rng.below(80_000));
        // The attempt times out: that is no sign that the peer is gone.
        if self.is_blocked(from, to) || self.is_blocked(to, from) {
            self.schedule(self.now + retry, SimEvent::Connect { from, to, life });
            return;
        }
        let peer = self.nodes[to].id;
        // The port refuses: the machine is up, and no process listens.
        let Some(peer_life) = self.life(to) else {
            self.schedule(self.now + retry, SimEvent::Connect { from, to, life });
            self.note(from, [11, to as u64, 0], || format!("is refused by {peer}"));
            self.send_to_detector(from, to, true);
            return;
        };
        let now = self.now;
        let link = self.link(from, to);
        let (generation, backlog) = (link.generation + 1, 0);
        *link = SimLink {
            up: true,
            generation,
            life: peer_life,
            latest: now,
            backlog,
            ..SimLink::default()
        };
        self.note(from, [12, to as u64, generation], || format!("is connected to {peer}"));
        self.step(from, vec![Input::LinkUp(peer)]);
    }

    /// The owner of a connection finds it dead.
    pub fn link_broken(&mut self, from: usize, to: usize, generation: u64) {
        let link = self.link(from, to);
        if !link.up || link.generation != generation {
            return;
        }
        link.up = false;
        link.generation += 1;
        link.parked.clear();
        link.parked_chunks.clear();
        self.note(from, [13, to as u64, generation], || format!("loses its link to #{to}"));
        if let Some(life) = self.life(from) {
            let at = self.now + Duration::from_micros(self.rng.below(5_000));
            self.schedule(at, SimEvent::Connect { from, to, life });
        }
    }

    /// Breaks a connection, if there is one.
    pub fn break_link(&mut self, from: usize, to: usize) {
        let generation = self.link(from, to).generation;
        self.link_broken(from, to, generation);
    }

    /// A process has ended. Its own links are gone, and its peers soon find theirs dead.
    pub fn links_of_the_dead(&mut self, dead: usize) {
        for peer in (0..self.nodes.len()).filter(|&peer| peer != dead) {
            let link = self.link(dead, peer);
            link.up = false;
            link.generation += 1;
            link.parked.clear();
            link.parked_chunks.clear();
            // A blocked link hides the end of the process until it is free again.
            if !self.is_blocked(dead, peer) && !self.is_blocked(peer, dead) {
                let generation = self.link(peer, dead).generation;
                let at = self.now + Duration::from_micros(50 + self.rng.below(1_000));
                self.schedule(at, SimEvent::LinkBroken { from: peer, to: dead, generation });
            }
        }
    }

    /// Blocks a link once more. It is free again after as many calls of `unblock`.
    pub fn block(&mut self, from: usize, to: usize) {
        self.link(from, to).blocks += 1;
    }

    /// Takes one block away. The last one lets the kept messages travel, unless the connection has
    /// timed out in the meantime.
    pub fn unblock(&mut self, from: usize, to: usize) {
        let timed_out = self.rng.chance(1, 3);
        let link = self.link(from, to);
        link.blocks = link.blocks.saturating_sub(1);
        if link.blocks > 0 {
            return;
        }
        let parked = std::mem::take(&mut link.parked);
        let chunks = std::mem::take(&mut link.parked_chunks);
        if timed_out {
            self.break_link(from, to);
        } else {
            for packet in parked {
                self.dispatch(packet);
            }
            for chunk in chunks {
                self.schedule(self.now, SimEvent::ChunkArrives(chunk));
            }
        }
    }

    /// Takes all blocks away.
    pub fn unblock_all(&mut self, from: usize, to: usize) {
        let blocks = &mut self.link(from, to).blocks;
        if *blocks > 0 {
            *blocks = 1;
            self.unblock(from, to);
        }
    }

    /// The thread of a link pulls messages until the replica has none left for the peer, or the
    /// link is full.
    pub fn pull(&mut self, from: usize, to: usize) {
        // From now on another pull may be scheduled.
        if let Some(process) = &mut self.nodes[from].process {
            process.pulls.remove(&to);
        }
        let (now, peer) = (self.local(from), self.nodes[to].id);
        let bytes_max = self.plan.append_bytes_max;
        loop {
            let link = self.link(from, to);
            let (up, generation, full) = (link.up, link.generation, link.backlog >= BACKLOG_MAX);
            if !up {
                return;
            }
            if full {
                return self.schedule_pull(from, to, Duration::from_millis(1));
            }
            let Some(process) = &mut self.nodes[from].process else { return };
            match process.shell.pull(now, peer, bytes_max) {
                Some(Pull::Message(envelope)) => self.post(from, envelope),
                Some(Pull::Snapshot(meta)) => self.send_image(from, to, generation, meta),
                None => return,
            }
        }
    }

    /// True while the connection that `generation` names is up.
    pub fn is_connected(&mut self, from: usize, to: usize, generation: u64) -> bool {
        let link = self.link(from, to);
        link.up && link.generation == generation
    }

    /// Lets a chunk of an image travel. It waits while the link is blocked.
    pub fn dispatch_chunk(&mut self, from: usize, to: usize, generation: u64, chunk: Chunk) {
        let spread = self.plan.travel.delay_spread_micros;
        let delay = self.plan.travel.delay_min_micros + self.rng.below(spread);
        let mut at = self.now + Duration::from_micros(delay);
        let link = self.link(from, to);
        at = at.max(link.latest);
        link.latest = at;
        let life = link.life;
        let packet = ChunkPacket { from, to, life, generation, chunk: Rc::new(chunk) };
        if link.blocks > 0 {
            link.parked_chunks.push(packet);
        } else {
            self.schedule(at, SimEvent::ChunkArrives(packet));
        }
    }
}
