//! The detector thread: owns the [`FailureDetector`], tells the core and the log who is suspected
//! and who has recovered.
//!
//! Every frame of a peer is a sign of life. Readers put its time into a shared table and wake the
//! detector only when the peer is suspected: a busy link costs it nothing.

use std::collections::HashMap;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use parking_lot::Mutex;

use crate::clock::Now;
use crate::node::Shared;
use crate::replica::Input;
use crate::replica::detector::{FailureDetector, Liveness};
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

    fn suspect(&self, peer: NodeId, suspected: bool) {
        if let Some(contact) = self.table.lock().get_mut(&peer) {
            contact.suspected = suspected;
        }
    }
}

/// Watches until the node ends.
pub fn run(shared: &Shared, mut detector: FailureDetector, signs: &Receiver<Sign>) {
    loop {
        let sign = match detector.deadline() {
            Some(at) => signs.recv_deadline(shared.clock.instant(at)),
            None => signs.recv().map_err(|_| RecvTimeoutError::Disconnected),
        };
        match sign {
            Ok(Sign::Heard(peer)) => recovered(shared, &mut detector, peer),
            Ok(Sign::Refused(peer)) => {
                if detector.refused(peer) {
                    shared.contacts.suspect(peer, true);
                    log::warn!(target: "FAILURE", "Node {peer} is gone: connection refused");
                }
                // From here, not from the thread that was refused: what the core is told of a peer
                // comes in the order in which it was found out.
                shared.core.step([Input::PeerGone(peer)]);
            }
            Ok(Sign::Stop) | Err(RecvTimeoutError::Disconnected) => return,
            Err(RecvTimeoutError::Timeout) => look_through(shared, &mut detector),
        }
    }
}

fn recovered(shared: &Shared, detector: &mut FailureDetector, peer: NodeId) {
    shared.contacts.suspect(peer, false);
    if detector.heard(shared.clock.now(), peer) {
        log::info!(target: "RECOVERED", "Node {peer} is alive");
        shared.core.step([Input::Peer { peer, liveness: Liveness::Alive }]);
    }
}

fn look_through(shared: &Shared, detector: &mut FailureDetector) {
    let heard: Vec<(NodeId, Now)> =
        shared.contacts.table.lock().iter().map(|(peer, c)| (*peer, c.heard)).collect();
    for (peer, at) in heard {
        // What the table holds of a suspected peer is old; its return is told by a sign.
        if detector.counts_as_alive(peer) {
            detector.heard(at, peer);
        }
    }
    for peer in detector.overdue(shared.clock.now()) {
        shared.contacts.suspect(peer, true);
        log::warn!(target: "FAILURE", "Node {peer} is suspected: nothing heard of it");
        shared.core.step([Input::Peer { peer, liveness: Liveness::Suspected }]);
    }
}
