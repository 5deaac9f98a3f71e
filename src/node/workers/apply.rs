//! The apply thread: the only writer of the store's base while the node runs. It applies committed
//! entries in order, and sends each outcome to the client of this node that waits for it. A client
//! is woken once for its whole pipeline. (Eventual writes reach the store's overlay on the thread
//! whose turn stamped or received them.)

use crossbeam_channel::{Receiver, Sender};

use crate::node::queues::{ApplyJob, SnapshotWork};
use crate::node::shared::Shared;
use crate::node::stop::Fatal;
use crate::service::{Answers, ApplyWork, Consequence, ParkedReads, consequence, own_request};
use crate::store::Writer;
use crate::types::{Entry, Outcome, RequestId};

/// Applies until the node ends.
pub fn run(
    shared: &Shared,
    writer: Writer,
    jobs: &Receiver<ApplyJob>,
    snapshots: &Sender<SnapshotWork>,
) {
    let mut reads = ParkedReads::default();
    let mut applier = Applier { shared, writer, snapshots, outcomes: Vec::new(), failed: false };
    for job in jobs {
        let mut answers = Answers::default();
        match job {
            ApplyJob::Stop => break,
            ApplyJob::RefuseReads => reads.refuse_all(&mut answers),
            ApplyJob::Work(ApplyWork::Read(index, reply_to)) => {
                reads.park(shared.clock.now(), index, reply_to, &mut answers);
            }
            ApplyJob::Work(work) => {
                applier.apply(work);
                // The state stays behind the log for good, so no parked read can ever go ahead.
                if applier.failed {
                    reads.refuse_all(&mut answers);
                }
            }
        }
        // After each job: a read may wait for an index that is applied already.
        reads.wake(applier.writer.applied().index, &mut answers);
        answers.deliver();
    }
    // Their clients would wait until their time-out.
    let mut answers = Answers::default();
    reads.refuse_all(&mut answers);
    answers.deliver();
}

/// The store's writer, with the receivers of what follows from an entry.
struct Applier<'a> {
    shared: &'a Shared,
    writer: Writer,
    snapshots: &'a Sender<SnapshotWork>,
    /// Outcomes for this node's clients, gathered over one piece of work.
    outcomes: Vec<(RequestId, Vec<Outcome>)>,
    /// An entry could not be applied: the node is about to stop.
    failed: bool,
}

impl Applier<'_> {
    fn apply(&mut self, work: ApplyWork) {
        // Later entries would be applied to a state that lacks an earlier one.
        if self.failed {
            return;
        }
        let core = &self.shared.core;
        // Sends to `snapshots` fail only if the snapshot thread has ended, and then the node stops.
        match work {
            ApplyWork::Entries(entries) => match self.apply_entries(&entries) {
                Ok(()) => core.applied(&mut self.outcomes),
                Err(fatal) => {
                    self.failed = true;
                    self.shared.stop.fail(fatal);
                }
            },
            ApplyWork::Restore(image) => {
                let replaced = Box::new(self.writer.restore(*image));
                // Freeing a large state takes long, so the snapshot thread does it.
                let _ = self.snapshots.send(SnapshotWork::Discard(replaced));
                let requests = self.writer.requests();
                core.restored(self.writer.latest(), |id| requests.contains(id));
            }
            ApplyWork::Snapshot(meta) => {
                debug_assert_eq!(meta, self.writer.applied());
                let image = Box::new(self.writer.image());
                let _ = self.snapshots.send(SnapshotWork::Write(image));
            }
            ApplyWork::Read(..) => debug_assert!(false, "reads are parked, not applied"),
        }
    }

    fn apply_entries(&mut self, entries: &[Entry]) -> Result<(), Fatal> {
        let Shared { id, boot, core, .. } = self.shared;
        for entry in entries {
            let own = own_request(entry, *id, *boot);
            // Outcomes cost memory, and only a request of this process needs them.
            let applied = self.writer.apply(entry, own.is_some());
            let applied = applied.map_err(|broken| Fatal::Bug(broken.to_string()))?;
            match consequence(entry.index, own, applied) {
                Ok(Some(Consequence::Outcomes(id, outcomes))) => self.outcomes.push((id, outcomes)),
                Ok(Some(Consequence::Tell(input))) => core.step([input]),
                Ok(None) => {}
                // A later process has taken over this node's identity. From now on the state
                // machine refuses every request of this process, because its boot number is older.
                Err(_) => {
                    return Err(Fatal::Config(format!(
                        "a later process of node {id} has been in this cluster: is the clock of \
                         this machine behind, or is the node running twice?"
                    )));
                }
            }
        }
        Ok(())
    }
}
