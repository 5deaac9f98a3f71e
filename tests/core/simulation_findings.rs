//! What the simulator has found in the consensus core, each as the few steps that show it. Seeds do
//! not last: any change of the simulator gives them another meaning.

use nodesync::clock::Now;
use nodesync::replica::{
    Alarm, Append, AppendAck, Apply, Effects, Envelope, HardState, Heartbeat, Input, Message, Pull,
    Recovered, Replica, RoleName, Settings, Standing, VoteReply, WalRecord,
};
use nodesync::rng::Rng;
use nodesync::types::{Entry, NodeId, Payload, SnapshotMeta, Version, Write};

const IMAGE: SnapshotMeta = SnapshotMeta { index: 10, term: 1 };
const VOTER: NodeId = NodeId(1);
const PEER: NodeId = NodeId(2);
const LEADER: NodeId = NodeId(3);

/// A replica whose disk is at hand: what it asks for is durable at once.
struct Bench {
    replica: Replica,
    now: Now,
    sent: Vec<Envelope>,
    apply: Vec<Apply>,
    /// The clock that recovery would find.
    clock: Version,
}

impl Bench {
    fn new(id: NodeId, recovered: Recovered) -> Bench {
        let settings = Settings { incarnation: 7, ..Settings::new(id, vec![VOTER, PEER, LEADER]) };
        let (now, clock) = (Now(10_000_000), recovered.clock);
        let replica = Replica::new(now, settings, recovered, Rng::new(1));
        Bench { replica, now, sent: Vec::new(), apply: Vec::new(), clock }
    }

    fn step(&mut self, input: Input) {
        let mut effects = Effects::default();
        self.replica.step(self.now, input, &mut effects);
        self.sent.extend(effects.send.into_iter().chain(effects.after_persist));
        self.apply.extend(effects.apply);
        for record in effects.persist {
            let WalRecord::Clock(clock) = record else { continue };
            self.clock = self.clock.max(clock);
        }
        if effects.job > 0 {
            self.step(Input::Persisted(effects.job));
        }
    }

    fn hear(&mut self, from: NodeId, term: u64, message: Message) {
        let to = self.replica.status().id;
        self.step(Input::Message(Envelope { from, to, term, message }));
    }

    fn raise(&mut self, alarm: Alarm) {
        self.now = self.now.max(self.replica.deadline(alarm));
        self.step(Input::Alarm(alarm));
    }

    fn progress(&self) -> Option<(u64, &'static str)> {
        let status = self.replica.status();
        status.peers.into_iter().find(|peer| peer.id == PEER)?.progress
    }
}

/// A leader in term 2 that began with these eventual writes on its disk, and an image.
fn leader(held: Vec<Write>) -> Bench {
    let standing = Standing::Voter { founders: Default::default() };
    let hard = HardState { term: 1, vote: None, standing };
    let recovered = Recovered { hard, snapshot: IMAGE, held, ..Recovered::default() };
    let mut bench = Bench::new(LEADER, recovered);
    bench.raise(Alarm::Election);
    bench.hear(VOTER, 1, Message::VoteReply(VoteReply { pre: true, granted: true }));
    bench.hear(VOTER, 2, Message::VoteReply(VoteReply { pre: false, granted: true }));
    assert!(bench.replica.is_leader());
    bench
}

/// The same, whose peer needs the image.
fn leader_with_an_image() -> Bench {
    let mut bench = leader(Vec::new());
    let probe = bench.replica.pull(bench.now, PEER, 1_000);
    let Some(Pull::Message(Envelope { message: Message::Append(append), .. })) = probe else {
        panic!("{probe:?}")
    };
    let prev_index = append.prev_index;
    let missing = AppendAck::Missing { prev_index, hint_index: 0, hint_term: 0 };
    bench.hear(PEER, 2, Message::AppendAck(missing));
    bench
}

fn fetches_the_image(bench: &mut Bench) -> bool {
    bench.replica.pull(bench.now, PEER, 1_000) == Some(Pull::Snapshot(IMAGE))
}

#[test]
fn a_node_that_has_caught_up_is_a_member_again_though_nobody_writes() {
    let hard = HardState { term: 2, vote: Some(VOTER), standing: Standing::CatchingUp };
    let entries = vec![Entry { index: 1, term: 2, payload: Payload::Noop }];
    let recovered = Recovered { hard, entries, ..Recovered::default() };
    let mut bench = Bench::new(VOTER, recovered);
    let append = Append { prev_index: 1, prev_term: 2, commit: 1, entries: Vec::new() };
    bench.hear(LEADER, 2, Message::Append(append));
    let heartbeat = Heartbeat { leader: Some(LEADER), commit: 1, last: 1, ..Heartbeat::default() };
    bench.hear(LEADER, 2, Message::Heartbeat(heartbeat.clone()));
    assert_eq!(bench.replica.status().role, RoleName::Joining);
    bench.hear(LEADER, 2, Message::Heartbeat(Heartbeat { answers: Some(7), ..heartbeat }));
    assert_eq!(bench.replica.status().role, RoleName::Follower);
}

#[test]
fn a_leader_asks_whether_an_image_was_installed_that_nobody_acknowledges() {
    let mut bench = leader_with_an_image();
    assert!(fetches_the_image(&mut bench));
    bench.step(Input::SnapshotSent { to: PEER, sent: true });
    bench.sent.clear();
    bench.raise(Alarm::Heartbeat);
    let asks = |sent: &Envelope| {
        let Message::Append(append) = &sent.message else { return false };
        sent.to == PEER && append.prev_index == IMAGE.index && append.entries.is_empty()
    };
    assert!(bench.sent.iter().any(asks), "{:?}", bench.sent);
    bench.hear(PEER, 2, Message::AppendAck(AppendAck::Matched(IMAGE.index)));
    assert_eq!(bench.progress(), Some((IMAGE.index, "replicate")));
}

#[test]
fn a_leader_whose_image_a_follower_never_installs_takes_another_one() {
    let mut bench = leader_with_an_image();
    assert!(fetches_the_image(&mut bench));
    bench.step(Input::SnapshotSent { to: PEER, sent: true });
    let end = bench.now + 60 * Settings::new(LEADER, Vec::new()).election_timeout;
    let takes_one = |bench: &Bench| bench.apply.iter().any(|a| matches!(a, Apply::Snapshot(_)));
    while bench.now < end && !takes_one(&bench) {
        // The other follower is well: the leader keeps its majority.
        bench.hear(
            VOTER,
            2,
            Message::Heartbeat(Heartbeat { leader: Some(LEADER), ..Heartbeat::default() }),
        );
        bench.raise(Alarm::Heartbeat);
    }
    assert!(bench.replica.is_leader() && takes_one(&bench), "{:?}", bench.apply);
}

#[test]
fn a_node_without_memory_is_sent_no_image_and_one_that_it_got_does_not_count() {
    let blank = Heartbeat { admitted: false, ..Heartbeat::default() };
    let mut bench = leader_with_an_image();
    bench.hear(PEER, 0, Message::Heartbeat(blank.clone()));
    assert!(!fetches_the_image(&mut bench));
    bench.hear(PEER, 2, Message::Heartbeat(Heartbeat { admitted: true, ..blank.clone() }));
    assert!(fetches_the_image(&mut bench));
    bench.step(Input::SnapshotSent { to: PEER, sent: true });
    assert_eq!(bench.progress(), Some((0, "snapshot")));
    bench.hear(PEER, 0, Message::Heartbeat(blank));
    assert_eq!(bench.progress(), Some((0, "probe")));
}

#[test]
fn an_acknowledgement_from_before_a_lost_disk_is_not_believed_for_long() {
    let mut bench = leader_with_an_image();
    bench.hear(PEER, 2, Message::AppendAck(AppendAck::Matched(IMAGE.index + 1)));
    assert_eq!(bench.progress(), Some((IMAGE.index + 1, "replicate")));
    let heartbeat = Heartbeat { leader: Some(LEADER), admitted: true, ..Heartbeat::default() };
    bench.hear(PEER, 2, Message::Heartbeat(heartbeat));
    assert_eq!(bench.progress(), Some((0, "probe")));
}

/// A write that the leader itself has stamped, in an earlier life.
fn own_write() -> Write {
    let key = b"k"[..].into();
    Write { version: Version::new(1_000, 2), key, value: Some(b"v"[..].into()) }
}

#[test]
fn a_write_that_comes_back_to_a_node_with_a_new_directory_is_drained() {
    let mut bench = leader(Vec::new());
    let last = bench.replica.status().last;
    bench.hear(PEER, 2, Message::Spread(vec![own_write()].into()));
    bench.raise(Alarm::Drain);
    assert_eq!(bench.replica.status().last, last + 1);
}

#[test]
fn a_write_that_is_found_on_the_disk_is_drained() {
    let mut bench = leader(vec![own_write()]);
    let last = bench.replica.status().last;
    bench.raise(Alarm::Drain);
    assert_eq!(bench.replica.status().last, last + 1);
    assert_eq!(bench.replica.status().unsynced, 0);
}

#[test]
fn a_node_claims_only_what_its_disk_would_remind_it_of() {
    let mut bench = leader(Vec::new());
    let mut claims = Vec::new();
    for _ in 0..400 {
        bench.sent.clear();
        bench.hear(PEER, 2, Message::Spread(vec![own_write()].into()));
        bench.raise(Alarm::Drain);
        bench.hear(PEER, 2, Message::AppendAck(AppendAck::Matched(bench.replica.status().last)));
        bench.raise(Alarm::Heartbeat);
        for envelope in &bench.sent {
            let Message::Heartbeat(heartbeat) = &envelope.message else { continue };
            assert!(
                heartbeat.drained.tick() <= bench.clock.tick(),
                "{:?} {:?}",
                heartbeat.drained,
                bench.clock
            );
            claims.push(heartbeat.drained);
        }
    }
    claims.dedup();
    assert!(claims.is_sorted() && claims.len() > 3, "{claims:?}");
}
