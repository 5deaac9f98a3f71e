//! The wal thread: takes all jobs that have queued, writes them with one write and one sync,
//! releases the messages that waited for it, and tells the core. So the more there is to do, the
//! larger the batch: group commit without a timer.
//!
//! A failed write or sync stops the node: what is on the disk then, nobody knows. A full disk does
//! not: the log keeps what it could not place, and goes on when there is room.

use std::time::Duration;

use crossbeam_channel::{Receiver, Sender};

use crate::node::queues::{Log, SnapshotWork, WalWork};
use crate::node::shared::Shared;
use crate::node::stop::Fatal;
use crate::replica::{Envelope, Input, JobNo};
use crate::wal::WalError;

/// How many bytes are gathered for one sync at most.
const BATCH_BYTES_MAX: usize = 8 << 20;

/// How often a full disk is tried again.
const FULL_RETRY: Duration = Duration::from_millis(200);

/// Writes until the node ends, then marks the log's end.
pub fn run(
    shared: &Shared,
    mut log: Log,
    work: &Receiver<WalWork>,
    snapshots: &Sender<SnapshotWork>,
) {
    let mut after: Vec<Envelope> = Vec::new();
    let mut barriers: Vec<Sender<()>> = Vec::new();
    while let Ok(first) = work.recv() {
        let (mut stopping, mut looked) = (false, false);
        let mut last_job: JobNo = 0;
        let mut next = Some(first);
        while let Some(work_now) = next {
            match work_now {
                WalWork::Job { records, after: messages, job } => {
                    log.append(&records);
                    after.extend(messages);
                    last_job = job;
                }
                WalWork::LookForSpare => looked = true,
                WalWork::Barrier(durable) => barriers.push(durable),
                WalWork::Stop => stopping = true,
            }
            let room = !stopping && log.pending_bytes() < BATCH_BYTES_MAX;
            next = if room { work.try_recv().ok() } else { None };
        }
        if let Err(fatal) = commit(shared, &mut log) {
            shared.stop.fail(fatal);
            return;
        }
        shared.core.release(after.drain(..));
        for durable in barriers.drain(..) {
            let _ = durable.send(());
        }
        if last_job != 0 {
            shared.core.step([Input::Persisted(last_job)]);
        }
        let news = match log.spare_wanted() {
            Some(job) => Some(SnapshotWork::Spare(job)),
            None if looked && log.has_spare() => Some(SnapshotWork::SpareThere),
            None => None,
        };
        // The receiver is gone only when the node has stopped.
        let _ = news.map(|news| snapshots.send(news));
        if stopping {
            break;
        }
    }
    if let Err(error) = log.close() {
        log::warn!(target: "NodeSync", "The log was not closed cleanly: {error}");
    }
}

fn commit(shared: &Shared, log: &mut Log) -> Result<(), Fatal> {
    let mut full = false;
    loop {
        match log.commit() {
            Ok(()) => break,
            Err(WalError::Full) if shared.stop.is_set() => return Err(full_at_stop()),
            Err(WalError::Full) => {
                if !full {
                    log::error!(target: "FAILURE", "Disk full: no room for another log segment");
                    shared.core.step([Input::DiskFull(true)]);
                }
                full = true;
                std::thread::sleep(FULL_RETRY);
            }
            Err(error) => return Err(Fatal::Io(error.to_string())),
        }
    }
    if full {
        log::info!(target: "RECOVERED", "The disk has room again");
        shared.core.step([Input::DiskFull(false)]);
    }
    Ok(())
}

fn full_at_stop() -> Fatal {
    Fatal::Io("the disk was full to the end: what was not acknowledged is given up".into())
}
