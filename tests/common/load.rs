//! Clients that load a cluster and check every reply.
//!
//! Each client has a counter and texts of its own, which no other client writes; it reads the
//! counters of all clients. So at any moment a counter has a lower bound, the last increment
//! acknowledged, and an upper bound, the number of increments requested. A read below the lower
//! bound is stale or shows a loss. An answer to an increment other than the next number shows that
//! an increment was lost or done twice.
//!
//! A request whose connection breaks may or may not be done, even later. For a counter this widens
//! the bounds by one. A text of unknown value is left alone, and the client goes on with the next
//! one.

use std::io;
use std::ops::AddAssign;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nodesync::rng::Rng;
use parking_lot::Mutex;

use super::client::{Reply, Resp, request};
use super::cluster::Cluster;
use super::{SOON, eventually};

/// Errors that a client tolerates; each level includes those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tolerance {
    /// No error of any kind.
    Nothing,
    /// Its node dies: the connection breaks, and new ones are refused for a while.
    Disconnects,
    /// There is no quorum for a while: replies may also be `CLUSTERDOWN`, `TRYAGAIN` or `UNKNOWN`.
    Outages,
    /// Its node also loses its directory, and answers `LOADING` until it has caught up.
    Rejoins,
}

/// Number and pace of the clients.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Clients of each node.
    pub clients_per_node: usize,
    /// Pause of a client between two requests.
    pub rest: Duration,
}

/// State that all clients of a load share.
#[derive(Debug)]
struct SharedState {
    stop: AtomicBool,
    counters: Vec<Counter>,
    failures: Mutex<Vec<String>>,
}

#[derive(Debug, Default)]
struct Counter {
    /// Increments requested: the counter cannot be higher.
    requested: AtomicU64,
    /// Highest number acknowledged: the counter cannot be lower.
    acknowledged: AtomicU64,
}

/// Results of a load.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Requests that were served.
    pub served: u64,
    /// Connections that broke.
    pub disconnects: u64,
    /// Requests that were answered with a tolerated error.
    pub refused: u64,
    /// Longest wait for a reply, over the clients that tolerate no error.
    pub longest_pause: Duration,
    /// Key of each counter, with the bounds of its final value.
    counters: Vec<(String, u64, u64)>,
    /// Key of each text, with the values that it may have.
    texts: Vec<(String, Vec<u64>)>,
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Tally) {
        self.served += other.served;
        self.disconnects += other.disconnects;
        self.refused += other.refused;
        self.longest_pause = self.longest_pause.max(other.longest_pause);
        self.counters.extend(other.counters);
        self.texts.extend(other.texts);
    }
}

impl Tally {
    /// Reads all keys of the load from one node and checks their values.
    ///
    /// # Panics
    /// On the first value that was lost or never written.
    #[track_caller]
    pub fn verify(&self, client: &mut Resp) {
        for (key, least, most) in &self.counters {
            let value = client.call(&["GET", key]).unwrap();
            let fits = value.number().is_some_and(|n| (*least..=*most).contains(&n));
            assert!(fits, "{key} is {value:?}, expected {least} to {most}");
        }
        for (key, expected) in &self.texts {
            let value = client.call(&["GET", key]).unwrap();
            let fits = value.number().is_some_and(|n| expected.contains(&n));
            assert!(fits, "{key} is {value:?}, expected one of {expected:?}");
        }
    }
}

/// Load in progress.
#[derive(Debug)]
pub struct Load {
    state: Arc<SharedState>,
    workers: Vec<JoinHandle<Tally>>,
}

impl Load {
    /// Starts clients on all nodes. `tolerance` maps a node's index to the tolerance of its
    /// clients.
    pub fn start(cluster: &Cluster, plan: Plan, tolerance: impl Fn(usize) -> Tolerance) -> Load {
        let count = plan.clients_per_node * cluster.nodes.len();
        let state = Arc::new(SharedState {
            stop: AtomicBool::new(false),
            counters: (0..count).map(|_| Counter::default()).collect(),
            failures: Mutex::default(),
        });
        let worker = |me: usize| {
            let at = me % cluster.nodes.len();
            let worker = Worker {
                state: Arc::clone(&state),
                me,
                port: cluster.nodes[at].port,
                password: cluster.nodes[at].password.clone(),
                tolerance: tolerance(at),
                rest: plan.rest,
                rng: Rng::new(me as u64),
                count: 0,
                unknown: 0,
                generation: 0,
                text: 0,
                tally: Tally::default(),
            };
            std::thread::spawn(move || worker.run())
        };
        Load { workers: (0..count).map(worker).collect(), state }
    }

    /// Lets the clients work for `duration`.
    ///
    /// # Panics
    /// As soon as a client has seen a reply that it must not see.
    #[track_caller]
    pub fn go_on(&self, duration: Duration) {
        let end = Instant::now() + duration;
        eventually("the clients have worked", SOON + duration, || {
            self.check();
            (Instant::now() >= end).then_some(())
        });
    }

    /// Fails the test if a client has seen a reply that it must not see.
    #[track_caller]
    pub fn check(&self) {
        let failures = self.state.failures.lock();
        assert!(failures.is_empty(), "clients failed: {:#?}", &failures[..failures.len().min(10)]);
    }

    /// Stops the clients behind their current requests, and sums up.
    ///
    /// # Panics
    /// If a client has seen a reply that it must not see.
    #[track_caller]
    pub fn finish(mut self) -> Tally {
        self.state.stop.store(true, Ordering::Relaxed);
        let mut tally = Tally::default();
        for worker in std::mem::take(&mut self.workers) {
            tally += worker.join().unwrap();
        }
        self.check();
        tally
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.state.stop.store(true, Ordering::Relaxed);
    }
}

/// One request of a pipeline.
#[derive(Clone, Copy, Debug)]
enum LoadStep {
    /// Increments the client's own counter.
    Increment,
    /// Reads a counter, which has reached `least` by now.
    Read { of: usize, least: u64 },
    /// Writes the next number into the client's own text.
    Write,
}

/// Reason why a request was not served.
enum Trouble {
    Lost(io::Error),
    /// Error reply.
    Refused(String),
    /// Reply that must never be seen.
    Wrong(String),
}

struct Worker {
    state: Arc<SharedState>,
    me: usize,
    port: u16,
    password: Option<String>,
    tolerance: Tolerance,
    rest: Duration,
    rng: Rng,
    /// Own counter as last acknowledged.
    count: u64,
    /// Further increments whose outcome is unknown.
    unknown: u64,
    /// Number of the text that is being written.
    generation: u64,
    /// Number last acknowledged in that text; 0 before the first.
    text: u64,
    tally: Tally,
}

impl Worker {
    fn run(mut self) -> Tally {
        let mut client = None;
        while !self.state.stop.load(Ordering::Relaxed) {
            let Some(open) = &mut client else {
                client = self.connect();
                continue;
            };
            let steps = self.choose();
            let started = Instant::now();
            let result = self.send(open, &steps);
            if self.tolerance == Tolerance::Nothing {
                self.tally.longest_pause = self.tally.longest_pause.max(started.elapsed());
            }
            match result {
                Ok(()) => self.tally.served += steps.len() as u64,
                Err(trouble) => {
                    self.tolerate(trouble);
                    client = None;
                }
            }
            std::thread::sleep(self.rest);
        }
        let key = counter_key(self.me);
        self.tally.counters.push((key, self.count, self.count + self.unknown));
        let key = self.text_key();
        self.tally.texts.push((key, vec![self.text]));
        self.tally
    }

    fn connect(&mut self) -> Option<Resp> {
        match Resp::connect_as(self.port, self.password.as_deref()) {
            Ok(client) => Some(client),
            Err(error) => {
                self.tolerate(Trouble::Lost(error));
                std::thread::sleep(Duration::from_millis(20));
                None
            }
        }
    }

    fn tolerate(&mut self, trouble: Trouble) {
        let text = match trouble {
            Trouble::Lost(_) if self.tolerance >= Tolerance::Disconnects => {
                self.tally.disconnects += 1;
                return;
            }
            Trouble::Refused(_) if self.tolerance >= Tolerance::Outages => {
                self.tally.refused += 1;
                return;
            }
            Trouble::Lost(error) => format!("connection lost: {error}"),
            Trouble::Refused(text) | Trouble::Wrong(text) => text,
        };
        self.state.failures.lock().push(format!("client {} of {}: {text}", self.me, self.port));
        self.state.stop.store(true, Ordering::Relaxed);
    }

    fn choose(&mut self) -> Vec<LoadStep> {
        let of = self.rng.below(self.state.counters.len() as u64) as usize;
        let least = self.state.counters[of].acknowledged.load(Ordering::SeqCst);
        let read = LoadStep::Read { of, least };
        match self.rng.below(10) {
            0..5 => vec![read],
            5..8 => vec![LoadStep::Increment],
            8 => vec![LoadStep::Write],
            _ => vec![LoadStep::Increment, read, LoadStep::Write, LoadStep::Increment],
        }
    }

    /// Sends a pipeline and checks its replies.
    fn send(&mut self, client: &mut Resp, steps: &[LoadStep]) -> Result<(), Trouble> {
        let mut bytes = Vec::new();
        for step in steps {
            bytes.extend(match step {
                LoadStep::Increment => {
                    self.state.counters[self.me].requested.fetch_add(1, Ordering::SeqCst);
                    request(&["INCR", &counter_key(self.me)])
                }
                LoadStep::Read { of, .. } => request(&["GET", &counter_key(*of)]),
                LoadStep::Write => {
                    request(&["SET", &self.text_key(), &(self.text + 1).to_string()])
                }
            });
        }
        if let Err(error) = client.send_bytes(&bytes) {
            self.record_unknown(steps);
            return Err(Trouble::Lost(error));
        }
        let mut trouble = None;
        for (at, step) in steps.iter().enumerate() {
            match client.receive() {
                Ok(Reply::Error(text)) => {
                    if text.starts_with("UNKNOWN ") {
                        self.record_unknown(&steps[at..=at]);
                    }
                    let rejoins = self.tolerance >= Tolerance::Rejoins;
                    let joining = rejoins && text.starts_with("LOADING ");
                    let expected = ["CLUSTERDOWN ", "TRYAGAIN ", "UNKNOWN "];
                    let expected = expected.iter().any(|code| text.starts_with(code));
                    trouble = Some(if expected || joining {
                        Trouble::Refused(text)
                    } else {
                        Trouble::Wrong(text)
                    });
                }
                Ok(reply) => self.check_reply(*step, &reply)?,
                Err(error) => {
                    self.record_unknown(&steps[at..]);
                    return Err(Trouble::Lost(error));
                }
            }
        }
        trouble.map_or(Ok(()), Err)
    }

    fn check_reply(&mut self, step: LoadStep, reply: &Reply) -> Result<(), Trouble> {
        let number = reply.number();
        match step {
            LoadStep::Increment => {
                let (least, most) = (self.count + 1, self.count + 1 + self.unknown);
                let Some(count) = number.filter(|count| (least..=most).contains(count)) else {
                    let text = format!("INCR gave {reply:?}, expected {least} to {most}");
                    return Err(Trouble::Wrong(text));
                };
                self.unknown -= count - least;
                self.count = count;
                self.state.counters[self.me].acknowledged.store(count, Ordering::SeqCst);
            }
            LoadStep::Read { of, least } => {
                let most = self.state.counters[of].requested.load(Ordering::SeqCst);
                if !number.is_some_and(|count| (least..=most).contains(&count)) {
                    let text = format!("GET gave {reply:?}, expected {least} to {most}");
                    return Err(Trouble::Wrong(text));
                }
            }
            LoadStep::Write if reply.is_ok() => self.text += 1,
            LoadStep::Write => return Err(Trouble::Wrong(format!("SET gave {reply:?}"))),
        }
        Ok(())
    }

    /// Records requests whose outcome is unknown.
    fn record_unknown(&mut self, steps: &[LoadStep]) {
        for step in steps {
            match step {
                LoadStep::Increment => self.unknown += 1,
                LoadStep::Read { .. } => {}
                LoadStep::Write => {
                    let key = self.text_key();
                    self.tally.texts.push((key, vec![self.text, self.text + 1]));
                    self.generation += 1;
                    self.text = 0;
                }
            }
        }
    }

    fn text_key(&self) -> String {
        format!("text:{}:{}", self.me, self.generation)
    }
}

fn counter_key(client: usize) -> String {
    format!("counter:{client}")
}
