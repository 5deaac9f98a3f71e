//! The queues between the core and the threads that do what the replica decides.

use std::collections::BTreeMap;

use crossbeam_channel::Sender;

use super::clients::waiter::Asker;
use super::peers::link::Link;
use crate::replica::{Envelope, JobNo, WalRecord};
use crate::store::Image;
use crate::types::{Entry, Index, NodeId, SnapshotMeta};

/// Work for the thread that owns the log.
pub enum WalWork {
    /// Write the records, sync, release the messages, report the job.
    Job {
        /// See [`Effects::persist`].
        records: Vec<WalRecord>,
        /// See [`Effects::after_persist`].
        after: Vec<Envelope>,
        /// See [`Effects::job`].
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
pub enum ApplyWork {
    /// Apply committed entries.
    Entries(Vec<Entry>),
    /// Answer the reader once the index is applied.
    Read(Index, Asker),
    /// Take this image in place of everything.
    Restore(Box<Image>),
    /// Take an image.
    Snapshot(SnapshotMeta),
    /// The node is about to stop: turn away all readers.
    RefuseReads,
    /// End.
    Stop,
}

/// The queues into which effects are routed.
pub struct Queues {
    /// To the log's thread.
    pub wal: Sender<WalWork>,
    /// To the store's thread.
    pub apply: Sender<ApplyWork>,
    /// To each peer.
    pub links: BTreeMap<NodeId, Link>,
    /// Tells the election thread that its deadline has come closer; one note is enough.
    pub election: Sender<()>,
    /// The same for the drain thread.
    pub drain: Sender<()>,
}
