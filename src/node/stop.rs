//! The end of a node: one flag that every thread reads, one cause that is kept, and the sockets
//! that are shut down so that no thread stays in a read or a write.
//!
//! It comes in two steps. First a stop is *asked for*, by a signal or by a failure; requests in
//! flight may still finish. Then the flag is *set*, and every thread ends.

use std::collections::HashMap;
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

/// The reason why a node cannot go on. Each kind has its exit code.
#[derive(Debug, thiserror::Error)]
pub enum Fatal {
    /// The disk holds or returns other data than was written (exit code 65).
    #[error("{0}")]
    Data(String),
    /// A disk or socket failed (exit code 74).
    #[error("{0}")]
    Io(String),
    /// The settings do not fit (exit code 78).
    #[error("{0}")]
    Config(String),
    /// A rule that always holds was broken: a bug (exit code 1).
    #[error("{0}")]
    Bug(String),
}

impl Fatal {
    /// The exit code of the process, after sysexits.h.
    pub fn exit_code(&self) -> u8 {
        match self {
            Fatal::Data(_) => 65,
            Fatal::Io(_) => 74,
            Fatal::Config(_) => 78,
            Fatal::Bug(_) => 1,
        }
    }
}

/// The way to end a node, shared by all its threads.
#[derive(Debug, Default)]
pub struct Stop {
    stopped: AtomicBool,
    /// The first failure.
    cause: Mutex<Option<Fatal>>,
    asked: Mutex<bool>,
    wake: Condvar,
    sockets: Mutex<HashMap<u64, Arc<TcpStream>>>,
    next_socket: AtomicU64,
}

/// Keeps a socket registered with [`Stop`] as long as this value lives.
pub struct Registered<'a> {
    stop: &'a Stop,
    id: u64,
}

impl Drop for Registered<'_> {
    fn drop(&mut self) {
        self.stop.sockets.lock().remove(&self.id);
    }
}

impl Stop {
    /// True once every thread has to end.
    pub fn is_set(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }

    /// Asks for an orderly stop.
    pub fn ask(&self) {
        *self.asked.lock() = true;
        self.wake.notify_all();
    }

    /// Stops the node because of a failure. The first cause is kept; each is logged.
    pub fn fail(&self, cause: Fatal) {
        log::error!(target: "FAILURE", "fatal: {cause}");
        self.cause.lock().get_or_insert(cause);
        self.ask();
    }

    /// True if the node stops because of a failure, not because it was asked to.
    pub fn has_failed(&self) -> bool {
        self.cause.lock().is_some()
    }

    /// Takes the first cause out, if there was a failure.
    pub fn take_cause(&self) -> Option<Fatal> {
        self.cause.lock().take()
    }

    /// Blocks until a stop is asked for or something fails.
    pub fn wait(&self) {
        let mut asked = self.asked.lock();
        while !*asked {
            self.wake.wait(&mut asked);
        }
    }

    /// Blocks for `duration` or until a stop is asked for; true if it is.
    pub fn wait_for(&self, duration: Duration) -> bool {
        let deadline = Instant::now() + duration;
        let mut asked = self.asked.lock();
        while !*asked && !self.wake.wait_until(&mut asked, deadline).timed_out() {}
        *asked
    }

    /// Ends every thread: from here on `is_set` is true, and all registered sockets are shut down.
    pub fn set(&self) {
        // The flag before the sockets, see `register`.
        self.stopped.store(true, Ordering::Release);
        self.ask();
        for socket in self.sockets.lock().values() {
            let _ = socket.shutdown(Shutdown::Both);
        }
    }

    /// Registers a socket, so that the end of the node frees the thread that waits for it.
    pub fn register(&self, socket: &Arc<TcpStream>) -> Registered<'_> {
        let id = self.next_socket.fetch_add(1, Ordering::Relaxed);
        self.sockets.lock().insert(id, Arc::clone(socket));
        // `set` stores the flag, then locks the table. If its lock came before the one above, it
        // has missed this socket, but then its flag is visible here. So one of the two shuts it
        // down.
        if self.is_set() {
            let _ = socket.shutdown(Shutdown::Both);
        }
        Registered { stop: self, id }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::TcpListener;
    use std::sync::Barrier;
    use std::thread::scope;

    use super::*;
    use crate::node::tests::time::in_time;

    const THREADS: usize = 200;

    fn cause(number: usize) -> Fatal {
        Fatal::Bug(number.to_string())
    }

    #[test]
    fn the_first_of_hundreds_of_causes_is_kept() {
        for round in 0..20 {
            let stop = Stop::default();
            let together = Barrier::new(THREADS);
            // In even rounds the first failure is known, in odd ones any thread may be first.
            if round % 2 == 0 {
                stop.fail(cause(0));
            }
            let first = Mutex::new(None);
            scope(|scope| {
                for number in 1..=THREADS {
                    let (stop, together, first) = (&stop, &together, &first);
                    scope.spawn(move || {
                        together.wait();
                        stop.fail(cause(number));
                        assert!(stop.has_failed());
                        let kept = stop.cause.lock().as_ref().map(ToString::to_string);
                        let mut first = first.lock();
                        assert!(first.is_none() || *first == kept, "{first:?}, then {kept:?}");
                        *first = kept;
                    });
                }
            });
            let kept = stop.take_cause().map(|cause| cause.to_string());
            assert_eq!(kept, first.into_inner());
            assert!(round % 2 == 1 || kept.as_deref() == Some("0"), "{kept:?}");
        }
    }

    #[test]
    fn every_thread_that_waits_for_the_end_wakes_whenever_a_stop_is_asked_for() {
        for round in 0..20 {
            let stop = Arc::new(Stop::default());
            let woken = {
                let stop = Arc::clone(&stop);
                move || {
                    let together = Barrier::new(THREADS + 1);
                    scope(|scope| {
                        for number in 0..THREADS {
                            let (stop, together) = (&stop, &together);
                            scope.spawn(move || {
                                together.wait();
                                match number % 2 {
                                    0 => stop.wait(),
                                    _ => assert!(stop.wait_for(Duration::from_secs(60))),
                                }
                            });
                        }
                        together.wait();
                        match round % 3 {
                            0 => stop.ask(),
                            1 => stop.fail(cause(0)),
                            _ => stop.set(),
                        }
                    });
                }
            };
            in_time("all have woken", woken);
            assert!(stop.wait_for(Duration::ZERO));
        }
        assert!(!Stop::default().wait_for(Duration::from_millis(1)));
    }

    #[test]
    fn a_socket_that_is_registered_around_the_end_is_shut_down_whichever_came_first() {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let address = listener.local_addr().unwrap();
        for round in 0..20 {
            let pairs: Vec<(TcpStream, TcpStream)> = (0..THREADS)
                .map(|_| {
                    let near = TcpStream::connect(address).unwrap();
                    (near, listener.accept().unwrap().0)
                })
                .collect();
            in_time("no thread stays in a read", move || {
                let stop = Stop::default();
                let together = Barrier::new(THREADS + 1);
                scope(|scope| {
                    for (number, (near, _far)) in pairs.iter().enumerate() {
                        let near = Arc::new(near.try_clone().unwrap());
                        let (stop, together) = (&stop, &together);
                        scope.spawn(move || {
                            // Some are registered long before, and some of these are dropped by
                            // then.
                            let early = (number % 4 == 0).then(|| stop.register(&near));
                            let early = early.filter(|_| number % 8 == 0);
                            together.wait();
                            let _registered = early.unwrap_or_else(|| stop.register(&near));
                            assert_eq!((&*near).read(&mut [0]).unwrap_or(0), 0);
                        });
                    }
                    together.wait();
                    (0..round).for_each(|_| std::thread::yield_now());
                    stop.set();
                    assert!(stop.is_set());
                });
                assert!(stop.sockets.lock().is_empty(), "a socket is kept for ever");
            });
        }
    }
}
