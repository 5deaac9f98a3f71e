//! A client of a front end outside this crate, with its own sockets and its own way to wait. The
//! benchmark `threads_vs_async` uses it to serve clients from an async runtime.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use super::connection::new_driver;
use super::registry::ConnectedClient;
use super::view::ClientView;
use crate::node::shared::Shared;
use crate::service::{
    Answer, Inbox, Next, NodeView, ReplyTo, RequestHandle, SessionDriver, Ticket,
};

/// A client without a front end of this node. Dropping it ends the client.
pub struct ExternalClient {
    shared: Arc<Shared>,
    client: Arc<ConnectedClient>,
    driver: SessionDriver,
    ticket: Ticket,
    /// The request that waits for its answer.
    open: Option<RequestHandle>,
}

/// The client's next need.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExternalNext {
    /// Write the output, clear it, then read more bytes into the space.
    Read,
    /// Write the output, clear it, then call [`ExternalClient::step`] again.
    Flush,
    /// Write the output and close the connection.
    Close,
    /// Wait for the answer in the inbox, and pass it to [`ExternalClient::answered`]. If it has not
    /// come by this time, call [`ExternalClient::cancel`].
    Answer(Instant),
}

impl ExternalClient {
    pub(in crate::node) fn new(
        shared: &Arc<Shared>,
        address: SocketAddr,
    ) -> Option<ExternalClient> {
        let client = shared.clients.enter(address, shared.config.maxclients)?;
        let driver = new_driver(shared, &client);
        Some(ExternalClient { shared: Arc::clone(shared), client, driver, ticket: 0, open: None })
    }

    /// The place to read the client's bytes into. Ask for it before each read.
    pub fn space(&mut self) -> &mut [u8] {
        self.driver.space()
    }

    /// Takes in `len` bytes that were read into the space.
    ///
    /// # Panics
    /// If the space was shorter.
    pub fn filled(&mut self, len: usize) {
        self.driver.filled(len);
    }

    /// Bytes for the client.
    pub fn output(&mut self) -> &mut Vec<u8> {
        self.driver.output()
    }

    /// Does everything that needs no waiting, then asks the core for the next request. The answer
    /// goes to `inbox`, and may be there before this returns.
    pub fn step(&mut self, inbox: &Arc<dyn Inbox>) -> ExternalNext {
        let view = ClientView { shared: &self.shared, client: &self.client };
        loop {
            match self.driver.next(&view) {
                Next::Read => return ExternalNext::Read,
                Next::Flush => return ExternalNext::Flush,
                Next::Close => return ExternalNext::Close,
                // The front end outside is not asked: a long run of local reads holds up its
                // thread.
                Next::Yield => {}
                // Nor has it a timer for WAIT: the reply is the number of nodes at this moment.
                Next::Wait(wait) => self.driver.finish_wait(wait.holding(&view.status())),
                Next::Ask(request) => {
                    self.ticket += 1;
                    let deadline = view.now() + self.shared.config.request_timeout;
                    let (inbox, ticket) = (Arc::clone(inbox), self.ticket);
                    let asked = vec![(request, ReplyTo { inbox, ticket, deadline })];
                    self.open = self.shared.core.ask(asked).pop();
                    return ExternalNext::Answer(self.shared.clock.instant(deadline));
                }
            }
        }
    }

    /// Takes an answer in. An answer to an earlier ticket, or to a cancelled request, is dropped.
    pub fn answered(&mut self, ticket: Ticket, mut answer: Answer) {
        if ticket == self.ticket && self.open.take().is_some() {
            let view = ClientView { shared: &self.shared, client: &self.client };
            self.driver.complete(&view, answer.as_share());
        }
    }

    /// Cancels the open request, because its time is over. False if its answer is on its way: then
    /// wait for that.
    pub fn cancel(&mut self) -> bool {
        let Some(open) = self.open else { return true };
        let answer = self.shared.core.cancel(open);
        answer.map(|answer| self.answered(self.ticket, answer)).is_some()
    }
}

impl Drop for ExternalClient {
    fn drop(&mut self) {
        // Otherwise the core would keep the request, and send it to every new leader.
        if let Some(open) = self.open {
            self.shared.core.cancel(open);
        }
        self.shared.clients.leave(self.client.id);
    }
}
