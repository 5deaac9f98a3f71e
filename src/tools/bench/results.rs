//! The figures of all runs, as a block of averages, a table, CSV and JSON.
//!
//! With several rounds, throughput, average and percentiles are medians over the rounds; requests
//! and errors are sums; the maximum and the longest gap are maxima.

use std::fmt::Write;

use crate::tools::bench::args::{BenchPlan, SessionMode};
use crate::tools::bench::run::RunResult;
use crate::tools::bench::tally::{POINT_NS, Side};

/// The kind of operations in a row of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OperationKind {
    /// SET.
    Set,
    /// GET.
    Get,
    /// SET and GET together.
    All,
}

impl OperationKind {
    fn name(self) -> &'static str {
        match self {
            OperationKind::Set => "SET",
            OperationKind::Get => "GET",
            OperationKind::All => "all",
        }
    }

    /// The kinds that a run with this plan distinguishes.
    fn of(plan: &BenchPlan) -> &'static [OperationKind] {
        if plan.is_mixed() {
            &[OperationKind::Set, OperationKind::Get, OperationKind::All]
        } else if plan.ratio > 0.0 {
            &[OperationKind::Get]
        } else {
            &[OperationKind::Set]
        }
    }

    fn side(self, outcome: &RunResult) -> Side {
        match self {
            OperationKind::Set => outcome.tally.writes.clone(),
            OperationKind::Get => outcome.tally.reads.clone(),
            OperationKind::All => outcome.tally.both(),
        }
    }
}

/// A row of the table. Times are in milliseconds.
#[derive(Clone, Debug)]
pub struct ResultRow {
    /// The mode of the sessions.
    pub mode: SessionMode,
    /// The kind of operations.
    pub kind: OperationKind,
    /// Number of answers without an error.
    pub requests: u64,
    /// Throughput, in answers a second.
    pub per_second: f64,
    /// Average latency.
    pub mean: f64,
    /// p50, p90, p99 and p99.9.
    pub percentiles: [f64; 4],
    /// Longest latency.
    pub max: f64,
    /// The longest time without any answer.
    pub gap: f64,
    /// Operations that failed at nodes that were not killed.
    pub errors: u64,
    /// Operations that failed at the killed node.
    pub lost: u64,
}

const QUANTILES: [f64; 4] = [0.5, 0.9, 0.99, 0.999];

fn ms(nanos: u64) -> f64 {
    nanos as f64 / 1e6
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => 0.0,
        len if len % 2 == 0 => (values[middle - 1] + values[middle]) / 2.0,
        _ => values[middle],
    }
}

/// All rows of the table.
pub fn rows(plan: &BenchPlan, outcomes: &[RunResult]) -> Vec<ResultRow> {
    let modes = plan.modes.iter();
    let kinds =
        modes.flat_map(|mode| OperationKind::of(plan).iter().map(move |kind| (*mode, *kind)));
    kinds.filter_map(|(mode, kind)| row(mode, kind, outcomes)).collect()
}

fn row(mode: SessionMode, kind: OperationKind, outcomes: &[RunResult]) -> Option<ResultRow> {
    let rounds: Vec<(&RunResult, Side)> = outcomes
        .iter()
        .filter(|outcome| outcome.mode == mode)
        .map(|outcome| (outcome, kind.side(outcome)))
        .collect();
    let over = |figure: &dyn Fn(&RunResult, &Side) -> f64| {
        median(rounds.iter().map(|(outcome, side)| figure(outcome, side)).collect())
    };
    let most = |figure: &dyn Fn(&RunResult, &Side) -> f64| {
        rounds.iter().map(|(outcome, side)| figure(outcome, side)).fold(0.0, f64::max)
    };
    (!rounds.is_empty()).then(|| ResultRow {
        mode,
        kind,
        requests: rounds.iter().map(|(_, side)| side.latencies.len()).sum(),
        per_second: over(&|run, side| side.latencies.len() as f64 / run.seconds.max(1e-9)),
        mean: over(&|_, side| side.latencies.mean() / 1e6),
        percentiles: QUANTILES
            .map(|quantile| over(&|_, side| ms(side.latencies.value_at_quantile(quantile)))),
        max: most(&|_, side| ms(side.latencies.max())),
        gap: most(&|run, _| run.gap_ms),
        errors: rounds.iter().map(|(_, side)| side.errors).sum(),
        lost: rounds.iter().map(|(_, side)| side.lost).sum(),
    })
}

/// The block of averages, in the format of the first NodeSync.
pub fn block(rows: &[ResultRow]) -> String {
    let mut page = String::from("======== RESULTS ========\n");
    for mode in [SessionMode::Eventual, SessionMode::Strong, SessionMode::Default] {
        // In a mix the row for all operations comes last.
        let Some(row) = rows.iter().rfind(|row| row.mode == mode) else { continue };
        let name = match mode {
            SessionMode::Eventual => "Eventual",
            SessionMode::Strong => "Strong",
            SessionMode::Default => "Default",
        };
        let _ = writeln!(page, "{name} consistency average latency: {:.3} ms", row.mean);
        let _ = writeln!(page, "{name} consistency max latency: {:.3} ms", row.max);
    }
    page + "=========================\n"
}

/// The table as Markdown.
pub fn table(rows: &[ResultRow]) -> String {
    let mut page = String::from(
        "| mode     | operation |   requests | per second |   p50 ms |   p90 ms |   p99 ms | \
         p99.9 ms |   max ms | longest gap ms | errors |\n\
         |----------|-----------|-----------:|-----------:|---------:|---------:|---------:|\
         ---------:|---------:|---------------:|-------:|\n",
    );
    for row in rows {
        let (mode, kind) = (row.mode.name(), row.kind.name());
        let _ = write!(page, "| {mode:<8} | {kind:<9} | {:>10} |", row.requests);
        let _ = write!(page, " {:>10.0} |", row.per_second);
        for time in row.percentiles.iter().chain([&row.max]) {
            let _ = write!(page, " {time:>8.3} |");
        }
        let _ = writeln!(page, " {:>14.1} | {:>6} |", row.gap, row.errors);
    }
    page
}

/// The table as comma-separated values.
pub fn csv(rows: &[ResultRow]) -> String {
    let mut page = String::from(
        "mode,operation,requests,per_second,mean_ms,p50_ms,p90_ms,p99_ms,p999_ms,max_ms,\
         longest_gap_ms,errors,lost_with_killed_node\n",
    );
    for row in rows {
        let (mode, kind, [p50, p90, p99, p999]) =
            (row.mode.name(), row.kind.name(), row.percentiles);
        let _ =
            write!(page, "{mode},{kind},{},{:.1},{:.4},", row.requests, row.per_second, row.mean);
        let _ = write!(page, "{p50:.4},{p90:.4},{p99:.4},{p999:.4},{:.4},", row.max);
        let _ = writeln!(page, "{:.1},{},{}", row.gap, row.errors, row.lost);
    }
    page
}

/// Remarks on the runs, a line each.
pub fn notes(plan: &BenchPlan, outcomes: &[RunResult], names: &[String]) -> Vec<String> {
    let mut notes = Vec::new();
    for (at, outcome) in outcomes.iter().enumerate() {
        let mut name = outcome.mode.name().to_string();
        if plan.rounds > 1 {
            name += &format!(", round {}", at / plan.modes.len() + 1);
        }
        notes.extend(
            notes_of(plan, outcome, names).into_iter().map(|note| format!("{name}: {note}")),
        );
    }
    notes
}

fn notes_of(plan: &BenchPlan, outcome: &RunResult, names: &[String]) -> Vec<String> {
    let (tally, mut notes) = (&outcome.tally, Vec::new());
    if let Some(kill) = &outcome.kill {
        let both = tally.both();
        let errors = if both.errors == 0 { "none".into() } else { both.errors.to_string() };
        notes.push(format!(
            "leader {} killed at {:.2} s; longest time without an answer {:.1} ms, from {:.2} s \
             on; errors on survivors: {errors}; {} operations lost with the leader's connections",
            names[kill.node], kill.at, outcome.gap_ms, outcome.gap_at, both.lost
        ));
    } else if plan.kill_at.is_some() {
        notes.push("ended before the leader was killed".into());
    }
    for errors in &tally.errors {
        let (node, count, first) = (&names[errors.node], errors.count, &errors.first);
        let killed = if errors.killed { ", the killed one" } else { "" };
        notes.push(format!("{count} times at {node}{killed}: {first}"));
    }
    if plan.rate.is_some() {
        let (late, own) = (ms(tally.late), ms(tally.late_by_generator));
        let unsent = tally.unsent;
        notes.push(format!(
            "operations were sent up to {late:.1} ms late, by the generator's fault up to \
             {own:.1} ms; due and never sent: {unsent}"
        ));
    }
    if tally.reconnects > 0 {
        notes.push(format!("{} connections were made again", tally.reconnects));
    }
    notes.push(format!("the load generator took {:.2} µs of CPU an answer", outcome.cpu_micros));
    if outcome.cut_short {
        notes.push("asked to stop early".into());
    }
    notes
}

/// All results as JSON.
pub fn json(
    facts: &[(&str, String)],
    plan: &BenchPlan,
    rows: &[ResultRow],
    outcomes: &[RunResult],
    names: &[String],
) -> String {
    let mut page = String::from("{\n");
    for (name, fact) in facts {
        let _ = writeln!(page, "  {}: {},", quoted(name), quoted(fact));
    }
    let _ = writeln!(page, "  \"rounds\": {},\n  \"seed\": {},", plan.rounds, plan.seed);
    let rows: Vec<String> = rows.iter().map(json_row).collect();
    let _ = writeln!(page, "  \"results\": [\n{}\n  ],", rows.join(",\n"));
    let runs: Vec<String> = outcomes.iter().map(|outcome| json_run(outcome, names)).collect();
    let _ = writeln!(page, "  \"runs\": [\n{}\n  ]\n}}", runs.join(",\n"));
    page
}

fn json_row(row: &ResultRow) -> String {
    let [p50, p90, p99, p999] = row.percentiles;
    format!(
        "    {{\"mode\": \"{}\", \"operation\": \"{}\", \"requests\": {}, \"per_second\": {:.1}, \
         \"mean_ms\": {:.4}, \"p50_ms\": {p50:.4}, \"p90_ms\": {p90:.4}, \"p99_ms\": {p99:.4}, \
         \"p999_ms\": {p999:.4}, \"max_ms\": {:.4}, \"longest_gap_ms\": {:.1}, \"errors\": {}, \
         \"lost_with_killed_node\": {}}}",
        row.mode.name(),
        row.kind.name(),
        row.requests,
        row.per_second,
        row.mean,
        row.max,
        row.gap,
        row.errors,
        row.lost
    )
}

fn json_run(outcome: &RunResult, names: &[String]) -> String {
    let tally = &outcome.tally;
    let killed = outcome.kill.as_ref().map_or("null".to_string(), |kill| {
        format!("{{\"node\": {}, \"at_s\": {:.3}}}", quoted(&names[kill.node]), kill.at)
    });
    let errors = tally.errors.iter().map(|errors| {
        let (node, killed, count) = (quoted(&names[errors.node]), errors.killed, errors.count);
        let (kind, first) = (quoted(&errors.kind), quoted(&errors.first));
        format!(
            "{{\"node\": {node}, \"killed\": {killed}, \"kind\": {kind}, \"count\": {count}, \
             \"first\": {first}}}"
        )
    });
    let points: Vec<String> = tally.points.iter().map(u64::to_string).collect();
    format!(
        "    {{\"mode\": \"{}\", \"seconds\": {:.3}, \"longest_gap_ms\": {:.1}, \
         \"longest_gap_at_s\": {:.3}, \"killed\": {killed}, \"late_ms\": {:.3}, \
         \"late_by_generator_ms\": {:.3}, \"unsent\": {}, \"reconnects\": {}, \
         \"generator_cpu_us\": {:.3}, \"cut_short\": {}, \"errors\": [{}], \
         \"answers_each_ms\": {}, \"answers\": [{}]}}",
        outcome.mode.name(),
        outcome.seconds,
        outcome.gap_ms,
        outcome.gap_at,
        ms(tally.late),
        ms(tally.late_by_generator),
        tally.unsent,
        tally.reconnects,
        outcome.cpu_micros,
        outcome.cut_short,
        errors.collect::<Vec<_>>().join(", "),
        POINT_NS / 1_000_000,
        points.join(", ")
    )
}

/// A text as a JSON string.
pub fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for letter in text.chars() {
        match letter {
            '"' | '\\' => out.extend(['\\', letter]),
            '\u{0}'..='\u{1f}' => _ = write!(out, "\\u{:04x}", letter as u32),
            _ => out.push(letter),
        }
    }
    out + "\""
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_are_in_the_middle() {
        assert_eq!(median(vec![3.0, 1.0, 9.0]), 3.0);
        assert_eq!(median(vec![4.0, 1.0]), 2.5);
        assert_eq!(median(Vec::new()), 0.0);
    }

    #[test]
    fn texts_are_quoted() {
        assert_eq!(quoted("a \"b\"\\\n"), "\"a \\\"b\\\"\\\\\\u000a\"");
    }
}
