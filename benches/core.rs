//! Costs of the parts of a node, each alone: the pure core's steps, the replicated log, the
//! encodings, a client's session, the store, and the write-ahead log in memory and on files.
//!
//! `cargo bench -p nodesync-benches --bench core [-- NAME]` ends within two minutes. The figures
//! compare a change with the code before it; `nodesync bench` measures a whole cluster.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use nodesync::clock::Now;
use nodesync::protocol::{Limits, ServerInfo, Session, Work};
use nodesync::replica::log::Log;
use nodesync::replica::{
    Alarm, Append, AppendAck, Apply, Effects, Envelope, HardState, Heartbeat, Input, Message, Pull,
    Recovered, Replica, Settings, Standing, VoteReply, WalRecord,
};
use nodesync::rng::Rng;
use nodesync::store::Writer;
use nodesync::testing::MemoryDisk;
use nodesync::types::{
    Command, Consistency, Entry, Index, NodeId, Outcome, Payload, Proposal, RequestId,
    SnapshotMeta, Version, When, Write,
};
use nodesync::wal::{Disk, FileDisk, Wal, WalOptions};
use nodesync::wire::{self, FrameReader};

const LEADER: NodeId = NodeId(3);
const PEERS: [NodeId; 2] = [NodeId(1), NodeId(2)];
const VALUE: [u8; 64] = [b'x'; 64];
const KEYS: u64 = 100_000;
const SIZES: [usize; 2] = [1, 64];

criterion_main!(parts);
criterion_group! {
    name = parts;
    config = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2));
    targets = replica, log, commands, frames, sessions, store, write_ahead_log
}

/// Key that looks random.
fn key(nth: u64) -> Vec<u8> {
    format!("key:{:012}", nth.wrapping_mul(0x9e37_79b9_7f4a_7c15) % KEYS).into_bytes()
}

fn set(key: &[u8]) -> Command<'_> {
    Command::Set { key, value: &VALUE, when: When::Always, get: false }
}

fn encoded(command: &Command<'_>) -> Bytes {
    let mut bytes = Vec::new();
    command.encode(&mut bytes);
    bytes.into()
}

fn batch(index: Index, commands: Bytes) -> Entry {
    let id = RequestId { node: LEADER, boot: 1, seq: index };
    let proposal = Proposal { id, floor: index, commands };
    let stamp = Version::new(index, Version::LOG);
    Entry { index, term: 1, payload: Payload::Batch { stamp, proposal } }
}

/// Leader whose two followers answer every message at once.
struct BenchLeader {
    replica: Replica,
    effects: Effects,
    now: Now,
}

impl BenchLeader {
    fn new() -> BenchLeader {
        let founders = PEERS.map(|peer| (peer, u64::from(peer.0))).into();
        let hard = HardState { standing: Standing::Voter { founders }, ..HardState::default() };
        let members = PEERS.into_iter().chain([LEADER]).collect();
        // Images are due early, so that the log in memory stays short.
        let settings = Settings {
            snapshot_log_bytes: 1 << 20,
            log_retain_bytes: 1 << 18,
            wall_micros: 1 << 50,
            ..Settings::new(LEADER, members)
        };
        let recovered = Recovered { hard, ..Recovered::default() };
        let now = Now(3_600_000_000);
        let replica = Replica::new(now, settings, recovered, Rng::new(1));
        let mut leader = BenchLeader { replica, effects: Effects::default(), now };
        leader.now = leader.replica.deadline(Alarm::Election) + Duration::from_millis(1);
        leader.step(Input::Alarm(Alarm::Election));
        while leader.settle() > 0 {}
        assert!(leader.replica.is_leader(), "the others have voted for it");
        leader
    }

    fn step(&mut self, input: Input) {
        self.replica.step(self.now, input, &mut self.effects);
    }

    /// Carries out the effects: the disk syncs and the followers answer. Returns the number of
    /// effects.
    fn settle(&mut self) -> usize {
        let effects = std::mem::take(&mut self.effects);
        assert_eq!(effects.fatal, None);
        let mut done = effects.apply.len() + effects.reads.len();
        let mut said = effects.send;
        for peer in effects.pull {
            while let Some(Pull::Message(message)) = self.replica.pull(self.now, peer, 1 << 20) {
                said.push(message);
            }
        }
        if effects.job > 0 {
            self.step(Input::Persisted(effects.job));
            said.extend(effects.after_persist);
            done += 1;
        }
        for answer in said.into_iter().filter_map(answer) {
            self.step(Input::Message(answer));
            done += 1;
        }
        for work in effects.apply {
            if let Apply::Snapshot(meta) = work {
                self.step(Input::SnapshotTaken { meta, bytes: 0 });
            }
        }
        done
    }
}

/// Answer of a follower that has all entries and agrees with its leader.
fn answer(said: Envelope) -> Option<Envelope> {
    let message = match said.message {
        Message::Append(Append { prev_index, entries, .. }) => {
            Message::AppendAck(AppendAck::Matched(prev_index + entries.len() as Index))
        }
        Message::Vote(vote) => Message::VoteReply(VoteReply { pre: vote.pre, granted: true }),
        Message::Heartbeat(heartbeat) => Message::Heartbeat(Heartbeat {
            leader: heartbeat.leader,
            read_round_seen: heartbeat.read_round,
            incarnation: u64::from(said.to.0),
            admitted: true,
            voter: true,
            fit: true,
            clock: heartbeat.clock,
            ..Heartbeat::default()
        }),
        _ => return None,
    };
    Some(Envelope { from: said.to, to: said.from, term: said.term, message })
}

/// Measures a leader's whole work for writes and for a round of reads, with the followers' answers.
fn replica(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("replica");
    let commands = encoded(&set(&key(1)));
    for size in SIZES {
        let mut leader = BenchLeader::new();
        group.throughput(Throughput::Elements(size as u64));
        group.bench_function(BenchmarkId::new("propose to commit", size), |bencher| {
            bencher.iter(|| {
                for _ in 0..size {
                    let id = leader.replica.next_request();
                    leader.step(Input::Propose { id, commands: commands.clone() });
                }
                leader.settle();
                let committed = |work: &Apply| matches!(work, Apply::Entries(_));
                assert!(leader.effects.apply.iter().any(committed));
                leader.settle();
            });
        });
    }
    let mut leader = BenchLeader::new();
    group.throughput(Throughput::Elements(1));
    group.bench_function("a round of reads", |bencher| {
        bencher.iter(|| {
            let id = leader.replica.next_read();
            leader.step(Input::Read(id));
            leader.settle();
            assert_eq!(leader.effects.reads.len(), 1);
            leader.settle();
        });
    });
    group.finish();
}

fn log(criterion: &mut Criterion) {
    const ENTRIES: Index = 1024;
    let mut group = criterion.benchmark_group("log");
    let commands = encoded(&set(&key(1)));
    let entries: Vec<Entry> = (1..=ENTRIES).map(|index| batch(index, commands.clone())).collect();
    group.throughput(Throughput::Elements(ENTRIES));
    group.bench_function("push", |bencher| {
        let fresh = || (Log::default(), entries.clone());
        let push = |(mut log, entries): (Log, Vec<Entry>)| {
            entries.into_iter().for_each(|entry| log.push(entry));
            log
        };
        bencher.iter_batched(fresh, push, BatchSize::SmallInput);
    });
    let log = Log::new(SnapshotMeta::default(), entries);
    group.throughput(Throughput::Elements(64));
    group.bench_function("range/64", |bencher| {
        bencher.iter(|| log.range(500, 563).cloned().collect::<Vec<_>>());
    });
    group.finish();
}

fn commands(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("commands");
    for size in SIZES {
        let keys: Vec<Vec<u8>> = (0..size as u64).map(key).collect();
        let mut bytes = Vec::new();
        group.throughput(Throughput::Elements(size as u64));
        group.bench_function(BenchmarkId::new("encode", size), |bencher| {
            bencher.iter(|| {
                bytes.clear();
                keys.iter().for_each(|key| set(key).encode(&mut bytes));
                black_box(bytes.len())
            });
        });
        group.bench_function(BenchmarkId::new("decode", size), |bencher| {
            bencher.iter(|| Command::decode_all(black_box(&bytes)).filter(Result::is_ok).count());
        });
    }
    group.finish();
}

fn frames(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("append frame");
    for size in SIZES {
        let entries = (1..=size as u64).map(|at| batch(at, encoded(&set(&key(at)))));
        let append = Append { prev_index: 0, prev_term: 0, commit: 0, entries: entries.collect() };
        let message = Message::Append(append);
        let envelope = Envelope { from: LEADER, to: PEERS[0], term: 1, message };
        let mut bytes = Vec::new();
        group.throughput(Throughput::Elements(size as u64));
        group.bench_function(BenchmarkId::new("encode", size), |bencher| {
            bencher.iter(|| {
                bytes.clear();
                wire::encode(black_box(&envelope), &mut bytes);
                bytes.len()
            });
        });
        let mut reader = FrameReader::new(64 << 20, &[]);
        group.bench_function(BenchmarkId::new("decode", size), |bencher| {
            bencher.iter(|| {
                reader.space()[..bytes.len()].copy_from_slice(&bytes);
                reader.filled(bytes.len());
                reader.next().expect("the frame is sound").expect("the frame is whole")
            });
        });
    }
    group.finish();
}

/// Measures the way from a client's bytes to work and back to bytes, without a store.
fn sessions(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("session");
    let server_info = Arc::new(ServerInfo {
        node: LEADER,
        version: "",
        password: None,
        limits: Limits::default(),
        consistency: Consistency::Strong,
        config: Vec::new(),
    });
    let value = Outcome::Value(VALUE[..].into());
    for size in [1, 16] {
        for (name, words) in [("SET", 3), ("GET", 2)] {
            let mut requests = Vec::new();
            for nth in 0..size as u64 {
                let key = key(nth);
                let words = &[name.as_bytes(), &key, &VALUE][..words];
                requests.extend(format!("*{}\r\n", words.len()).into_bytes());
                for word in words {
                    requests.extend(format!("${}\r\n", word.len()).into_bytes());
                    requests.extend([word, &b"\r\n"[..]].concat());
                }
            }
            let mut session = Session::new(1, Arc::clone(&server_info));
            group.throughput(Throughput::Elements(size as u64));
            group.bench_function(BenchmarkId::new(name, size), |bencher| {
                bencher.iter(|| {
                    session.space()[..requests.len()].copy_from_slice(&requests);
                    session.filled(requests.len());
                    serve(&mut session, size, &value);
                });
            });
        }
    }
    group.finish();
}

fn serve(session: &mut Session, size: usize, value: &Outcome) {
    loop {
        match session.next() {
            Work::Write { .. } => session.finish_write(Ok(vec![Outcome::Done; size]), None),
            Work::Read => session.finish_read(Ok(&mut |_| value.clone())),
            Work::Wait => break,
            other => panic!("{other:?}"),
        }
    }
    assert!(session.output().len() >= 5 * size, "each request has a reply");
    session.output().clear();
}

fn store(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("store, 100,000 keys");
    let mut writer = Writer::new();
    let keys: Vec<Vec<u8>> = (0..KEYS).map(|nth| format!("key:{nth:012}").into_bytes()).collect();
    let sets: Vec<Bytes> = keys.iter().map(|key| encoded(&set(key))).collect();
    let mut index = 0;
    let mut apply = |writer: &mut Writer, payload: Option<Payload>, nth: u64| {
        index += 1;
        let mut entry = batch(index, sets[nth as usize].clone());
        if let Some(payload) = payload {
            entry.payload = payload;
        }
        writer.apply(&entry, true).expect("the entry follows the one before it")
    };
    for nth in 0..KEYS {
        apply(&mut writer, None, nth);
    }
    let mut rng = Rng::new(1);
    group.bench_function("apply SET", |bencher| {
        bencher.iter(|| apply(&mut writer, None, rng.below(KEYS)));
    });
    let mut tick = 1_u64 << 40;
    group.throughput(Throughput::Elements(64));
    group.bench_function("apply a merge/64", |bencher| {
        let writes = || {
            tick += 64;
            let write = |nth| {
                let key = &keys[rng.below(KEYS) as usize];
                Write::new(Version::new(tick + nth, 1), key, Some(&VALUE))
            };
            (0..64).map(write).collect::<Vec<_>>()
        };
        let merge = |writes: Vec<Write>| apply(&mut writer, Some(Payload::Merge(writes.into())), 0);
        bencher.iter_batched(writes, merge, BatchSize::SmallInput);
    });
    let store = writer.store();
    group.throughput(Throughput::Elements(1));
    group.bench_function("GET", |bencher| {
        bencher.iter(|| store.read(&Command::Get { key: &keys[rng.below(KEYS) as usize] }));
    });
    group.finish();
}

/// Measures one batch, appended and synced. Snapshots are recorded at intervals, so that segments
/// are used again, as in a node.
fn write_ahead_log(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("write-ahead log");
    for (name, len) in [("512 B", 512), ("64 KiB", 64 << 10)] {
        group.throughput(Throughput::Bytes(len as u64));
        let mut memory = Batches::new(Arc::new(MemoryDisk::new()), len);
        group.bench_function(BenchmarkId::new("in memory", name), |bencher| {
            bencher.iter(|| memory.commit());
        });
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a scratch directory");
        let mut files = Batches::new(Arc::new(FileDisk::new(dir.path())), len);
        group.bench_function(BenchmarkId::new("on files", name), |bencher| {
            bencher.iter(|| files.commit());
        });
    }
    group.finish();
}

struct Batches<D: Disk> {
    wal: Wal<D>,
    commands: Bytes,
    index: Index,
}

impl<D: Disk> Batches<D> {
    fn new(disk: Arc<D>, len: usize) -> Batches<D> {
        let (wal, _) = Wal::open(disk, WalOptions::new(1)).expect("the disk is empty");
        Batches { wal, commands: vec![b'x'; len].into(), index: 0 }
    }

    fn commit(&mut self) {
        const ENTRIES_KEPT: Index = 100;
        self.index += 1;
        self.wal.append(&[WalRecord::Entry(batch(self.index, self.commands.clone()))]);
        if self.index.is_multiple_of(ENTRIES_KEPT) {
            let index = self.index - ENTRIES_KEPT / 2;
            self.wal.append(&[WalRecord::Snapshot(SnapshotMeta { index, term: 1 })]);
        }
        self.wal.commit().expect("the disk works");
    }
}
