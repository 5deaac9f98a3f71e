//! Links between nodes: who can reach whom, how long a message takes, and what happens to it.
//!
//! For each ordered pair of nodes there is one link, as there is one outbound connection in a real
//! node. It is connected to one life of the peer: what it carries never reaches a later one. When
//! it breaks, what is under way arrives late or never, perhaps after messages of the next
//! connection; the sender connects again and steps [`Input::LinkUp`]. A blocked link keeps what is
//! sent, as TCP does, until it is free again or breaks. A port where nobody listens refuses.
//!
//! Within a connection messages keep their order and none is lost, unless the seed says otherwise:
//! the core does not rely on either. It does rely on one thing that a stream gives: a `Forward` is
//! not delivered twice, so that a refusal of it is the whole truth.

use std::rc::Rc;
use std::time::Duration;

use crate::clock::Now;
use crate::replica::{Chunk, Envelope, Input, Message, Pull};
use crate::testing::sim::cluster::World;
use crate::testing::sim::events::Event;

/// Messages under way on a link beyond which its thread waits before it fetches more.
const BACKLOG_MAX: usize = 64;

/// See the module.
#[derive(Debug, Default)]
pub struct Link {
    pub up: bool,
    /// Grows with each connection and each break.
    pub generation: u64,
    /// The life of the peer that it is connected to.
    life: u64,
    /// How many faults block it.
    blocked: u32,
    /// Sent while it was blocked.
    parked: Vec<Packet>,
    parked_chunks: Vec<Event>,
    /// When the latest message will arrive.
    latest: Now,
    /// Messages under way.
    backlog: usize,
}

/// A message under way.
#[derive(Clone, Debug)]
pub struct Packet {
    pub from: usize,
    pub to: usize,
    pub life: u64,
    generation: u64,
    pub envelope: Envelope,
}

/// How messages travel, as the seed has it.
#[derive(Clone, Debug)]
pub struct Travel {
    pub delay_min_micros: u64,
    pub delay_spread_micros: u64,
    /// Of 1000 messages, how many are held up by `spike_micros`.
    pub spikes: u64,
    pub spike_micros: u64,
    pub lost: u64,
    pub doubled: u64,
    pub reorder: bool,
}

impl World {
    fn link(&mut self, from: usize, to: usize) -> &mut Link {
        let nodes = self.nodes.len();
        &mut self.links[from * nodes + to]
    }

    fn is_blocked(&mut self, from: usize, to: usize) -> bool {
        self.link(from, to).blocked > 0
    }

    /// Hands a message to its link.
    pub fn send(&mut self, envelope: Envelope) {
        let (from, to) = (self.position(envelope.from), self.position(envelope.to));
        let link = self.link(from, to);
        if !link.up {
            return;
        }
        let (life, generation) = (link.life, link.generation);
        let packet = Packet { from, to, life, generation, envelope };
        if link.blocked > 0 {
            link.parked.push(packet);
            return;
        }
        if !self.calm && self.rng.chance(self.plan.travel.lost, 1000) {
            return;
        }
        let forward = matches!(packet.envelope.message, Message::Forward(_));
        if !self.calm && !forward && self.rng.chance(self.plan.travel.doubled, 1000) {
            self.dispatch(packet.clone());
        }
        self.dispatch(packet);
    }

    fn dispatch(&mut self, packet: Packet) {
        let travel = self.plan.travel.clone();
        let mut micros = travel.delay_min_micros + self.rng.below(travel.delay_spread_micros);
        if !self.calm && self.rng.chance(travel.spikes, 1000) {
            micros += self.rng.below(travel.spike_micros);
        }
        let mut at = self.now + Duration::from_micros(micros);
        let in_order = self.calm || !travel.reorder;
        let link = self.link(packet.from, packet.to);
        if in_order {
            at = at.max(link.latest);
        }
        link.latest = link.latest.max(at);
        link.backlog += 1;
        self.schedule(at, Event::Arrive(packet));
    }

    /// A message has come to the end of its link.
    pub fn arrive(&mut self, packet: Packet) {
        let Packet { from, to, life, generation, envelope } = packet;
        let link = self.link(from, to);
        link.backlog = link.backlog.saturating_sub(1);
        let current = link.generation == generation;
        if self.life(to) != Some(life) {
            if current {
                self.link_broken(from, to, generation);
            }
            return;
        }
        if !current && self.rng.chance(1, 2) {
            return;
        }
        self.note(to, [10, from as u64, envelope.term], || format!("hears {envelope:?}"));
        let now = self.local(to);
        if let Some(process) = &mut self.nodes[to].process {
            if process.detector.counts_as_alive(envelope.from) {
                process.detector.heard(now, envelope.from);
            } else {
                self.tell_detector(to, from, false);
            }
        }
        self.step(to, vec![Input::Message(envelope)]);
    }

    /// The detector thread gets a sign, behind the earlier ones.
    fn tell_detector(&mut self, node: usize, peer: usize, refused: bool) {
        let late = Duration::from_micros(self.rng.below(self.plan.wake_micros));
        let now = self.now;
        let Some(process) = &mut self.nodes[node].process else { return };
        process.signs_until = process.signs_until.max(now + late);
        let (at, life) = (process.signs_until, process.life);
        self.schedule(at, Event::Sign { node, life, peer, refused });
    }

    /// The detector thread has a sign.
    pub fn sign(&mut self, node: usize, peer: usize, refused: bool) {
        let (now, peer) = (self.local(node), self.nodes[peer].id);
        let Some(process) = &mut self.nodes[node].process else { return };
        if refused {
            process.detector.refused(peer);
            self.step(node, vec![Input::PeerGone(peer)]);
        } else if process.detector.heard(now, peer) {
            let liveness = crate::replica::detector::Liveness::Alive;
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
        if self.is_blocked(from, to) || self.is_blocked(to, from) {
            self.schedule(self.now + retry, Event::Connect { from, to, life });
            return;
        }
        let peer = self.nodes[to].id;
        let Some(peer_life) = self.life(to) else {
            self.schedule(self.now + retry, Event::Connect { from, to, life });
            self.note(from, [11, to as u64, 0], || format!("is refused by {peer}"));
            self.tell_detector(from, to, true);
            return;
        };
        let now = self.now;
        let link = self.link(from, to);
        let (generation, backlog) = (link.generation + 1, 0);
        *link =
            Link { up: true, generation, life: peer_life, latest: now, backlog, ..Link::default() };
        self.note(from, [12, to as u64, generation], || format!("is connected to {peer}"));
        self.step(from, vec![Input::LinkUp(peer)]);
    }

    /// A connection is no more, and its owner sees it.
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
            self.schedule(at, Event::Connect { from, to, life });
        }
    }

    /// Breaks a connection, if there is one.
    pub fn break_link(&mut self, from: usize, to: usize) {
        let generation = self.link(from, to).generation;
        self.link_broken(from, to, generation);
    }

    /// A process has ended: its own links are gone, and those to it will soon be found dead.
    pub fn links_of_the_dead(&mut self, dead: usize) {
        for peer in (0..self.nodes.len()).filter(|&peer| peer != dead) {
            let link = self.link(dead, peer);
            link.up = false;
            link.generation += 1;
            link.parked.clear();
            link.parked_chunks.clear();
            link.parked_chunks.clear();
            if !self.is_blocked(dead, peer) && !self.is_blocked(peer, dead) {
                let generation = self.link(peer, dead).generation;
                let at = self.now + Duration::from_micros(50 + self.rng.below(1_000));
                self.schedule(at, Event::LinkBroken { from: peer, to: dead, generation });
            }
        }
    }

    /// Nothing passes from here to there until as many unblocks.
    pub fn block(&mut self, from: usize, to: usize) {
        self.link(from, to).blocked += 1;
    }

    /// Takes one block away. What was kept arrives now, unless the connection has given up.
    pub fn unblock(&mut self, from: usize, to: usize) {
        let gave_up = self.rng.chance(1, 3);
        let link = self.link(from, to);
        link.blocked = link.blocked.saturating_sub(1);
        if link.blocked > 0 {
            return;
        }
        let parked = std::mem::take(&mut link.parked);
        let chunks = std::mem::take(&mut link.parked_chunks);
        if gave_up {
            self.break_link(from, to);
        } else {
            for packet in parked {
                self.dispatch(packet);
            }
            for chunk in chunks {
                self.schedule(self.now, chunk);
            }
        }
    }

    /// No fault blocks the link any more.
    pub fn unblock_all(&mut self, from: usize, to: usize) {
        let blocked = &mut self.link(from, to).blocked;
        if *blocked > 0 {
            *blocked = 1;
            self.unblock(from, to);
        }
    }

    /// The thread that owns a link fetches what there is for the peer.
    pub fn pull(&mut self, from: usize, to: usize) {
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

    /// `Some` while the connection that `generation` names is there.
    pub fn link_state(&mut self, from: usize, to: usize, generation: u64) -> Option<()> {
        let link = self.link(from, to);
        (link.up && link.generation == generation).then_some(())
    }

    /// A chunk of an image leaves. It waits while the link is blocked.
    pub fn dispatch_chunk(&mut self, from: usize, to: usize, generation: u64, chunk: Chunk) {
        let spread = self.plan.travel.delay_spread_micros;
        let delay = self.plan.travel.delay_min_micros + self.rng.below(spread);
        let mut at = self.now + Duration::from_micros(delay);
        let link = self.link(from, to);
        at = at.max(link.latest);
        link.latest = at;
        let life = link.life;
        let chunk = Rc::new(chunk);
        let event = Event::ChunkArrives { from, to, life, generation, chunk };
        if link.blocked > 0 {
            link.parked_chunks.push(event);
        } else {
            self.schedule(at, event);
        }
    }
}
