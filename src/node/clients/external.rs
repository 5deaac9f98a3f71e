//! A client that somebody else's front end serves, by other means than `--io` offers: its own
//! sockets, its own way to wait. The benchmark `threads_vs_async` serves clients from an async
//! runtime with it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use crate::node::Shared;
use crate::node::clients::waiter::{Answer, Asker, Inbox, Ticket};
use crate::node::core::{Asked, Open};
use crate::service::driver::{Desk, Next};

/// See the module. Dropping it ends the client.
pub struct ExternalClient {
    shared: Arc<Shared>,
    desk: Desk,
    ticket: Ticket,
    open: Option<Open>,
}

/// What a guest needs next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Write the output, clear it, then read more bytes into the space.
    Read,
    /// Write the output, clear it, then go on.
    Flush,
    /// Write the output and close the connection.
    Close,
    /// Wait for the answer in the inbox, and hand it to [`ExternalClient::answered`]; from this time on,
    /// without one, call [`ExternalClient::cancel`].
    Answer(Instant),
}

impl ExternalClient {
    pub(in crate::node) fn new(
        shared: &Arc<Shared>,
        address: SocketAddr,
    ) -> Option<ExternalClient> {
        let client = shared.clients.enter(address, shared.config.maxclients)?;
        let desk = Desk::new(shared, client);
        Some(ExternalClient { shared: Arc::clone(shared), desk, ticket: 0, open: None })
    }

    /// Where to read the client's bytes into; to be asked for before each read.
    pub fn space(&mut self) -> &mut [u8] {
        self.desk.space()
    }

    /// Takes note that `len` bytes were read into the space.
    ///
    /// # Panics
    /// If the space was shorter.
    pub fn filled(&mut self, len: usize) {
        self.desk.filled(len);
    }

    /// Bytes for the client.
    pub fn output(&mut self) -> &mut Vec<u8> {
        self.desk.output()
    }

    /// Does all that nobody has to wait for, and asks the core for what somebody has; the answer
    /// goes to `inbox`, unless it is there at once.
    pub fn step(&mut self, inbox: &Arc<dyn Inbox>) -> Step {
        loop {
            let request = match self.desk.next(&self.shared) {
                Next::Read => return Step::Read,
                Next::Yield => continue,
                Next::Flush => return Step::Flush,
                Next::Close => return Step::Close,
                Next::Wait(wait) => {
                    self.desk.waited(wait.holding(&self.shared));
                    continue;
                }
                Next::Ask(request) => request,
            };
            self.ticket += 1;
            let deadline = Instant::now() + self.shared.config.request_timeout;
            let asker = Asker { inbox: Arc::clone(inbox), ticket: self.ticket, deadline };
            let mut stamped = None;
            self.shared.core.ask([(request, asker)], |asked: Asked| {
                self.open = Some(asked.open);
                stamped = asked.stamped;
            });
            match stamped {
                Some(writes) => self.answered(self.ticket, Answer::Stamped(writes)),
                None => return Step::Answer(deadline),
            }
        }
    }

    /// An answer has come. One that is not waited for any more is dropped.
    pub fn answered(&mut self, ticket: Ticket, answer: Answer) {
        if ticket != self.ticket || self.open.take().is_none() {
            return;
        }
        let shared = &self.shared;
        let stamper = shared.core.stamped_by(&answer);
        match answer {
            Answer::Outcomes(outcomes) => self.desk.wrote(shared, outcomes),
            Answer::Stamped(writes) => {
                self.desk.accepted(&shared.store.put_overlay(&writes), stamper);
            }
            Answer::MayRead => self.desk.may_read(shared),
            Answer::Unserved(unserved) => self.desk.unserved(shared, unserved),
        }
    }

    /// The time is over. False if an answer is on its way, which must be waited for.
    pub fn cancel(&mut self) -> bool {
        let Some(open) = self.open else { return true };
        let answer = self.shared.core.cancel(open);
        answer.map(|answer| self.answered(self.ticket, answer)).is_some()
    }
}

impl Drop for ExternalClient {
    fn drop(&mut self) {
        if let Some(open) = self.open {
            self.shared.core.cancel(open);
        }
        self.shared.clients.leave(self.desk.client.id);
    }
}
