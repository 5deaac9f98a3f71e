//! The detector thread: owns the [`FailureDetector`], and tells the core and the log which peers
//! are suspected and which have recovered. Signs of life reach it through `contacts.rs`.

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
                // Each attempt to connect is refused anew; only the first refusal is news.
                if detector.refused(peer) {
                    shared.contacts.suspect(peer, true);
                    log::warn!(target: "FAILURE", "Node {peer} is gone: connection refused");
                }
                // Sent from here and not from the thread that was refused: all news of a peer
                // reaches the core from one thread, and so in order.
                shared.core.step([Input::PeerGone(peer)]);
            }
            Ok(Sign::Stop) | Err(RecvTimeoutError::Disconnected) => return,
            Err(RecvTimeoutError::Timeout) => check_table(shared, &mut detector),
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

fn check_table(shared: &Shared, detector: &mut FailureDetector) {
    let heard: Vec<(NodeId, Now)> = shared.contacts.all();
    for (peer, at) in heard {
        // A suspected peer returns by `Sign::Heard` alone: its time in the table may be from before
        // the suspicion.
        if detector.counts_as_alive(peer) {
            detector.heard(at, peer);
        }
    }
    // Suspicion proves nothing: the peer may be slow. Elections stay safe without it (§5.2).
    for peer in detector.overdue(shared.clock.now()) {
        shared.contacts.suspect(peer, true);
        log::warn!(target: "FAILURE", "Node {peer} is suspected: it is silent");
        shared.core.step([Input::Peer { peer, liveness: Liveness::Suspected }]);
    }
}
