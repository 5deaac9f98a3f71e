//! The world outside the [`Shell`](super::Shell), as a trait. A node implements it with queues to
//! its threads, the simulator with events of virtual time.

use super::completion::ReplyTo;
use crate::replica::{Alarm, Envelope, JobNo, WalRecord};
use crate::store::Image;
use crate::types::{Entry, Index, NodeId, SnapshotMeta};

/// Work for the owner of the store, to be done in order.
#[derive(Debug)]
pub enum ApplyWork {
    /// Apply committed entries. The first follows the last of the work before.
    Entries(Vec<Entry>),
    /// Let a read go ahead once this index is applied.
    Read(Index, ReplyTo),
    /// Replace the whole state by this image.
    Restore(Box<Image>),
    /// Take an image of the state as of the last entry.
    Snapshot(SnapshotMeta),
}

/// Carries out the decisions of a step. [`Shell::route`](super::Shell::route) calls its methods
/// under the core's lock, in the order in which the effects must happen, so no method may block.
///
/// One caller comes without the lock: after a sync, `Core::release` (node/core.rs) posts the
/// messages that waited for it. Replicas take messages in any order, so these need no place among
/// the others.
pub trait Outside {
    /// Appends `records` to the log and syncs them. Then sends `after`, and reports
    /// [`Input::Persisted`](crate::replica::Input::Persisted) with `job`.
    fn persist(&mut self, records: Vec<WalRecord>, after: Vec<Envelope>, job: JobNo);

    /// Sends a message. It may get lost.
    fn post(&mut self, envelope: Envelope);

    /// Calls [`Replica::pull`](crate::replica::Replica::pull) for the link to `peer` until nothing
    /// is left, as soon as the link can take more.
    fn pull(&mut self, peer: NodeId);

    /// Queues work for the owner of the store.
    fn apply(&mut self, work: ApplyWork);

    /// The deadline of `alarm` has come closer than its watcher knows.
    fn poke(&mut self, alarm: Alarm);
}
