//! Calm and judgement: see the module above.

use std::time::Duration;

use super::Report;
use super::cluster::{Event, SKEW_MICROS, World};
use super::trace::mix_bytes;
use super::workload::End;
use crate::clock::Now;
use crate::linearizability::{self, Action, Verdict};
use crate::replica::{Input, RoleName};
use crate::types::When;

/// In calm, the highest node must lead and all requests must have ended within this time.
const RECOVERY_MAX: Duration = Duration::from_secs(30);

/// In calm, a fresh request is served, and all nodes agree, within this time.
const SERVICE_MAX: Duration = Duration::from_secs(10);

/// States that the search for an order may visit, for one key.
const SEARCH_BUDGET: usize = 200_000;

impl World {
    /// The whole run.
    pub fn live(&mut self) -> Report {
        self.run_until(self.now + self.plan.quiet + self.plan.trouble);
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
        let undecided = self.judge();
        let requests = &self.load.requests;
        let answered = requests.iter().filter(|r| matches!(r.end, End::Done { .. })).count();
        Report {
            trace_hash: 0,
            nodes: self.nodes.len(),
            events: self.steps,
            commits: self.oracle.commits(),
            terms_led: self.oracle.terms_led(),
            snapshots: self.oracle.images(),
            restored: self.oracle.restored,
            requests: requests.len() as u64,
            answered: answered as u64,
            eventual: self.promises.acknowledged(),
            undecided,
        }
    }

    fn calm_down(&mut self) {
        self.calm = true;
        self.note(0, [40, 0, 0], || "---- calm ----".to_owned());
        self.plan.travel.delay_min_micros = self.plan.travel.delay_min_micros.min(500);
        self.plan.travel.delay_spread_micros = self.plan.travel.delay_spread_micros.min(500);
        self.plan.sync_micros = self.plan.sync_micros.min(2_000);
        for node in 0..self.nodes.len() {
            self.nodes[node].disk_slow_until = Now(0);
            self.nodes[node].disk_stalled_until = Now(0);
            if self.nodes[node].paused {
                self.resume(node);
            }
            self.step(node, vec![Input::DiskFull(false)]);
            self.set_clock(node, SKEW_MICROS);
            self.schedule(self.now, Event::Start(node));
            for peer in 0..self.nodes.len() {
                self.unblock_all(node, peer);
            }
        }
    }

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

    fn describe(&self) -> String {
        let nodes = self.nodes.iter().map(|node| {
            let status = node.process.as_ref().map(|process| process.replica.status());
            let standing = node.process.as_ref().map(|process| &process.view.hard.standing);
            format!("\n    {} {standing:?} {status:?}", node.id)
        });
        let open = self.load.requests.iter().enumerate().filter(|(_, r)| r.end == End::Open);
        nodes.chain(open.map(|(at, request)| format!("\n    request {at}: {request:?}"))).collect()
    }

    fn all_serve_under_the_highest(&self) -> bool {
        let highest = self.nodes.last().map(|node| node.id);
        self.nodes.iter().all(|node| {
            let process = node.process.as_ref().filter(|process| !process.stopping);
            let status = process.map(|process| process.replica.status());
            status.is_some_and(|status| {
                status.leader == highest && status.quorum && status.role != RoleName::Joining
            })
        })
    }

    /// Each node serves a write and a read. A result may be lost behind an image; then it asks
    /// again.
    fn serve_fresh_requests(&mut self) {
        let set = |node: usize| Action::Set {
            value: format!("fresh-{node}").into_bytes(),
            when: When::Always,
            get: true,
        };
        let nodes = 0..self.nodes.len();
        let mut fresh: Vec<_> =
            nodes.flat_map(|node| [(node, set(node)), (node, Action::Get)]).collect();
        for _ in 0..5 {
            let asked: Vec<_> = std::mem::take(&mut fresh)
                .into_iter()
                .map(|(node, action)| {
                    let parts = vec![(b"fresh".to_vec(), action.clone())];
                    (self.ask(None, node, parts), node, action)
                })
                .collect();
            self.wait("fresh requests end", SERVICE_MAX, |world| world.load.all_ended());
            if self.failure.is_some() {
                return;
            }
            for (request, node, action) in asked {
                match self.load.requests[request].end {
                    End::Done { .. } => {}
                    End::Unknown | End::NotDone | End::Open => fresh.push((node, action)),
                }
            }
            if fresh.is_empty() {
                return;
            }
            self.run_until(self.now + Duration::from_millis(500));
        }
        self.fail("fresh requests are served", format!("{fresh:?}"));
    }

    fn all_agree(&self) -> bool {
        let reached = |node: &super::cluster::Node| {
            let process = node.process.as_ref()?;
            let idle = process.writer.applied().index == process.handed;
            idle.then_some((process.handed, process.digest))
        };
        let first = reached(&self.nodes[0]);
        first.is_some_and(|(index, _)| index == self.oracle.commits())
            && self.nodes.iter().all(|node| reached(node) == first)
    }

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

    /// Judges each key's history; how many were beyond the budget.
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
