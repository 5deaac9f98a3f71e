//! Links: one for each ordered pair of nodes, as a real node has one outbound connection to each
//! peer. `network` moves the messages.

use std::rc::Rc;

use crate::clock::Now;
use crate::replica::{Chunk, Envelope};

/// One direction between two nodes.
#[derive(Debug, Default)]
pub struct SimLink {
    pub up: bool,
    /// Grows with each connection and each break.
    pub generation: u64,
    /// The life of the peer that it is connected to.
    pub life: u64,
    /// The number of faults that block it.
    pub blocks: u32,
    /// Messages sent while it was blocked.
    pub parked: Vec<Packet>,
    /// Chunks of images sent while it was blocked.
    pub parked_chunks: Vec<ChunkPacket>,
    /// The time at which the latest message will arrive.
    pub latest: Now,
    /// The number of messages under way.
    pub backlog: usize,
}

/// A message under way.
#[derive(Clone, Debug)]
pub struct Packet {
    pub from: usize,
    pub to: usize,
    /// The process that it is for.
    pub life: u64,
    /// The connection that carries it.
    pub generation: u64,
    pub envelope: Envelope,
}

/// A chunk of an image under way.
#[derive(Clone, Debug)]
pub struct ChunkPacket {
    pub from: usize,
    pub to: usize,
    /// The process that it is for.
    pub life: u64,
    /// The connection that carries it.
    pub generation: u64,
    pub chunk: Rc<Chunk>,
}

/// The behaviour of all links, as the seed draws it.
#[derive(Clone, Debug)]
pub struct Travel {
    pub delay_min_micros: u64,
    pub delay_spread_micros: u64,
    /// Of 1000 messages, the number that are held up by at most `spike_micros`.
    pub spikes: u64,
    pub spike_micros: u64,
    /// Of 1000 messages, the number that are lost.
    pub lost: u64,
    /// Of 1000 messages, the number that arrive twice.
    pub doubled: u64,
    /// Messages of one connection may overtake each other.
    pub reorder: bool,
}
