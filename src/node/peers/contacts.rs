//! Signs of life on their way to the detector.
//!
//! Every read from a peer's stream is a sign of life. The reader writes its time into a table, and
//! wakes the detector only if the peer is suspected. So a busy link costs the detector nothing.

use std::collections::HashMap;

use crossbeam_channel::Sender;
use parking_lot::Mutex;

use crate::clock::Now;
use crate::types::NodeId;

/// News for the detector.
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

/// The time at which each peer was last heard, written by readers and read by the detector.
pub struct Contacts {
    table: Mutex<HashMap<NodeId, Contact>>,
    signs: Sender<Sign>,
}

impl Contacts {
    /// A table in which every peer was heard at `now`.
    pub fn new(now: Now, peers: impl Iterator<Item = NodeId>, signs: Sender<Sign>) -> Contacts {
        let contact = Contact { heard: now, suspected: false };
        Contacts { table: Mutex::new(peers.map(|peer| (peer, contact)).collect()), signs }
    }

    /// Records a sign of life.
    pub fn heard(&self, now: Now, peer: NodeId) {
        let mut table = self.table.lock();
        let Some(contact) = table.get_mut(&peer) else { return };
        contact.heard = now;
        // The detector may be about to suspect the peer, and not have said so here. Then this sign
        // is missed, and the next one is not: heartbeats come much more often than suspicions.
        let suspected = contact.suspected;
        drop(table);
        if suspected {
            self.tell(Sign::Heard(peer));
        }
    }

    /// Sends a sign to the detector.
    pub fn tell(&self, sign: Sign) {
        // Fails only if the detector's thread has ended, and then the node stops.
        let _ = self.signs.send(sign);
    }

    /// The time at which each peer was last heard.
    pub fn all(&self) -> Vec<(NodeId, Now)> {
        self.table.lock().iter().map(|(peer, contact)| (*peer, contact.heard)).collect()
    }

    /// Records that the detector suspects the peer, or does so no longer.
    pub fn suspect(&self, peer: NodeId, suspected: bool) {
        if let Some(contact) = self.table.lock().get_mut(&peer) {
            contact.suspected = suspected;
        }
    }
}
