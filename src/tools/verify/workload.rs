//! The clients: threads that send all kinds of commands to all nodes, and record the results.
//!
//! Strong clients share keys. Most keys are in use for about a second, so that the history of each
//! stays short enough for the checker; a few are in use for the whole run. Every value is written
//! once. All values are numbers, so that every command works on every key. A client never repeats a
//! request.
//!
//! One in four clients is an eventual session. Each of its connections has keys of its own, on
//! which it must read its own writes; all eventual sessions share further keys, on which the nodes
//! must agree in the end.
//!
//! A client whose node is down or refuses moves to the next node, and returns after a while.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::client::{Client, Error, Options, Reply, encode};
use crate::rng::Rng;
use crate::testing::linearizability::{Action, Seen};
use crate::tools::verify::history::{
    self, EventualAction, EventualRecord, Fate, History, StrongRecord, Tickets,
};
use crate::types::When;

/// Number of short-lived keys in use, and the operations on them before new ones replace them.
const KEYS: u64 = 8;
const OPERATIONS_PER_GENERATION: u64 = 2400;
/// Number of keys for the whole run, and the most operations on them that the checker can decide.
const LONG_KEYS: u64 = 4;
const LONG_OPERATIONS_MAX: u64 = 8_000;
/// Most operations of a run, to bound the memory of the history.
const OPERATIONS_MAX: u64 = 2_000_000;
/// Least mean pause between two requests of a client.
const PAUSE: Duration = Duration::from_micros(1500);
/// Number of keys that all eventual sessions share.
const EVENTUAL_KEYS: u64 = 6;
/// Bound on the requests of a pipeline, exclusive.
const PIPELINE_MAX: u64 = 6;
/// Time that a client stays away from its home node, and the length of an eventual session.
const AWAY: Duration = Duration::from_secs(1);
const SESSION: Duration = Duration::from_secs(3);
/// Distance between the values of different writes, so that increments do not make them equal.
const VALUE_STEP: u64 = 1_000_000;

/// The state that all clients share.
#[derive(Debug)]
pub struct Board {
    /// The addresses of the nodes.
    pub addresses: Vec<String>,
    /// Number of clients; also the client number of the final reads.
    pub clients: usize,
    /// The prefix of each key.
    pub prefix: String,
    /// The options of each connection.
    pub options: Options,
    /// True if each connection draws its time-out, from a sixth of `options.timeout` upwards.
    pub impatient: bool,
    /// The order of all calls and returns.
    pub tickets: Tickets,
    /// True once the clients must finish.
    pub stop: AtomicBool,
    requests: AtomicU64,
    /// Observations that no client may make.
    pub findings: Mutex<Vec<String>>,
    /// The longest gap between acknowledged strong writes.
    pub gap: Mutex<WriteGap>,
    pause: Duration,
    long_every: u64,
    on_short_keys: AtomicU64,
    on_long_keys: AtomicU64,
    values: AtomicU64,
}

/// The longest time in which no strong write of any client was acknowledged.
#[derive(Debug)]
pub struct WriteGap {
    began: Instant,
    last: Instant,
    /// The longest gap up to the last write.
    pub longest: Duration,
    /// The start of that gap, from the beginning of the run.
    pub since: Duration,
}

impl WriteGap {
    fn new() -> WriteGap {
        let now = Instant::now();
        WriteGap { began: now, last: now, longest: Duration::ZERO, since: Duration::ZERO }
    }

    /// Starts the measurement.
    pub fn restart(&mut self) {
        *self = WriteGap::new();
    }

    /// Notes an acknowledged write, or the end of the run.
    pub fn note(&mut self) {
        let now = Instant::now();
        if now - self.last > self.longest {
            (self.longest, self.since) = (now - self.last, self.last - self.began);
        }
        self.last = now;
    }
}

impl Board {
    /// A board for `clients` that work for `time`.
    pub fn new(
        addresses: Vec<String>,
        prefix: String,
        options: Options,
        clients: usize,
        time: Duration,
    ) -> Board {
        let client_time = time.saturating_mul(clients as u32);
        let pause = PAUSE.max(client_time / OPERATIONS_MAX as u32);
        let expected = client_time.as_micros() as u64 / pause.as_micros() as u64;
        Board {
            addresses,
            clients,
            prefix,
            options,
            impatient: false,
            tickets: Tickets::default(),
            stop: AtomicBool::new(false),
            requests: AtomicU64::new(0),
            findings: Mutex::default(),
            gap: Mutex::new(WriteGap::new()),
            pause,
            long_every: (expected / LONG_OPERATIONS_MAX).max(30),
            on_short_keys: AtomicU64::new(0),
            on_long_keys: AtomicU64::new(0),
            values: AtomicU64::new(0),
        }
    }

    /// The key with its prefix, as the nodes know it.
    pub fn full(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }

    /// A value that was never written before.
    fn value(&self) -> Vec<u8> {
        let number = 1 + self.values.fetch_add(1, Ordering::Relaxed);
        (number * VALUE_STEP).to_string().into_bytes()
    }

    fn key(&self, rng: &mut Rng) -> String {
        if rng.chance(1, self.long_every)
            && self.on_long_keys.fetch_add(1, Ordering::Relaxed) < LONG_OPERATIONS_MAX
        {
            return format!("long{}", rng.below(LONG_KEYS));
        }
        let nth = self.on_short_keys.fetch_add(1, Ordering::Relaxed);
        format!("{}.{}", nth / OPERATIONS_PER_GENERATION, rng.below(KEYS))
    }

    /// Number of requests so far.
    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    /// True if a client has reported a finding.
    pub fn has_findings(&self) -> bool {
        !self.findings.lock().is_empty()
    }

    fn report(&self, finding: String) {
        self.findings.lock().push(finding);
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

/// Runs one client until the board says stop. Returns its part of the history.
pub fn run(board: &Board, client: usize, rng: Rng) -> History {
    let home = client % board.addresses.len();
    let mut client_thread = VerifyClient {
        board,
        client,
        home,
        at: home,
        rng,
        connection: None,
        since: Instant::now(),
        sessions: 0,
        history: History::default(),
    };
    let eventual = client % 4 == 3;
    while !board.stopped() {
        if client_thread.connect(eventual) {
            if eventual { client_thread.eventual() } else { client_thread.strong() }
        }
        client_thread.pause();
    }
    client_thread.history
}

struct VerifyClient<'a> {
    board: &'a Board,
    client: usize,
    home: usize,
    /// The node that it is connected to, or tries next.
    at: usize,
    rng: Rng,
    connection: Option<Client>,
    /// When the connection was made.
    since: Instant,
    /// Number of its connections so far.
    sessions: u64,
    history: History,
}

impl VerifyClient<'_> {
    /// Pauses for a random time, from zero to twice the mean.
    fn pause(&mut self) {
        let micros = self.rng.below(2 * self.board.pause.as_micros() as u64);
        std::thread::sleep(Duration::from_micros(micros));
    }

    /// Connects, unless it is connected already. False if that fails.
    fn connect(&mut self, eventual: bool) -> bool {
        let age = self.since.elapsed();
        if (self.at != self.home && age > AWAY) || (eventual && age > SESSION) {
            self.at = self.home;
            self.connection = None;
        }
        if self.connection.is_some() {
            return true;
        }
        let mut options = self.board.options.clone();
        if self.board.impatient {
            let most = options.timeout.as_millis() as u64;
            options.timeout = Duration::from_millis(most / 6 + self.rng.below(most));
        }
        let connected = Client::connect(&self.board.addresses[self.at], &options);
        let ready = connected.and_then(|mut client| {
            if eventual && !client.call(&["CONSISTENCY", "eventual"])?.is_ok() {
                return Err(Error::Refused("CONSISTENCY eventual".into()));
            }
            Ok(client)
        });
        self.since = Instant::now();
        match ready {
            Ok(client) => {
                self.connection = Some(client);
                self.sessions += 1;
                true
            }
            Err(error) => {
                // No fault of the nemesis can make a node refuse the greeting: report it.
                if matches!(error, Error::Refused(_)) {
                    let node = &self.board.addresses[self.at];
                    self.board.report(format!("client {} at {node}: {error}", self.client));
                }
                self.move_on();
                false
            }
        }
    }

    /// Moves to the next node after a short pause.
    fn move_on(&mut self) {
        self.connection = None;
        self.at = (self.at + 1) % self.board.addresses.len();
        std::thread::sleep(Duration::from_millis(1 + self.rng.below(20)));
    }

    /// Sends one strong request, or a small pipeline, and records the results.
    fn strong(&mut self) {
        let count = if self.rng.chance(1, 6) { 2 + self.rng.below(PIPELINE_MAX - 2) } else { 1 };
        let requests: Vec<(String, Action)> = (0..count)
            .map(|_| (self.board.key(&mut self.rng), action(self.board, &mut self.rng)))
            .collect();
        let mut bytes = Vec::new();
        for (key, action) in &requests {
            encode(&history::words(action, &self.board.full(key)), &mut bytes);
        }
        let invoked: Vec<u64> = requests.iter().map(|_| self.board.tickets.draw()).collect();
        let Some(connection) = &mut self.connection else { return };
        if let Err(Error::NotSent(_)) = connection.send(&bytes) {
            return self.move_on();
        }
        // Bytes may have left: if the connection fails now, every `receive` returns `Lost`.
        let mut trouble = false;
        for ((key, action), invoked) in requests.into_iter().zip(invoked) {
            let Some(connection) = &mut self.connection else { break };
            let answer = connection.receive();
            trouble |= answer.is_err();
            let fate = Fate::of(answer, |reply| history::seen(&action, reply));
            trouble |= matches!(fate, Fate::Refused);
            self.note(key, action, invoked, fate);
        }
        if trouble {
            self.move_on();
        }
    }

    fn note(&mut self, key: String, action: Action, invoked: u64, fate: Fate<Seen>) {
        self.board.requests.fetch_add(1, Ordering::Relaxed);
        self.history.fates.count(&fate);
        let (client, node) = (self.client, self.at);
        let mut record =
            StrongRecord { client, node, key, action, invoked, returned: None, seen: None };
        match fate {
            Fate::Done(seen) => {
                record.returned = Some(self.board.tickets.draw());
                record.seen = Some(seen);
                if history::changes(&record.action) {
                    self.history.fates.strong_writes += 1;
                    self.board.gap.lock().note();
                }
            }
            Fate::Refused => return,
            Fate::Unknown => {}
            Fate::Unexpected(text) => self.unexpected(&history::describe(&record), &text),
        }
        self.history.records.push(record);
    }

    fn unexpected(&self, request: &str, text: &str) {
        let node = &self.board.addresses[self.at];
        self.board.report(format!("client {} at {node}: {request}: {text}", self.client));
    }

    /// Sends one request of an eventual session and records the result.
    fn eventual(&mut self) {
        let own = self.rng.chance(1, 2);
        let key = match own {
            true => format!("own{}.{}.{}", self.client, self.sessions, self.rng.below(2)),
            false => format!("shared{}", self.rng.below(EVENTUAL_KEYS)),
        };
        let full = self.board.full(&key);
        let value = match self.rng.below(20) {
            0..8 => Some(Some(self.board.value())),
            8..10 => Some(None),
            _ => None,
        };
        let words: Vec<&[u8]> = match &value {
            Some(Some(value)) => vec![b"SET", full.as_bytes(), value],
            Some(None) => vec![b"DEL", full.as_bytes()],
            None => vec![b"GET", full.as_bytes()],
        };
        let Some(connection) = &mut self.connection else { return };
        let fate = Fate::of(connection.call(&words), |reply| match (&value, reply) {
            (Some(Some(_)), reply) => reply.is_ok().then_some(None),
            (Some(None), Reply::Integer(_)) | (None, Reply::Nil) => Some(None),
            (None, Reply::Bulk(value)) => Some(Some(value.clone())),
            _ => None,
        });
        self.board.requests.fetch_add(1, Ordering::Relaxed);
        self.history.fates.count(&fate);
        let certain = matches!(fate, Fate::Done(_));
        let stays = certain || matches!(fate, Fate::Unexpected(_));
        if let Fate::Unexpected(text) = &fate {
            let words: Vec<_> = words.iter().map(|word| String::from_utf8_lossy(word)).collect();
            self.unexpected(&words.join(" "), text);
        }
        let action = match (value, fate) {
            (_, Fate::Refused) | (None, Fate::Unknown | Fate::Unexpected(_)) => None,
            (Some(value), _) => Some(EventualAction::Write(value)),
            (None, Fate::Done(value)) => Some(EventualAction::Read(value)),
        };
        let (client, node) = (self.client, self.at);
        let record =
            action.map(|action| EventualRecord { client, node, key, own, action, certain });
        self.history.eventual.extend(record);
        if !stays {
            self.move_on();
        }
    }
}

/// A random strong command: mostly reads and plain writes, and some of every other kind.
fn action(board: &Board, rng: &mut Rng) -> Action {
    let set = |when, get| Action::Set { value: board.value(), when, get };
    match rng.below(100) {
        0..36 => Action::Get,
        36..58 => set(When::Always, false),
        58..64 => set(When::Absent, false),
        64..69 => set(When::Present, false),
        69..74 => set(When::Always, true),
        74..77 => set(When::Present, true),
        77..90 => Action::Increment(1),
        90..95 => Action::Take,
        _ => Action::Delete,
    }
}
