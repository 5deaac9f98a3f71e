//! The world outside a simulated node's [`Shell`](crate::service::Shell): collects the decisions of
//! a turn in order. `turns` then carries them out as events of virtual time.

use crate::replica::{Alarm, Envelope, JobNo, WalRecord};
use crate::service::{ApplyWork, Outside};
use crate::testing::sim::disk::LogJob;
use crate::types::NodeId;

/// One decision of a turn.
#[derive(Debug)]
pub enum Decision {
    Persist(LogJob),
    Post(Envelope),
    Pull(NodeId),
    Apply(ApplyWork),
}

/// The decisions of one turn, in order.
#[derive(Debug, Default)]
pub struct Decisions(pub Vec<Decision>);

impl Outside for Decisions {
    fn persist(&mut self, records: Vec<WalRecord>, after: Vec<Envelope>, job: JobNo) {
        self.0.push(Decision::Persist(LogJob { number: job, records, after }));
    }

    fn post(&mut self, envelope: Envelope) {
        self.0.push(Decision::Post(envelope));
    }

    fn pull(&mut self, peer: NodeId) {
        self.0.push(Decision::Pull(peer));
    }

    fn apply(&mut self, work: ApplyWork) {
        self.0.push(Decision::Apply(work));
    }

    /// Nothing to do: the simulator reads all deadlines again after each turn.
    fn poke(&mut self, _: Alarm) {}
}
