//! Results as Markdown: medians, and ratios beside their targets.

use std::collections::BTreeMap;
use std::fmt::Write;

use crate::load::{Case, Sample};
use crate::machine::{MESSAGE_BYTES, SYNC_BYTES};
use crate::systems::System;

/// Samples of all rounds.
#[derive(Debug, Default)]
pub struct Results {
    samples: BTreeMap<(System, Case), Vec<Sample>>,
    /// The machine's own sync and round trip, in milliseconds, once a round.
    pub machine: Vec<(f64, f64)>,
    problems: Vec<String>,
    notes: Vec<String>,
}

/// Bound of a ratio of medians.
#[derive(Clone, Copy, Debug)]
enum Target {
    AtLeast(f64),
    More(f64),
    AtMost(f64),
}

impl Target {
    fn is_met(self, value: f64) -> bool {
        match self {
            Target::AtLeast(limit) => value >= limit,
            Target::More(limit) => value > limit,
            Target::AtMost(limit) => value <= limit,
        }
    }

    fn text(self) -> String {
        match self {
            Target::AtLeast(limit) => format!("at least {limit}"),
            Target::More(limit) => format!("more than {limit}"),
            Target::AtMost(limit) => format!("at most {limit}"),
        }
    }
}

impl Results {
    /// Adds the sample of a case.
    pub fn add(&mut self, system: System, case: Case, sample: Sample) {
        let Sample { per_second, p50, p99 } = sample;
        let name = system.name();
        eprintln!("  {name}: {case}: {per_second:.0}/s, p50 {p50:.3} ms, p99 {p99:.3} ms");
        self.samples.entry((system, case)).or_default().push(sample);
    }

    /// Records a failure: the run as a whole has failed.
    pub fn problem(&mut self, system: System, text: &str) {
        eprintln!("  {}: PROBLEM: {text}", system.name());
        self.problems.push(format!("{}: {text}", system.name()));
    }

    /// Records an observation for the reader.
    pub fn note(&mut self, system: System, text: &str) {
        eprintln!("  {}: {text}", system.name());
        self.notes.push(format!("{}: {text}", system.name()));
    }

    /// True if nothing failed.
    pub fn is_clean(&self) -> bool {
        self.problems.is_empty()
    }

    /// Whole page, below its heading.
    pub fn page(&self) -> String {
        let mut page = self.table();
        if let Some((sync, trip)) = self.machine() {
            let _ = writeln!(
                page,
                "\nThe machine itself: {sync:.3} ms for a synced write of {SYNC_BYTES} bytes, \
                 {trip:.3} ms for {MESSAGE_BYTES} bytes there and back over loopback.\n"
            );
        }
        page += &self.targets();
        for (title, lines) in [("Problems", &self.problems), ("Reported by the nodes", &self.notes)]
        {
            if !lines.is_empty() {
                let _ = writeln!(page, "\n{title}:\n");
                lines.iter().for_each(|line| page += &format!("- {line}\n"));
            }
        }
        page
    }

    fn table(&self) -> String {
        let mut page = row(["system", "work", "per second", "p50 ms", "p99 ms"]);
        page += "|---|---|---:|---:|---:|\n";
        for (system, case) in self.samples.keys() {
            let of = |figure| self.median(*system, *case, figure).unwrap_or(f64::NAN);
            let per_second = format!("{:.0}", of(|sample: &Sample| sample.per_second));
            let p50 = format!("{:.3}", of(|sample| sample.p50));
            let p99 = format!("{:.3}", of(|sample| sample.p99));
            page += &row([system.name(), &case.to_string(), &per_second, &p50, &p99]);
        }
        page
    }

    fn median(&self, system: System, case: Case, figure: fn(&Sample) -> f64) -> Option<f64> {
        median(self.samples.get(&(system, case))?.iter().map(figure))
    }

    fn rate(&self, system: System, case: Case) -> Option<f64> {
        self.median(system, case, |sample| sample.per_second)
    }

    /// Median sync and median round trip of the machine.
    fn machine(&self) -> Option<(f64, f64)> {
        let syncs = self.machine.iter().map(|(sync, _)| *sync);
        Some((median(syncs)?, median(self.machine.iter().map(|(_, trip)| *trip))?))
    }

    fn targets(&self) -> String {
        let mut page = row(["ratio of medians", "target", "measured", "met"]);
        page += "|---|---|---:|---|\n";
        for (name, target, value) in self.ratios() {
            let (value, met) = match value {
                Some(value) if target.is_met(value) => (format!("{value:.2}"), "yes"),
                Some(value) => (format!("{value:.2}"), "**no**"),
                None => ("-".into(), "not measured"),
            };
            page += &row([&name, &target.text(), &value, met]);
        }
        page
    }

    fn ratios(&self) -> Vec<(String, Target, Option<f64>)> {
        use System::{RedisAlways, Strong};
        let over = |own: (System, Case), other: (System, Case)| {
            Some(self.rate(own.0, own.1)? / self.rate(other.0, other.1)?)
        };
        let strong = |case| (Strong, case);
        let (set, get) = (Case::set(64), Case::get(64));
        let mut ratios = self.against_etcd();
        let mut add = |name: &str, target, value| ratios.push((name.to_string(), target, value));
        let value = over(strong(set.pipeline(16)), strong(set));
        add("strong SET, 64 clients: pipeline 16 to none", Target::AtLeast(5.0), value);
        let value = over(strong(set), (RedisAlways, set));
        add("strong SET, 64 clients, to one Redis, AOF always", Target::AtLeast(1.0), value);
        let own = self.median(Strong, Case::set(1), |sample| sample.p50);
        let value = own.zip(self.machine()).map(|(own, (sync, trip))| own / (sync + 2.0 * trip));
        add("strong SET, 1 client, p50 to a sync and two round trips", Target::AtMost(1.6), value);
        let value = over(strong(get.at_all()), strong(get));
        add("strong GET, 64 clients: at all nodes to at the leader", Target::More(1.0), value);
        for (name, many, some) in [("SET", Case::set(1000), set), ("GET", Case::get(1000), get)] {
            let name = format!("strong {name}: 1000 clients to 64");
            add(&name, Target::AtLeast(0.8), over(strong(many), strong(some)));
        }
        for (pipeline, target) in [(1, 0.9), (16, 1.5)] {
            for case in [Case::get(50), Case::set(50)].map(|case| case.pipeline(pipeline)) {
                let value = over((System::Eventual, case), (System::RedisPlain, case));
                let name = format!("eventual {case}, to plain Redis");
                add(&name, Target::AtLeast(target), value);
            }
        }
        ratios
    }

    /// Ratios to etcd, which is taken at its best, figure by figure: it performs best with fewer
    /// connections than clients, but not in every figure.
    fn against_etcd(&self) -> Vec<(String, Target, Option<f64>)> {
        let (set, get) = (Case::set(64), Case::get(64));
        let best = |case: Case, figure, better: fn(f64, f64) -> f64| {
            let figures = [case, case.over(8)].map(|case| self.median(System::Etcd, case, figure));
            figures.into_iter().flatten().reduce(better)
        };
        let rate = |case| {
            let etcd = best(case, |sample: &Sample| sample.per_second, f64::max)?;
            Some(self.rate(System::Strong, case)? / etcd)
        };
        let p99 = |sample: &Sample| sample.p99;
        let slow = || Some(self.median(System::Strong, set, p99)? / best(set, p99, f64::min)?);
        vec![
            ("strong SET, 64 clients, to etcd's put".into(), Target::AtLeast(10.0), rate(set)),
            ("the same, p99".into(), Target::AtMost(0.333), slow()),
            ("strong GET, 64 clients, to etcd's range".into(), Target::AtLeast(10.0), rate(get)),
        ]
    }
}

fn row<const N: usize>(cells: [&str; N]) -> String {
    format!("| {} |\n", cells.join(" | "))
}

/// Median; of an even number of values, the mean of the middle two.
fn median(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    let upper = *values.get(middle)?;
    Some(if values.len() % 2 == 1 { upper } else { (upper + values[middle - 1]) / 2.0 })
}
