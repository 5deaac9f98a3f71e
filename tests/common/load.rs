//! Clients that load a cluster and know what they may see.
//!
//! Each client has a counter of its own, which only it increments, and texts of its own; it reads
//! everybody's counters. So at any moment there is a number that a counter must have reached,
//! because an increment to it was acknowledged, and one that it cannot have passed, because no more
//! were asked for. A read below the first is stale or shows a loss; an answer to an increment that
//! is not the next number shows one that was lost or done twice.
//!
//! A request whose connection breaks may or may not be done, even later. For a counter that widens
//! the bounds by one. A text in such doubt is left alone, and the client goes on with the next one.

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

/// What a client puts up with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tolerance {
    /// No error of any kind.
    Nothing,
    /// Its node dies: the connection breaks, and a new one is refused for a while.
    Disconnects,
    /// There is no quorum for a while: requests are also answered `CLUSTERDOWN`, `TRYAGAIN`,
    /// `UNKNOWN`.
    Outages,
    /// Its directory is lost, too: until it has caught up it answers `LOADING`.
    Rejoins,
}

/// How many clients there are, and how busy.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Clients of each node.
    pub clients_per_node: usize,
    /// How long a client rests between requests.
    pub rest: Duration,
}

/// What all clients know.
#[derive(Debug)]
struct Board {
    stop: AtomicBool,
    counters: Vec<Counter>,
    failures: Mutex<Vec<String>>,
}

#[derive(Debug, Default)]
struct Counter {
    /// Increments asked for: the counter cannot be higher.
    asked: AtomicU64,
    /// The highest number acknowledged: the counter cannot be lower.
    acknowledged: AtomicU64,
}

/// What came of it.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Requests that were served.
    pub served: u64,
    /// Connections that broke.
    pub disconnects: u64,
    /// Requests that were answered with an error that was expected.
    pub refused: u64,
    /// The longest wait for a reply of a client that tolerates nothing.
    pub longest_pause: Duration,
    /// Where each counter ended: at least, and at most.
    counters: Vec<(String, u64, u64)>,
    /// Texts, with each value that they may have.
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
    /// Asks a node for everything that was written, and compares.
    ///
    /// # Panics
    /// On the first thing that is lost or that nobody wrote.
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

/// Clients at work.
#[derive(Debug)]
pub struct Load {
    board: Arc<Board>,
    workers: Vec<JoinHandle<Tally>>,
}

impl Load {
    /// Sets clients to work on all nodes. `tolerance` says what those of a node put up with.
    pub fn start(cluster: &Cluster, plan: Plan, tolerance: impl Fn(usize) -> Tolerance) -> Load {
        let count = plan.clients_per_node * cluster.nodes.len();
        let board = Arc::new(Board {
            stop: AtomicBool::new(false),
            counters: (0..count).map(|_| Counter::default()).collect(),
            failures: Mutex::default(),
        });
        let worker = |me: usize| {
            let at = me % cluster.nodes.len();
            let worker = Worker {
                board: Arc::clone(&board),
                me,
                port: cluster.nodes[at].port,
                password: cluster.nodes[at].password.clone(),
                tolerance: tolerance(at),
                rest: plan.rest,
                rng: Rng::new(me as u64),
                count: 0,
                doubtful: 0,
                generation: 0,
                text: 0,
                tally: Tally::default(),
            };
            std::thread::spawn(move || worker.run())
        };
        Load { workers: (0..count).map(worker).collect(), board }
    }

    /// Lets the clients work for a while.
    ///
    /// # Panics
    /// As soon as one of them has seen what it must not see.
    #[track_caller]
    pub fn go_on(&self, duration: Duration) {
        let end = Instant::now() + duration;
        eventually("the clients have worked", SOON + duration, || {
            self.check();
            (Instant::now() >= end).then_some(())
        });
    }

    /// See [`Load::go_on`].
    #[track_caller]
    pub fn check(&self) {
        let failures = self.board.failures.lock();
        assert!(failures.is_empty(), "clients failed: {:#?}", &failures[..failures.len().min(10)]);
    }

    /// Has the clients finish what they are doing.
    ///
    /// # Panics
    /// If one of them has seen what it must not see.
    #[track_caller]
    pub fn finish(mut self) -> Tally {
        self.board.stop.store(true, Ordering::Relaxed);
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
        self.board.stop.store(true, Ordering::Relaxed);
    }
}

/// One request of a pipeline.
#[derive(Clone, Copy, Debug)]
enum Ask {
    /// Increments the own counter.
    Count,
    /// Reads a counter, which has reached `least` by now.
    Look { of: usize, least: u64 },
    /// Writes the next number into the own text.
    Write,
}

/// Why a request was not served.
enum Trouble {
    Lost(io::Error),
    /// An error reply.
    Refused(String),
    /// What must never be seen.
    Wrong(String),
}

struct Worker {
    board: Arc<Board>,
    me: usize,
    port: u16,
    password: Option<String>,
    tolerance: Tolerance,
    rest: Duration,
    rng: Rng,
    /// The own counter as last acknowledged.
    count: u64,
    /// Increments that may or may not have been, or be, done besides.
    doubtful: u64,
    /// Which text is being written.
    generation: u64,
    /// The number acknowledged last in it; 0 before the first.
    text: u64,
    tally: Tally,
}

impl Worker {
    fn run(mut self) -> Tally {
        let mut client = None;
        while !self.board.stop.load(Ordering::Relaxed) {
            let Some(open) = &mut client else {
                client = self.connect();
                continue;
            };
            let asks = self.choose();
            let started = Instant::now();
            let result = self.ask(open, &asks);
            if self.tolerance == Tolerance::Nothing {
                self.tally.longest_pause = self.tally.longest_pause.max(started.elapsed());
            }
            match result {
                Ok(()) => self.tally.served += asks.len() as u64,
                Err(trouble) => {
                    self.put_up_with(trouble);
                    client = None;
                }
            }
            std::thread::sleep(self.rest);
        }
        let key = counter_key(self.me);
        self.tally.counters.push((key, self.count, self.count + self.doubtful));
        let key = self.text_key();
        self.tally.texts.push((key, vec![self.text]));
        self.tally
    }

    fn connect(&mut self) -> Option<Resp> {
        match Resp::connect_as(self.port, self.password.as_deref()) {
            Ok(client) => Some(client),
            Err(error) => {
                self.put_up_with(Trouble::Lost(error));
                std::thread::sleep(Duration::from_millis(20));
                None
            }
        }
    }

    fn put_up_with(&mut self, trouble: Trouble) {
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
        self.board.failures.lock().push(format!("client {} of {}: {text}", self.me, self.port));
        self.board.stop.store(true, Ordering::Relaxed);
    }

    fn choose(&mut self) -> Vec<Ask> {
        let of = self.rng.below(self.board.counters.len() as u64) as usize;
        let least = self.board.counters[of].acknowledged.load(Ordering::SeqCst);
        let look = Ask::Look { of, least };
        match self.rng.below(10) {
            0..5 => vec![look],
            5..8 => vec![Ask::Count],
            8 => vec![Ask::Write],
            _ => vec![Ask::Count, look, Ask::Write, Ask::Count],
        }
    }

    /// Sends a pipeline and judges its replies.
    fn ask(&mut self, client: &mut Resp, asks: &[Ask]) -> Result<(), Trouble> {
        let mut bytes = Vec::new();
        for ask in asks {
            bytes.extend(match ask {
                Ask::Count => {
                    self.board.counters[self.me].asked.fetch_add(1, Ordering::SeqCst);
                    request(&["INCR", &counter_key(self.me)])
                }
                Ask::Look { of, .. } => request(&["GET", &counter_key(*of)]),
                Ask::Write => request(&["SET", &self.text_key(), &(self.text + 1).to_string()]),
            });
        }
        if let Err(error) = client.send_bytes(&bytes) {
            self.doubt(asks);
            return Err(Trouble::Lost(error));
        }
        let mut trouble = None;
        for (at, ask) in asks.iter().enumerate() {
            match client.receive() {
                Ok(Reply::Error(text)) => {
                    if text.starts_with("UNKNOWN ") {
                        self.doubt(&asks[at..=at]);
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
                Ok(reply) => self.judge(*ask, &reply)?,
                Err(error) => {
                    self.doubt(&asks[at..]);
                    return Err(Trouble::Lost(error));
                }
            }
        }
        trouble.map_or(Ok(()), Err)
    }

    fn judge(&mut self, ask: Ask, reply: &Reply) -> Result<(), Trouble> {
        let number = reply.number();
        match ask {
            Ask::Count => {
                let (least, most) = (self.count + 1, self.count + 1 + self.doubtful);
                let Some(count) = number.filter(|count| (least..=most).contains(count)) else {
                    let text = format!("INCR gave {reply:?}, expected {least} to {most}");
                    return Err(Trouble::Wrong(text));
                };
                self.doubtful -= count - least;
                self.count = count;
                self.board.counters[self.me].acknowledged.store(count, Ordering::SeqCst);
            }
            Ask::Look { of, least } => {
                let most = self.board.counters[of].asked.load(Ordering::SeqCst);
                if !number.is_some_and(|count| (least..=most).contains(&count)) {
                    let text = format!("GET gave {reply:?}, expected {least} to {most}");
                    return Err(Trouble::Wrong(text));
                }
            }
            Ask::Write if reply.is_ok() => self.text += 1,
            Ask::Write => return Err(Trouble::Wrong(format!("SET gave {reply:?}"))),
        }
        Ok(())
    }

    /// Nobody will tell whether these requests were, or will be, done.
    fn doubt(&mut self, asks: &[Ask]) {
        for ask in asks {
            match ask {
                Ask::Count => self.doubtful += 1,
                Ask::Look { .. } => {}
                Ask::Write => {
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
