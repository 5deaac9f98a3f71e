//! Completion: how a request that waits gets its answer.
//!
//! A request waits in up to three tables, one for each question that only that table can answer:
//!
//! | table | keeps, by request | answers the question |
//! |---|---|---|
//! | [`pending`](crate::replica::pending) | the encoded commands | what must the next leader get? |
//! | [`Shell`](super::Shell) | a [`ReplyTo`] | which client gets the outcome of the store? |
//! | [`Rounds`](super::Rounds) | the clients' shares | how is an answer split among clients? |
//!
//! They cannot be one. The replica forgets a proposal when it *commits*, and the outcome exists
//! only when the entry *applies*, on another thread and without the core's lock. So the lock is
//! taken a second time for a write, to take its address out of the shell's table. The shares belong
//! to one front end's thread, so that no lock is held while replies are written. The tables agree
//! because each is changed in the same critical section, or after, the one before it:
//!
//! - `Shell::ask` inserts into the shell's table and proposes under one lock. `Shell::cancel`
//!   removes from both under one lock. So a proposal pends only while a client waits for it; the
//!   simulator checks this after each step. The one exception is the end of a node: `cancel_all`
//!   empties the shell's table alone, and the proposals end with the process.
//! - The thread that removes an entry from the shell's table sends its answer, and no other thread
//!   does. So each [`Ticket`] is answered at most once. For a write or a stamp, `Shell::cancel`
//!   returns `None` exactly when an answer is on its way; a read can always be cancelled.
//! - `Rounds` keeps a ticket until it takes the answer out of its inbox or has cancelled it. An
//!   answer to a ticket that it does not know is dropped.
//!
//! A read that waits for its index to be applied leaves the shell's table for the apply thread's
//! [`ParkedReads`](super::ParkedReads). Cancelling it there needs no look at that table: an answer
//! that comes later is dropped by its ticket, and nothing was done.

use std::fmt;
use std::sync::Arc;

use crate::clock::Now;
use crate::replica::Input;
use crate::store::Applied;
use crate::types::{Entry, Index, NodeId, Outcome, Payload, RequestId, Unserved};

/// The result of a [`Request`](super::Request).
#[derive(Debug)]
pub enum Answer {
    /// A batch was applied: one outcome for each command.
    Outcomes(Vec<Outcome>),
    /// Eventual writes are stamped and readable in this node's overlay.
    Stamped {
        /// For each write, in order: whether its key existed just before it.
        existed: Vec<bool>,
        /// The node that stamped them.
        by: Option<NodeId>,
    },
    /// The store may be read now.
    MayRead,
    /// The request ends without a result.
    Unserved(Unserved),
}

impl Answer {
    /// The whole answer as the share of one client.
    pub fn as_share(&mut self) -> Share<'_> {
        match self {
            Answer::Outcomes(outcomes) => Share::Outcomes(std::mem::take(outcomes)),
            Answer::Stamped { existed, by } => Share::Stamped { existed, by: *by },
            Answer::MayRead => Share::MayRead,
            Answer::Unserved(unserved) => Share::Unserved(*unserved),
        }
    }
}

/// One client's share of an [`Answer`].
#[derive(Debug)]
pub enum Share<'a> {
    /// See [`Answer::Outcomes`].
    Outcomes(Vec<Outcome>),
    /// See [`Answer::Stamped`].
    Stamped {
        /// Of the client's own writes.
        existed: &'a [bool],
        /// The node that stamped them.
        by: Option<NodeId>,
    },
    /// See [`Answer::MayRead`].
    MayRead,
    /// See [`Answer::Unserved`].
    Unserved(Unserved),
}

/// Names one request of an inbox. An inbox never uses a ticket twice.
pub type Ticket = u64;

/// Takes answers in, in any order, from any thread.
pub trait Inbox: Send + Sync {
    /// Puts an answer in. Returns true if the owner has to be woken for it. An answer to a ticket
    /// that is no longer open is dropped, here or by the owner.
    fn put(&self, ticket: Ticket, answer: Answer) -> bool;

    /// Wakes the owner. Called without any lock held, once for many answers.
    fn wake(&self);
}

/// The address of an answer.
#[derive(Clone)]
pub struct ReplyTo {
    /// The inbox that the answer goes to.
    pub inbox: Arc<dyn Inbox>,
    /// The request's name there.
    pub ticket: Ticket,
    /// The answer is of no use after this time.
    pub deadline: Now,
}

impl fmt::Debug for ReplyTo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ticket {} until {:?}", self.ticket, self.deadline)
    }
}

/// Answers on their way. All are put into their inboxes first, then each inbox is woken once.
#[derive(Debug, Default)]
pub struct Answers {
    ready: Vec<(ReplyTo, Answer)>,
}

impl Answers {
    /// Adds an answer.
    pub fn push(&mut self, reply_to: ReplyTo, answer: Answer) {
        self.ready.push((reply_to, answer));
    }

    /// The answers that are ready, with their addresses.
    pub fn iter(&self) -> impl Iterator<Item = &(ReplyTo, Answer)> {
        self.ready.iter()
    }

    /// True if there is nothing to deliver.
    pub fn is_empty(&self) -> bool {
        self.ready.is_empty()
    }

    /// Hands the answers over. Call it without any lock held.
    pub fn deliver(&mut self) {
        if self.ready.is_empty() {
            return;
        }
        let mut sleeping: Vec<Arc<dyn Inbox>> = Vec::new();
        for (reply_to, answer) in self.ready.drain(..) {
            if reply_to.inbox.put(reply_to.ticket, answer) {
                sleeping.push(reply_to.inbox);
            }
        }
        for inbox in sleeping {
            inbox.wake();
        }
    }
}

/// The part of an applied entry that a client or the replica of this node waits for.
#[derive(Debug)]
pub enum Consequence {
    /// The outcomes of a request of this process.
    Outcomes(RequestId, Vec<Outcome>),
    /// The digest at a checkpoint, for the replica.
    Tell(Input),
}

/// A request of this process met a later process of the same node in the log: two processes use one
/// identity, or the boot number went back. This process must stop.
#[derive(Debug)]
pub struct Superseded;

/// The request of `entry`, if the process `boot` of `node` has made it.
pub fn own_request(entry: &Entry, node: NodeId, boot: u64) -> Option<RequestId> {
    match &entry.payload {
        Payload::Batch { proposal, .. } => {
            Some(proposal.id).filter(|id| id.node == node && id.boot == boot)
        }
        _ => None,
    }
}

/// The consequence of an applied entry, if this node waits for one. `own` comes from
/// [`own_request`].
///
/// # Errors
/// [`Superseded`]: the state machine has seen a later process of this node.
pub fn consequence(
    index: Index,
    own: Option<RequestId>,
    applied: Applied,
) -> Result<Option<Consequence>, Superseded> {
    match (applied, own) {
        (Applied::Done(outcomes), Some(id)) => Ok(Some(Consequence::Outcomes(id, outcomes))),
        (Applied::Stale, Some(_)) => Err(Superseded),
        (Applied::Checkpoint { digest }, _) => {
            Ok(Some(Consequence::Tell(Input::CheckpointApplied { index, digest })))
        }
        // A duplicate needs no answer: its first copy has given it.
        _ => Ok(None),
    }
}
