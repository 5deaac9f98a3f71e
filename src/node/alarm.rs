//! The heartbeat and the election thread: each waits for one deadline of the replica and raises the
//! alarm when it has passed. What an alarm means is the replica's affair.

use crossbeam_channel::{Receiver, RecvTimeoutError};

use super::Shared;
use crate::replica::{Alarm, Input};

/// Raises `alarm` until the node ends. A note in `sooner` says that the deadline has come closer.
pub fn run(shared: &Shared, alarm: Alarm, sooner: &Receiver<()>) {
    while !shared.stop.is_set() {
        match sooner.recv_deadline(shared.core.deadline(alarm)) {
            Ok(()) => {}
            Err(RecvTimeoutError::Timeout) => shared.core.step([Input::Alarm(alarm)]),
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}
