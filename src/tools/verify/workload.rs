//! The clients: threads that ask all nodes for all kinds of things, and write down what they see.
//!
//! Strong clients share keys that live for about a second (so that each key's history stays short
//! enough to be checked, and old ones are never forgotten), and a few that live through the whole
//! run. Every value is written once. All values are numbers, so that every command works on every
//! key. A request is sent once; what became of it is noted and never repeated.
//!
//! One in four clients is an eventual session. Its connection has keys of its own, on which it must
//! see its own writes, and all of them share some more, on which they must agree in the end.
//!
//! A client whose node is down or refuses goes on elsewhere, and comes back after a while.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::client::{Client, Error, Options, Reply, encode};
use crate::rng::Rng;
use crate::testing::linearizability::{Action, Seen};
use crate::tools::verify::history::{
    self, Deed, EventualRecord, Fate, History, StrongRecord, Tickets,
};
use crate::types::When;

/// Keys that live at a time, and the operations after which the next ones take their place.
const KEYS: u64 = 8;
const OPERATIONS_PER_GENERATION: u64 = 2400;
/// Keys for the whole run, and the operations on them that the checker can bear.
const LONG_KEYS: u64 = 4;
const LONG_OPERATIONS_MAX: u64 = 8_000;
/// Operations of a run that memory can bear.
const OPERATIONS_MAX: u64 = 2_000_000;
/// The least mean pause between two requests of a client.
const PAUSE: Duration = Duration::from_micros(1500);
/// Keys that all eventual sessions write.
const EVENTUAL_KEYS: u64 = 6;
/// A pipeline of a client has fewer requests than this.
const PIPELINE_MAX: u64 = 6;
/// How long a client stays away from its own node, and how long an eventual session lasts.
const AWAY: Duration = Duration::from_secs(1);
const SESSION: Duration = Duration::from_secs(3);
/// Values of different writes differ by this, so that increments do not make them equal.
const VALUE_STEP: u64 = 1_000_000;

/// What all clients share.
#[derive(Debug)]
pub struct Board {
    /// Where the nodes are.
    pub addresses: Vec<String>,
    /// How many clients there are; whoever reads after them has this number.
    pub clients: usize,
    /// Before each key.
    pub prefix: String,
    /// How to connect.
    pub options: Options,
    /// If time-outs are drawn between a part of `options.timeout` and all of it.
    pub impatient: bool,
    /// The order of everything.
    pub tickets: Tickets,
    /// Set when clients are to finish.
    pub stop: AtomicBool,
    requests: AtomicU64,
    /// What no client may see.
    pub findings: Mutex<Vec<String>>,
    /// Between acknowledged writes.
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
    /// So far, up to the last one.
    pub longest: Duration,
    /// When that one began, from the beginning of the run.
    pub since: Duration,
}

impl WriteGap {
    fn new() -> WriteGap {
        let now = Instant::now();
        WriteGap { began: now, last: now, longest: Duration::ZERO, since: Duration::ZERO }
    }

    /// Begins to measure.
    pub fn restart(&mut self) {
        *self = WriteGap::new();
    }

    /// Notes a write, or the end.
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

    /// The key as the nodes know it.
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

    /// Requests so far.
    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    /// True if a client has seen what no client may see.
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

/// Works until the board says stop; what the client did and saw.
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
        client_thread.rest();
    }
    client_thread.history
}

struct VerifyClient<'a> {
    board: &'a Board,
    client: usize,
    home: usize,
    /// The node that it asks now.
    at: usize,
    rng: Rng,
    connection: Option<Client>,
    /// When the connection was made.
    since: Instant,
    /// Numbers the connections.
    sessions: u64,
    history: History,
}

impl VerifyClient<'_> {
    /// Between nothing and twice the mean.
    fn rest(&mut self) {
        let micros = self.rng.below(2 * self.board.pause.as_micros() as u64);
        std::thread::sleep(Duration::from_micros(micros));
    }

    /// Sees to it that there is a connection, if one can be had.
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
                // A greeting that is refused is no fault that a nemesis can cause.
                if matches!(error, Error::Refused(_)) {
                    let node = &self.board.addresses[self.at];
                    self.board.report(format!("client {} at {node}: {error}", self.client));
                }
                self.move_on();
                false
            }
        }
    }

    /// To the next node, after a moment.
    fn move_on(&mut self) {
        self.connection = None;
        self.at = (self.at + 1) % self.board.addresses.len();
        std::thread::sleep(Duration::from_millis(1 + self.rng.below(20)));
    }

    /// One request, or a small pipeline.
    fn strong(&mut self) {
        let count = if self.rng.chance(1, 6) { 2 + self.rng.below(PIPELINE_MAX - 2) } else { 1 };
        let asked: Vec<(String, Action)> = (0..count)
            .map(|_| (self.board.key(&mut self.rng), action(self.board, &mut self.rng)))
            .collect();
        let mut bytes = Vec::new();
        for (key, action) in &asked {
            encode(&history::words(action, &self.board.full(key)), &mut bytes);
        }
        let invoked: Vec<u64> = asked.iter().map(|_| self.board.tickets.draw()).collect();
        let Some(connection) = &mut self.connection else { return };
        if let Err(Error::NotSent(_)) = connection.send(&bytes) {
            return self.move_on();
        }
        // From here on a failed connection answers each receive with `Lost`.
        let mut trouble = false;
        for ((key, action), invoked) in asked.into_iter().zip(invoked) {
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
        self.history.tally.count(&fate);
        let (client, node) = (self.client, self.at);
        let mut record =
            StrongRecord { client, node, key, action, invoked, returned: None, seen: None };
        match fate {
            Fate::Done(seen) => {
                record.returned = Some(self.board.tickets.draw());
                record.seen = Some(seen);
                if history::changes(&record.action) {
                    self.history.tally.strong_writes += 1;
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

    /// One step of an eventual session.
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
        self.history.tally.count(&fate);
        let certain = matches!(fate, Fate::Done(_));
        let stays = certain || matches!(fate, Fate::Unexpected(_));
        if let Fate::Unexpected(text) = &fate {
            let words: Vec<_> = words.iter().map(|word| String::from_utf8_lossy(word)).collect();
            self.unexpected(&words.join(" "), text);
        }
        let deed = match (value, fate) {
            (_, Fate::Refused) | (None, Fate::Unknown | Fate::Unexpected(_)) => None,
            (Some(value), _) => Some(Deed::Write(value)),
            (None, Fate::Done(value)) => Some(Deed::Read(value)),
        };
        let (client, node) = (self.client, self.at);
        let step = deed.map(|deed| EventualRecord { client, node, key, own, deed, certain });
        self.history.steps.extend(step);
        if !stays {
            self.move_on();
        }
    }
}

/// What a client asks for: mostly reads and plain writes, and some of everything else.
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
