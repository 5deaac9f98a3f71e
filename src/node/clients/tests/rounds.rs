//! Rounds whose time is over as their answers come, without sockets. Each of hundreds of clients
//! knows which answer it may get, and that it may get one only.

use std::sync::Arc;
use std::thread::scope;
use std::time::Duration;

use bytes::Bytes;
use mio::Events;

use crate::node::clients::loops::PollLoop;
use crate::node::clients::mailbox::Mail;
use crate::node::clients::tests::PATIENCE;
use crate::node::core::Core;
use crate::node::shared::Shared;
use crate::node::tests::harness::{start, wait_until_it_serves};
use crate::node::tests::time::{eventually, in_time};
use crate::protocol::Limits;
use crate::rng::Rng;
use crate::service::{Inbox, Request, Rounds, Settled, Share};
use crate::types::{Command, Outcome, When};

/// Clients of one [`Player`].
const CLIENTS: usize = 64;

/// Requests of one [`Player`].
const REQUESTS: u64 = 3_000;

/// An open request of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum OpenRequest {
    /// To write this number, and to read it back in the same batch.
    Write(u64),
    /// To read.
    Read,
}

/// A loop without sockets. It joins the requests of its clients in rounds, sleeps until there are
/// answers or the time of a request is over, and checks each client's answer.
struct Player<'a> {
    shared: &'a Shared,
    me: usize,
    idle: PollLoop,
    rounds: Rounds,
    open: Vec<Option<OpenRequest>>,
    /// For each client, the latest number that is certainly written.
    written: Vec<u64>,
    asked: u64,
    rng: Rng,
    served: u64,
    overdue: u64,
}

impl<'a> Player<'a> {
    fn new(shared: &'a Shared, me: usize, idle: PollLoop, timeout: Duration) -> Player<'a> {
        let inbox: Arc<dyn Inbox> = Arc::clone(&idle.mailbox) as Arc<dyn Inbox>;
        Player {
            shared,
            me,
            idle,
            rounds: Rounds::new(inbox, timeout, &Limits::default()),
            open: vec![None; CLIENTS],
            written: vec![0; CLIENTS],
            asked: 0,
            rng: Rng::new(me as u64),
            served: 0,
            overdue: 0,
        }
    }

    fn key(&self, client: usize) -> String {
        format!("player {} client {client}", self.me)
    }

    fn join(&mut self, client: usize) {
        self.asked += 1;
        let key = self.key(client);
        let key = key.as_bytes();
        if self.rng.below(3) == 0 {
            self.open[client] = Some(OpenRequest::Read);
            return self.rounds.join(client, Request::Read, 0);
        }
        let (text, mut commands) = (self.asked.to_string(), Vec::new());
        let value = text.as_bytes();
        Command::Set { key, value, when: When::Always, get: false }.encode(&mut commands);
        Command::Get { key }.encode(&mut commands);
        self.open[client] = Some(OpenRequest::Write(self.asked));
        self.rounds.join(client, Request::Write(Bytes::from(commands)), 2);
    }

    /// Gives each client its share of an answer.
    fn settle(&mut self, settled: Settled) {
        let members = settled.share_out(|client, share| self.tell(client, share));
        self.rounds.reuse(members);
    }

    /// Checks a client's share. The client must have an open request.
    fn tell(&mut self, client: usize, share: Share<'_>) {
        let request = self.open[client].take().expect("an answer without a request");
        match (request, share) {
            (_, Share::Unserved(_)) => {
                self.overdue += 1;
                return;
            }
            (OpenRequest::Read, Share::MayRead) => {
                let found =
                    self.shared.store.read(&Command::Get { key: self.key(client).as_bytes() });
                assert!(number(&found) >= self.written[client], "{found:?}");
            }
            (OpenRequest::Write(written), Share::Outcomes(own)) => {
                assert_eq!(own.len(), 2, "too many or too few outcomes");
                assert_eq!(own.last().map(number), Some(written), "another one's outcome");
                self.written[client] = written;
            }
            (request, share) => panic!("{request:?} is answered by {share:?}"),
        }
        self.served += 1;
    }

    /// Takes the answers that have come. Returns the number of answers to cancelled requests.
    fn take_mail(&mut self) -> usize {
        let mut mail = Mail::default();
        self.idle.mailbox.empty_into(&mut mail);
        let mut late = 0;
        for (ticket, answer) in mail.answers {
            match self.rounds.answered(ticket, answer) {
                Some(settled) => self.settle(settled),
                None => late += 1,
            }
        }
        late
    }

    fn play(&mut self) -> usize {
        let (mut events, mut late) = (Events::with_capacity(8), 0);
        let core: &Core = &self.shared.core;
        while self.asked < REQUESTS || self.open.iter().any(Option::is_some) {
            // None, one or many clients join, beside those that wait already.
            let joining = [0, 1, CLIENTS][self.rng.below(3) as usize];
            for _ in 0..joining {
                let client = self.rng.below(CLIENTS as u64) as usize;
                if self.asked < REQUESTS && self.open[client].is_none() {
                    self.join(client);
                }
            }
            self.rounds.ask(core.now(), |requests| core.ask(requests));
            if let Some(deadline) = self.rounds.deadline() {
                let sleeps = self.idle.mailbox.may_sleep();
                let patience = if sleeps { deadline.since(core.now()) } else { Duration::ZERO };
                self.idle.poll.poll(&mut events, Some(patience)).unwrap();
            }
            late += self.take_mail();
            let now = core.now();
            for settled in self.rounds.cancel_overdue(now, |handle| core.cancel(handle)) {
                self.settle(settled);
            }
        }
        assert!(self.rounds.deadline().is_none() && !self.rounds.has_gathered());
        late
    }
}

fn number(outcome: &Outcome) -> u64 {
    match outcome {
        Outcome::Nil => 0,
        Outcome::Value(text) => str::from_utf8(text).unwrap().parse().unwrap(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn each_request_of_a_round_is_answered_once_and_as_its_own_whenever_its_time_is_over() {
    let played = in_time("all is settled", || {
        let timeouts = [0, 300, 1_000, 2_000, 3_000, 5_000, 10_000].map(Duration::from_micros);
        let timeouts = [&timeouts[..], &[PATIENCE]].concat();
        let scratch = tempfile::tempdir().unwrap();
        let node = start(scratch.path(), &[]);
        let shared = &node.shared;
        wait_until_it_serves(shared);
        let idle: Vec<PollLoop> = timeouts.iter().map(|_| PollLoop::new().unwrap().0).collect();
        let players: Vec<_> = scope(|scope| {
            let player = |(me, (idle, timeout))| {
                scope.spawn(move || {
                    let mut player = Player::new(shared, me, idle, timeout);
                    let late = player.play();
                    (player, late)
                })
            };
            let players: Vec<_> = idle.into_iter().zip(timeouts).enumerate().map(player).collect();
            players.into_iter().map(|player| player.join().unwrap()).collect()
        });
        eventually("no request waits", || shared.core.is_idle());
        let mut played = Vec::new();
        for (mut player, late) in players {
            let late = late + player.take_mail();
            assert_eq!(player.served + player.overdue, REQUESTS);
            played.push((player.served, player.overdue, late));
        }
        assert_eq!(shared.core.status().pending, (0, 0));
        node.stop().unwrap();
        played
    });
    println!("served, cancelled, answered after that: {played:?}");
    let served: u64 = played.iter().map(|(served, ..)| served).sum();
    let overdue: u64 = played.iter().map(|(_, overdue, _)| overdue).sum();
    assert!(served > REQUESTS && overdue > REQUESTS / 10, "{played:?}");
    // The last player has long time-outs: a lost wake-up would have cost it a request.
    assert_eq!(played.last(), Some(&(REQUESTS, 0, 0)));
}
