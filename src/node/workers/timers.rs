//! The heartbeat, election and drain threads. Each waits for one deadline of the replica and raises
//! the alarm when it has passed. The replica decides what follows from it.

use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError};

use crate::clock::wall_micros;
use crate::node::shared::Shared;
use crate::replica::{Alarm, Input};

/// The interval at which a node that waits for other members logs a reminder.
const REMIND: Duration = Duration::from_secs(5);

/// Raises the heartbeat alarm until the node ends. Beside it, this thread tells the replica the
/// wall clock, and logs which members have to be started.
pub fn run_heartbeat(shared: &Shared, stopped: &Receiver<()>) {
    let mut remind_at = Instant::now() + REMIND;
    while !shared.stop.is_set() {
        // A note ends the node; otherwise the deadline has passed. Neither needs a reaction of its
        // own: an early heartbeat does no harm.
        let _ = stopped.recv_deadline(shared.core.watch(Alarm::Heartbeat));
        let wall = Input::Clock(wall_micros());
        shared.core.step([wall, Input::Alarm(Alarm::Heartbeat)]);
        if Instant::now() >= remind_at {
            remind_at += REMIND;
            remind(shared);
        }
    }
}

fn remind(shared: &Shared) {
    let missing: Vec<String> =
        shared.core.unanswered().iter().map(|member| member.to_string()).collect();
    if !missing.is_empty() {
        log::warn!(
            target: "NodeSync",
            "This data directory is new: waiting to hear from every other member, still from {}",
            missing.join(", ")
        );
    }
}

/// Raises `alarm` until the node ends. A note in `sooner` says that its deadline has come closer.
pub fn run(shared: &Shared, alarm: Alarm, sooner: &Receiver<()>) {
    while !shared.stop.is_set() {
        match sooner.recv_deadline(shared.core.watch(alarm)) {
            // Read the deadline again.
            Ok(()) => {}
            Err(RecvTimeoutError::Timeout) => shared.core.step([Input::Alarm(alarm)]),
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}
