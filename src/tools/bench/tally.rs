//! The measurements of a run: latencies, answers over time, and errors.
//!
//! Times are in nanoseconds from the beginning of the measured time.

use hdrhistogram::Histogram;

use crate::tools::bench::scan::TEXT_MAX;

/// Length of an interval in the chart of throughput.
pub const POINT_NS: u64 = 100_000_000;
/// Longest latency; longer ones count as this.
const LATENCY_MAX_NS: u64 = 600_000_000_000;
/// Most kinds of errors that a tally distinguishes.
const KINDS_MAX: usize = 64;

/// The measurements of reads, or of writes.
#[derive(Clone, Debug)]
pub struct Side {
    /// Latencies of answers without an error, in nanoseconds.
    pub latencies: Histogram<u64>,
    /// Operations that failed at nodes that were not killed.
    pub errors: u64,
    /// Operations that failed at the node that was killed.
    pub lost: u64,
}

impl Side {
    fn new() -> Side {
        let latencies = Histogram::new_with_bounds(1, LATENCY_MAX_NS, 3);
        let latencies = latencies.expect("the bounds are in order and the digits at most five");
        Side { latencies, errors: 0, lost: 0 }
    }

    /// Adds the measurements of another side.
    pub fn add(&mut self, other: &Side) {
        self.latencies.add(&other.latencies).expect("all histograms have the same bounds");
        self.errors += other.errors;
        self.lost += other.lost;
    }
}

/// Errors of one kind at one node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Errors {
    /// The node's place in the list.
    pub node: usize,
    /// True if that node was killed.
    pub killed: bool,
    /// The first word of the reply, or the failure of the connection.
    pub kind: String,
    /// Their number.
    pub count: u64,
    /// The text of the first one.
    pub first: String,
}

/// The measurements of one thread, or of all threads, in one run.
#[derive(Clone, Debug)]
pub struct Tally {
    /// SETs.
    pub writes: Side,
    /// GETs.
    pub reads: Side,
    /// Answers in each tenth of a second.
    pub points: Vec<u64>,
    /// Errors by node and kind.
    pub errors: Vec<Errors>,
    /// The time of the last answer.
    pub last_answer: u64,
    /// Open loop: the longest delay between the intended start and the sending of an operation.
    pub late: u64,
    /// The longest such delay while a connection was idle, which is the generator's own fault.
    pub late_by_generator: u64,
    /// Number of due operations that were never sent.
    pub unsent: u64,
    /// Number of connections that were made again.
    pub reconnects: u64,
}

impl Tally {
    /// An empty tally.
    pub fn new() -> Tally {
        Tally {
            writes: Side::new(),
            reads: Side::new(),
            points: Vec::new(),
            errors: Vec::new(),
            last_answer: 0,
            late: 0,
            late_by_generator: 0,
            unsent: 0,
            reconnects: 0,
        }
    }

    /// The side of reads, or of writes.
    #[inline]
    pub fn side(&mut self, read: bool) -> &mut Side {
        if read { &mut self.reads } else { &mut self.writes }
    }

    /// Notes an answer at time `at`.
    #[inline]
    pub fn answer(&mut self, read: bool, at: u64, latency: u64) {
        self.side(read).latencies.saturating_record(latency);
        self.last_answer = self.last_answer.max(at);
        let point = usize::try_from(at / POINT_NS).unwrap_or(usize::MAX);
        if point >= self.points.len() {
            self.points.resize(point + 1, 0);
        }
        self.points[point] += 1;
    }

    /// Counts a failed operation, at the killed node or at another one.
    pub fn fail(&mut self, read: bool, killed: bool) {
        let side = self.side(read);
        if killed {
            side.lost += 1;
        } else {
            side.errors += 1;
        }
    }

    /// Notes the error of an operation or of a greeting.
    pub fn error(&mut self, node: usize, killed: bool, text: &str) {
        let kind = text.split([' ', ':']).next().unwrap_or_default();
        let kind = if text.starts_with(char::is_uppercase) { kind } else { text };
        let known = |errors: &&mut Errors| {
            errors.node == node && errors.killed == killed && errors.kind == kind
        };
        if let Some(errors) = self.errors.iter_mut().find(known) {
            errors.count += 1;
        } else if self.errors.len() < KINDS_MAX {
            let first = text.chars().take(TEXT_MAX).collect();
            self.errors.push(Errors { node, killed, kind: kind.into(), count: 1, first });
        }
    }

    /// Adds the measurements of another tally.
    pub fn add(&mut self, other: &Tally) {
        self.writes.add(&other.writes);
        self.reads.add(&other.reads);
        if self.points.len() < other.points.len() {
            self.points.resize(other.points.len(), 0);
        }
        for (sum, count) in self.points.iter_mut().zip(&other.points) {
            *sum += count;
        }
        for errors in &other.errors {
            let same = |known: &&mut Errors| {
                (known.node, known.killed, &known.kind)
                    == (errors.node, errors.killed, &errors.kind)
            };
            match self.errors.iter_mut().find(same) {
                Some(known) => known.count += errors.count,
                None => self.errors.push(errors.clone()),
            }
        }
        self.last_answer = self.last_answer.max(other.last_answer);
        self.late = self.late.max(other.late);
        self.late_by_generator = self.late_by_generator.max(other.late_by_generator);
        self.unsent += other.unsent;
        self.reconnects += other.reconnects;
    }

    /// Reads and writes together.
    pub fn both(&self) -> Side {
        let mut both = self.writes.clone();
        both.add(&self.reads);
        both
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tallies_of_threads_add_up() {
        let (mut one, mut two) = (Tally::new(), Tally::new());
        one.answer(true, 5, 1_000_000);
        one.error(1, false, "CLUSTERDOWN no quorum");
        two.answer(false, 3 * POINT_NS, 3_000_000);
        two.error(1, false, "CLUSTERDOWN no leader");
        two.error(1, false, "connection lost: reset");
        two.error(1, true, "connection lost: reset");
        one.add(&two);
        assert_eq!(one.points, [1, 0, 0, 1]);
        assert_eq!(one.last_answer, 3 * POINT_NS);
        assert_eq!((one.both().latencies.len(), one.reads.latencies.len()), (2, 1));
        let kinds: Vec<_> =
            one.errors.iter().map(|errors| (&*errors.kind, errors.killed, errors.count)).collect();
        let lost = "connection lost: reset";
        assert_eq!(kinds, [("CLUSTERDOWN", false, 2), (lost, false, 1), (lost, true, 1)]);
        assert_eq!(one.errors[0].first, "CLUSTERDOWN no quorum");
    }
}
