//! One run: the threads of the load generator, and the guide, the thread that directs them.
//!
//! The guide starts the load, sets the targets as the leader changes, kills the leader if the plan
//! says so, and shows the progress.

use std::io;
use std::sync::atomic::Ordering;
use std::thread::{Builder, ScopedJoinHandle};
use std::time::Duration;

use crate::rng::Rng;
use crate::tools::bench::args::{BenchPlan, SessionMode, To, Until};
use crate::tools::bench::keys::Keys;
use crate::tools::bench::load::{LoadWorker, Share};
use crate::tools::bench::nodes::Nodes;
use crate::tools::bench::request::{Greeting, RequestGenerator};
use crate::tools::bench::shared::{AnswerGap, RunShared, Times, nanos};
use crate::tools::bench::tally::Tally;
use crate::tools::exit::{IO, ToolError};
use crate::tools::watch::Watch;

/// Time between two steps of the guide.
const STEP: Duration = Duration::from_millis(20);
/// The same while the leader is unknown.
const STEP_IN_DOUBT: Duration = Duration::from_millis(5);
/// Time between two routine checks of the leader.
const LEADER_CHECK_NS: u64 = 1_000_000_000;
/// Longest time until all connections are ready.
const READY_NS: u64 = 30_000_000_000;
const SECOND_NS: u64 = 1_000_000_000;

/// The leader that was killed.
#[derive(Clone, Debug)]
pub struct Kill {
    /// Its place in the list of nodes.
    pub node: usize,
    /// The time of the kill, in seconds of the measured time.
    pub at: f64,
}

/// The result of one run.
#[derive(Clone, Debug)]
pub struct RunResult {
    /// The mode of the sessions.
    pub mode: SessionMode,
    /// The measurements of all threads.
    pub tally: Tally,
    /// Seconds until the end of the measured time, or until the last answer, if that was later.
    pub seconds: f64,
    /// The longest time without an answer, in milliseconds.
    pub gap_ms: f64,
    /// The start of that gap, in seconds of the measured time.
    pub gap_at: f64,
    /// The leader that was killed, if any.
    pub kill: Option<Kill>,
    /// CPU time of the generator for each answer, warm-up included, in microseconds.
    pub cpu_micros: f64,
    /// True if a signal ended the run early.
    pub cut_short: bool,
}

/// Runs the load once.
pub fn run(
    plan: &BenchPlan,
    keys: &Keys,
    mode: SessionMode,
    nodes: &mut Nodes,
    watch: &mut Watch,
) -> Result<RunResult, ToolError> {
    let leader = nodes.wait_for_leader(watch)?;
    let shared = RunShared::new(nodes.addresses.clone(), nodes.targets(plan.to, leader, None));
    let greeting = Greeting::new(plan.protocol, mode, plan.password.as_deref());
    let mut rng = Rng::new(plan.seed);
    std::thread::scope(|scope| {
        // Stops the threads also when a step here fails; the scope waits for them.
        let abandon = AbandonOnDrop(&shared);
        let mut threads = Vec::new();
        for thread in 0..plan.threads {
            let requests = RequestGenerator::new(plan, keys.clone(), rng.fork());
            let worker = LoadWorker::new(share(plan, thread), &shared, &greeting, requests);
            let worker = worker.map_err(trouble)?;
            let name = format!("load-{thread}");
            let thread = Builder::new().name(name).spawn_scoped(scope, move || worker.run());
            threads.push(thread.map_err(trouble)?);
        }
        let mut guide =
            Guide { plan, shared: &shared, leader, kill: None, checked_at: 0, cpu: 0.0 };
        let times = guide.guide(&threads, nodes, watch)?;
        let mut tally = Tally::new();
        for thread in threads {
            let part = thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            tally.add(&part.map_err(trouble)?);
        }
        let cpu = cpu_seconds() - guide.cpu;
        drop(abandon);
        Ok(outcome(mode, tally, times, &shared, (guide.kill, cpu, watch.must_stop())))
    })
}

fn trouble(error: io::Error) -> ToolError {
    (IO, format!("the load generator: {error}"))
}

/// The share of the load of one thread.
fn share(plan: &BenchPlan, thread: usize) -> Share {
    let part = |all: u64| {
        let (thread, threads) = (thread as u64, plan.threads as u64);
        all / threads + u64::from(thread < all % threads)
    };
    Share {
        thread: (thread, plan.threads),
        clients: part(plan.clients as u64) as usize,
        pipeline: plan.pipeline,
        rate: plan.rate,
        requests: match plan.until {
            Until::Time(_) => None,
            Until::Requests(all) => Some(part(all)),
        },
        spread: plan.to != To::Leader,
        protocol: plan.protocol,
    }
}

fn outcome(
    mode: SessionMode,
    tally: Tally,
    times: Times,
    shared: &RunShared,
    (kill, cpu, cut_short): (Option<Kill>, f64, bool),
) -> RunResult {
    let AnswerGap { length, since } = shared.gap();
    let end = if cut_short || times.end == u64::MAX { 0 } else { times.end - times.measured };
    let answered = shared.answered.load(Ordering::Relaxed);
    RunResult {
        mode,
        seconds: end.max(tally.last_answer) as f64 / 1e9,
        gap_ms: length as f64 / 1e6,
        gap_at: since.saturating_sub(times.measured) as f64 / 1e9,
        kill,
        cpu_micros: cpu * 1e6 / answered.max(1) as f64,
        cut_short,
        tally,
    }
}

/// The thread that directs the load.
struct Guide<'a> {
    plan: &'a BenchPlan,
    shared: &'a RunShared,
    leader: usize,
    kill: Option<Kill>,
    /// The time of its last check of the leader.
    checked_at: u64,
    /// CPU time of the process at the start of the load.
    cpu: f64,
}

impl Guide<'_> {
    /// Directs the load until all threads have ended.
    fn guide<T>(
        &mut self,
        threads: &[ScopedJoinHandle<'_, T>],
        nodes: &mut Nodes,
        watch: &mut Watch,
    ) -> Result<Times, ToolError> {
        let shared = self.shared;
        while shared.ready.load(Ordering::Relaxed) < self.plan.clients {
            let ended = threads.iter().any(ScopedJoinHandle::is_finished);
            if ended || shared.now() > READY_NS || watch.must_stop() {
                let ready = shared.ready.load(Ordering::Relaxed);
                let all = self.plan.clients;
                return Err((
                    IO,
                    format!("{ready} of {all} connections are ready (see ulimit -n)"),
                ));
            }
            std::thread::sleep(STEP_IN_DOUBT);
        }
        self.cpu = cpu_seconds();
        let time = match self.plan.until {
            Until::Time(time) => {
                watch.begin(self.plan.warmup + time);
                Some(time)
            }
            Until::Requests(requests) => {
                watch.begin_to_count(requests, "requests");
                None
            }
        };
        let times = shared.begin(self.plan.warmup, time);
        let (mut shown_at, mut shown) = (shared.now(), 0);
        while !threads.iter().all(ScopedJoinHandle::is_finished) {
            let now = shared.now();
            if watch.must_stop() {
                shared.stop.store(true, Ordering::Relaxed);
                shared.abandon.store(watch.must_abort(), Ordering::Relaxed);
            }
            self.kill_if_due(times, now, nodes)?;
            let in_doubt = self.follow_leader(now, nodes);
            if now > shown_at + SECOND_NS / 4 {
                let answered = shared.answered.load(Ordering::Relaxed);
                let rate = (answered - shown) as f64 * 1e9 / (now - shown_at) as f64;
                let position = if time.is_some() { watch.elapsed().as_secs() } else { answered };
                watch.show_at(position, format!("{rate:.0} a second"));
                (shown_at, shown) = (now, answered);
            }
            std::thread::sleep(if in_doubt { STEP_IN_DOUBT } else { STEP });
        }
        if time.is_some() && !watch.must_stop() {
            shared.note_answers(times.end);
        }
        Ok(times)
    }

    fn kill_if_due(&mut self, times: Times, now: u64, nodes: &mut Nodes) -> Result<(), ToolError> {
        let due = self.plan.kill_at.is_some_and(|at| now >= times.measured + nanos(at));
        if !due || self.kill.is_some() || self.shared.stop.load(Ordering::Relaxed) {
            return Ok(());
        }
        let Some(node) = nodes.leader() else { return Ok(()) };
        self.shared.set_killed(node);
        nodes.kill(node)?;
        let at = self.shared.now().saturating_sub(times.measured) as f64 / 1e9;
        self.kill = Some(Kill { node, at });
        self.shared.set_targets(nodes.targets(self.plan.to, node, Some(node)));
        self.shared.doubt.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Moves clients to their targets if the leader has changed. True while the leader is in doubt.
    fn follow_leader(&mut self, now: u64, nodes: &Nodes) -> bool {
        if self.plan.to == To::All {
            return false;
        }
        let in_doubt = self.shared.doubt.load(Ordering::Relaxed);
        if !in_doubt && now < self.checked_at + LEADER_CHECK_NS {
            return false;
        }
        self.checked_at = now;
        self.shared.doubt.store(false, Ordering::Relaxed);
        let killed = self.kill.as_ref().map(|kill| kill.node);
        let Some(leader) = nodes.leader().filter(|leader| Some(*leader) != killed) else {
            self.shared.doubt.store(true, Ordering::Relaxed);
            return true;
        };
        self.leader = leader;
        self.shared.set_targets(nodes.targets(self.plan.to, leader, killed));
        in_doubt
    }
}

/// CPU time of this process, without its children.
fn cpu_seconds() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// Stops the threads when the guide fails.
struct AbandonOnDrop<'a>(&'a RunShared);

impl Drop for AbandonOnDrop<'_> {
    fn drop(&mut self) {
        self.0.stop.store(true, Ordering::Relaxed);
        self.0.abandon.store(true, Ordering::Relaxed);
    }
}
