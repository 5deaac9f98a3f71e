//! Where a session's thread waits for what it has asked for. A session has one waiter and uses it
//! again and again; at most one question is open at a time.

use std::time::Instant;

use parking_lot::{Condvar, Mutex};

use crate::types::{Outcome, Unserved, Writes};

/// What a session has waited for.
#[derive(Debug)]
pub enum Answer {
    /// A batch was applied: one outcome for each command.
    Outcomes(Vec<Outcome>),
    /// Eventual writes are taken: stamped, to be put into the overlay.
    Accepted(Writes),
    /// The store may be read now.
    MayRead,
    /// Neither.
    Unserved(Unserved),
}

/// See the module.
#[derive(Debug, Default)]
pub struct Waiter {
    answer: Mutex<Option<Answer>>,
    ready: Condvar,
}

impl Waiter {
    /// Hands the answer over and wakes the session. Called without any other lock held.
    pub fn answer(&self, answer: Answer) {
        *self.answer.lock() = Some(answer);
        self.ready.notify_one();
    }

    /// Waits for the answer; `None` if it has not come by `deadline`.
    pub fn wait_until(&self, deadline: Instant) -> Option<Answer> {
        let mut answer = self.answer.lock();
        while answer.is_none() {
            if self.ready.wait_until(&mut answer, deadline).timed_out() {
                break;
            }
        }
        answer.take()
    }

    /// Waits for an answer that is certain to come.
    pub fn wait(&self) -> Answer {
        let mut answer = self.answer.lock();
        loop {
            if let Some(answer) = answer.take() {
                return answer;
            }
            self.ready.wait(&mut answer);
        }
    }
}
