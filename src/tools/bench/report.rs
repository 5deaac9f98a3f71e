//! The report: a directory with `RESULTS.md` and two charts, and facts about the machine.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::Path;
use std::time::Instant;

use crate::clock::wall_micros;
use crate::tools::bench::args::{BenchPlan, SessionMode};
use crate::tools::bench::chart::{Axis, Series, draw};
use crate::tools::bench::results::{ResultRow, block, table};
use crate::tools::bench::run::RunResult;
use crate::tools::bench::tally::{POINT_NS, Side};

/// Number of points of a line in the latency chart.
const STEPS: u32 = 240;
/// Number and size of the synced writes that measure the disk.
const SYNCS: usize = 60;
const SYNC_BYTES: usize = 512;

/// Facts about the command, the machine and its disk, each with a name.
pub fn facts(plan: &BenchPlan) -> Vec<(&'static str, String)> {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let info = read("/proc/cpuinfo");
    let model = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let model = model.map_or("unknown", |(_, model)| model).to_string();
    let dir = if plan.spawn.is_some() { plan.dir.parent() } else { None };
    let sync = sync_ms(dir.unwrap_or(&std::env::temp_dir()));
    let sync = sync.map_or_else(|error| error.to_string(), |ms| format!("{ms:.3} ms"));
    // Hide the password in the command.
    let words = std::env::args().scan(false, |hide, word| {
        let hidden = std::mem::replace(hide, word == "--requirepass");
        let word =
            if word.starts_with("--requirepass=") { "--requirepass=…".into() } else { word };
        Some(if hidden { "…".into() } else { word })
    });
    let command = words.skip(1).collect::<Vec<_>>().join(" ");
    vec![
        ("command", format!("nodesync {command}")),
        ("date", date(wall_micros() / 1_000_000)),
        ("version", env!("CARGO_PKG_VERSION").into()),
        ("cores", cores.to_string()),
        ("processor", model),
        ("kernel", read("/proc/sys/kernel/osrelease").trim().into()),
        ("synced write of 512 bytes", sync),
    ]
}

/// The median time of an appended and synced write in this directory, in milliseconds.
fn sync_ms(dir: &Path) -> io::Result<f64> {
    let path = dir.join(format!("nodesync-bench-sync-{}", std::process::id()));
    let mut file = File::create(&path)?;
    let mut once = || -> io::Result<f64> {
        let started = Instant::now();
        file.write_all(&[0; SYNC_BYTES])?;
        file.sync_data()?;
        Ok(started.elapsed().as_secs_f64() * 1e3)
    };
    let times: io::Result<Vec<f64>> = (0..SYNCS).map(|_| once()).collect();
    fs::remove_file(&path)?;
    let mut times = times?;
    times.sort_by(f64::total_cmp);
    Ok(times[SYNCS / 2])
}

/// Date and time in UTC from the seconds since 1970 (Howard Hinnant's `civil_from_days`).
fn date(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400 + 719_468, seconds % 86_400);
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let of_year = day - (365 * year + year / 4 - year / 100);
    let shifted = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = era * 400 + year + u64::from(month <= 2);
    let (hour, minute) = (rest / 3600, rest / 60 % 60);
    format!("{year}-{month:02}-{day:02} {hour:02}:{minute:02} UTC")
}

/// Writes the report.
pub fn write(
    dir: &Path,
    plan: &BenchPlan,
    facts: &[(&str, String)],
    (rows, outcomes, notes): (&[ResultRow], &[RunResult], &[String]),
) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    fs::write(dir.join("latency.svg"), latency_chart(plan, outcomes))?;
    fs::write(dir.join("throughput.svg"), throughput_chart(plan, outcomes))?;
    fs::write(dir.join("RESULTS.md"), page(plan, facts, rows, notes))
}

fn page(
    plan: &BenchPlan,
    facts: &[(&str, String)],
    rows: &[ResultRow],
    notes: &[String],
) -> String {
    let mut page = String::from("# Results of `nodesync bench`\n\n| | |\n|---|---|\n");
    for (name, fact) in facts {
        let _ = match *name {
            "command" => writeln!(page, "| {name} | `{}` |", fact.replace('|', "\\|")),
            _ => writeln!(page, "| {name} | {fact} |"),
        };
    }
    let _ = writeln!(page, "\n{}", table(rows));
    let loop_kind = match plan.rate {
        Some(rate) => format!(
            "Open loop, {rate} operations a second: latency counts from each operation's intended \
             start."
        ),
        None => "Closed loop: latency counts from sending an operation's batch.".into(),
    };
    let _ = writeln!(page, "{loop_kind}");
    if plan.rounds > 1 {
        let _ = writeln!(
            page,
            "Throughput and percentiles are medians of {} alternating rounds; requests and errors \
             are sums, maximum and gap those of all.",
            plan.rounds
        );
    }
    let _ = writeln!(page);
    notes.iter().for_each(|note| _ = writeln!(page, "- {note}"));
    let _ = writeln!(page, "\n```text\n{}```", block(rows));
    page + "\n![Latency by percentile](latency.svg)\n\n![Throughput over time](throughput.svg)\n"
}

/// The chart of latencies by percentile, a line for each mode.
fn latency_chart(plan: &BenchPlan, outcomes: &[RunResult]) -> String {
    let sides: Vec<(SessionMode, Side)> =
        plan.modes.iter().filter_map(|mode| Some((*mode, side_of(*mode, outcomes)?))).collect();
    let most = sides.iter().map(|(_, side)| side.latencies.len()).max().unwrap_or(0);
    // With 10^n operations the last percentile with data has n nines.
    let nines = most.max(1).ilog10().clamp(2, 6);
    let line = |(mode, side): &(SessionMode, Side)| {
        let latencies = &side.latencies;
        let points = (0..=STEPS).map(|step| f64::from(step * nines) / f64::from(STEPS));
        let points = points.map(|at| {
            let quantile = 1.0 - 10f64.powf(-at);
            (at, latencies.value_at_quantile(quantile) as f64 / 1e6)
        });
        Series { name: mode.name().into(), points: points.collect() }
    };
    let lines: Vec<Series> = sides.iter().map(line).collect();
    let heights = || lines.iter().flat_map(|line| line.points.iter().map(|(_, up)| *up));
    let (min, max) = (heights().fold(f64::INFINITY, f64::min), heights().fold(0.0, f64::max));
    let x = Axis::nines("percentile of operations", nines);
    let y = Axis::logarithmic("latency, ms", min, max);
    draw("Latency by percentile", (&x, &y), &lines, &[])
}

/// The measurements of a mode over all rounds; `None` without any answer.
fn side_of(mode: SessionMode, outcomes: &[RunResult]) -> Option<Side> {
    let mut sides = outcomes.iter().filter(|run| run.mode == mode).map(|run| run.tally.both());
    let mut sum = sides.next()?;
    sides.for_each(|side| sum.add(&side));
    (!sum.latencies.is_empty()).then_some(sum)
}

/// The chart of answers a second over time, from the last round of each mode.
fn throughput_chart(plan: &BenchPlan, outcomes: &[RunResult]) -> String {
    let last = |mode: &SessionMode| outcomes.iter().rfind(|outcome| outcome.mode == *mode);
    let shown: Vec<&RunResult> = plan.modes.iter().filter_map(last).collect();
    let step = POINT_NS as f64 / 1e9;
    // Leave out the incomplete point after the measured time.
    let whole = |outcome: &RunResult| (outcome.seconds / step).round().max(1.0);
    let line = |outcome: &&RunResult| {
        let count = |at: usize| outcome.tally.points.get(at).copied().unwrap_or(0) as f64;
        let points = 0..whole(outcome) as usize;
        let points = points.map(|at| ((at as f64 + 0.5) * step, count(at) / step));
        Series { name: outcome.mode.name().into(), points: points.collect() }
    };
    let lines: Vec<Series> = shown.iter().map(line).collect();
    let points = || lines.iter().flat_map(|line| line.points.iter());
    let longest = shown.iter().map(|outcome| whole(outcome) * step).fold(step, f64::max);
    let x = Axis::linear("seconds", longest, 12.0);
    let y = Axis::linear("answers a second", points().map(|(_, up)| *up).fold(0.0, f64::max), 6.0);
    // The leader is killed at about the same moment in both modes: one line marks it.
    let kills: Vec<_> = shown.iter().filter_map(|run| Some((run, run.kill.as_ref()?.at))).collect();
    let gaps = kills.iter().map(|(run, _)| format!("{} {:.0} ms", run.mode.name(), run.gap_ms));
    let text = format!("leader killed, longest gap: {}", gaps.collect::<Vec<_>>().join(", "));
    let events: Vec<_> = kills.first().map(|(_, at)| (*at, text)).into_iter().collect();
    draw("Throughput over time", (&x, &y), &lines, &events)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        assert_eq!(date(0), "1970-01-01 00:00 UTC");
        assert_eq!(date(951_782_400), "2000-02-29 00:00 UTC");
        assert_eq!(date(1_798_761_599), "2026-12-31 23:59 UTC");
    }
}
