//! Replication progress of one follower, as its leader knows it (etcd's Progress).
//!
//! ```text
//!          acknowledged                   behind the leader's first kept entry
//!   Probe ─────────────▶ Replicate        Probe ──────────────────────▶ Snapshot
//!     ▲                      │              ▲                              │
//!     └── refused, new link, ┘              └─── failed, or no answer ─────┘
//!         or an answer is overdue             (installed: Replicate)
//! ```
//! *Probe* looks for the point where the logs agree: one append under way at a time. *Replicate*
//! sends ahead, within a window of messages and bytes. *Snapshot* waits until the image is sent and
//! installed. All transitions are in this file. `matched` falls only when the peer may have lost
//! its disk: on a new link, or when a probe is refused. Forgetting an acknowledgement is always
//! safe.

use std::collections::VecDeque;
use std::time::Duration;

use crate::clock::Now;
use crate::types::Index;

/// The time that installing an image may take, as a multiple of the time to answer an append.
const INSTALL_FACTOR: u32 = 40;

/// The way in which a follower gets its entries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProgressState {
    /// Looking for the point of agreement.
    Probe {
        /// True while an append is under way.
        waiting: bool,
    },
    /// Sending ahead.
    Replicate {
        /// The appends under way, oldest first: the last index and the bytes of each.
        inflight: VecDeque<(Index, usize)>,
        /// The sum of their bytes.
        inflight_bytes: usize,
    },
    /// An image up to this index is being sent, or was sent and is being installed.
    Snapshot {
        /// The image's last index.
        index: Index,
        /// True once all of it has been sent.
        sent: bool,
    },
}

/// Bounds on the appends under way to one follower.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    /// The number of appends.
    pub messages_max: usize,
    /// The bytes of their entries.
    pub bytes_max: usize,
}

/// One follower's position and state.
#[derive(Clone, Debug)]
pub struct Progress {
    /// The follower's durable log equals ours up to here.
    pub matched: Index,
    /// The next entry to send.
    pub next: Index,
    /// The way in which it gets its entries.
    pub state: ProgressState,
    /// The arrival of its latest message in our term.
    pub heard_at: Now,
    /// The moment at which `matched` last grew, or at which the oldest message under way left: an
    /// answer later than that is overdue.
    pub moved_at: Now,
    /// The highest commit index that was sent to it.
    pub commit_sent: Index,
    /// Clients of this follower wait for the commit of entries up to here.
    pub commit_wanted: Index,
    /// The moment since which it has been alive, fit and nearly caught up without a break.
    pub ready_since: Option<Now>,
}

impl Progress {
    /// An unknown follower; `last` is the leader's last index.
    pub fn new(now: Now, last: Index) -> Progress {
        Progress {
            matched: 0,
            next: last + 1,
            state: ProgressState::Probe { waiting: false },
            heard_at: now,
            moved_at: now,
            commit_sent: 0,
            commit_wanted: 0,
            ready_since: None,
        }
    }

    /// True if an append may be sent now.
    pub fn may_send(&self, window: Window) -> bool {
        match &self.state {
            ProgressState::Probe { waiting } => !waiting,
            ProgressState::Replicate { inflight, inflight_bytes } => {
                inflight.len() < window.messages_max && *inflight_bytes < window.bytes_max
            }
            ProgressState::Snapshot { .. } => false,
        }
    }

    /// Notes that an append with entries up to `last`, of `bytes` together, was sent.
    pub fn sent(&mut self, now: Now, last: Index, bytes: usize, commit: Index) {
        self.commit_sent = self.commit_sent.max(commit);
        match &mut self.state {
            ProgressState::Probe { waiting } => {
                *waiting = true;
                self.moved_at = now;
            }
            ProgressState::Replicate { inflight, inflight_bytes } => {
                if inflight.is_empty() {
                    self.moved_at = now;
                }
                inflight.push_back((last, bytes));
                *inflight_bytes += bytes;
                self.next = last + 1;
            }
            ProgressState::Snapshot { .. } => {
                debug_assert!(false, "nothing is sent beside a snapshot")
            }
        }
    }

    /// Notes that the follower holds our log durably up to `index`. Returns true if that is news.
    pub fn acknowledged(&mut self, now: Now, index: Index) -> bool {
        let is_news = index > self.matched;
        if is_news {
            self.matched = index;
            self.moved_at = now;
        }
        match &mut self.state {
            // A lower index than the probed one comes from a heartbeat: it answers no probe.
            ProgressState::Probe { .. } if index + 1 >= self.next => self.replicate(),
            ProgressState::Probe { .. } => {}
            // An acknowledgement covers all earlier appends too.
            ProgressState::Replicate { inflight, inflight_bytes } => {
                self.next = self.next.max(index + 1);
                while let Some((_, bytes)) = inflight.pop_front_if(|(last, _)| *last <= index) {
                    *inflight_bytes -= bytes;
                }
            }
            ProgressState::Snapshot { index: image, .. } if index >= *image => self.replicate(),
            ProgressState::Snapshot { .. } => {}
        }
        is_news
    }

    fn replicate(&mut self) {
        self.next = self.matched + 1;
        self.state = ProgressState::Replicate { inflight: VecDeque::new(), inflight_bytes: 0 };
    }

    /// Notes that the follower refused the append after `prev_index`; `next` is the next entry to
    /// try.
    pub fn refused(&mut self, prev_index: Index, next: Index) {
        let is_stale = match &self.state {
            // The answer to the probe under way counts, even against `matched`: the follower may
            // have lost its disk. Any other answer is late.
            ProgressState::Probe { .. } => prev_index.checked_add(1) != Some(self.next),
            // The follower has acknowledged more since it sent this refusal.
            ProgressState::Replicate { .. } => prev_index <= self.matched,
            ProgressState::Snapshot { .. } => true,
        };
        if !is_stale {
            // A peer may send any index: `next` stays within the log.
            self.next = next.clamp(1, prev_index.max(1));
            self.matched = self.matched.min(self.next - 1);
            self.state = ProgressState::Probe { waiting: false };
        }
    }

    /// Looks for agreement again, because the messages under way may be lost.
    pub fn probe(&mut self) {
        self.next = match self.state {
            // A probe without an answer is repeated as it was: a silent follower is not an empty
            // one.
            ProgressState::Probe { .. } => self.next,
            ProgressState::Replicate { .. } => self.matched + 1,
            // An append behind the image will tell whether the follower has installed it.
            ProgressState::Snapshot { index, sent: true } => index + 1,
            ProgressState::Snapshot { sent: false, .. } => self.next,
        };
        self.state = ProgressState::Probe { waiting: false };
    }

    /// Forgets everything but the wishes of the peer's clients: behind a new link there may be a
    /// new disk. `last` is the leader's last index.
    pub fn link_is_new(&mut self, now: Now, last: Index) {
        *self = Progress {
            heard_at: self.heard_at,
            commit_wanted: self.commit_wanted,
            ..Progress::new(now, last)
        };
    }

    /// Begins to send an image up to `index`; no append is sent meanwhile.
    pub fn snapshot(&mut self, now: Now, index: Index) {
        self.state = ProgressState::Snapshot { index, sent: false };
        self.moved_at = now;
    }

    /// Notes that the image was sent, or could not be.
    pub fn snapshot_ended(&mut self, now: Now, all_sent: bool) {
        match &mut self.state {
            // The follower verifies and installs the image; its acknowledgement ends the state.
            ProgressState::Snapshot { sent, .. } if all_sent => {
                *sent = true;
                self.moved_at = now;
            }
            ProgressState::Snapshot { .. } => self.probe(),
            ProgressState::Probe { .. } | ProgressState::Replicate { .. } => {}
        }
    }

    /// True if a message is under way whose answer is overdue.
    pub fn is_overdue(&self, now: Now, patience: Duration) -> bool {
        let (under_way, patience) = match &self.state {
            ProgressState::Probe { waiting } => (*waiting, patience),
            ProgressState::Replicate { inflight, .. } => (!inflight.is_empty(), patience),
            ProgressState::Snapshot { sent, .. } => (*sent, patience * INSTALL_FACTOR),
        };
        under_way && now.since(self.moved_at) > patience
    }

    /// The last index of the image that the follower is getting, if there is one.
    pub fn image(&self) -> Option<Index> {
        match self.state {
            ProgressState::Snapshot { index, .. } => Some(index),
            ProgressState::Probe { .. } | ProgressState::Replicate { .. } => None,
        }
    }

    /// The last index of an image that was sent in full and is not acknowledged yet.
    pub fn installing(&self) -> Option<Index> {
        match self.state {
            ProgressState::Snapshot { index, sent: true } => Some(index),
            _ => None,
        }
    }

    /// The state's name, for INFO and NODES.
    pub fn state_name(&self) -> &'static str {
        match self.state {
            ProgressState::Probe { .. } => "probe",
            ProgressState::Replicate { .. } => "replicate",
            ProgressState::Snapshot { .. } => "snapshot",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const WINDOW: Window = Window { messages_max: 3, bytes_max: 100 };
    const LAST: Index = 20;

    proptest! {
        /// Answers may come late, twice, or be about anything: the follower is never thought to
        /// hold more than it said, the window is kept, and its bytes add up.
        #[test]
        fn no_answer_breaks_the_window(
            steps in prop::collection::vec((0u8..7, 0..=LAST, 1usize..60), 0..80)
        ) {
            let now = Now(0);
            let mut progress = Progress::new(now, LAST);
            let mut said = 0;
            for (step, index, bytes) in steps {
                match step {
                    0..=2 if progress.may_send(WINDOW) => {
                        progress.sent(now, progress.next.min(LAST), bytes, 0);
                    }
                    3 => {
                        said = index.max(said);
                        progress.acknowledged(now, index);
                    }
                    4 => progress.refused(index, index),
                    5 => progress.probe(),
                    6 if index < 4 => progress.snapshot(now, index),
                    6 => progress.snapshot_ended(Now(0), index % 2 == 0),
                    _ => {}
                }
                prop_assert!(progress.matched <= said);
                prop_assert!((1..=LAST + 1).contains(&progress.next));
                if let ProgressState::Replicate { inflight, inflight_bytes } = &progress.state {
                    prop_assert!(inflight.len() <= WINDOW.messages_max);
                    let sum: usize = inflight.iter().map(|(_, b)| b).sum();
                    prop_assert_eq!(sum, *inflight_bytes);
                }
            }
        }
    }

    #[test]
    fn a_follower_in_step_is_told_of_commits_once() {
        let mut progress = Progress::new(Now(0), 5);
        progress.acknowledged(Now(0), 5);
        progress.sent(Now(0), 6, 10, 5);
        progress.sent(Now(0), 7, 10, 3);
        assert_eq!(progress.commit_sent, 5);
        assert_eq!(progress.next, 8);
    }
}
