//! One running node: the real shell, store, failure detector and client loops, with the queues and
//! timers of its threads.

use std::collections::{BTreeSet, VecDeque};

use crate::clock::Now;
use crate::replica::detector::FailureDetector;
use crate::replica::{Recovered, Replica, Settings};
use crate::rng::Rng;
use crate::service::{ApplyWork, ParkedReads, Shell};
use crate::store::Writer;
use crate::testing::sim::client_loop::ClientLoop;
use crate::testing::sim::log_model::LogModel;
use crate::testing::sim::plan::Plan;
use crate::testing::sim::storage::Storage;
use crate::types::{Index, Term};

/// One running node.
#[derive(Debug)]
pub struct Process {
    /// Names the process among all of its node; equal to its boot number.
    pub life: u64,
    pub shell: Shell,
    pub writer: Writer,
    pub detector: FailureDetector,
    /// The records that the replica has decided so far, durable or not.
    pub log_model: LogModel,
    /// Hash of every applied entry and its results; see `Oracle::digest_at`.
    pub digest: u64,
    /// The last committed entry that was handed to the apply thread.
    pub handed: Index,
    /// The queue of the apply thread.
    pub apply_queue: VecDeque<ApplyWork>,
    pub apply_is_busy: bool,
    pub parked_reads: ParkedReads,
    /// The loops that serve its clients. If each client has a thread, one loop for each client.
    pub loops: Vec<ClientLoop>,
    /// The times for which an event is scheduled: heartbeat, election, drain, detector.
    pub timers: [Option<Now>; 4],
    /// Peers for which a pull is scheduled.
    pub pulls: BTreeSet<usize>,
    pub storage: Storage,
    pub stopping: bool,
    /// The time at which the latest news reaches the detector thread.
    pub detector_news_at: Now,
    pub led: bool,
    /// The last index of its log when it began to lead.
    pub led_from: Index,
    /// Term and commit index after the previous step.
    pub reached: (Term, Index),
    /// The first and last index of the log that it found at its start.
    pub found: (Index, Index),
}

impl Process {
    /// A process that begins at `now` with the content of its disk. `digest` belongs to the state
    /// of `writer`.
    pub fn new(
        now: Now,
        settings: Settings,
        recovered: Recovered,
        writer: Writer,
        digest: u64,
        plan: &Plan,
        rng: Rng,
    ) -> Process {
        let peers: Vec<_> = settings.peers().collect();
        let detector = FailureDetector::new(now, settings.election_timeout, peers);
        let (log_model, handed) = (LogModel::new(&recovered), recovered.snapshot.index);
        let (life, last, term) = (settings.boot, log_model.last_index(), recovered.hard.term);
        let replica = Replica::new(now, settings, recovered, rng);
        Process {
            life,
            shell: Shell::new(replica, writer.store()),
            // A process without loops gets one for each client that connects.
            loops: (0..plan.loops).map(|_| ClientLoop::new(plan)).collect(),
            writer,
            detector,
            log_model,
            digest,
            handed,
            apply_queue: VecDeque::new(),
            apply_is_busy: false,
            parked_reads: ParkedReads::default(),
            timers: [None; 4],
            pulls: BTreeSet::new(),
            storage: Storage::default(),
            stopping: false,
            detector_news_at: Now(0),
            led: false,
            led_from: 0,
            reached: (term, handed),
            found: (handed + 1, last),
        }
    }
}
