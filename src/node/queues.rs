//! The queues between the core and the threads that do what the replica decides.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crossbeam_channel::Sender;

use super::waiters::Waiter;
use crate::replica::{Envelope, JobNo, Record};
use crate::store::Image;
use crate::types::{Entry, Index, NodeId, SnapshotMeta};

/// Work for the thread that owns the log.
pub enum WalWork {
    /// Write the records, sync, release the messages, report the job.
    Job {
        /// See [`Effects::persist`].
        records: Vec<Record>,
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
    /// Wake the reader once the index is applied.
    Read(Index, Arc<Waiter>),
    /// Take this image in place of everything.
    Restore(Box<Image>),
    /// Take an image.
    Snapshot(SnapshotMeta),
    /// The node is about to stop: turn away all readers.
    RefuseReads,
    /// End.
    Stop,
}

/// Work for the thread that owns the link to a peer.
pub enum LinkWork {
    /// Send this.
    Message(Envelope),
    /// [`Core::pull`] has something.
    Pull,
    /// The peer is there: try to connect now, if there is no link.
    Reconnect,
    /// End.
    Stop,
}

/// The queue of a link.
pub struct LinkQueue {
    sender: Sender<LinkWork>,
    pull_wanted: AtomicBool,
}

impl LinkQueue {
    /// The queue whose other end the link's thread reads.
    pub fn new(sender: Sender<LinkWork>) -> LinkQueue {
        LinkQueue { sender, pull_wanted: AtomicBool::new(false) }
    }

    /// Queues something to send.
    pub fn send(&self, work: LinkWork) {
        // The receiver is gone only when the node has stopped.
        let _ = self.sender.send(work);
    }

    /// Asks for a pull, unless one is asked for already.
    pub fn want_pull(&self) {
        if !self.pull_wanted.swap(true, Ordering::AcqRel) {
            self.send(LinkWork::Pull);
        }
    }

    /// To be called before pulling, so that what comes later asks again.
    pub fn begin_pull(&self) {
        self.pull_wanted.store(false, Ordering::Release);
    }
}

/// The queues into which effects are routed.
pub struct Queues {
    /// To the log's thread.
    pub wal: Sender<WalWork>,
    /// To the store's thread.
    pub apply: Sender<ApplyWork>,
    /// To each peer's link.
    pub links: BTreeMap<NodeId, LinkQueue>,
    /// Tells the election thread that its deadline has come closer; one note is enough.
    pub election: Sender<()>,
    /// The same for the drain thread.
    pub drain: Sender<()>,
}
