//! Bugs that the simulator found in the consensus core, each reproduced in a few steps. Seeds would
//! not preserve them: any change of the simulator changes the run behind a seed.

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

/// Replica with an immediate disk: each record is durable as soon as it is written.
struct TestReplica {
    replica: Replica,
    now: Now,
    sent: Vec<Envelope>,
    apply: Vec<Apply>,
    /// Clock that recovery would find on the disk.
    clock: Version,
}

impl TestReplica {
    fn new(id: NodeId, recovered: Recovered) -> TestReplica {
        let settings = Settings { incarnation: 7, ..Settings::new(id, vec![VOTER, PEER, LEADER]) };
        let (now, clock) = (Now(10_000_000), recovered.clock);
        let replica = Replica::new(now, settings, recovered, Rng::new(1));
        TestReplica { replica, now, sent: Vec::new(), apply: Vec::new(), clock }
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

/// Leader in term 2 that started with an image and these eventual writes on its disk.
fn leader(held: Vec<Write>) -> TestReplica {
    let standing = Standing::Voter { founders: Default::default() };
    let hard = HardState { term: 1, vote: None, standing };
    let recovered = Recovered { hard, snapshot: IMAGE, held, ..Recovered::default() };
    let mut node = TestReplica::new(LEADER, recovered);
    node.raise(Alarm::Election);
    node.hear(VOTER, 1, Message::VoteReply(VoteReply { pre: true, granted: true }));
    node.hear(VOTER, 2, Message::VoteReply(VoteReply { pre: false, granted: true }));
    assert!(node.replica.is_leader());
    node
}

/// Leader whose peer needs the image.
fn leader_with_an_image() -> TestReplica {
    let mut node = leader(Vec::new());
    let probe = node.replica.pull(node.now, PEER, 1_000);
    let Some(Pull::Message(Envelope { message: Message::Append(append), .. })) = probe else {
        panic!("{probe:?}")
    };
    let prev_index = append.prev_index;
    let missing = AppendAck::Missing { prev_index, hint_index: 0, hint_term: 0 };
    node.hear(PEER, 2, Message::AppendAck(missing));
    node
}

fn fetches_the_image(node: &mut TestReplica) -> bool {
    node.replica.pull(node.now, PEER, 1_000) == Some(Pull::Snapshot(IMAGE))
}

#[test]
fn a_node_that_has_caught_up_is_a_member_again_without_new_writes() {
    let hard = HardState { term: 2, vote: Some(VOTER), standing: Standing::CatchingUp };
    let entries = vec![Entry { index: 1, term: 2, payload: Payload::Noop }];
    let recovered = Recovered { hard, entries, ..Recovered::default() };
    let mut node = TestReplica::new(VOTER, recovered);
    let append = Append { prev_index: 1, prev_term: 2, commit: 1, entries: Vec::new() };
    node.hear(LEADER, 2, Message::Append(append));
    let heartbeat = Heartbeat { leader: Some(LEADER), commit: 1, last: 1, ..Heartbeat::default() };
    node.hear(LEADER, 2, Message::Heartbeat(heartbeat.clone()));
    assert_eq!(node.replica.status().role, RoleName::Joining);
    node.hear(LEADER, 2, Message::Heartbeat(Heartbeat { answers: Some(7), ..heartbeat }));
    assert_eq!(node.replica.status().role, RoleName::Follower);
}

#[test]
fn a_leader_probes_whether_an_unacknowledged_image_was_installed() {
    let mut node = leader_with_an_image();
    assert!(fetches_the_image(&mut node));
    node.step(Input::SnapshotSent { to: PEER, sent: true });
    node.sent.clear();
    node.raise(Alarm::Heartbeat);
    let asks = |sent: &Envelope| {
        let Message::Append(append) = &sent.message else { return false };
        sent.to == PEER && append.prev_index == IMAGE.index && append.entries.is_empty()
    };
    assert!(node.sent.iter().any(asks), "{:?}", node.sent);
    node.hear(PEER, 2, Message::AppendAck(AppendAck::Matched(IMAGE.index)));
    assert_eq!(node.progress(), Some((IMAGE.index, "replicate")));
}

#[test]
fn a_leader_takes_another_image_if_a_follower_never_installs_the_first() {
    let mut node = leader_with_an_image();
    assert!(fetches_the_image(&mut node));
    node.step(Input::SnapshotSent { to: PEER, sent: true });
    let end = node.now + 60 * Settings::new(LEADER, Vec::new()).election_timeout;
    let takes_one = |node: &TestReplica| node.apply.iter().any(|a| matches!(a, Apply::Snapshot(_)));
    while node.now < end && !takes_one(&node) {
        // The other follower is healthy, so the leader keeps its majority (check-quorum).
        node.hear(
            VOTER,
            2,
            Message::Heartbeat(Heartbeat { leader: Some(LEADER), ..Heartbeat::default() }),
        );
        node.raise(Alarm::Heartbeat);
    }
    assert!(node.replica.is_leader() && takes_one(&node), "{:?}", node.apply);
}

#[test]
fn a_node_that_is_not_admitted_is_sent_no_image_and_an_earlier_one_does_not_count() {
    let blank = Heartbeat { admitted: false, ..Heartbeat::default() };
    let mut node = leader_with_an_image();
    node.hear(PEER, 0, Message::Heartbeat(blank.clone()));
    assert!(!fetches_the_image(&mut node));
    node.hear(PEER, 2, Message::Heartbeat(Heartbeat { admitted: true, ..blank.clone() }));
    assert!(fetches_the_image(&mut node));
    node.step(Input::SnapshotSent { to: PEER, sent: true });
    assert_eq!(node.progress(), Some((0, "snapshot")));
    node.hear(PEER, 0, Message::Heartbeat(blank));
    assert_eq!(node.progress(), Some((0, "probe")));
}

#[test]
fn a_heartbeat_corrects_an_acknowledgement_from_before_a_lost_disk() {
    let mut node = leader_with_an_image();
    node.hear(PEER, 2, Message::AppendAck(AppendAck::Matched(IMAGE.index + 1)));
    assert_eq!(node.progress(), Some((IMAGE.index + 1, "replicate")));
    let heartbeat = Heartbeat { leader: Some(LEADER), admitted: true, ..Heartbeat::default() };
    node.hear(PEER, 2, Message::Heartbeat(heartbeat));
    assert_eq!(node.progress(), Some((0, "probe")));
}

/// Write that the leader itself stamped before its restart.
fn own_write() -> Write {
    let key = b"k"[..].into();
    Write { version: Version::new(1_000, 2), key, value: Some(b"v"[..].into()) }
}

#[test]
fn a_write_that_comes_back_to_a_node_with_a_new_directory_is_drained() {
    let mut node = leader(Vec::new());
    let last = node.replica.status().last;
    node.hear(PEER, 2, Message::Spread(vec![own_write()].into()));
    node.raise(Alarm::Drain);
    assert_eq!(node.replica.status().last, last + 1);
}

#[test]
fn a_write_that_is_found_on_the_disk_is_drained() {
    let mut node = leader(vec![own_write()]);
    let last = node.replica.status().last;
    node.raise(Alarm::Drain);
    assert_eq!(node.replica.status().last, last + 1);
    assert_eq!(node.replica.status().unsynced, 0);
}

#[test]
fn a_node_announces_as_drained_only_versions_that_its_disk_covers() {
    let mut node = leader(Vec::new());
    let mut claims = Vec::new();
    for _ in 0..400 {
        node.sent.clear();
        node.hear(PEER, 2, Message::Spread(vec![own_write()].into()));
        node.raise(Alarm::Drain);
        node.hear(PEER, 2, Message::AppendAck(AppendAck::Matched(node.replica.status().last)));
        node.raise(Alarm::Heartbeat);
        for envelope in &node.sent {
            let Message::Heartbeat(heartbeat) = &envelope.message else { continue };
            assert!(
                heartbeat.drained.tick() <= node.clock.tick(),
                "{:?} {:?}",
                heartbeat.drained,
                node.clock
            );
            claims.push(heartbeat.drained);
        }
    }
    claims.dedup();
    assert!(claims.is_sorted() && claims.len() > 3, "{claims:?}");
}
