//! The queues between the core and the threads that carry out the replica's decisions.
//!
//! Every queue is unbounded, so that a send never blocks: sends happen under the core's lock. The
//! replica bounds the work instead: it refuses requests beyond `pending_bytes_max` and
//! `backlog_bytes_max` of its [`Settings`](crate::replica::Settings). The queues of the two alarms
//! hold one note each; a second one would say the same.
//!
//! A send fails only if the receiving thread has ended. Then the node stops: it was asked to, or
//! that thread has failed or panicked, and each of these sets [`Stop`](super::stop::Stop). The work
//! is dropped, which is safe: a job of the log that is never reported never counts as durable, and
//! a message may always get lost.

use std::collections::BTreeMap;

use crossbeam_channel::Sender;

use super::files::ImagePart;
use super::peers::link::PeerLink;
use crate::replica::{Alarm, Envelope, JobNo, WalRecord};
use crate::service::ApplyWork;
use crate::store::Image;
use crate::types::{NodeId, SnapshotMeta};
use crate::wal::{FileDisk, SpareJob};

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
    /// Check whether the log wants a spare segment.
    CheckSpare,
    /// Report when everything queued before this is durable.
    Barrier(Sender<()>),
    /// Finish the queued work and end.
    Stop,
}

/// Work for the thread that owns the store.
pub enum ApplyJob {
    /// A decision of the replica.
    Work(ApplyWork),
    /// The node is about to stop: refuse all parked reads, and every read from now on.
    RefuseReads,
    /// End.
    Stop,
}

/// Work for the snapshot thread.
pub enum SnapshotWork {
    /// Write this image.
    Write(Box<Image>),
    /// Verify an image of which all chunks have arrived.
    Arrived {
        /// The peer that has sent it.
        from: NodeId,
        /// The snapshot that the peer says it is.
        meta: SnapshotMeta,
        /// The file with the chunks.
        part: ImagePart,
    },
    /// Free the memory of a state that has been replaced.
    Discard(Box<dyn Send>),
    /// Make a spare log segment.
    Spare(SpareJob<FileDisk>),
    /// The log has a spare segment, made here or by the log itself.
    SpareReady,
    /// End.
    Stop,
}

/// The queues into which effects are routed.
pub struct Queues {
    /// To the thread that owns the log.
    pub wal: Sender<WalWork>,
    /// To the thread that owns the store.
    pub apply: Sender<ApplyJob>,
    /// To each peer.
    pub links: BTreeMap<NodeId, PeerLink>,
    /// Tells the election thread that its deadline has come closer.
    pub election: Sender<()>,
    /// Tells the drain thread that its deadline has come closer.
    pub drain: Sender<()>,
}

impl Queues {
    /// Makes the watcher of `alarm` read its deadline again.
    pub fn poke(&self, alarm: Alarm) {
        // A full queue holds a note that the watcher has not taken yet. The watcher will read the
        // deadline after taking it, so this note would add nothing.
        let _ = match alarm {
            // The heartbeat's deadline never comes closer; its watcher reads it each time.
            Alarm::Heartbeat => return,
            Alarm::Election => self.election.try_send(()),
            Alarm::Drain => self.drain.try_send(()),
        };
    }
}
