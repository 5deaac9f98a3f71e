//! The world outside a simulated node's [`Shell`](crate::service::Shell): what a turn of it decides,
//! in order, to be carried out as events of virtual time.

use crate::replica::{Alarm, Envelope, JobNo, WalRecord};
use crate::service::{ApplyWork, Outside};
use crate::testing::sim::disk::Batch;
use crate::types::NodeId;

/// One decision.
#[derive(Debug)]
pub enum Deed {
    Persist(Batch),
    Post(Envelope),
    Pull(NodeId),
    Apply(ApplyWork),
}

/// The decisions of one turn.
#[derive(Debug, Default)]
pub struct Deeds(pub Vec<Deed>);

impl Outside for Deeds {
    fn persist(&mut self, records: Vec<WalRecord>, after: Vec<Envelope>, job: JobNo) {
        self.0.push(Deed::Persist(Batch { job, records, after }));
    }

    fn post(&mut self, envelope: Envelope) {
        self.0.push(Deed::Post(envelope));
    }

    fn pull(&mut self, peer: NodeId) {
        self.0.push(Deed::Pull(peer));
    }

    fn apply(&mut self, work: ApplyWork) {
        self.0.push(Deed::Apply(work));
    }

    /// Nothing to do: the simulator looks at all deadlines after each turn.
    fn poke(&mut self, _: Alarm) {}
}
