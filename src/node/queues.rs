//! The queues between the core and the threads that do what the replica decides.

use std::collections::BTreeMap;

use crossbeam_channel::Sender;

use super::peers::link::Link;
use crate::replica::{Alarm, Envelope, JobNo, WalRecord};
use crate::service::ApplyWork;
use crate::store::Image;
use crate::types::{NodeId, SnapshotMeta};
use crate::wal::{self, FileDisk, SpareJob, Wal};

/// The log of a node.
pub type Log = Wal<FileDisk>;
/// The images of a node.
pub type Images = wal::Images<FileDisk>;
/// One on its way to a peer.
pub type Outgoing = wal::OutgoingImage<FileDisk>;
/// One on its way from a peer.
pub type Incoming = wal::IncomingImage<FileDisk>;
/// One that has come, or is being written.
pub type Part = wal::ImageWriter<FileDisk>;

/// Work for the thread that owns the log.
pub enum WalWork {
    /// Write the records, sync, release the messages, report the job.
    Job {
        /// See [`Effects::persist`](crate::replica::Effects::persist).
        records: Vec<WalRecord>,
        /// See [`Effects::after_persist`](crate::replica::Effects::after_persist).
        after: Vec<Envelope>,
        /// See [`Effects::job`](crate::replica::Effects::job).
        job: JobNo,
    },
    /// See whether a spare segment is wanted.
    LookForSpare,
    /// Tell when everything before this is durable.
    Barrier(Sender<()>),
    /// Finish and end.
    Stop,
}

/// Work for the thread that owns the store.
pub enum ApplyJob {
    /// What a step has decided.
    Work(ApplyWork),
    /// The node is about to stop: refuse all reads that wait, now and from now on.
    RefuseReads,
    /// End.
    Stop,
}

/// Work for the snapshot thread.
pub enum SnapshotWork {
    /// Write this image.
    Write(Box<Image>),
    /// All chunks of an image have come.
    Arrived {
        /// From this peer.
        from: NodeId,
        /// The image it says it is.
        meta: SnapshotMeta,
        /// The file that they are in.
        part: Part,
    },
    /// Free the memory of a state that has been replaced.
    Discard(Box<dyn Send>),
    /// Make a spare log segment.
    Spare(SpareJob<FileDisk>),
    /// The log has a spare segment, however it came by it.
    SpareThere,
    /// End.
    Stop,
}

/// The queues into which effects are routed.
pub struct Queues {
    /// To the log's thread.
    pub wal: Sender<WalWork>,
    /// To the store's thread.
    pub apply: Sender<ApplyJob>,
    /// To each peer.
    pub links: BTreeMap<NodeId, Link>,
    /// Tells the election thread that its deadline has come closer. It holds one note: more would
    /// say the same.
    pub election: Sender<()>,
    /// The same for the drain thread.
    pub drain: Sender<()>,
}

impl Queues {
    /// Has the watcher of `alarm` look at its deadline again.
    pub fn poke(&self, alarm: Alarm) {
        let _ = match alarm {
            Alarm::Heartbeat => return, // Its deadline never comes closer.
            Alarm::Election => self.election.try_send(()),
            Alarm::Drain => self.drain.try_send(()),
        };
    }
}
