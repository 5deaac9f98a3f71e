//! A whole run: trouble, then calm, in which every promise of progress must hold, then judgement.

use std::time::Duration;

use crate::clock::Now;
use crate::replica::RoleName;
use crate::store::Writer;
use crate::testing::linearizability::{self, Action, Verdict};
use crate::testing::sim::cluster::{SKEW_MICROS, SimNode, World};
use crate::testing::sim::disk::Death;
use crate::testing::sim::events::SimEvent;
use crate::testing::sim::options::Options;
use crate::testing::sim::report::Report;
use crate::testing::sim::trace::mix_bytes;
use crate::testing::sim::workload::{KeyAction, RequestState};
use crate::types::When;

/// In calm, the highest node must lead and all requests must have ended within this time. A rotten
/// image takes long: a leader waits 40 election time-outs before it doubts its own image.
const RECOVERY_MAX: Duration = Duration::from_secs(90);

/// In calm, a fresh request is served, and all nodes agree, within this time.
const SERVICE_MAX: Duration = Duration::from_secs(10);

/// States that the search for an order may visit, for one key.
const SEARCH_BUDGET: usize = 200_000;

impl World {
    /// The whole run. A broken promise is in `failure` afterwards.
    pub fn live(&mut self, options: &Options) -> Report {
        let end = self.now + self.plan.quiet + self.plan.trouble;
        self.run_for(end, options.steps.unwrap_or(u64::MAX));
        let steps = self.steps;
        self.calm_down();
        self.wait("the highest node leads, all serve, all requests end", RECOVERY_MAX, |world| {
            world.all_serve_under_the_highest() && world.load.all_ended()
        });
        if self.failure.is_none() {
            self.serve_fresh_requests();
        }
        self.wait("all nodes agree", SERVICE_MAX, |world| world.all_drained() && world.all_agree());
        self.compare_states();
        self.check_newest();
        self.check_order();
        self.recover_from_disk();
        let undecided = self.judge();
        let requests = &self.load.requests;
        let answered =
            requests.iter().filter(|r| matches!(r.state, RequestState::Done { .. })).count();
        Report {
            trace_hash: self.trace.hash(),
            nodes: self.nodes.len(),
            faults: self.struck.len() as u64,
            steps,
            events: self.steps,
            commits: self.oracle.commits(),
            terms_led: self.oracle.terms_led(),
            snapshots: self.oracle.images(),
            restored: self.oracle.restored,
            requests: requests.len() as u64,
            answered: answered as u64,
            coverage: self.coverage,
            eventual: self.promises.acknowledged(),
            undecided,
            lines: Vec::new(),
        }
    }

    /// Heals everything: links, disks, clocks; and starts all nodes.
    fn calm_down(&mut self) {
        self.calm = true;
        self.note(0, [40, 0, 0], || "---- calm ----".to_owned());
        // Slow seeds become fast enough for the bounds below.
        self.plan.travel.delay_min_micros = self.plan.travel.delay_min_micros.min(500);
        self.plan.travel.delay_spread_micros = self.plan.travel.delay_spread_micros.min(500);
        self.plan.sync_micros = self.plan.sync_micros.min(2_000);
        for node in 0..self.nodes.len() {
            self.nodes[node].disk_slow_until = Now(0);
            self.nodes[node].disk_stalled_until = Now(0);
            if self.nodes[node].paused {
                self.resume(node);
            }
            self.nodes[node].disk.files.heal();
            self.set_clock(node, SKEW_MICROS);
            self.schedule(self.now, SimEvent::Start(node));
            for peer in 0..self.nodes.len() {
                self.unblock_all(node, peer);
            }
        }
    }

    /// Lets the world go on until `done`. Fails the promise `what` if that takes too long.
    fn wait(&mut self, what: &'static str, patience: Duration, done: impl Fn(&World) -> bool) {
        let limit = self.now + patience;
        while self.failure.is_none() && !done(self) {
            if self.now >= limit {
                let how = self.describe();
                return self.fail(what, format!("not within {patience:?}:{how}"));
            }
            self.run_until(self.now + Duration::from_millis(20));
        }
    }

    /// All nodes, and all requests without a reply.
    fn describe(&self) -> String {
        let nodes = self.nodes.iter().map(|node| {
            let status = node.process.as_ref().map(|process| process.shell.replica().status());
            let standing = node.process.as_ref().map(|process| &process.log_model.hard.standing);
            format!("\n    {} {standing:?} {status:?}", node.id)
        });
        let open =
            self.load.requests.iter().enumerate().filter(|(_, r)| r.state == RequestState::Open);
        nodes.chain(open.map(|(at, request)| format!("\n    request {at}: {request:?}"))).collect()
    }

    fn all_serve_under_the_highest(&self) -> bool {
        // The alive node with the highest id leads, and here all nodes are alive.
        let highest = self.nodes.last().map(|node| node.id);
        self.nodes.iter().all(|node| {
            let process = node.process.as_ref().filter(|process| !process.stopping);
            let status = process.map(|process| process.shell.replica().status());
            status.is_some_and(|status| {
                let serves = status.quorum && status.role != RoleName::Joining;
                status.leader == highest && serves && status.commit == self.oracle.commits()
            })
        })
    }

    /// Each node serves a write and a read. A result may be lost if an image replaces the store
    /// before its entry is applied; then the client tries again.
    fn serve_fresh_requests(&mut self) {
        let mut fresh: Vec<(usize, Vec<KeyAction>)> = Vec::new();
        for node in 0..self.nodes.len() {
            let value = format!("fresh-{node}").into_bytes();
            let set = Action::Set { value, when: When::Always, get: true };
            let client = self.add_client(node);
            fresh.push((client, vec![(b"fresh".to_vec(), set)]));
            fresh.push((client, vec![(b"fresh".to_vec(), Action::Get)]));
        }
        // A lost result leaves a request unknown. So the client tries again, as a real one would.
        for _ in 0..5 {
            let mut sent = Vec::new();
            for (client, parts) in std::mem::take(&mut fresh) {
                sent.push((self.send_requests(client, parts.clone(), false), client, parts));
            }
            self.wait("fresh requests end", SERVICE_MAX, |world| world.load.all_ended());
            if self.failure.is_some() {
                return;
            }
            for (mut requests, client, parts) in sent {
                let done =
                    |at: usize| matches!(self.load.requests[at].state, RequestState::Done { .. });
                if requests.is_empty() || !requests.all(done) {
                    fresh.push((client, parts));
                }
            }
            if fresh.is_empty() {
                return;
            }
            self.run_until(self.now + Duration::from_millis(500));
        }
        self.fail("fresh requests are served", format!("{fresh:?}"));
    }

    /// All nodes lose power at once. Each finds the state that it had applied on its own disk.
    fn recover_from_disk(&mut self) {
        if self.failure.is_some() {
            return;
        }
        let (index, digest) = match &self.nodes[0].process {
            Some(process) => (process.writer.applied().index, process.writer.digest()),
            None => return,
        };
        for node in 0..self.nodes.len() {
            self.die(node, Death::PowerCut);
        }
        for node in 0..self.nodes.len() {
            let (log_id, segment_bytes) = (self.nodes[node].incarnation, self.plan.segment_bytes);
            let (recovered, image) = match self.nodes[node].disk.open(log_id, segment_bytes) {
                Ok(found) => found,
                // Bits have flipped in its files: it may refuse them.
                Err(_) if !self.nodes[node].rotten.is_empty() => continue,
                Err(why) => {
                    let how = format!("#{node}: {why}");
                    return self.fail("every node recovers from its disk", how);
                }
            };
            let mut writer = Writer::new();
            image.map(|image| writer.restore(image));
            // Entries behind `index` were never applied: they may be on the disk or not.
            let entries = recovered.entries.iter().take_while(|entry| entry.index <= index);
            let mut applied = entries.map(|entry| writer.apply(entry, false));
            let failed = applied.find_map(Result::err);
            let same = writer.applied().index == index && writer.digest() == digest;
            if failed.is_some() || !same {
                let how = format!("#{node}: {:?} of {index}, {failed:?}", writer.applied());
                self.fail("a node's disk holds all that it has applied", how);
            }
        }
    }

    /// True if every node has applied all that is committed, and all have the same digest.
    fn all_agree(&self) -> bool {
        let reached = |node: &SimNode| {
            let process = node.process.as_ref()?;
            let status = process.shell.replica().status();
            // Idle: all committed entries are applied, and all entries durable.
            let idle =
                process.writer.applied().index == process.handed && status.durable == status.last;
            idle.then_some((process.handed, process.digest))
        };
        let first = reached(&self.nodes[0]);
        first.is_some_and(|(index, _)| index == self.oracle.commits())
            && self.nodes.iter().all(|node| reached(node) == first)
    }

    /// Compares the images of all states, byte for byte.
    fn compare_states(&mut self) {
        let mut hashes = Vec::new();
        for process in self.nodes.iter().filter_map(|node| node.process.as_ref()) {
            let mut bytes = Vec::new();
            hashes
                .push(process.writer.image().write(&mut bytes).map(|_| mix_bytes(0, &bytes)).ok());
        }
        if hashes.windows(2).any(|pair| pair[0] != pair[1]) {
            self.fail("all nodes hold the same state", format!("{hashes:?}"));
        }
    }

    /// Judges the history of each key. Returns the number of those that the budget was too small
    /// for.
    fn judge(&mut self) -> u64 {
        let mut undecided = 0;
        if self.failure.is_some() {
            return undecided;
        }
        for (key, history) in self.load.histories() {
            match linearizability::check(history.clone(), SEARCH_BUDGET) {
                Verdict::Linearizable => {}
                Verdict::Undecided => undecided += 1,
                Verdict::Impossible => {
                    let key = String::from_utf8_lossy(&key);
                    let lines: String = history.iter().map(|op| format!("\n    {op:?}")).collect();
                    self.fail("the history is linearizable", format!("key {key}:{lines}"));
                }
            }
        }
        undecided
    }
}
