//! `nodesync verify`: clients, faults and a verdict on real processes, in the manner of Jepsen.
//!
//! With `--spawn N` it starts a temporary cluster of this program on this machine and injects
//! faults (`nemesis`); with `--peers` it puts a live cluster under load without faults, and removes
//! its keys afterwards. In both cases concurrent clients talk to all nodes (`workload`), the
//! history records every operation with its real-time order (`history`), and `judge` decides
//! whether the consistency that the product promises explains all results.
//!
//! The simulator (`nodesync sim`) covers far more schedules and can repeat each; this command
//! covers real sockets, files, processes and the kernel. A pass proves that this run was correct,
//! no more.
//!
//! The steps of a run: start the nodes and wait until all serve; load and faults for `--seconds`;
//! heal; wait until all nodes serve; read every key at every node; judge; stop the nodes; report.
//! The first signal ends the load early, the second one the whole command.
//!
//! Left out: machines that lose power (the simulator does that), clocks that jump, full disks,
//! checks over several keys at once.

mod cluster;
mod ending;
mod history;
mod judge;
mod nemesis;
mod proxy;
mod verdict;
mod workload;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::client::{Client, Options};
use crate::config::{PeerAddress, read_password};
use crate::rng::Rng;
use crate::tools::exit::{INCONCLUSIVE, IO, ToolError, USAGE, VIOLATION};
use crate::tools::watch::Watch;
use cluster::Cluster;
use history::History;
use judge::{Ends, Judgement};
use nemesis::{EndCause, FaultKind, Nemesis};
use verdict::VerdictPage;
use workload::Board;

/// The default of `--clients`.
const CLIENTS_PER_NODE: usize = 4;
const CLIENTS_MAX: usize = 1000;
/// Longer than `--request-timeout` of a live node, 10 s by default, so that its refusal arrives.
const LIVE_TIMEOUT: Duration = Duration::from_secs(12);
const SPAWNED_TIMEOUT: Duration = Duration::from_millis(3000);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Longest time for an orderly stop.
const STOP_LIMIT: Duration = Duration::from_secs(30);

/// The flags of `nodesync verify`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Exit codes: 0 proven, 1 violation, 2 usage, 3 inconclusive, 74 I/O")]
pub struct VerifyArgs {
    /// Nodes of a live cluster, each as HOST:PORT; it gets load, but no faults
    #[arg(long, value_delimiter = ',', value_name = "HOST:PORT,...")]
    #[arg(required_unless_present = "spawn", conflicts_with = "spawn")]
    peers: Vec<PeerAddress>,

    /// Start a temporary cluster of this many nodes on this machine, and inject faults
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=9))]
    spawn: Option<u8>,

    /// Seconds of load
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    seconds: u64,

    /// Number of clients; one in four is an eventual session [default: 4 for each node]
    #[arg(long)]
    clients: Option<usize>,

    /// Kinds of faults [default: all that a cluster of this size must survive]
    #[arg(long, value_delimiter = ',', value_enum, conflicts_with = "peers")]
    faults: Vec<FaultKind>,

    /// Seed of the faults and of the clients' choices [default: random]
    #[arg(long)]
    seed: Option<u64>,

    /// Directory for the temporary cluster [default: the system's for temporary files]
    #[arg(long, conflicts_with = "peers")]
    dir: Option<PathBuf>,

    /// Keep logs and data after a pass, too
    #[arg(long, conflicts_with = "peers")]
    keep: bool,

    /// Password of the cluster (visible to other users: prefer the file)
    #[arg(long, env = "NODESYNC_REQUIREPASS", hide_env_values = true)]
    requirepass: Option<String>,

    /// File whose first line is the password
    #[arg(long, env = "NODESYNC_REQUIREPASS_FILE", conflicts_with = "requirepass")]
    requirepass_file: Option<PathBuf>,
}

/// The checked meaning of the flags.
#[derive(Debug)]
struct VerifyPlan {
    time: Duration,
    clients: usize,
    faults: Vec<FaultKind>,
    seed: u64,
    password: Option<String>,
    /// A unique name for this run, on disk and in keys.
    name: String,
    /// The command that repeats this run.
    again: String,
}

impl VerifyPlan {
    fn new(args: &VerifyArgs) -> Result<VerifyPlan, String> {
        let nodes = args.spawn.map_or(args.peers.len(), usize::from);
        let clients = args.clients.unwrap_or(CLIENTS_PER_NODE * nodes);
        if !(1..=CLIENTS_MAX).contains(&clients) {
            return Err(format!("--clients takes a number from 1 to {CLIENTS_MAX}"));
        }
        let mut faults = args.faults.clone();
        if let Some(fault) = faults.iter().find(|fault| !fault.fits(nodes)) {
            return Err(format!("--faults {} needs more nodes than {nodes}", fault.name()));
        }
        if faults.contains(&FaultKind::None) && faults.len() > 1 {
            return Err("--faults none stands alone".into());
        }
        let mut again = "nodesync verify".to_string();
        match args.spawn {
            Some(nodes) => again += &format!(" --spawn {nodes}"),
            None => {
                let peers: Vec<_> = args.peers.iter().map(PeerAddress::address).collect();
                again += &format!(" --peers {}", peers.join(","));
            }
        }
        let random = getrandom::u64().map_err(|error| error.to_string())?;
        let seed = args.seed.unwrap_or(random >> 40);
        again += &format!(" --seconds {} --clients {clients} --seed {seed}", args.seconds);
        if !faults.is_empty() {
            let names: Vec<_> = faults.iter().map(|fault| fault.name()).collect();
            again += &format!(" --faults {}", names.join(","));
        } else if args.spawn.is_some() {
            faults = FaultKind::fitting(nodes);
        }
        faults.retain(|fault| *fault != FaultKind::None);
        Ok(VerifyPlan {
            time: Duration::from_secs(args.seconds),
            clients,
            faults,
            seed,
            password: read_password(args.requirepass.clone(), args.requirepass_file.clone())?,
            name: format!("nodesync-verify-{random:016x}"),
            again,
        })
    }

    fn board(&self, addresses: Vec<String>, timeout: Duration) -> Board {
        let options = Options {
            password: self.password.clone(),
            connect_timeout: CONNECT_TIMEOUT,
            timeout,
            ..Options::default()
        };
        let prefix = format!("{}:", self.name);
        Board::new(addresses, prefix, options, self.clients, self.time)
    }
}

fn io(subject: &str) -> impl Fn(std::io::Error) -> ToolError {
    move |error| (IO, format!("{subject}: {error}"))
}

/// Runs the command and returns its exit code.
pub fn run(args: &VerifyArgs) -> u8 {
    let done = VerifyPlan::new(args).map_err(|error| (USAGE, error)).and_then(|plan| {
        let watch =
            Watch::new().map_err(|error| (IO, format!("cannot handle signals: {error}")))?;
        if args.spawn.is_some() { spawned(args, &plan, watch) } else { live(args, &plan, watch) }
    });
    match done {
        Ok(verdict) => {
            print!("{verdict}");
            verdict.exit_code()
        }
        Err((code, text)) => {
            eprintln!("nodesync verify: {text}");
            code
        }
    }
}

/// Verifies a live cluster.
fn live(args: &VerifyArgs, plan: &VerifyPlan, mut watch: Watch) -> Result<VerdictPage, ToolError> {
    let addresses: Vec<String> = args.peers.iter().map(PeerAddress::address).collect();
    let board = plan.board(addresses, LIVE_TIMEOUT);
    for address in &board.addresses {
        Client::connect(address, &board.options)
            .and_then(|mut client| client.call(&["PING"]))
            .map_err(|error| error.to_string())
            .and_then(|reply| reply.error().map_or(Ok(()), |text| Err(text.into())))
            .map_err(|error| (IO, format!("cannot talk to {address}: {error}")))?;
    }
    ending::within(&watch, STOP_LIMIT, || ending::all_well(&board))
        .map_err(|error| (INCONCLUSIVE, format!("the cluster is not healthy: {error}")))?;
    let (verdict, keys) = VerifyRun { plan, board: &board }.run(&mut watch, None)?;
    let keys: BTreeSet<&str> = keys.iter().map(String::as_str).collect();
    if let Err(error) = ending::within(&watch, STOP_LIMIT, || ending::delete(&board, &keys)) {
        eprintln!("nodesync verify: keys {}* were not deleted: {error}", board.prefix);
    }
    Ok(verdict)
}

/// Verifies a temporary cluster.
fn spawned(
    args: &VerifyArgs,
    plan: &VerifyPlan,
    mut watch: Watch,
) -> Result<VerdictPage, ToolError> {
    let dir = args.dir.clone().unwrap_or_else(std::env::temp_dir).join(&plan.name);
    let nodes = args.spawn.map_or(0, usize::from);
    let kept = dir.display().to_string();
    let mut cluster = Cluster::new(nodes, dir, plan.password.as_deref()).map_err(io(&kept))?;
    cluster.start_all().map_err(io("cannot start a node"))?;
    let addresses = cluster.nodes.iter().map(|node| format!("127.0.0.1:{}", node.port)).collect();
    let mut board = plan.board(addresses, SPAWNED_TIMEOUT);
    board.impatient = true;
    ending::within(&watch, ending::RECOVERY, || ending::all_well(&board))
        .map_err(|error| (VIOLATION, format!("no working cluster: {error}; logs: {kept}")))?;
    let run = VerifyRun { plan, board: &board };
    let (mut verdict, _) = run.run(&mut watch, Some(&mut cluster))?;
    let complaints = cluster.stop(STOP_LIMIT).map_err(io("stopping the nodes"))?;
    if verdict.judgement.violations.is_empty() {
        verdict.judgement.violations = complaints;
    }
    if verdict.exit_code() == 0 && !args.keep {
        cluster.remove().map_err(io(&kept))?;
    } else {
        verdict.kept = Some(kept);
    }
    Ok(verdict)
}

/// The steps that both kinds of cluster share: load, final reads, judgement.
struct VerifyRun<'a> {
    plan: &'a VerifyPlan,
    board: &'a Board,
}

impl VerifyRun<'_> {
    /// Runs all steps. Returns the verdict and the keys that were written.
    fn run(
        &self,
        watch: &mut Watch,
        cluster: Option<&mut Cluster>,
    ) -> Result<(VerdictPage, BTreeSet<String>), ToolError> {
        let VerifyRun { plan, board } = self;
        let before = ending::within(watch, ending::RECOVERY, || ending::boots(board))
            .map_err(|error| (IO, error))?;
        watch.begin(plan.time);
        let (mut history, struck, end) = self.load(watch, cluster);
        let time = watch.elapsed();
        let mut violations = std::mem::take(&mut *board.findings.lock());
        let cut_short = match end {
            Ok(()) => None,
            Err(EndCause::Asked) => Some("asked to stop"),
            Err(EndCause::Finding) => Some("a client saw a result that breaks a promise"),
            Err(EndCause::Violation(text)) => {
                violations.push(text);
                Some("a node broke a promise")
            }
            Err(EndCause::Io(error)) => return Err((IO, error.to_string())),
        };
        watch.print(
            "the load is over; waiting until all nodes serve, then reading every key at each",
        );
        let ends = self.read_all(watch, &mut history, &mut violations);
        if watch.must_abort() {
            return Err((INCONCLUSIVE, "stopped before a verdict".into()));
        }
        let after = ending::boots(board);
        watch.print("judging");
        // A process that ends may lose eventual writes of its last second; the same boot numbers
        // before and after prove that none ended.
        let lossless = after.is_ok_and(|after| after == before);
        let mut names = board.addresses.clone();
        names.extend(board.addresses.iter().map(|address| format!("{address} (strong)")));
        let mut judgement = judge::judge(&history, &ends, lossless, &names);
        violations.append(&mut judgement.violations);
        let judgement = Judgement { violations, ..judgement };
        let strong = history.records.into_iter().map(|record| record.key);
        let keys = strong.chain(history.eventual.into_iter().map(|record| record.key)).collect();
        let gap = board.gap.lock();
        let verdict = VerdictPage {
            nodes: board.addresses.len(),
            clients: plan.clients,
            time,
            seed: plan.seed,
            fates: history.fates,
            gap: gap.longest,
            gap_since: gap.since,
            struck,
            judgement,
            cut_short,
            again: plan.again.clone(),
            kept: None,
        };
        Ok((verdict, keys))
    }

    /// Runs the clients and, on a temporary cluster, the nemesis.
    fn load(&self, watch: &Watch, cluster: Option<&mut Cluster>) -> Load {
        let VerifyRun { plan, board } = self;
        let mut rng = Rng::new(plan.seed);
        let strikes = rng.fork();
        std::thread::scope(|scope| {
            // Stops the clients also when this thread panics; the scope waits for them.
            let stop = StopOnDrop(&board.stop);
            board.gap.lock().restart();
            let clients: Vec<_> = (0..plan.clients)
                .map(|client| (client, rng.fork()))
                .map(|(client, rng)| scope.spawn(move || workload::run(board, client, rng)))
                .collect();
            let (struck, end) = match cluster {
                Some(cluster) => {
                    let kinds = plan.faults.clone();
                    let mut nemesis =
                        Nemesis::new(cluster, board, watch, strikes, kinds, plan.time);
                    let end = nemesis.run();
                    (Some(nemesis.struck), end)
                }
                None => (None, self.wait(watch)),
            };
            drop(stop);
            board.gap.lock().note();
            let mut history = History::default();
            for client in clients {
                let part = client.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
                history.add(part);
            }
            (history, struck, end)
        })
    }

    /// Waits while the clients of a live cluster work.
    fn wait(&self, watch: &Watch) -> Result<(), EndCause> {
        while watch.elapsed() < self.plan.time {
            watch.show(self.board.requests(), "");
            if watch.must_stop() {
                return Err(EndCause::Asked);
            }
            if self.board.has_findings() {
                return Err(EndCause::Finding);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// Waits until all nodes serve again, and reads every key at each of them.
    fn read_all(&self, watch: &Watch, history: &mut History, violations: &mut Vec<String>) -> Ends {
        let board = self.board;
        let limit = ending::RECOVERY;
        if let Err(error) = ending::within(watch, limit, || ending::all_well(board)) {
            violations.push(format!("not recovered {} s after healing: {error}", limit.as_secs()));
            return Ends::new();
        }
        let keys: BTreeSet<String> =
            history.records.iter().map(|record| record.key.clone()).collect();
        let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
        for node in 0..board.addresses.len() {
            match ending::within(watch, limit, || ending::read_strong(board, node, &keys)) {
                Ok(records) => history.records.extend(records),
                Err(error) => violations.push(format!("not recovered: {error}")),
            }
        }
        let keys = history.eventual.iter().map(|record| record.key.as_str()).collect();
        ending::read_ends(board, watch, &keys).unwrap_or_else(|error| {
            violations.push(format!("not recovered: {error}"));
            Ends::new()
        })
    }
}

/// The history of the clients, the faults that struck, and the cause of the end.
type Load = (History, Option<BTreeMap<FaultKind, u64>>, Result<(), EndCause>);

struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
