//! Hundreds of threads on the state that the threads of a node share: the core, the leader that it
//! publishes, and the table of contacts. The loops, the pool, the waiters, the links and the stop
//! have their own tests of this kind, beside their code.
//!
//! These are runs on real threads. A scheduler that tries interleavings one by one (loom, shuttle)
//! would have to replace every lock and channel here, and has neither time-outs nor channels of
//! this kind. Yet the races are where a time-out meets an answer, or where a thread leaves as a
//! task comes. So the tests bring about these moments as often as they can, and check the state
//! after each.

pub mod harness;
pub mod time;

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Barrier};
use std::thread::scope;
use std::time::{Duration, Instant};

use bytes::Bytes;
use crossbeam_channel::{bounded, unbounded};

use crate::clock::Clock;
use crate::node::clients::Waiter;
use crate::node::core::Core;
use crate::node::queues::Queues;
use crate::node::shared::Shared;
use crate::replica::{
    Envelope, HardState, Heartbeat, Input, Message, Recovered, Replica, Settings, Standing,
};
use crate::rng::Rng;
use crate::service::{Answer, Request, Shell};
use crate::store::Writer;
use crate::types::{Command, NodeId, Outcome, Rejected, Unknown, Unserved, Version, When, Write};
use harness::{ask, start, wait_until_it_serves};
use time::{SOON, eventually, in_time};

/// A client's session without a socket. It knows which values its own key may hold.
struct TestClient<'a> {
    shared: &'a Shared,
    key: String,
    rng: Rng,
    waiter: Arc<Waiter>,
    /// The latest number that is certainly written.
    written: u64,
    /// The latest number that may be written.
    tried: u64,
    /// Requests whose time was over before their answer came.
    overdue: u64,
}

impl<'a> TestClient<'a> {
    fn new(shared: &'a Shared, me: u64) -> TestClient<'a> {
        let (key, rng) = (format!("key {me}"), Rng::new(me));
        TestClient { shared, key, rng, waiter: Arc::default(), written: 0, tried: 0, overdue: 0 }
    }

    /// The time that the next request may take: often about as long as its answer takes.
    fn patience(&mut self) -> Duration {
        match self.rng.below(4) {
            0 => Duration::ZERO,
            1 => SOON,
            _ => Duration::from_micros(self.rng.below(20_000)),
        }
    }

    fn number(outcome: &Outcome) -> u64 {
        match outcome {
            Outcome::Nil => 0,
            Outcome::Value(text) => str::from_utf8(text).unwrap().parse().unwrap(),
            other => panic!("{other:?}"),
        }
    }

    /// Writes the next number, and reads it back in the same batch.
    fn write(&mut self) -> Result<(), Unserved> {
        self.tried += 1;
        let (key, text) = (self.key.as_bytes(), self.tried.to_string());
        let mut commands = Vec::new();
        let value = text.as_bytes();
        Command::Set { key, value, when: When::Always, get: false }.encode(&mut commands);
        Command::Get { key }.encode(&mut commands);
        let patience = self.patience();
        let request = Request::Write(Bytes::from(commands));
        let answer = ask(&self.shared.core, request, &self.waiter, patience)?;
        let Answer::Outcomes(outcomes) = answer else { panic!("{answer:?}") };
        assert_eq!(TestClient::number(&outcomes[1]), self.tried, "another request's answer");
        self.written = self.tried;
        Ok(())
    }

    fn read(&mut self) -> Result<(), Unserved> {
        let patience = self.patience();
        ask(&self.shared.core, Request::Read, &self.waiter, patience)?;
        let found = self.shared.store.read(&Command::Get { key: self.key.as_bytes() });
        let found = TestClient::number(&found);
        assert!((self.written..=self.tried).contains(&found), "{found} after {}", self.written);
        Ok(())
    }

    /// Makes an eventual write, and reads it back: it is visible as soon as it is answered.
    fn stamp(&mut self) -> Result<(), Unserved> {
        let key = format!("eventual {}", self.key);
        let value = self.rng.below(u64::MAX).to_string();
        let write = Write {
            version: Version::default(),
            key: key.as_bytes().into(),
            value: Some(value.as_bytes().into()),
        };
        let patience = self.patience();
        let answer = ask(&self.shared.core, Request::Stamp(vec![write]), &self.waiter, patience)?;
        let Answer::Stamped { existed, .. } = answer else { panic!("{answer:?}") };
        assert_eq!(existed.len(), 1, "another's answer");
        let seen = self.shared.store.read_newest(&Command::Get { key: key.as_bytes() });
        assert_eq!(seen, Outcome::Value(value.as_bytes().into()));
        Ok(())
    }

    /// Makes one request of any kind.
    fn ask(&mut self) -> Result<(), Unserved> {
        match self.rng.below(8) {
            0..4 => self.write(),
            4..7 => self.read(),
            _ => self.stamp(),
        }
    }
}

const CLIENTS: u64 = 256;

#[test]
fn hundreds_of_sessions_get_their_own_answers_and_cancel_when_their_time_is_over() {
    let scratch = tempfile::tempdir().unwrap();
    let node = start(scratch.path(), &[]);
    let shared = &node.shared;
    wait_until_it_serves(shared);
    let end = Instant::now() + Duration::from_secs(2);
    let (served, overdue) = scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|me| {
                scope.spawn(move || {
                    let mut client = TestClient::new(shared, me);
                    let mut served = 0;
                    while Instant::now() < end {
                        match client.ask() {
                            Ok(()) => served += 1,
                            Err(Unserved::Unknown(Unknown::TimedOut)) => client.overdue += 1,
                            Err(Unserved::Rejected(Rejected::Busy | Rejected::NoLeader)) => {
                                client.overdue += 1;
                            }
                            Err(other) => panic!("{other:?}"),
                        }
                    }
                    (served, client.overdue)
                })
            })
            .collect();
        let sums = clients.into_iter().map(|client| client.join().unwrap());
        sums.fold((0, 0), |sum, client| (sum.0 + client.0, sum.1 + client.1))
    });
    println!("{served} served, {overdue} cancelled");
    assert!(served > CLIENTS && overdue > CLIENTS, "{served} served, {overdue} cancelled");
    eventually("no request waits", || shared.core.is_idle());
    assert_eq!(shared.core.status().pending, (0, 0));
    node.stop().unwrap();
}

#[test]
fn every_request_that_waits_when_the_node_ends_is_answered() {
    let scratch = tempfile::tempdir().unwrap();
    for round in 0..5 {
        let node = start(scratch.path(), &[]);
        let shared = Arc::clone(&node.shared);
        wait_until_it_serves(&shared);
        let ask_to_the_end = move || {
            scope(|scope| {
                for me in 0..CLIENTS {
                    let mut client = TestClient::new(&shared, CLIENTS * (round + 1) + me);
                    scope.spawn(move || {
                        loop {
                            let answer = client.ask();
                            if let Err(Unserved::Rejected(Rejected::Stopping)) = answer {
                                return;
                            }
                        }
                    });
                }
                std::thread::sleep(Duration::from_millis(20 * round));
                node.stop().unwrap();
            });
        };
        in_time("all are answered", ask_to_the_end);
    }
}

const MEMBERS: u32 = 64;

/// The only node that may lead in a term: another one in each of many successive terms.
fn leader_of(term: u64) -> NodeId {
    NodeId(2 + (term % u64::from(MEMBERS - 1)) as u32)
}

/// A follower's core without a thread behind it.
fn follower() -> Core {
    let members: Vec<NodeId> = (1..=MEMBERS).map(NodeId).collect();
    let standing = Standing::Voter { founders: BTreeMap::new() };
    let hard = HardState { standing, ..HardState::default() };
    let recovered = Recovered { hard, ..Recovered::default() };
    let clock = Clock::start();
    let settings = Settings::new(NodeId(1), members);
    let replica = Replica::new(clock.now(), settings, recovered, Rng::new(1));
    // The receiving ends are dropped: a send to a closed queue does nothing.
    let queues = Queues {
        wal: unbounded().0,
        apply: unbounded().0,
        links: BTreeMap::new(),
        election: bounded(1).0,
        drain: bounded(1).0,
    };
    let store = Writer::new().store();
    Core::new(Shell::new(replica, Arc::clone(&store)), queues, clock, store, Arc::default())
}

#[test]
fn every_request_that_waits_for_a_leader_when_the_node_ends_is_answered() {
    for _ in 0..10 {
        in_time("all are answered", || {
            let (core, together) = (follower(), Barrier::new(CLIENTS as usize + 1));
            scope(|scope| {
                for me in 0..CLIENTS {
                    let (core, together) = (&core, &together);
                    scope.spawn(move || {
                        let waiter = Arc::default();
                        together.wait();
                        let request = match me % 2 {
                            0 => Request::Read,
                            _ => Request::Write(Bytes::new()),
                        };
                        let told = ask(core, request, &waiter, SOON).unwrap_err();
                        let (stopped, stopping) = (Unknown::Stopped, Rejected::Stopping);
                        assert!(told == stopped.into() || told == stopping.into(), "{told:?}");
                    });
                }
                together.wait();
                eventually("some wait", || core.status().pending.0 > 10);
                core.step([Input::Stop]);
                core.cancel_all();
            });
        });
    }
}

#[test]
fn the_published_leader_is_never_of_an_older_term_than_the_one_before() {
    let core = follower();
    let (term, done) = (AtomicU64::new(1), AtomicBool::new(false));
    let heartbeat = |term: u64| {
        let from = leader_of(term);
        let heartbeat =
            Heartbeat { leader: Some(from), voter: true, admitted: true, ..Heartbeat::default() };
        let envelope =
            Envelope { from, to: NodeId(1), term, message: Message::Heartbeat(heartbeat) };
        core.step([Input::Message(envelope)]);
    };
    let judged: u64 = scope(|scope| {
        let tell = |seed| {
            let (heartbeat, term) = (&heartbeat, &term);
            scope.spawn(move || {
                let mut rng = Rng::new(seed);
                for _ in 0..100 {
                    let now = term.fetch_add(1, Ordering::Relaxed);
                    // A heartbeat of an old leader may come at any time.
                    heartbeat(now.saturating_sub(rng.below(4)).max(1));
                    std::thread::yield_now();
                }
            })
        };
        let tellers: Vec<_> = (0..100).map(tell).collect();
        let observers: Vec<_> = (0..100)
            .map(|_| {
                scope.spawn(|| {
                    let (mut judged, mut last_term) = (0, 0);
                    while !done.load(Ordering::Relaxed) {
                        let before = core.status();
                        let named = core.leader();
                        let after = core.status();
                        assert!(last_term <= before.term && before.term <= after.term);
                        last_term = after.term;
                        for status in [&before, &after] {
                            let leader = status.leader;
                            assert!(leader.is_none_or(|leader| leader == leader_of(status.term)));
                        }
                        // Within so few terms no node leads twice.
                        let few = after.term - before.term < u64::from(MEMBERS) / 2;
                        if before.leader.is_some() && after.leader.is_some() && few {
                            let mut leaders = (before.term..=after.term).map(leader_of);
                            let found = named.is_some_and(|named| leaders.any(|l| l == named));
                            assert!(found, "{named:?} in {} to {}", before.term, after.term);
                            judged += 1;
                        }
                        std::thread::yield_now();
                    }
                    judged
                })
            })
            .collect();
        let told = tellers.into_iter().all(|teller| teller.join().is_ok());
        done.store(true, Ordering::Relaxed);
        assert!(told);
        observers.into_iter().map(|observer| observer.join().unwrap()).sum()
    });
    println!("{judged} observations");
    assert!(judged > 1000, "only {judged} observations could be judged");
}

/// Ports that take connections and never send a byte.
fn silent_peers() -> (Vec<TcpListener>, Vec<String>) {
    let peer = |_| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        (listener, address)
    };
    (0..2).map(peer).unzip()
}

#[test]
fn a_peer_that_hundreds_of_threads_hear_is_alive_and_is_suspected_once_all_are_silent() {
    let scratch = tempfile::tempdir().unwrap();
    let (_held, addresses) = silent_peers();
    let mut words: Vec<&str> = addresses.iter().map(String::as_str).collect();
    words.extend(["--heartbeat-interval", "20", "--election-timeout", "100"]);
    let node = start(scratch.path(), &words);
    let shared = &node.shared;
    let peers: Vec<NodeId> = shared.config.peers.iter().map(|peer| peer.id).collect();
    let has_quorum = || shared.core.status().quorum;
    for _ in 0..5 {
        eventually("all are suspected", || !has_quorum());
        let heard = AtomicBool::new(false);
        scope(|scope| {
            for at in 0..200 {
                let (heard, peer) = (&heard, peers[at % 2]);
                scope.spawn(move || {
                    let started = Instant::now();
                    while !heard.load(Ordering::Relaxed) && started.elapsed() < 2 * SOON {
                        shared.contacts.heard(shared.clock.now(), peer);
                        std::thread::sleep(Duration::from_millis(1));
                    }
                });
            }
            eventually("they are heard", has_quorum);
            heard.store(true, Ordering::Relaxed);
        });
    }
    node.stop().unwrap();
}
