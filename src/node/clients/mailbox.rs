//! The way into a loop for other threads, for connections and answers.
//!
//! A loop is woken only if it sleeps, and once, however much mail comes. Both sides decide under
//! the mail's lock: the loop falls asleep only if there is no mail, and a thread that brings mail
//! takes the sleep's mark, so that it alone wakes the loop.

use std::io::{self, ErrorKind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use mio::Waker;
use parking_lot::Mutex;

use super::registry::NewConnection;
use crate::service::{Answer, Inbox, Ticket};

/// The loops of a node, for the listener.
pub struct Loops {
    mailboxes: Vec<Arc<Mailbox>>,
    next: AtomicUsize,
}

/// A loop's inbox, and the means to wake the loop.
pub struct Mailbox {
    mail: Mutex<Mail>,
    waker: Waker,
}

/// Connections and answers that the loop has not taken yet.
#[derive(Default)]
pub struct Mail {
    pub connections: Vec<NewConnection>,
    pub answers: Vec<(Ticket, Answer)>,
    /// The loop sleeps, or is about to, and no thread has begun to wake it.
    asleep: bool,
    /// The loop has ended.
    closed: bool,
}

impl Inbox for Mailbox {
    fn put(&self, ticket: Ticket, answer: Answer) -> bool {
        self.put_with(|mail| mail.answers.push((ticket, answer)))
    }

    fn wake(&self) {
        // The loop then sleeps until its next deadline; its clients wait longer, but lose nothing.
        if let Err(error) = self.waker.wake() {
            log::error!(target: "FAILURE", "Cannot wake a loop that serves clients: {error}");
        }
    }
}

impl Mailbox {
    /// A mailbox for the loop that `waker` wakes.
    pub fn new(waker: Waker) -> Mailbox {
        Mailbox { mail: Mutex::default(), waker }
    }

    /// Puts mail in. Returns true if the caller has to wake the loop.
    fn put_with(&self, put: impl FnOnce(&mut Mail)) -> bool {
        let mut mail = self.mail.lock();
        put(&mut mail);
        std::mem::take(&mut mail.asleep)
    }

    /// Gives the loop a connection. Closes the connection if the loop has ended.
    fn give(&self, connection: NewConnection) {
        let asleep = self.put_with(|mail| {
            if !mail.closed {
                mail.connections.push(connection);
            }
        });
        if asleep {
            self.wake();
        }
    }

    /// Closes all connections that the loop has not taken, and later ones: the loop has ended.
    pub fn close(&self) {
        let mut mail = self.mail.lock();
        mail.closed = true;
        mail.connections.clear();
    }

    /// Takes all mail. The loop counts as awake from here on.
    pub fn empty_into(&self, mail: &mut Mail) {
        let mut inside = self.mail.lock();
        inside.asleep = false;
        std::mem::swap(&mut inside.connections, &mut mail.connections);
        std::mem::swap(&mut inside.answers, &mut mail.answers);
    }

    /// True if there is no mail: then the loop may sleep, and the next thread with mail wakes it.
    pub fn may_sleep(&self) -> bool {
        let mut mail = self.mail.lock();
        mail.asleep = mail.connections.is_empty() && mail.answers.is_empty();
        mail.asleep
    }
}

impl Loops {
    /// The loops with these mailboxes.
    pub fn new(mailboxes: Vec<Arc<Mailbox>>) -> Loops {
        Loops { mailboxes, next: AtomicUsize::new(0) }
    }

    /// Gives a connection to the next loop in turn.
    ///
    /// # Errors
    /// The socket's, or `NotConnected` if this node has no loops.
    pub fn take(&self, connection: NewConnection) -> io::Result<()> {
        connection.stream.set_nonblocking(true)?;
        let turn = self.next.fetch_add(1, Ordering::Relaxed);
        let mailbox = self.mailboxes.get(turn % self.mailboxes.len().max(1));
        let mailbox = mailbox.ok_or(ErrorKind::NotConnected)?;
        mailbox.give(connection);
        Ok(())
    }

    /// Wakes all loops, so that they see that the node has stopped.
    pub fn wake(&self) {
        self.mailboxes.iter().for_each(|mailbox| mailbox.wake());
    }
}
