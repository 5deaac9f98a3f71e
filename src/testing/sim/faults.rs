//! The kinds of faults, and the swarm: the kinds that a seed turns on.
//!
//! Each kind is on or off for a whole run, and has its own weight. A run with few kinds reaches
//! states that a run with all kinds hardly ever reaches, because every fault also destroys the
//! work of the others (Groce et al., *Swarm Testing*, 2012).

use clap::ValueEnum;

use crate::rng::Rng;

/// A kind of fault. Faults of single messages are not among them: see `link::Travel`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Fault {
    /// Two groups of nodes do not hear each other.
    Partition,
    /// One direction between two nodes is blocked.
    OneWay,
    /// The leader hears no node, or no node hears it, or both.
    IsolateLeader,
    /// A link is blocked and free in quick succession.
    Flap,
    /// A connection breaks.
    BreakLink,
    /// Power loss of one node, also while it starts.
    Crash,
    /// The process ends, as by kill -9; the system goes on.
    Kill,
    /// Power loss of a node that has just voted, again and again.
    CrashVoters,
    /// Power loss of a node that has just begun to lead, or to commit, again and again.
    CrashLeaders,
    /// Power loss of all nodes at one moment.
    CrashAll,
    /// The leader is asked to stop, and starts again later.
    StopLeader,
    /// SIGSTOP and SIGCONT.
    Pause,
    /// Each sync takes much longer.
    SlowDisk,
    /// Syncs do not return for a while.
    StallDisk,
    /// Power loss of one node, whose directory is lost.
    Wipe,
    /// The disk is full, or nearly so.
    DiskFull,
    /// The wall clock jumps.
    ClockJump,
    /// A sync fails, and the node stops.
    SyncFails,
    /// A write fails, and the node stops.
    WriteFails,
    /// A bit flips in a sealed log segment or in an image.
    Rot,
    /// A client loses its connection.
    LoseClient,
}

const ALL: [Fault; 21] = [
    Fault::Partition,
    Fault::OneWay,
    Fault::IsolateLeader,
    Fault::Flap,
    Fault::BreakLink,
    Fault::Crash,
    Fault::CrashVoters,
    Fault::CrashAll,
    Fault::StopLeader,
    Fault::Pause,
    Fault::SlowDisk,
    Fault::StallDisk,
    Fault::Wipe,
    Fault::DiskFull,
    Fault::ClockJump,
    Fault::Kill,
    Fault::SyncFails,
    Fault::WriteFails,
    Fault::Rot,
    Fault::LoseClient,
    Fault::CrashLeaders,
];

/// A fault that has struck.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Struck {
    /// Its number within the run.
    pub number: u64,
    /// Its kind.
    pub fault: Fault,
    /// The virtual time since the run began, in microseconds.
    pub at_micros: u64,
}

/// A later part of a fault, or its end.
#[derive(Clone, Copy, Debug)]
pub enum FaultStep {
    Crash(usize),
    Unblock(usize, usize),
    Block(usize, usize),
    Resume(usize),
    HasRoom(usize),
    Clock(usize),
}

/// Draws the kinds that are on, each as often as its weight says.
pub fn draw(rng: &mut Rng) -> Vec<Fault> {
    let density = 1 + rng.below(4);
    let mut faults = Vec::new();
    for fault in ALL {
        if rng.chance(density, 5) {
            let weight = 1 + rng.below(4);
            faults.extend((0..weight).map(|_| fault));
        }
    }
    faults
}
