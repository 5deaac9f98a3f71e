//! A loop that serves clients of one node, with the real [`Rounds`]. A thread that serves one
//! client is a loop with one client.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::clock::Now;
use crate::service::{Answer, Inbox, Rounds, Ticket};
use crate::testing::sim::plan::Plan;
use crate::types::{Index, Writes};

/// Answers that a loop has not taken yet.
#[derive(Default)]
pub struct LoopInbox(pub Mutex<Vec<(Ticket, Answer)>>);

impl Inbox for LoopInbox {
    /// Never asks for a wake-up: `World::wake_loops` looks into every inbox after each delivery.
    fn put(&self, ticket: Ticket, answer: Answer) -> bool {
        self.0.lock().push((ticket, answer));
        false
    }

    fn wake(&self) {}
}

/// A loop with the requests of its clients.
pub struct ClientLoop {
    pub rounds: Rounds,
    pub inbox: Arc<LoopInbox>,
    /// Connections that may go on.
    pub ready: BTreeSet<usize>,
    /// The next turn, in true time.
    pub turn_at: Option<Now>,
    /// For each read under way: the number of commits known to any node when it was requested.
    pub read_floors: BTreeMap<Ticket, Index>,
    /// For each stamping that is done and not answered yet: its writes.
    pub stamped: BTreeMap<Ticket, Writes>,
}

impl ClientLoop {
    /// A loop without a client.
    pub fn new(plan: &Plan) -> ClientLoop {
        let inbox = Arc::<LoopInbox>::default();
        let reply_inbox = Arc::clone(&inbox) as Arc<dyn Inbox>;
        ClientLoop {
            rounds: Rounds::new(reply_inbox, plan.request_timeout, &plan.limits),
            inbox,
            ready: BTreeSet::new(),
            turn_at: None,
            read_floors: BTreeMap::new(),
            stamped: BTreeMap::new(),
        }
    }
}

impl fmt::Debug for ClientLoop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ready {:?}, deadline {:?}", self.ready, self.rounds.deadline())
    }
}
