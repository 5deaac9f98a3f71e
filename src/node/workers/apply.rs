//! The apply thread: the sole right to write the store. Takes committed entries in order, computes
//! what comes of them, and wakes those whose clients asked. One wake for a session's whole
//! pipeline.

use std::collections::BTreeMap;
use std::time::Instant;

use crossbeam_channel::{Receiver, Sender};

use crate::node::Shared;
use crate::node::clients::waiter::{Answer, Answers, Asker};
use crate::node::queues::ApplyWork;
use crate::node::stop::Fatal;
use crate::node::workers::snapshot::SnapshotWork;
use crate::replica::Input;
use crate::store::{Applied, Writer};
use crate::types::{Entry, Index, Outcome, Payload, Rejected};

/// Reads that wait for an index, by that index.
#[derive(Default)]
struct Readers {
    parked: BTreeMap<Index, Vec<Asker>>,
    count: usize,
    /// When so many have come, those who have given up are let go.
    look_at: usize,
}

impl Readers {
    /// So many are kept without a look at them.
    const FEW: usize = 64;

    /// Keeps a reader until its index is applied. Those who have given up meanwhile are let go, so
    /// that a node that lags for long does not collect them: whenever there are twice as many as
    /// had not at the last look. (All are looked at, for each may wait for an index of its own.)
    fn park(&mut self, index: Index, asker: Asker) {
        if self.count >= self.look_at.max(Readers::FEW) {
            let now = Instant::now();
            self.parked.retain(|_, askers| {
                askers.retain(|asker| asker.deadline > now);
                !askers.is_empty()
            });
            self.count = self.parked.values().map(Vec::len).sum();
            self.look_at = 2 * self.count;
        }
        self.count += 1;
        self.parked.entry(index).or_default().push(asker);
    }

    /// Lets those go who may read now.
    fn wake(&mut self, applied: Index) {
        let mut answers = Answers::default();
        while let Some(first) = self.parked.first_entry()
            && *first.key() <= applied
        {
            for asker in first.remove() {
                self.count -= 1;
                answers.push(asker, Answer::MayRead);
            }
        }
        answers.deliver();
    }

    /// Turns all away.
    fn refuse(&mut self) {
        let mut answers = Answers::default();
        for asker in std::mem::take(self).parked.into_values().flatten() {
            answers.push(asker, Answer::Unserved(Rejected::Stopping.into()));
        }
        answers.deliver();
    }
}

/// Applies until the node ends.
pub fn run(
    shared: &Shared,
    mut writer: Writer,
    work: &Receiver<ApplyWork>,
    snapshots: &Sender<SnapshotWork>,
) {
    let mut readers = Readers::default();
    let mut answers = Vec::new();
    let (mut failed, mut refusing) = (false, false);
    for work in work {
        match work {
            ApplyWork::Stop => break,
            ApplyWork::RefuseReads => {
                refusing = true;
                readers.refuse();
            }
            ApplyWork::Read(index, asker) => {
                readers.park(index, asker);
                if refusing {
                    readers.refuse();
                }
            }
            _ if failed => {} // The node is about to stop.
            ApplyWork::Entries(entries) => {
                if let Err(fatal) = apply(shared, &mut writer, &entries, &mut answers) {
                    shared.stop.fail(fatal);
                    (failed, refusing) = (true, true);
                    readers.refuse();
                    continue;
                }
                shared.core.answer(&mut answers);
            }
            ApplyWork::Restore(image) => {
                let old = Box::new(writer.restore(*image));
                // Freeing a large state takes a while.
                let _ = snapshots.send(SnapshotWork::Discard(old));
                let requests = writer.requests();
                let latest = writer.latest();
                shared.core.restored(shared.id, shared.boot, latest, |id| requests.contains(id));
            }
            ApplyWork::Snapshot(meta) => {
                debug_assert_eq!(meta, writer.applied());
                // The receiver is gone only when the node has stopped.
                let _ = snapshots.send(SnapshotWork::Write(Box::new(writer.image())));
            }
        }
        readers.wake(writer.applied().index);
    }
    readers.refuse();
}

fn apply(
    shared: &Shared,
    writer: &mut Writer,
    entries: &[Entry],
    answers: &mut Vec<(u64, Vec<Outcome>)>,
) -> Result<(), Fatal> {
    for entry in entries {
        let own = match &entry.payload {
            Payload::Batch { proposal: p, .. }
                if p.id.node == shared.id && p.id.boot == shared.boot =>
            {
                Some(p.id.seq)
            }
            _ => None,
        };
        match (writer.apply(entry, own.is_some()), own) {
            (Ok(Applied::Done(outcomes)), Some(seq)) => answers.push((seq, outcomes)),
            (Ok(Applied::Stale), Some(_)) => {
                return Err(Fatal::Config(format!(
                    "a later process of node {} has been in this cluster: is the clock of this \
                     machine behind, or is the node running twice?",
                    shared.id
                )));
            }
            (Ok(Applied::Checkpoint { digest }), _) => {
                shared.core.step([Input::CheckpointApplied { index: entry.index, digest }]);
            }
            (Ok(_), _) => {}
            (Err(broken), _) => return Err(Fatal::Bug(broken.to_string())),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::node::clients::waiter::Waiter;

    #[test]
    fn readers_who_have_given_up_are_let_go_whatever_index_they_wait_for() {
        let (mut readers, now) = (Readers::default(), Instant::now());
        let waiter = Arc::<Waiter>::default();
        let patient = waiter.open(now + Duration::from_secs(600));
        readers.park(1_000, patient);
        // Each at an index of its own, which this node does not reach for a long time.
        for index in 1..100_000 {
            readers.park(index, Arc::<Waiter>::default().open(now));
            let kept = readers.parked.values().map(Vec::len).sum::<usize>();
            assert_eq!(kept, readers.count);
            assert!(kept <= 2 * Readers::FEW, "{kept} of {index}");
        }
        readers.wake(100_000);
        assert!(matches!(waiter.wait_until(now), Some(Answer::MayRead)));
        assert!(readers.count == 0 && readers.parked.is_empty());
    }
}
