//! The wal thread: writes all queued records with one write and one sync, releases the messages
//! that waited for the sync, and reports the job to the core. The more work is queued, the larger
//! the batch: group commit without a timer.
//!
//! | failure | meaning | reaction |
//! |---|---|---|
//! | a write fails | the disk may hold a part of it | the node stops |
//! | a sync fails | unsynced pages may be lost, though a later sync succeeds | the node stops |
//! | the disk is full | nothing is lost: the log keeps its records | refuse writes, try again |
//!
//! In all three cases no message is released and no job is reported. So a record that is not
//! durable is neither promised to a peer nor counted.

use std::time::Duration;

use crossbeam_channel::{Receiver, Sender};

use crate::node::files::FileWal;
use crate::node::queues::{SnapshotWork, WalWork};
use crate::node::shared::Shared;
use crate::node::stop::Fatal;
use crate::replica::{Envelope, Input, JobNo};
use crate::wal::WalError;

/// From this many bytes on, the gathered records are synced before more are taken.
const BATCH_BYTES_MAX: usize = 8 << 20;

/// The interval at which a full disk is tried again.
const FULL_RETRY: Duration = Duration::from_millis(200);

/// Writes until the node ends. Then marks the log's end, so that the next start can tell a torn
/// tail from damage.
pub fn run(
    shared: &Shared,
    mut log: FileWal,
    work: &Receiver<WalWork>,
    snapshots: &Sender<SnapshotWork>,
) {
    let mut after: Vec<Envelope> = Vec::new();
    let mut barriers: Vec<Sender<()>> = Vec::new();
    while let Ok(first) = work.recv() {
        let (mut is_stopping, mut spare_checked) = (false, false);
        let mut last_job: JobNo = 0;
        let mut next = Some(first);
        while let Some(work_now) = next {
            match work_now {
                WalWork::Job { records, after: messages, job } => {
                    log.append(&records);
                    after.extend(messages);
                    last_job = job;
                }
                WalWork::CheckSpare => spare_checked = true,
                WalWork::Barrier(durable) => barriers.push(durable),
                WalWork::Stop => is_stopping = true,
            }
            // Jobs behind `Stop` are not written. They are never reported, so they promise nothing.
            let room = !is_stopping && log.pending_bytes() < BATCH_BYTES_MAX;
            next = if room { work.try_recv().ok() } else { None };
        }
        // The thread ends here, and its queue with it. Later jobs are dropped by their senders, so
        // they never count as durable.
        if let Err(fatal) = commit(shared, &mut log) {
            shared.stop.fail(fatal);
            return;
        }
        // Votes and acknowledgements leave only now: Raft answers after its state is on stable
        // storage (Figure 2).
        shared.core.release(after.drain(..));
        for durable in barriers.drain(..) {
            let _ = durable.send(());
        }
        // Reporting a job reports all before it. A leader counts its own disk only from here on
        // (thesis §10.2.1).
        if last_job != 0 {
            shared.core.step([Input::Persisted(last_job)]);
        }
        let news = match log.spare_wanted() {
            Some(job) => Some(SnapshotWork::Spare(job)),
            None if spare_checked && log.has_spare() => Some(SnapshotWork::SpareReady),
            None => None,
        };
        // Fails only if the snapshot thread has ended, and then the node stops.
        let _ = news.map(|news| snapshots.send(news));
        if is_stopping {
            break;
        }
    }
    if let Err(error) = log.close() {
        log::warn!(target: "NodeSync", "The log was not closed cleanly: {error}");
    }
}

/// Makes the gathered records durable. Waits, if need be, until the disk has room.
fn commit(shared: &Shared, log: &mut FileWal) -> Result<(), Fatal> {
    let mut was_full = false;
    loop {
        match log.commit() {
            Ok(()) => break,
            // The records stay in the log's memory and are written once there is room. While the
            // node stops there may never be.
            Err(WalError::Full) if shared.stop.is_set() => return Err(full_at_stop()),
            Err(WalError::Full) => {
                if !was_full {
                    // Logged and reported once. The replica refuses new writes meanwhile.
                    log::error!(target: "FAILURE", "Disk full: no room for another log segment");
                    shared.core.step([Input::DiskFull(true)]);
                }
                was_full = true;
                std::thread::sleep(FULL_RETRY);
            }
            // Never retried. After a failed fsync the kernel may mark the lost pages as clean, so
            // that the next fsync succeeds (Rebello et al., *Can Applications Recover from fsync
            // Failures?*, ATC 2020). The next start reads the log from the disk, and so trusts only
            // records that are there.
            Err(error) => return Err(Fatal::Io(error.to_string())),
        }
    }
    if was_full {
        log::info!(target: "RECOVERED", "The disk has room again");
        shared.core.step([Input::DiskFull(false)]);
    }
    Ok(())
}

fn full_at_stop() -> Fatal {
    Fatal::Io("the disk was still full at the end: unacknowledged writes are dropped".into())
}
