//! Signs of life on their way to the detector. Every frame of a peer is one. Readers put its time
//! into a table, and wake the detector only when the peer is suspected: a busy link costs it
//! nothing.

use std::collections::HashMap;

use crossbeam_channel::Sender;
use parking_lot::Mutex;

use crate::clock::Now;
use crate::types::NodeId;

/// What the detector is told.
pub enum Sign {
    /// A suspected peer is heard again.
    Heard(NodeId),
    /// A peer's port refuses connections.
    Refused(NodeId),
    /// End.
    Stop,
}

#[derive(Clone, Copy)]
struct Contact {
    heard: Now,
    suspected: bool,
}

/// When each peer was last heard, written by readers and looked through by the detector.
pub struct Contacts {
    table: Mutex<HashMap<NodeId, Contact>>,
    signs: Sender<Sign>,
}

impl Contacts {
    /// All peers count as heard at `now`.
    pub fn new(now: Now, peers: impl Iterator<Item = NodeId>, signs: Sender<Sign>) -> Contacts {
        let contact = Contact { heard: now, suspected: false };
        Contacts { table: Mutex::new(peers.map(|peer| (peer, contact)).collect()), signs }
    }

    /// A sign of life.
    pub fn heard(&self, now: Now, peer: NodeId) {
        let mut table = self.table.lock();
        let Some(contact) = table.get_mut(&peer) else { return };
        contact.heard = now;
        let suspected = contact.suspected;
        drop(table);
        if suspected {
            self.tell(Sign::Heard(peer));
        }
    }

    /// Tells the detector something.
    pub fn tell(&self, sign: Sign) {
        // The receiver is gone only when the node has stopped.
        let _ = self.signs.send(sign);
    }

    /// The time at which each peer was last heard.
    pub fn all(&self) -> Vec<(NodeId, Now)> {
        self.table.lock().iter().map(|(peer, contact)| (*peer, contact.heard)).collect()
    }

    /// From now on the detector suspects the peer, or no longer does.
    pub fn suspect(&self, peer: NodeId, suspected: bool) {
        if let Some(contact) = self.table.lock().get_mut(&peer) {
            contact.suspected = suspected;
        }
    }
}
