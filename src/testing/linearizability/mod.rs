//! Is a history linearizable? Could every operation have happened at one moment between its call
//! and its return, so that all results follow from that order (Herlihy and Wing 1990)?
//!
//! The search is Wing and Gong's (1993) with Lowe's memory of what was tried (2017): an operation
//! may come next if nothing that is still to come had returned before it was called; a set of
//! operations that leaves the same value is explored once. Calls and returns stand in a linked
//! list, out of which the operations that have happened are taken and put back. Linearizability is
//! local: each key is checked alone. An operation without a known result may have happened at any
//! moment after its call, or never. What certainly did not happen must not be in the history.
//!
//! The problem is NP-complete, so the search has a budget. These rules keep real histories far
//! from it. Each is safe: if there is an order at all, then there is one that obeys it.
//!
//! - **Reads at once.** What keeps the value wherever it fits happens as soon as it fits. Wherever
//!   it stood in an order, it can be moved to here.
//! - **No value is left behind.** The state does not change as long as an operation needs it that
//!   must still happen, unless another one can bring it back.
//! - **Values blur.** Values that nobody still to come asks for are one and the same: all that can
//!   be told of them is that they are there. (Numbers stay apart where a sum may be unseen.)
//! - **The most urgent of its kind.** Of the operations that differ in their moments alone, only
//!   the one that is due first is tried. A write whose value is its own, and whose readers have all
//!   been called, counts with them as one: the readers follow it at once, and leave a blurred
//!   value. In any order in which the more urgent one comes later, the two can change places.
//! - **Lost operations last**, and only if they change something that can be told. A lost read is
//!   no part of the history.
//!
//! What most faults look like is seen before any search: a value that comes back (`stale.rs`), or
//! that nobody wrote.
//!
//! Of what was tried only a 128-bit hash is kept, so the budget bounds the memory too. If two
//! places of the search had the same hash, one would be left out, and an order might be missed;
//! an order that is found is always one. Among ten million places that has a chance of 10^-25.
//!
//! Left out: operations over several keys as one moment; they are checked key by key.

mod explain;
mod history;
mod model;
mod search;
mod stale;
#[cfg(test)]
mod tests;

use std::fmt;

use crate::types::When;
use history::PreparedHistory;

/// What an operation does to its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// GET
    Get,
    /// SET, with NX, XX and GET
    Set {
        /// The new value.
        value: Vec<u8>,
        /// NX, XX or neither.
        when: When,
        /// Returns the old value.
        get: bool,
    },
    /// INCRBY
    Increment(i64),
    /// GETDEL
    Take,
    /// DEL
    Delete,
}

/// What an action showed to its client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen {
    /// Done, nothing to tell.
    Done,
    /// Nothing there, or a condition that did not hold.
    Nil,
    /// A number.
    Integer(i64),
    /// A value.
    Value(Vec<u8>),
    /// It failed.
    Failed,
}

/// One or more actions on one key that happen together.
#[derive(Clone, Debug)]
pub struct Operation {
    /// The moment of the call; no two moments of a history are equal.
    pub invoked: u64,
    /// The moment of the return; `None` if nobody knows what became of it.
    pub returned: Option<u64>,
    /// The actions in their order, with what was seen if it returned.
    pub actions: Vec<(Action, Option<Seen>)>,
}

/// What the search came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// There is an order that explains everything.
    Linearizable,
    /// There is none.
    Impossible,
    /// The budget was spent before the answer was known.
    Undecided,
}

/// Checks the operations of one key, which starts without a value. Visits at most `budget` states.
pub fn check(operations: Vec<Operation>, budget: usize) -> Verdict {
    search::search(&mut PreparedHistory::new(operations), budget).0
}

/// A small part of an impossible history that is impossible by itself, in the order of the calls;
/// empty if `budget` is not enough to see that the history is impossible, or if it is not.
///
/// What was done may come back as lost: that it returned does not matter then. Every operation
/// keeps the moment of its call, by which a caller finds it in its own records.
pub fn explain(operations: Vec<Operation>, budget: usize) -> Vec<Operation> {
    explain::explain(operations, budget)
}

/// `[12..15] SET "a" NX -> OK`; the two ends are its moments.
impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.returned {
            Some(returned) => write!(f, "[{}..{returned}]", self.invoked)?,
            None => write!(f, "[{}..lost]", self.invoked)?,
        }
        for (at, (action, seen)) in self.actions.iter().enumerate() {
            let comma = if at > 0 { "," } else { "" };
            write!(f, "{comma} {action} -> ")?;
            match seen {
                Some(seen) => seen.fmt(f)?,
                None => f.write_str("?")?,
            }
        }
        Ok(())
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Action::Get => f.write_str("GET"),
            Action::Set { value, when, get } => {
                let when = match when {
                    When::Always => "",
                    When::Absent => " NX",
                    When::Present => " XX",
                };
                let get = if *get { " GET" } else { "" };
                write!(f, "SET \"{}\"{when}{get}", value.escape_ascii())
            }
            Action::Increment(by) => write!(f, "INCRBY {by}"),
            Action::Take => f.write_str("GETDEL"),
            Action::Delete => f.write_str("DEL"),
        }
    }
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Seen::Done => f.write_str("OK"),
            Seen::Nil => f.write_str("nil"),
            Seen::Integer(number) => number.fmt(f),
            Seen::Value(value) => write!(f, "\"{}\"", value.escape_ascii()),
            Seen::Failed => f.write_str("error"),
        }
    }
}
