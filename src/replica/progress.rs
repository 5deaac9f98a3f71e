//! What a leader knows of one follower's log, and how it feeds it.
//!
//! ```text
//!            accepted                     behind the leader's first kept entry
//!   Probe ─────────────▶ Replicate        Probe ──────────────────────▶ Snapshot
//!     ▲                      │              ▲                              │
//!     └── refused, link new, ┘              └─── failed, or no answer ─────┘
//!         nothing heard of what was sent      (installed: Replicate)
//! ```
//! *Probe* looks for the point where the logs agree: one append under way at a time. *Replicate*
//! sends ahead, within a window of messages and bytes. *Snapshot* waits for the image to be sent.
//! All transitions are here. `matched` never falls but when a link is new: the peer may have lost
//! its disk, and forgetting what it once acknowledged is always safe.

use std::collections::VecDeque;
use std::time::Duration;

use crate::clock::Now;
use crate::types::Index;

/// How many times longer installing an image may take than answering an append.
const INSTALL_FACTOR: u32 = 40;

/// How a follower is fed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// Looking for agreement; `waiting` while an append is under way.
    Probe {
        /// An append is under way.
        waiting: bool,
    },
    /// Sending ahead; one (last index, bytes) for each append under way, oldest first.
    Replicate {
        /// Appends under way.
        inflight: VecDeque<(Index, usize)>,
        /// Their bytes together.
        inflight_bytes: usize,
    },
    /// An image up to this index is being sent, or was sent and is being installed.
    Snapshot {
        /// The image's last index.
        index: Index,
        /// All of it has been sent.
        sent: bool,
    },
}

/// Bounds on what is under way to one follower.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    /// Appends.
    pub messages_max: usize,
    /// Bytes of entries.
    pub bytes_max: usize,
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Progress {
    /// The follower's durable log equals ours up to here.
    pub matched: Index,
    /// The next entry to send.
    pub next: Index,
    /// How it is fed.
    pub state: State,
    /// When it last said anything in our term.
    pub heard: Now,
    /// When `matched` last grew, or something was first put under way: to notice what got lost.
    pub moved: Now,
    /// The highest commit index it was told.
    pub commit_sent: Index,
    /// Its own clients wait for entries up to here to be committed.
    pub commit_wanted: Index,
    /// Since when it has been alive, fit and caught up without a break, if it is.
    pub ready_since: Option<Now>,
}

impl Progress {
    /// A follower of which nothing is known; `last` is the leader's last index.
    pub fn new(now: Now, last: Index) -> Progress {
        Progress {
            matched: 0,
            next: last + 1,
            state: State::Probe { waiting: false },
            heard: now,
            moved: now,
            commit_sent: 0,
            commit_wanted: 0,
            ready_since: None,
        }
    }

    /// True if an append may be sent now.
    pub fn may_send(&self, window: Window) -> bool {
        match &self.state {
            State::Probe { waiting } => !waiting,
            State::Replicate { inflight, inflight_bytes } => {
                inflight.len() < window.messages_max && *inflight_bytes < window.bytes_max
            }
            State::Snapshot { .. } => false,
        }
    }

    /// An append that ends with `last` and holds `bytes` of entries is on its way.
    pub fn sent(&mut self, now: Now, last: Index, bytes: usize, commit: Index) {
        self.commit_sent = self.commit_sent.max(commit);
        match &mut self.state {
            State::Probe { waiting } => {
                *waiting = true;
                self.moved = now;
            }
            State::Replicate { inflight, inflight_bytes } => {
                if inflight.is_empty() {
                    self.moved = now;
                }
                inflight.push_back((last, bytes));
                *inflight_bytes += bytes;
                self.next = last + 1;
            }
            State::Snapshot { .. } => debug_assert!(false, "nothing is sent beside a snapshot"),
        }
    }

    /// The follower holds our log durably up to `index`. Returns true if that is news.
    pub fn accepted(&mut self, now: Now, index: Index) -> bool {
        let news = index > self.matched;
        if news {
            self.matched = index;
            self.moved = now;
        }
        match &mut self.state {
            // Less than what is being probed for is old news, such as a beat brings.
            State::Probe { .. } if index + 1 >= self.next => self.replicate(),
            State::Probe { .. } => {}
            State::Replicate { inflight, inflight_bytes } => {
                self.next = self.next.max(index + 1);
                while let Some((_, bytes)) = inflight.pop_front_if(|(last, _)| *last <= index) {
                    *inflight_bytes -= bytes;
                }
            }
            State::Snapshot { index: image, .. } if index >= *image => self.replicate(),
            State::Snapshot { .. } => {}
        }
        news
    }

    fn replicate(&mut self) {
        self.next = self.matched + 1;
        self.state = State::Replicate { inflight: VecDeque::new(), inflight_bytes: 0 };
    }

    /// The follower refused the append after `prev_index`; `next` is where to try now. While
    /// sending ahead, an answer to something older than what it has accepted since is no news. A
    /// probe's answer is believed even against `matched`: the follower may have lost its disk.
    pub fn refused(&mut self, prev_index: Index, next: Index) {
        let stale = match &self.state {
            State::Probe { .. } => prev_index.checked_add(1) != Some(self.next),
            State::Replicate { .. } => prev_index <= self.matched,
            State::Snapshot { .. } => true,
        };
        if !stale {
            self.next = next.clamp(1, prev_index.max(1));
            self.matched = self.matched.min(self.next - 1);
            self.state = State::Probe { waiting: false };
        }
    }

    /// What was under way may be lost: look for agreement again. A probe without an answer is sent
    /// again as it was: a follower that says nothing must not be taken for one that has nothing.
    pub fn probe(&mut self) {
        self.next = match self.state {
            State::Probe { .. } => self.next,
            State::Replicate { .. } => self.matched + 1,
            State::Snapshot { index, sent: true } => index + 1,
            State::Snapshot { sent: false, .. } => self.next,
        };
        self.state = State::Probe { waiting: false };
    }

    /// The link is new, and so may be the peer's disk: believe nothing. `last` is our last index.
    pub fn link_is_new(&mut self, now: Now, last: Index) {
        *self = Progress {
            heard: self.heard,
            commit_wanted: self.commit_wanted,
            ..Progress::new(now, last)
        };
    }

    /// An image up to `index` is about to be sent.
    pub fn snapshot(&mut self, now: Now, index: Index) {
        self.state = State::Snapshot { index, sent: false };
        self.moved = now;
    }

    /// The image was sent, or could not be. One that was sent is being verified and installed,
    /// which takes its time; the follower's acknowledgement ends that.
    pub fn snapshot_ended(&mut self, now: Now, all_sent: bool) {
        match &mut self.state {
            State::Snapshot { sent, .. } if all_sent => {
                *sent = true;
                self.moved = now;
            }
            State::Snapshot { .. } => self.probe(),
            State::Probe { .. } | State::Replicate { .. } => {}
        }
    }

    /// True if something is under way whose answer is overdue.
    pub fn is_overdue(&self, now: Now, patience: Duration) -> bool {
        let (under_way, patience) = match &self.state {
            State::Probe { waiting } => (*waiting, patience),
            State::Replicate { inflight, .. } => (!inflight.is_empty(), patience),
            State::Snapshot { sent, .. } => (*sent, patience * INSTALL_FACTOR),
        };
        under_way && now.since(self.moved) > patience
    }

    /// The last index of the image that the follower is getting, if it is.
    pub fn image(&self) -> Option<Index> {
        match self.state {
            State::Snapshot { index, .. } => Some(index),
            State::Probe { .. } | State::Replicate { .. } => None,
        }
    }

    /// The last index of the image that was sent and that the follower has not acknowledged.
    pub fn installing(&self) -> Option<Index> {
        match self.state {
            State::Snapshot { index, sent: true } => Some(index),
            _ => None,
        }
    }

    /// The state's name, for INFO and NODES.
    pub fn state_name(&self) -> &'static str {
        match self.state {
            State::Probe { .. } => "probe",
            State::Replicate { .. } => "replicate",
            State::Snapshot { .. } => "snapshot",
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
                        progress.accepted(now, index);
                    }
                    4 => progress.refused(index, index),
                    5 => progress.probe(),
                    6 if index < 4 => progress.snapshot(now, index),
                    6 => progress.snapshot_ended(Now(0), index % 2 == 0),
                    _ => {}
                }
                prop_assert!(progress.matched <= said);
                prop_assert!((1..=LAST + 1).contains(&progress.next));
                if let State::Replicate { inflight, inflight_bytes } = &progress.state {
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
        progress.accepted(Now(0), 5);
        progress.sent(Now(0), 6, 10, 5);
        progress.sent(Now(0), 7, 10, 3);
        assert_eq!(progress.commit_sent, 5);
        assert_eq!(progress.next, 8);
    }
}
