//! The detector thread: owns the [`FailureDetector`], tells the core and the log who is suspected
//! and who has recovered.
//!
//! Every frame of a peer is a sign of life; it reaches the detector by `contacts.rs`.

use crossbeam_channel::{Receiver, RecvTimeoutError};

use super::contacts::Sign;
use crate::clock::Now;
use crate::node::shared::Shared;
use crate::replica::Input;
use crate::replica::detector::{FailureDetector, Liveness};
use crate::types::NodeId;

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
    let heard: Vec<(NodeId, Now)> = shared.contacts.all();
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
