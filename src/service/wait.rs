//! WAIT (Redis): how many other nodes hold everything that was committed when it was asked.

use std::time::Duration;

use crate::clock::Now;
use crate::replica::{RoleName, Status};
use crate::types::Index;

/// The interval at which a front end should ask [`Wait::result`] again.
pub const WAIT_STEP: Duration = Duration::from_millis(10);

/// A WAIT that is under way.
#[derive(Clone, Copy, Debug)]
pub struct Wait {
    replicas: i64,
    index: Index,
    deadline: Now,
}

impl Wait {
    /// Begins to wait for `replicas` other nodes. Redis waits for ever with a time-out of 0; here
    /// `limit` bounds every wait.
    pub fn new(now: Now, status: &Status, replicas: i64, timeout_ms: u64, limit: Duration) -> Wait {
        let patience = match timeout_ms {
            0 => limit,
            millis => Duration::from_millis(millis).min(limit),
        };
        let replicas = replicas.min(status.peers.len() as i64);
        Wait { replicas, index: status.commit, deadline: now + patience }
    }

    /// The reply, if it is time for it: enough nodes hold the index, or the time is over.
    pub fn result(&self, now: Now, status: &Status) -> Option<i64> {
        let holding = self.holding(status);
        (holding >= self.replicas || now >= self.deadline).then_some(holding)
    }

    /// The number of other nodes that are known to hold the index.
    pub fn holding(&self, status: &Status) -> i64 {
        let holding = if status.role == RoleName::Leader {
            let matched = status.peers.iter().filter_map(|peer| peer.progress);
            matched.filter(|(matched, _)| *matched >= self.index).count()
        } else {
            // Only the leader knows each node's progress. But the index was committed when WAIT
            // began, so a majority holds it: this node and at least half of the others.
            status.peers.len().div_ceil(2)
        };
        holding as i64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replica::{Recovered, Replica, Settings};
    use crate::rng::Rng;
    use crate::types::NodeId;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn the_limit_bounds_every_wait() {
        let settings = Settings::new(NodeId(1), vec![NodeId(1)]);
        let replica = Replica::new(Now(0), settings, Recovered::default(), Rng::new(1));
        let status = replica.status();
        for timeout_ms in [0, 1_000, 100_000] {
            let wait = Wait::new(Now(0), &status, 0, timeout_ms, SECOND);
            assert_eq!(wait.deadline, Now(0) + SECOND, "{timeout_ms}");
        }
        let wait = Wait::new(Now(0), &status, 0, 5, SECOND);
        assert_eq!(wait.deadline, Now(5_000));
    }
}
