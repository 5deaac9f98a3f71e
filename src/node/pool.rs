//! The pool that serves connections: one blocking thread for each live connection, taken from the
//! idle ones if there is one, else spawned. A fixed number of blocking threads would starve behind
//! idle clients; here the bound is on connections, and the listener enforces it.
//!
//! Stacks are small, because ten thousand clients mean ten thousand of them.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, unbounded};
use parking_lot::Mutex;

/// What a pool thread is given to do.
pub type Task = Box<dyn FnOnce() + Send>;

const STACK_BYTES: usize = 256 << 10;

/// How long a thread without work is kept.
const IDLE_MAX: Duration = Duration::from_secs(30);

#[derive(Default)]
struct Threads {
    idle: usize,
    next_id: u64,
    handles: HashMap<u64, JoinHandle<()>>,
    ended: Vec<u64>,
}

/// See the module.
pub struct Pool {
    threads: Arc<Mutex<Threads>>,
    tasks: Mutex<Option<Sender<Task>>>,
    receiver: Receiver<Task>,
}

impl Default for Pool {
    fn default() -> Pool {
        let (sender, receiver) = unbounded();
        Pool { threads: Arc::default(), tasks: Mutex::new(Some(sender)), receiver }
    }
}

impl Pool {
    /// Has `task` done by an idle thread or a new one. Fails if the system has no thread left, or
    /// the pool has been closed.
    pub fn run(&self, task: Task) -> io::Result<()> {
        let sender = self.tasks.lock().clone().ok_or(io::ErrorKind::NotConnected)?;
        let mut threads = self.threads.lock();
        for id in std::mem::take(&mut threads.ended) {
            if let Some(handle) = threads.handles.remove(&id) {
                let _ = handle.join();
            }
        }
        if threads.idle > 0 {
            // Exactly one of the idle threads takes it: each counts itself out only with a task.
            threads.idle -= 1;
        } else {
            let id = threads.next_id;
            let (pool, receiver) = (Arc::clone(&self.threads), self.receiver.clone());
            let builder = Builder::new().name(format!("client-{id}")).stack_size(STACK_BYTES);
            let handle = builder.spawn(move || work(id, &pool, &receiver))?;
            threads.next_id += 1;
            threads.handles.insert(id, handle);
        }
        drop(threads);
        sender.send(task).map_err(|_| io::ErrorKind::NotConnected.into())
    }

    /// Takes no more tasks and waits for all threads to end.
    pub fn join(&self) {
        *self.tasks.lock() = None;
        let handles: Vec<_> = self.threads.lock().handles.drain().collect();
        for (_, handle) in handles {
            let _ = handle.join();
        }
    }
}

/// A pool thread: does tasks until there has been none for a while.
fn work(id: u64, pool: &Mutex<Threads>, tasks: &Receiver<Task>) {
    let mut wait = tasks.recv().ok();
    while let Some(task) = wait {
        task();
        pool.lock().idle += 1;
        wait = match tasks.recv_timeout(IDLE_MAX) {
            Ok(task) => Some(task),
            Err(_) => leave(pool, tasks),
        };
    }
    pool.lock().ended.push(id);
}

/// Counts an idle thread out, unless a task was promised to it at this very moment.
fn leave(pool: &Mutex<Threads>, tasks: &Receiver<Task>) -> Option<Task> {
    let mut threads = pool.lock();
    if threads.idle > 0 {
        threads.idle -= 1;
        return None;
    }
    drop(threads);
    tasks.recv().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
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
}
