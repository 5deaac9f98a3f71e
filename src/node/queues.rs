//! The queues between the core and the threads that do what the replica decides.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};

use crossbeam_channel::Sender;

use super::waiters::Asker;
use crate::replica::{Envelope, JobNo, Record};
use crate::store::Image;
use crate::types::{Entry, Index, NodeId, SnapshotMeta};

/// Work for the thread that owns the log.
pub enum WalWork {
    /// Write the records, sync, release the messages, report the job.
    Job {
        /// See [`Effects::persist`].
        records: Vec<Record>,
        /// See [`Effects::after_persist`].
        after: Vec<Envelope>,
        /// See [`Effects::job`].
        job: JobNo,
    },
    /// See whether a spare segment is wanted.
    LookForSpare,
    /// Tell when everything before this is durable.
    Barrier(Sender<()>),
    /// Finish and end.
    Stop,
}

/// Work for the thread that owns the store.
pub enum ApplyWork {
    /// Apply committed entries.
    Entries(Vec<Entry>),
    /// Answer the reader once the index is applied.
    Read(Index, Asker),
    /// Take this image in place of everything.
    Restore(Box<Image>),
    /// Take an image.
    Snapshot(SnapshotMeta),
    /// The node is about to stop: turn away all readers.
    RefuseReads,
    /// End.
    Stop,
}

/// Work for the thread that owns the link to a peer.
pub enum LinkWork {
    /// Send this.
    Message(Envelope),
    /// [`Core::pull`] has something.
    Pull,
    /// The peer is there: try to connect now, if there is no link.
    Reconnect,
    /// End.
    Stop,
}

/// The queue of a link.
pub struct LinkQueue {
    sender: Sender<LinkWork>,
    pull_wanted: AtomicBool,
}

impl LinkQueue {
    /// The queue whose other end the link's thread reads.
    pub fn new(sender: Sender<LinkWork>) -> LinkQueue {
        LinkQueue { sender, pull_wanted: AtomicBool::new(false) }
    }

    /// Queues something to send.
    pub fn send(&self, work: LinkWork) {
        // The receiver is gone only when the node has stopped.
        let _ = self.sender.send(work);
    }

    /// Asks for a pull, unless one is asked for already.
    pub fn want_pull(&self) {
        if !self.pull_wanted.swap(true, Ordering::AcqRel) {
            self.send(LinkWork::Pull);
        }
    }

    /// To be called before pulling, so that what comes later asks again.
    pub fn begin_pull(&self) {
        self.pull_wanted.store(false, Ordering::Release);
    }
}

/// The queues into which effects are routed.
pub struct Queues {
    /// To the log's thread.
    pub wal: Sender<WalWork>,
    /// To the store's thread.
    pub apply: Sender<ApplyWork>,
    /// To each peer's link.
    pub links: BTreeMap<NodeId, LinkQueue>,
    /// Tells the election thread that its deadline has come closer; one note is enough.
    pub election: Sender<()>,
    /// The same for the drain thread.
    pub drain: Sender<()>,
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::thread::{scope, yield_now};

    use crossbeam_channel::{Receiver, unbounded};
    use parking_lot::Mutex;

    use super::super::tests::in_time;
    use super::*;
    use crate::rng::Rng;

    const THREADS: usize = 200;
    const ROUNDS: usize = 150;

    /// The link's side, as `replication.rs` goes about it: sleeps only when nothing is to be pulled
    /// and nothing is queued. Often loses its connection, and with it what is queued. Ends when it
    /// has pulled one piece of each thread; how often it pulled.
    fn pull_all(
        link: &LinkQueue,
        work: &Receiver<LinkWork>,
        pieces: &Mutex<usize>,
        rng: &mut Rng,
    ) -> usize {
        let (mut pulled, mut pulls) = (0, 0);
        let mut pull = false;
        while pulled < THREADS {
            if rng.below(4) == 0 {
                while work.try_recv().is_ok() {}
                pull = true;
            }
            let mut next = if pull { work.try_recv().ok() } else { work.recv().ok() };
            while let Some(now) = next {
                pull |= matches!(now, LinkWork::Pull);
                next = work.try_recv().ok();
            }
            if std::mem::take(&mut pull) {
                link.begin_pull();
                yield_now();
                pulled += std::mem::take(&mut *pieces.lock());
                pulls += 1;
            }
        }
        pulls
    }

    #[test]
    fn whatever_a_pull_is_asked_for_is_pulled() {
        let pulls = in_time("all is pulled", || {
            let (sender, work) = unbounded();
            let link = LinkQueue::new(sender);
            let (pieces, together) = (Mutex::new(0), Barrier::new(THREADS + 1));
            let mut rng = Rng::new(1);
            scope(|scope| {
                for _ in 0..THREADS {
                    let (link, pieces, together) = (&link, &pieces, &together);
                    scope.spawn(move || {
                        for _ in 0..ROUNDS {
                            together.wait();
                            *pieces.lock() += 1;
                            link.want_pull();
                        }
                    });
                }
                // Each round has a last piece, after which nobody asks again.
                let round = |_| {
                    together.wait();
                    let pulls = pull_all(&link, &work, &pieces, &mut rng);
                    // One note at a time: more than that would grow without a bound.
                    assert!(work.len() <= 1, "{} notes", work.len());
                    pulls
                };
                (0..ROUNDS).map(round).sum::<usize>()
            })
        });
        println!("{} pieces in {pulls} pulls", THREADS * ROUNDS);
        assert!(pulls > 2 * ROUNDS, "the threads hardly met");
    }
}
