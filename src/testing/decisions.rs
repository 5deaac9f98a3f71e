//! The world outside a [`Shell`](crate::service::Shell) under test: collects the decisions of a
//! turn in order. The simulator then carries them out as events of virtual time, the golden scripts
//! by command.

use crate::replica::{Alarm, Envelope, JobNo, WalRecord};
use crate::service::{ApplyWork, Outside};
use crate::types::NodeId;

/// A job for the log: one turn's records, synced together.
#[derive(Clone, Debug)]
pub struct LogJob {
    /// The number to report once the job is durable.
    pub number: JobNo,
    /// The records, in order.
    pub records: Vec<WalRecord>,
    /// The messages that leave once the job is durable.
    pub after: Vec<Envelope>,
}

/// One decision of a turn.
#[derive(Debug)]
pub enum Decision {
    /// Write and sync this job.
    Persist(LogJob),
    /// Send this message.
    Post(Envelope),
    /// Pull for the link to this peer.
    Pull(NodeId),
    /// Work for the store.
    Apply(ApplyWork),
}

/// The decisions of one turn, in order.
#[derive(Debug, Default)]
pub struct Decisions(pub Vec<Decision>);

impl Outside for Decisions {
    fn persist(&mut self, records: Vec<WalRecord>, after: Vec<Envelope>, number: JobNo) {
        self.0.push(Decision::Persist(LogJob { number, records, after }));
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

    /// Nothing to do: both users read all deadlines again whenever time passes.
    fn poke(&mut self, _: Alarm) {}
}
