//! Bounds on time for tests: a lost wake-up must fail a test, not hang it.

use std::time::{Duration, Instant};

use crossbeam_channel::bounded;

/// The bound on waits for events that take less than a second on an idle machine.
pub const SOON: Duration = Duration::from_secs(60);

/// Runs `work`, and fails if it does not end within [`SOON`].
#[track_caller]
pub fn in_time<T: Send + 'static>(what: &str, work: impl FnOnce() -> T + Send + 'static) -> T {
    let (sender, done) = bounded(1);
    let worker = std::thread::spawn(move || {
        let _ = sender.send(work());
    });
    match done.recv_timeout(SOON) {
        Ok(result) => {
            worker.join().expect("it has sent its result");
            result
        }
        Err(error) if error.is_timeout() => panic!("not within {SOON:?}: {what}"),
        Err(_) => std::panic::resume_unwind(worker.join().expect_err("it sent no result")),
    }
}

/// Waits until `holds`, and fails if that takes longer than [`SOON`].
#[track_caller]
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < SOON, "not within {SOON:?}: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}
