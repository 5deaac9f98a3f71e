//! The pool of threads that serve connections: one blocking thread for each live connection. A new
//! connection gets an idle thread if there is one, else a new thread. A pool of fixed size would
//! starve behind idle clients; here the listener bounds the number of connections.
//!
//! Stacks are small, because ten thousand clients mean ten thousand stacks.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, unbounded};
use parking_lot::Mutex;

/// Work for a thread of the pool.
pub type Task = Box<dyn FnOnce() + Send>;

/// The stack of a pool thread.
const STACK_BYTES: usize = 256 << 10;

/// A thread that has been idle for this long ends.
const IDLE_MAX: Duration = Duration::from_secs(30);

#[derive(Default)]
struct PoolThreads {
    /// `None` once the pool is closed. It is under the same lock as the handles: a caller that
    /// still gets it has put its thread among them before they are joined.
    tasks: Option<Sender<Task>>,
    /// Threads that wait for a task and are not promised one.
    idle: usize,
    next_id: u64,
    handles: HashMap<u64, JoinHandle<()>>,
    /// Threads that have ended and are not joined yet.
    ended: Vec<u64>,
}

/// A pool that grows with the number of its tasks.
pub struct Pool {
    threads: Arc<Mutex<PoolThreads>>,
    receiver: Receiver<Task>,
    idle_max: Duration,
}

impl Default for Pool {
    fn default() -> Pool {
        Pool::keeping_idle_threads_for(IDLE_MAX)
    }
}

impl Pool {
    fn keeping_idle_threads_for(idle_max: Duration) -> Pool {
        let (sender, receiver) = unbounded();
        let threads = PoolThreads { tasks: Some(sender), ..PoolThreads::default() };
        Pool { threads: Arc::new(Mutex::new(threads)), receiver, idle_max }
    }

    /// Runs `task` on an idle thread or a new one.
    ///
    /// # Errors
    /// If the system has no thread left, or the pool has been closed.
    pub fn run(&self, task: Task) -> io::Result<()> {
        let mut threads = self.threads.lock();
        let sender = threads.tasks.clone().ok_or(io::ErrorKind::NotConnected)?;
        // A thread puts itself into `ended` as its last act, so these joins do not wait. A panic is
        // not looked at here: it has stopped the node already (`PanicWatch`).
        for id in std::mem::take(&mut threads.ended) {
            if let Some(handle) = threads.handles.remove(&id) {
                let _ = handle.join();
            }
        }
        if threads.idle > 0 {
            // Counted out here, on behalf of the one idle thread that will take the task. If all of
            // them time out at this moment, `leave` makes one of them wait for it.
            threads.idle -= 1;
        } else {
            let id = threads.next_id;
            let (pool, receiver) = (Arc::clone(&self.threads), self.receiver.clone());
            let idle_max = self.idle_max;
            let builder = Builder::new().name(format!("client-{id}")).stack_size(STACK_BYTES);
            let handle = builder.spawn(move || work(id, &pool, &receiver, idle_max))?;
            threads.next_id += 1;
            threads.handles.insert(id, handle);
        }
        drop(threads);
        sender.send(task).map_err(|_| io::ErrorKind::NotConnected.into())
    }

    /// Closes the pool and waits until all tasks are done and all threads have ended.
    pub fn join(&self) {
        let mut threads = self.threads.lock();
        // The last sender: threads see the end of the queue once it is empty.
        threads.tasks = None;
        let handles: Vec<_> = threads.handles.drain().collect();
        drop(threads);
        for (_, handle) in handles {
            let _ = handle.join();
        }
    }
}

/// A pool thread: runs tasks until it has been idle for `idle_max`.
fn work(id: u64, pool: &Mutex<PoolThreads>, tasks: &Receiver<Task>, idle_max: Duration) {
    let mut wait = tasks.recv().ok();
    while let Some(task) = wait {
        task();
        pool.lock().idle += 1;
        wait = match tasks.recv_timeout(idle_max) {
            Ok(task) => Some(task),
            Err(_) => leave(pool, tasks),
        };
    }
    pool.lock().ended.push(id);
}

/// Counts an idle thread out. Returns the task that was promised to it meanwhile, if there is one.
fn leave(pool: &Mutex<PoolThreads>, tasks: &Receiver<Task>) -> Option<Task> {
    let mut threads = pool.lock();
    // `idle` is the number of idle threads minus the number of tasks on their way. Zero means that
    // a task is on its way for each of them, this one included.
    if threads.idle > 0 {
        threads.idle -= 1;
        return None;
    }
    drop(threads);
    tasks.recv().ok()
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::thread::scope;

    use super::*;
    use crate::node::tests::time::in_time;
    use crossbeam_channel::bounded;

    #[test]
    fn blocked_tasks_do_not_starve_others_and_idle_threads_are_used_again() {
        let pool = Pool::default();
        let (release, blocked) = bounded::<()>(0);
        let (done, count) = unbounded();
        for _ in 0..50 {
            let (blocked, done) = (blocked.clone(), done.clone());
            pool.run(Box::new(move || {
                let _ = blocked.recv();
                let _ = done.send(());
            }))
            .unwrap();
        }
        pool.run(Box::new({
            let done = done.clone();
            move || done.send(()).unwrap()
        }))
        .unwrap();
        count.recv().unwrap();
        drop(release);
        for _ in 0..50 {
            count.recv().unwrap();
        }
        let spawned = pool.threads.lock().next_id;
        assert_eq!(spawned, 51);
        while pool.threads.lock().idle < 51 {
            std::thread::yield_now();
        }
        pool.run(Box::new(move || done.send(()).unwrap())).unwrap();
        count.recv().unwrap();
        assert_eq!(pool.threads.lock().next_id, 51);
        pool.join();
        assert!(pool.run(Box::new(|| ())).is_err());
    }

    /// Runs `count` tasks that end only when all of them have begun.
    fn run_all_at_once(pool: &Pool, count: usize) {
        let (begun, counted) = unbounded();
        let (release, released) = bounded::<()>(0);
        for _ in 0..count {
            let (begun, released) = (begun.clone(), released.clone());
            let task = move || {
                begun.send(()).unwrap();
                let _ = released.recv();
            };
            pool.run(Box::new(task)).unwrap();
        }
        for at in 0..count {
            let limit = Duration::from_secs(30);
            counted.recv_timeout(limit).unwrap_or_else(|_| panic!("{at} of {count} have begun"));
        }
        drop(release);
    }

    #[test]
    fn no_task_waits_for_a_thread_that_is_leaving() {
        // Threads time out at about the moment at which the next tasks come: between two turns, and
        // between the tasks of one turn.
        for idle_max in [0, 20, 100, 500].map(Duration::from_micros) {
            let pool = Pool::keeping_idle_threads_for(idle_max);
            for turn in 0..200 {
                run_all_at_once(&pool, 8);
                std::thread::sleep(idle_max.mul_f64(f64::from(turn % 20) / 10.0));
            }
            pool.join();
        }
    }

    #[test]
    fn every_task_of_hundreds_of_threads_is_done_once_and_no_thread_is_left() {
        const THREADS: usize = 200;
        const TASKS: usize = 50;
        let pool = Pool::keeping_idle_threads_for(Duration::from_micros(50));
        let done: Arc<Vec<AtomicUsize>> =
            Arc::new((0..THREADS * TASKS).map(|_| AtomicUsize::new(0)).collect());
        scope(|scope| {
            for thread in 0..THREADS {
                let (pool, done) = (&pool, &done);
                scope.spawn(move || {
                    for task in 0..TASKS {
                        let (done, at) = (Arc::clone(done), thread * TASKS + task);
                        let count = move || {
                            done[at].fetch_add(1, Ordering::Relaxed);
                        };
                        pool.run(Box::new(count)).unwrap();
                    }
                });
            }
        });
        // Joining waits for queued tasks, too.
        in_time("the pool ends", move || pool.join());
        assert!(done.iter().all(|count| count.load(Ordering::Relaxed) == 1));
        assert_eq!(Arc::strong_count(&done), 1, "a thread still holds a task");
    }

    #[test]
    fn a_task_that_is_taken_while_the_pool_closes_has_ended_when_it_is_closed() {
        for _ in 0..40 {
            let pool = Pool::default();
            let (taken, ended) = (AtomicUsize::new(0), Arc::new(AtomicUsize::new(0)));
            let together = Barrier::new(9);
            scope(|scope| {
                for _ in 0..8 {
                    scope.spawn(|| {
                        together.wait();
                        for _ in 0..100 {
                            let ended = Arc::clone(&ended);
                            let task = move || {
                                std::thread::sleep(Duration::from_millis(1));
                                ended.fetch_add(1, Ordering::Release);
                            };
                            if pool.run(Box::new(task)).is_err() {
                                return;
                            }
                            taken.fetch_add(1, Ordering::Relaxed);
                        }
                    });
                }
                together.wait();
                std::thread::yield_now();
                pool.join();
            });
            assert_eq!(taken.into_inner(), ended.load(Ordering::Acquire));
            assert!(pool.threads.lock().handles.is_empty(), "a thread was not waited for");
        }
    }

    #[test]
    fn a_task_that_panics_ends_its_own_thread_only() {
        let pool = Pool::default();
        for _ in 0..20 {
            pool.run(Box::new(|| std::panic::resume_unwind(Box::new("on purpose")))).unwrap();
            run_all_at_once(&pool, 5);
        }
        in_time("the pool ends", move || pool.join());
    }
}
