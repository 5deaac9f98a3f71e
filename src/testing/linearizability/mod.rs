//! A checker for linearizability (Herlihy and Wing 1990).
//!
//! A history is linearizable if every operation can have taken effect at one moment between its
//! call and its return, so that all results follow from the order of these moments.
//!
//! The search is Wing and Gong's (1993) with Lowe's cache (2017). An operation may be linearized
//! next if no pending operation returned before its call; a set of linearized operations that
//! leaves the same state is explored once. Calls and returns form a linked list; linearized
//! operations are lifted out of it and put back on the way back. Linearizability is local (Herlihy
//! and Wing, theorem 1), so each key is checked alone. A lost operation, one without a known
//! result, may take effect at any moment after its call, or never. An operation that was certainly
//! not done must not be in the history.
//!
//! The problem is NP-complete (Gibbons and Korach 1997), so the search has a budget. Five rules
//! keep real histories far from it. Each is safe: if any order explains the history, then one that
//! obeys the rule does.
//!
//! - **Reads at once.** An operation that keeps the state wherever it fits is linearized as soon as
//!   it fits. In any order that has it later, it can move to here.
//! - **No value is left behind.** The state does not change while a certain operation still needs
//!   it, unless a pending operation can restore it.
//! - **Values blur.** Values that no pending operation asks for count as one: pending operations
//!   can only tell that there is a value. (Numbers stay apart while a sum may be unobserved.)
//! - **The most urgent of its kind.** Of operations that differ only in their moments, only the one
//!   that is due first is tried; in any order that has it later, the two can change places. A write
//!   of a unique value whose readers are all called counts with them as one operation: the readers
//!   follow it at once, and leave a blurred value.
//! - **Lost operations last**, and only if a pending operation can tell their effect. A lost read
//!   is no part of the history.
//!
//! Two cheap tests before the search find most faults: a value that comes back after it was gone
//! (`stale.rs`), and a value that no operation wrote.
//!
//! The cache keeps a 128-bit hash of each configuration, so the budget bounds the memory, too. A
//! collision of two hashes could make the search miss an order, but never accept a wrong one; among
//! ten million configurations its probability is 10^-25.
//!
//! Left out: operations over several keys at one moment; they are checked key by key.

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

/// A command on one key.
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

/// The result of an action as its client saw it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen {
    /// Done, without a value.
    Done,
    /// No value, or a condition that did not hold.
    Nil,
    /// A number.
    Integer(i64),
    /// A value.
    Value(Vec<u8>),
    /// An error, such as INCRBY on a text.
    Failed,
}

/// One or more actions on one key that take effect at one moment.
#[derive(Clone, Debug)]
pub struct Operation {
    /// The moment of the call; no two moments of a history are equal.
    pub invoked: u64,
    /// The moment of the return; `None` for a lost operation, whose result is unknown.
    pub returned: Option<u64>,
    /// The actions in their order, with their results if the operation returned.
    pub actions: Vec<(Action, Option<Seen>)>,
}

/// The result of the search.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// There is an order that explains everything.
    Linearizable,
    /// There is none.
    Impossible,
    /// The budget was spent before the answer was known.
    Undecided,
}

/// Checks the operations of one key, which starts without a value. Visits at most `budget`
/// configurations.
pub fn check(operations: Vec<Operation>, budget: usize) -> Verdict {
    search::search(&mut PreparedHistory::new(operations), budget).0
}

/// A small part of an impossible history that is impossible by itself, in the order of the calls.
/// Empty if the history is possible, or `budget` too small to decide.
///
/// An operation that returned may be lost in the result, if its return does not matter. Every
/// operation keeps the moment of its call, by which a caller finds it in its own records.
pub fn explain(operations: Vec<Operation>, budget: usize) -> Vec<Operation> {
    explain::explain(operations, budget)
}

/// `[12..15] SET "a" NX -> OK`; the numbers are the moments of call and return.
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
