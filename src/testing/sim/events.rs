//! What can happen, and when it will.

use std::rc::Rc;

use crate::clock::Now;
use crate::replica::{Alarm, Chunk};
use crate::service::AfterStep;
use crate::testing::sim::faults::Undo;
use crate::testing::sim::network::Packet;

/// What a process waits for with a deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Timer {
    Alarm(Alarm),
    Detector,
}

/// Something that will happen.
#[derive(Debug)]
pub enum Event {
    Start(usize),
    Timer {
        node: usize,
        life: u64,
        timer: Timer,
    },
    Arrive(Packet),
    /// The detector thread learns that a peer is heard again, or that its port refuses.
    Sign {
        node: usize,
        life: u64,
        peer: usize,
        refused: bool,
    },
    Connect {
        from: usize,
        to: usize,
        life: u64,
    },
    LinkBroken {
        from: usize,
        to: usize,
        generation: u64,
    },
    Pull {
        from: usize,
        to: usize,
        life: u64,
    },
    Synced {
        node: usize,
        life: u64,
    },
    /// The log could not be written for want of room, and tries again.
    SyncAgain {
        node: usize,
        life: u64,
    },
    /// A spare segment is made, or looked for again.
    Spare {
        node: usize,
        life: u64,
    },
    /// A thread does the rest of its turn at the shell.
    Complete {
        node: usize,
        life: u64,
        after: Box<AfterStep>,
    },
    Apply {
        node: usize,
        life: u64,
    },
    ImageWritten {
        node: usize,
        life: u64,
    },
    SendChunk {
        from: usize,
        to: usize,
        life: u64,
        generation: u64,
    },
    ChunkArrives {
        from: usize,
        to: usize,
        life: u64,
        generation: u64,
        chunk: Rc<Chunk>,
    },
    ImageVerified {
        node: usize,
        life: u64,
    },
    Stopped {
        node: usize,
        life: u64,
        patience: u32,
    },
    /// Bytes of a client come to its node.
    Bytes {
        node: usize,
        life: u64,
        connection: usize,
        bytes: Vec<u8>,
    },
    /// A loop wakes up.
    Lane {
        node: usize,
        life: u64,
        lane: usize,
    },
    /// A slow client has taken its replies.
    HasRoom {
        node: usize,
        life: u64,
        connection: usize,
    },
    /// Bytes of a node come to its client.
    Replies {
        connection: usize,
        bytes: Vec<u8>,
    },
    Client(usize),
    /// A client has waited long enough for its answers.
    GiveUp {
        connection: usize,
        operation: usize,
    },
    Fault,
    Undo(Undo),
}

impl Event {
    /// The process that it belongs to.
    pub fn owner(&self) -> Option<(usize, u64)> {
        match self {
            Event::Timer { node, life, .. }
            | Event::Synced { node, life }
            | Event::Sign { node, life, .. }
            | Event::SyncAgain { node, life }
            | Event::Spare { node, life }
            | Event::Complete { node, life, .. }
            | Event::Apply { node, life }
            | Event::ImageWritten { node, life }
            | Event::ImageVerified { node, life }
            | Event::Stopped { node, life, .. }
            | Event::Bytes { node, life, .. }
            | Event::Lane { node, life, .. }
            | Event::HasRoom { node, life, .. }
            | Event::ChunkArrives { to: node, life, .. }
            | Event::Connect { from: node, life, .. }
            | Event::Pull { from: node, life, .. }
            | Event::SendChunk { from: node, life, .. } => Some((*node, *life)),
            _ => None,
        }
    }
}

/// An event with its place in the queue.
#[derive(Debug)]
pub struct Scheduled {
    pub at: Now,
    pub sequence: u64,
    pub event: Event,
}

impl PartialEq for Scheduled {
    fn eq(&self, other: &Scheduled) -> bool {
        self.sequence == other.sequence
    }
}

impl Eq for Scheduled {}

impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Scheduled) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Scheduled {
    fn cmp(&self, other: &Scheduled) -> std::cmp::Ordering {
        (self.at, self.sequence).cmp(&(other.at, other.sequence))
    }
}
