//! The way into a loop for other threads: connections and answers. A loop is woken only if it
//! sleeps, and once, however much comes.

use std::io::{self, ErrorKind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use mio::Waker;
use parking_lot::Mutex;

use super::connection::Connection;
use crate::service::{Answer, Inbox, Ticket};

/// The ways into all loops of a node, for the listener.
pub struct Loops {
    mailboxes: Vec<Arc<Mailbox>>,
    next: AtomicUsize,
}

/// A loop's inbox, and its way to be woken.
pub struct Mailbox {
    mail: Mutex<Mail>,
    waker: Waker,
}

/// What has come since the loop last looked.
#[derive(Default)]
pub struct Mail {
    pub connections: Vec<Connection>,
    pub answers: Vec<(Ticket, Answer)>,
    /// The loop sleeps, or is about to, and has not been woken.
    asleep: bool,
    /// The loop has ended.
    closed: bool,
}

impl Inbox for Mailbox {
    fn put(&self, ticket: Ticket, answer: Answer) -> bool {
        self.put_with(|mail| mail.answers.push((ticket, answer)))
    }

    fn wake(&self) {
        if let Err(error) = self.waker.wake() {
            log::error!(target: "FAILURE", "A loop cannot be woken: {error}");
        }
    }
}

impl Mailbox {
    /// For the loop that `waker` wakes.
    pub fn new(waker: Waker) -> Mailbox {
        Mailbox { mail: Mutex::default(), waker }
    }

    fn put_with(&self, put: impl FnOnce(&mut Mail)) -> bool {
        let mut mail = self.mail.lock();
        put(&mut mail);
        std::mem::take(&mut mail.asleep)
    }

    /// Hands a connection over; after the loop has ended it is closed.
    fn hand(&self, connection: Connection) {
        let asleep = self.put_with(|mail| {
            if !mail.closed {
                mail.connections.push(connection);
            }
        });
        if asleep {
            self.wake();
        }
    }

    /// The loop has ended.
    pub fn close(&self) {
        let mut mail = self.mail.lock();
        mail.closed = true;
        mail.connections.clear();
    }

    /// Takes what has come; the loop does not sleep any more.
    pub fn empty_into(&self, mail: &mut Mail) {
        let mut inside = self.mail.lock();
        inside.asleep = false;
        std::mem::swap(&mut inside.connections, &mut mail.connections);
        std::mem::swap(&mut inside.answers, &mut mail.answers);
    }

    /// True if the loop may sleep: nothing has come, and the next one to bring something wakes it.
    /// Both are decided under the mail's lock, so no answer can slip in between.
    pub fn may_sleep(&self) -> bool {
        let mut mail = self.mail.lock();
        mail.asleep = mail.connections.is_empty() && mail.answers.is_empty();
        mail.asleep
    }
}

impl Loops {
    /// The ways into the loops with these mailboxes.
    pub fn new(mailboxes: Vec<Arc<Mailbox>>) -> Loops {
        Loops { mailboxes, next: AtomicUsize::new(0) }
    }

    /// Hands a connection to the loop whose turn it is.
    pub fn take(&self, connection: Connection) -> io::Result<()> {
        connection.stream.set_nonblocking(true)?;
        let turn = self.next.fetch_add(1, Ordering::Relaxed);
        let mailbox = self.mailboxes.get(turn % self.mailboxes.len().max(1));
        let mailbox = mailbox.ok_or(ErrorKind::NotConnected)?;
        mailbox.hand(connection);
        Ok(())
    }

    /// Has the loops see that the node has stopped.
    pub fn wake(&self) {
        self.mailboxes.iter().for_each(|mailbox| mailbox.wake());
    }
}
