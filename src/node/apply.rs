//! The apply thread: the sole right to write the store. Takes committed entries in order, computes
//! what comes of them, and wakes those whose clients asked. One wake for a session's whole
//! pipeline.

use std::collections::BTreeMap;
use std::time::Instant;

use crossbeam_channel::{Receiver, Sender};

use super::Shared;
use super::queues::ApplyWork;
use super::snapshot::SnapshotWork;
use super::stop::Fatal;
use super::waiters::{Answer, Answers, Asker};
use crate::replica::Input;
use crate::store::{Applied, Writer};
use crate::types::{Entry, Index, Outcome, Payload, Rejected};

/// Reads that wait for an index, by that index.
type Readers = BTreeMap<Index, Vec<Asker>>;

/// Applies until the node ends.
pub fn run(
    shared: &Shared,
    mut writer: Writer,
    work: &Receiver<ApplyWork>,
    snapshots: &Sender<SnapshotWork>,
) {
    let mut readers = Readers::new();
    let mut answers = Vec::new();
    let (mut failed, mut refusing) = (false, false);
    for work in work {
        match work {
            ApplyWork::Stop => break,
            ApplyWork::RefuseReads => {
                refusing = true;
                refuse(&mut readers);
            }
            ApplyWork::Read(index, asker) => {
                park(&mut readers, index, asker);
                if refusing {
                    refuse(&mut readers);
                }
            }
            _ if failed => {} // The node is about to stop.
            ApplyWork::Entries(entries) => {
                if let Err(fatal) = apply(shared, &mut writer, &entries, &mut answers) {
                    shared.stop.fail(fatal);
                    (failed, refusing) = (true, true);
                    refuse(&mut readers);
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
        wake_readers(&mut readers, writer.applied().index);
    }
    refuse(&mut readers);
}

fn refuse(readers: &mut Readers) {
    let mut answers = Answers::default();
    for asker in std::mem::take(readers).into_values().flatten() {
        answers.push(asker, Answer::Unserved(Rejected::Stopping.into()));
    }
    answers.deliver();
}

/// Keeps a reader until its index is applied. Those who have given up meanwhile are let go, so that
/// a node that lags for long does not collect them.
fn park(readers: &mut Readers, index: Index, asker: Asker) {
    let parked = readers.entry(index).or_default();
    if parked.len().is_power_of_two() {
        let now = Instant::now();
        parked.retain(|asker| asker.deadline > now);
    }
    parked.push(asker);
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
            (Ok(Applied::Marked { digest }), _) => {
                shared.core.step([Input::Marked { index: entry.index, digest }]);
            }
            (Ok(_), _) => {}
            (Err(broken), _) => return Err(Fatal::Bug(broken.to_string())),
        }
    }
    Ok(())
}

fn wake_readers(readers: &mut Readers, applied: Index) {
    let mut answers = Answers::default();
    while let Some(first) = readers.first_entry()
        && *first.key() <= applied
    {
        for asker in first.remove() {
            answers.push(asker, Answer::MayRead);
        }
    }
    answers.deliver();
}
