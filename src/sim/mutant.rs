//! Mistakes made on purpose around the replica, to see whether the simulator would find them.

use super::cluster::World;
use crate::replica::{Recovered, Standing};

/// A promise that is broken on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sabotage {
    /// Votes and acknowledgements leave before they are durable.
    AckBeforeSync,
    /// The replica is told that a job is durable when it has just been asked for.
    PersistedTooEarly,
    /// A crash loses the vote.
    ForgottenVote,
    /// A crash loses the last batch that was synced.
    LyingDisk,
    /// The table of applied requests is not consulted.
    ExecutedTwice,
    /// The table of applied requests is lost when a node starts from an image.
    ForgottenRequests,
    /// Reads are served at once.
    ReadWithoutIndex,
    /// The eventual writes on the disk are forgotten at a start.
    ForgottenWrites,
    /// Of two eventual writes to a key the one that comes later in the log wins.
    LastMergeWins,
    /// A node with an empty directory votes as if nothing had been.
    VoterWithoutMemory,
}

impl Sabotage {
    /// All of them.
    pub const ALL: [Sabotage; 10] = [
        Sabotage::AckBeforeSync,
        Sabotage::PersistedTooEarly,
        Sabotage::ForgottenVote,
        Sabotage::LyingDisk,
        Sabotage::ExecutedTwice,
        Sabotage::ForgottenRequests,
        Sabotage::ReadWithoutIndex,
        Sabotage::ForgottenWrites,
        Sabotage::LastMergeWins,
        Sabotage::VoterWithoutMemory,
    ];
}

impl World {
    pub fn sabotage_disk(&mut self, node: usize) {
        let disk = &mut self.nodes[node].disk;
        match self.sabotage {
            Some(Sabotage::ForgottenVote) => disk.synced.hard.vote = None,
            Some(Sabotage::LyingDisk) => disk.lie(),
            _ => {}
        }
    }

    pub fn sabotage_recovered(&self, recovered: &mut Recovered) {
        if self.sabotage == Some(Sabotage::ForgottenWrites) {
            recovered.held.clear();
        }
    }

    pub fn sabotage_wiped(&mut self, node: usize) {
        if self.sabotage == Some(Sabotage::VoterWithoutMemory) {
            let founders = std::collections::BTreeMap::new();
            self.nodes[node].disk.synced.hard.standing = Standing::Voter { founders };
        }
    }
}
