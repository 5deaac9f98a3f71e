//! A pure failure detector: which peers are alive.
//!
//! Every node sends every other a heartbeat at each heartbeat interval, leader or not. Silence
//! longer than the timeout makes a peer *suspected*; any sign of life makes it *alive* again at
//! once. The verdict may be wrong in both directions, because a dead node looks like a slow one. No
//! safety property depends on it. It decides who campaigns first, whether a request has a chance,
//! and which warnings the node logs.
//!
//! A refused connection is the one certain sign: the machine is up and no process listens. It makes
//! the peer suspected at once. A lost connection alone does not; it may come back in a moment.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::clock::Now;
use crate::types::NodeId;

/// The detector's verdict on a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Liveness {
    /// The peer was heard within the timeout.
    Alive,
    /// The peer is silent, or its port refuses connections.
    Suspected,
}

/// The verdicts on all peers, and the moments at which they were last heard.
#[derive(Clone, Debug)]
pub struct FailureDetector {
    timeout: Duration,
    peers: BTreeMap<NodeId, (Now, Liveness)>,
}

impl FailureDetector {
    /// A detector to which all peers are alive, as if they had been heard now.
    pub fn new(
        now: Now,
        timeout: Duration,
        peers: impl IntoIterator<Item = NodeId>,
    ) -> FailureDetector {
        let peers = peers.into_iter().map(|peer| (peer, (now, Liveness::Alive))).collect();
        FailureDetector { timeout, peers }
    }

    /// Notes a sign of life. Returns true if the peer was suspected until now.
    pub fn heard(&mut self, now: Now, peer: NodeId) -> bool {
        let Some((heard, liveness)) = self.peers.get_mut(&peer) else { return false };
        *heard = now.max(*heard);
        std::mem::replace(liveness, Liveness::Alive) == Liveness::Suspected
    }

    /// True if the peer is not suspected.
    pub fn counts_as_alive(&self, peer: NodeId) -> bool {
        self.peers.get(&peer).is_some_and(|(_, liveness)| *liveness == Liveness::Alive)
    }

    /// Notes that the peer's port refused a connection. Returns true if it was alive until now.
    pub fn refused(&mut self, peer: NodeId) -> bool {
        let Some((_, liveness)) = self.peers.get_mut(&peer) else { return false };
        std::mem::replace(liveness, Liveness::Suspected) == Liveness::Alive
    }

    /// Suspects the peers whose silence has just become too long; returns them in order of ids.
    pub fn overdue(&mut self, now: Now) -> Vec<NodeId> {
        let mut overdue = Vec::new();
        let grace = self.timeout / 2;
        for (peer, (heard, liveness)) in &mut self.peers {
            let silence = now.since(*heard);
            if *liveness == Liveness::Suspected || silence < self.timeout {
                continue;
            }
            // This thread is late itself: its process was stopped, or the machine is starved. The
            // peers' heartbeats may still wait to be read, so they get half a timeout more.
            if silence >= self.timeout + grace {
                *heard = now - (self.timeout - grace);
            } else {
                *liveness = Liveness::Suspected;
                overdue.push(*peer);
            }
        }
        overdue
    }

    /// The moment of the next possible suspicion; `None` while all peers are suspected.
    pub fn deadline(&self) -> Option<Now> {
        let alive = self.peers.values().filter(|(_, liveness)| *liveness == Liveness::Alive);
        alive.map(|(heard, _)| *heard + self.timeout).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEER: NodeId = NodeId(1);

    fn detector() -> FailureDetector {
        FailureDetector::new(Now(0), Duration::from_micros(300), [PEER, NodeId(2)])
    }

    #[test]
    fn silence_is_reported_once_and_a_sign_of_life_ends_it() {
        let mut detector = detector();
        assert!(!detector.heard(Now(100), PEER));
        assert_eq!(detector.deadline(), Some(Now(300)));
        assert_eq!(detector.overdue(Now(300)), [NodeId(2)]);
        assert_eq!(detector.overdue(Now(399)), []);
        assert_eq!(detector.overdue(Now(400)), [PEER]);
        assert_eq!(detector.overdue(Now(900)), []);
        assert_eq!(detector.deadline(), None);
        assert!(detector.heard(Now(901), PEER));
        assert!(!detector.heard(Now(902), PEER));
        assert_eq!(detector.deadline(), Some(Now(1202)));
    }

    #[test]
    fn a_node_that_has_slept_hears_its_peers_out_before_it_suspects_them() {
        let mut detector = detector();
        assert_eq!(detector.overdue(Now(5_000)), [], "it is late itself");
        assert_eq!(detector.deadline(), Some(Now(5_150)));
        assert!(!detector.heard(Now(5_010), PEER));
        assert_eq!(detector.overdue(Now(5_150)), [NodeId(2)]);
        assert_eq!(detector.overdue(Now(5_310)), [PEER]);
    }

    #[test]
    fn a_refused_connection_is_suspicion_at_once_and_strangers_are_ignored() {
        let mut detector = detector();
        assert!(detector.refused(PEER));
        assert!(!detector.refused(PEER));
        assert!(!detector.refused(NodeId(9)));
        assert!(!detector.heard(Now(1), NodeId(9)));
        assert_eq!(detector.overdue(Now(300)), [NodeId(2)]);
    }
}
