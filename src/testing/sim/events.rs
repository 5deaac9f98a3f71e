//! The events of a world.

use crate::clock::Now;
use crate::replica::Alarm;
use crate::service::AfterStep;
use crate::testing::sim::faults::FaultStep;
use crate::testing::sim::link::{ChunkPacket, Packet};

/// A deadline that a thread of a process waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Timer {
    Alarm(Alarm),
    Detector,
}

impl Timer {
    /// The timer's place in `Process::timers`.
    pub fn place(self) -> usize {
        match self {
            Timer::Alarm(Alarm::Heartbeat) => 0,
            Timer::Alarm(Alarm::Election) => 1,
            Timer::Alarm(Alarm::Drain) => 2,
            Timer::Detector => 3,
        }
    }
}

/// Something that happens at a moment of virtual time. A `life` names the process that it happens
/// to.
#[derive(Debug)]
pub enum SimEvent {
    /// A node starts, unless it runs.
    Start(usize),
    /// A deadline has passed.
    Timer { node: usize, life: u64, timer: Timer },
    /// A message comes to the end of its link.
    Arrive(Packet),
    /// The detector thread learns that a peer is heard again, or that its port refuses.
    DetectorNews { node: usize, life: u64, peer: usize, refused: bool },
    /// A node tries to connect to a peer.
    Connect { from: usize, to: usize, life: u64 },
    /// A connection is found dead.
    LinkBroken { from: usize, to: usize, generation: u64 },
    /// The thread of a link asks the replica for more messages.
    Pull { from: usize, to: usize, life: u64 },
    /// A write of the log is synced.
    Synced { node: usize, life: u64 },
    /// The log found no room, and tries again.
    SyncAgain { node: usize, life: u64 },
    /// A spare segment is made.
    MakeSpare { node: usize, life: u64 },
    /// A thread does the rest of its turn at the shell.
    Complete { node: usize, life: u64, after: Box<AfterStep> },
    /// The apply thread takes the next work from its queue.
    Apply { node: usize, life: u64 },
    /// An image of the node's own state is durable.
    ImageWritten { node: usize, life: u64 },
    /// The thread of a link sends the next chunk of an image.
    SendChunk { from: usize, to: usize, life: u64, generation: u64 },
    /// A chunk of an image comes to the end of its link.
    ChunkArrives(ChunkPacket),
    /// An image from a peer is verified.
    ImageVerified { node: usize, life: u64 },
    /// A stopping process checks whether it has finished. It does so at most `patience` times more.
    StopCheck { node: usize, life: u64, patience: u32 },
    /// Bytes of a client come to its node.
    ClientBytes { node: usize, life: u64, connection: usize, bytes: Vec<u8> },
    /// A client loop wakes up.
    LoopTurn { node: usize, life: u64, client_loop: usize },
    /// A slow client has taken its replies.
    RepliesTaken { node: usize, life: u64, connection: usize },
    /// Bytes of a node come to its client.
    Replies { connection: usize, bytes: Vec<u8> },
    /// A client may send its next requests.
    ClientTurn(usize),
    /// A client has waited long enough: it hangs up if `request` has no reply.
    HangUp { connection: usize, request: usize },
    /// The next fault strikes.
    Fault,
    /// A fault goes on, or ends.
    FaultStep(FaultStep),
}

impl SimEvent {
    /// The process that the event happens to: its node and its life. `None` for an event of the
    /// network, of a client or of a fault.
    pub fn owner(&self) -> Option<(usize, u64)> {
        match self {
            SimEvent::Timer { node, life, .. }
            | SimEvent::Synced { node, life }
            | SimEvent::DetectorNews { node, life, .. }
            | SimEvent::SyncAgain { node, life }
            | SimEvent::MakeSpare { node, life }
            | SimEvent::Complete { node, life, .. }
            | SimEvent::Apply { node, life }
            | SimEvent::ImageWritten { node, life }
            | SimEvent::ImageVerified { node, life }
            | SimEvent::StopCheck { node, life, .. }
            | SimEvent::ClientBytes { node, life, .. }
            | SimEvent::LoopTurn { node, life, .. }
            | SimEvent::RepliesTaken { node, life, .. }
            | SimEvent::ChunkArrives(ChunkPacket { to: node, life, .. })
            | SimEvent::Connect { from: node, life, .. }
            | SimEvent::Pull { from: node, life, .. }
            | SimEvent::SendChunk { from: node, life, .. } => Some((*node, *life)),
            _ => None,
        }
    }
}

/// An event with its place in the queue.
#[derive(Debug)]
pub struct Scheduled {
    pub at: Now,
    /// Grows with each event that is scheduled.
    pub sequence: u64,
    pub event: SimEvent,
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
    /// Orders by time. Events of one moment happen in the order in which they were scheduled, so
    /// that the same seed gives the same run.
    fn cmp(&self, other: &Scheduled) -> std::cmp::Ordering {
        (self.at, self.sequence).cmp(&(other.at, other.sequence))
    }
}
