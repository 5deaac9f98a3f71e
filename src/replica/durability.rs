//! Disk jobs, and the part of the log that is durable here.
//!
//! Each step with something to persist becomes one numbered job. The WAL thread completes jobs in
//! order and reports the number (etcd calls this asynchronous storage writes). Between request and
//! report the log may change: a report must count only for entries that are still in the log.

use crate::clock::Now;
use crate::replica::{Effects, JobNo, Replica};
use crate::types::Index;

/// A job that the WAL thread has not completed yet.
#[derive(Clone, Copy, Debug)]
pub(super) struct DiskJob {
    number: JobNo,
    /// The log is durable up to here once the job is.
    last_index: Index,
    requested_at: Now,
}

impl Replica {
    /// Numbers the work that this step left for the disk.
    pub(super) fn start_disk_job(&mut self, now: Now, effects: &mut Effects) {
        self.last_job += 1;
        let (number, last_index) = (self.last_job, self.log.last_index());
        self.jobs.push_back(DiskJob { number, last_index, requested_at: now });
        effects.job = number;
    }

    /// Takes in the report that all jobs up to `upto` are durable.
    pub(super) fn persisted(&mut self, now: Now, upto: JobNo, effects: &mut Effects) {
        while let Some(job) = self.jobs.pop_front_if(|job| job.number <= upto) {
            self.durable = self.durable.max(job.last_index);
        }
        self.eventual_persisted(now, upto, effects);
        self.try_to_finish_catching_up(effects);
        // The leader counts its own log only once it is durable (thesis §10.2.1).
        self.advance_commit(now, effects);
    }

    /// Lowers the durable index to before `first`, because the log from `first` on is replaced.
    pub(super) fn forget_durable_from(&mut self, first: Index) {
        let last = first.saturating_sub(1);
        self.durable = self.durable.min(last);
        // A job under way wrote the entries that are replaced. Its report must not make the new
        // ones count as durable (the ABA problem of asynchronous storage writes).
        for job in &mut self.jobs {
            job.last_index = job.last_index.min(last);
        }
    }

    /// True while the oldest job has waited for longer than the disk timeout.
    pub(super) fn disk_is_stalled(&self, now: Now) -> bool {
        let oldest = self.jobs.front();
        oldest.is_some_and(|job| now.since(job.requested_at) > self.settings.disk_timeout)
    }
}
