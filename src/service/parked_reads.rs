//! Reads whose index the replica has named and the store has not reached (ReadIndex, thesis §6.4,
//! step 3). The apply thread owns them, because it knows first when an index is applied.

use std::collections::BTreeMap;

use super::completion::{Answer, Answers, ReplyTo};
use crate::clock::Now;
use crate::types::{Index, Rejected};

/// Below this number of parked reads, overdue ones are not looked for.
const SWEEP_MIN: usize = 64;

/// Reads that wait, by the index that must be applied first.
#[derive(Debug, Default)]
pub struct ParkedReads {
    by_index: BTreeMap<Index, Vec<ReplyTo>>,
    count: usize,
    /// At this number of parked reads, the overdue ones are removed.
    sweep_at: usize,
    /// The node is about to stop: no read is parked any more.
    refusing: bool,
}

impl ParkedReads {
    /// Keeps a read until [`ParkedReads::wake`] reaches its index.
    ///
    /// On a node that lags for long, cancelled reads would pile up. So overdue reads are removed
    /// whenever the number of reads has doubled since the last removal, which keeps the cost of
    /// each read constant. All indices are visited, for each read may wait for its own.
    pub fn park(&mut self, now: Now, index: Index, reply_to: ReplyTo, answers: &mut Answers) {
        if self.refusing {
            return answers.push(reply_to, Answer::Unserved(Rejected::Stopping.into()));
        }
        if self.count >= self.sweep_at.max(SWEEP_MIN) {
            self.by_index.retain(|_, waiting| {
                waiting.retain(|reply_to| reply_to.deadline > now);
                !waiting.is_empty()
            });
            self.count = self.by_index.values().map(Vec::len).sum();
            self.sweep_at = 2 * self.count;
        }
        self.count += 1;
        self.by_index.entry(index).or_default().push(reply_to);
    }

    /// Lets all reads go ahead that wait for `applied` or an earlier index.
    pub fn wake(&mut self, applied: Index, answers: &mut Answers) {
        while let Some(first) = self.by_index.first_entry()
            && *first.key() <= applied
        {
            for reply_to in first.remove() {
                self.count -= 1;
                answers.push(reply_to, Answer::MayRead);
            }
        }
    }

    /// Refuses all reads, now and from now on.
    pub fn refuse_all(&mut self, answers: &mut Answers) {
        for reply_to in std::mem::take(&mut self.by_index).into_values().flatten() {
            answers.push(reply_to, Answer::Unserved(Rejected::Stopping.into()));
        }
        (self.count, self.refusing) = (0, true);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;
    use crate::service::{Inbox, Ticket};

    /// Counts the reads that may go ahead.
    #[derive(Default)]
    struct Granted(AtomicU64);

    impl Inbox for Granted {
        fn put(&self, _: Ticket, answer: Answer) -> bool {
            if matches!(answer, Answer::MayRead) {
                self.0.fetch_add(1, Ordering::Relaxed);
            }
            false
        }

        fn wake(&self) {}
    }

    fn read(inbox: &Arc<Granted>, deadline: u64) -> ReplyTo {
        ReplyTo { inbox: Arc::clone(inbox) as Arc<dyn Inbox>, ticket: 0, deadline: Now(deadline) }
    }

    #[test]
    fn overdue_reads_are_removed_whatever_index_they_wait_for() {
        let (mut reads, mut answers) = (ParkedReads::default(), Answers::default());
        let (patient, hasty) = (Arc::default(), Arc::default());
        let now = Now(1_000);
        reads.park(now, 1_000, read(&patient, 600_000_000), &mut answers);
        // Each at an index of its own, which this node does not reach for a long time.
        for index in 1..100_000 {
            reads.park(now, index, read(&hasty, 1_000), &mut answers);
            let kept = reads.by_index.values().map(Vec::len).sum::<usize>();
            assert_eq!(kept, reads.count);
            assert!(kept <= 2 * SWEEP_MIN, "{kept} of {index}");
        }
        reads.wake(100_000, &mut answers);
        answers.deliver();
        assert_eq!(patient.0.load(Ordering::Relaxed), 1);
        assert!(reads.count == 0 && reads.by_index.is_empty());
    }

    #[test]
    fn a_stopping_node_parks_no_read() {
        let (mut reads, mut answers) = (ParkedReads::default(), Answers::default());
        let inbox = Arc::default();
        reads.park(Now(0), 5, read(&inbox, 10), &mut answers);
        reads.refuse_all(&mut answers);
        reads.park(Now(0), 6, read(&inbox, 10), &mut answers);
        reads.wake(10, &mut answers);
        answers.deliver();
        assert_eq!(inbox.0.load(Ordering::Relaxed), 0);
        assert!(reads.by_index.is_empty());
    }
}
