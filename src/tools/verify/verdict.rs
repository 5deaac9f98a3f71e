//! The page with the verdict of a run: its load and faults, the fates of its requests, and
//! findings.

use std::collections::BTreeMap;
use std::fmt::{self, Display, Formatter};
use std::time::Duration;

use crate::tools::verify::history::FateCounts;
use crate::tools::verify::judge::Judgement;
use crate::tools::verify::nemesis::FaultKind;

/// Most undecided keys that the page names.
const NAMED_MAX: usize = 5;

/// The content of the page.
#[derive(Debug)]
pub struct VerdictPage {
    /// Members of the cluster.
    pub nodes: usize,
    /// Number of clients.
    pub clients: usize,
    /// Time of the load.
    pub time: Duration,
    /// The seed of faults and of clients' choices.
    pub seed: u64,
    /// The fates of all requests.
    pub fates: FateCounts,
    /// The longest time without an acknowledged strong write.
    pub gap: Duration,
    /// The start of that time, from the beginning of the load.
    pub gap_since: Duration,
    /// The number of faults of each kind; `None` on a live cluster.
    pub struck: Option<BTreeMap<FaultKind, u64>>,
    /// The findings of the judge and of all other steps.
    pub judgement: Judgement,
    /// The cause of an early end, if any.
    pub cut_short: Option<&'static str>,
    /// The command that repeats the run.
    pub again: String,
    /// The directory of logs and data, if they were kept.
    pub kept: Option<String>,
}

impl VerdictPage {
    /// 0 proven, 1 violation, 3 inconclusive.
    pub fn exit_code(&self) -> u8 {
        if !self.judgement.violations.is_empty() {
            1
        } else if self.inconclusive().is_some() {
            3
        } else {
            0
        }
    }

    /// The reason why a run without violations proves nothing, if there is one.
    fn inconclusive(&self) -> Option<String> {
        let undecided = &self.judgement.undecided;
        if !undecided.is_empty() {
            let named = undecided[..undecided.len().min(NAMED_MAX)].join(", ");
            let count = undecided.len();
            return Some(format!("{count} keys were too hard to decide, such as {named}"));
        }
        if self.fates.strong_writes == 0 {
            return Some("no strong write was acknowledged".into());
        }
        None
    }
}

impl Display for VerdictPage {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let FateCounts { ok, failed, unknown, .. } = self.fates;
        let (operations, seconds) = (ok + failed + unknown, self.time.as_secs_f64());
        let rate = operations as f64 / seconds.max(0.001);
        writeln!(
            f,
            "nodesync verify: {} nodes, {} clients, {seconds:.1} s, seed {}\n",
            self.nodes, self.clients, self.seed
        )?;
        writeln!(f, "operations     {operations:>10}   {rate:.0} a second")?;
        writeln!(f, "  ok           {ok:>10}")?;
        writeln!(f, "  failed       {failed:>10}   certainly not done")?;
        writeln!(f, "  unknown      {unknown:>10}   may or may not be done")?;
        let gap = self.gap.as_secs_f64();
        let since = format!("from {:.1} s on", self.gap_since.as_secs_f64());
        writeln!(f, "longest gap    {gap:>8.2} s   without an acknowledged strong write, {since}")?;
        if let Some(struck) = &self.struck {
            let total: u64 = struck.values().sum();
            let kinds: Vec<_> =
                struck.iter().map(|(kind, count)| format!("{} {count}", kind.name())).collect();
            writeln!(f, "faults         {total:>10}   {}", kinds.join(", "))?;
        }
        writeln!(f, "keys checked   {:>10}   of strong sessions", self.judgement.keys)?;
        writeln!(f, "               {:>10}   of eventual ones", self.judgement.eventual_keys)?;
        if let Some(why) = self.cut_short {
            writeln!(f, "ended early                {why}")?;
        }
        writeln!(f)?;
        self.conclude(f)
    }
}

impl VerdictPage {
    fn conclude(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let violations = &self.judgement.violations;
        if !violations.is_empty() {
            let count = violations.len();
            let s = if count == 1 { "" } else { "s" };
            writeln!(f, "VIOLATION: {count} finding{s}")?;
            for violation in violations {
                writeln!(f, "  - {}", violation.trim_end())?;
            }
        } else if let Some(why) = self.inconclusive() {
            writeln!(f, "INCONCLUSIVE: {why}")?;
        } else {
            writeln!(f, "linearizable; all promises to eventual sessions were kept")?;
        }
        if self.exit_code() != 0 {
            writeln!(f, "again: {}", self.again)?;
        }
        if let Some(kept) = &self.kept {
            writeln!(f, "logs and data: {kept}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict() -> VerdictPage {
        VerdictPage {
            nodes: 3,
            clients: 12,
            time: Duration::from_secs(10),
            seed: 7,
            fates: FateCounts { ok: 90, failed: 8, unknown: 2, strong_writes: 40 },
            gap: Duration::from_millis(650),
            gap_since: Duration::from_millis(3200),
            struck: Some(BTreeMap::from([(FaultKind::Kill, 2), (FaultKind::Cut, 1)])),
            judgement: Judgement { keys: 5, ..Judgement::default() },
            cut_short: None,
            again: "nodesync verify --spawn 3 --seed 7".into(),
            kept: None,
        }
    }

    #[test]
    fn a_sound_run_is_proven() {
        let verdict = verdict();
        let text = verdict.to_string();
        for part in
            ["100   10 a second", "0.65 s", "from 3.2 s on", "3   kill 2, cut 1", "\nlinearizable"]
        {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(!text.contains("again:"));
        assert_eq!(verdict.exit_code(), 0);
    }

    #[test]
    fn a_violation_comes_with_the_way_to_repeat_it() {
        let mut verdict = verdict();
        verdict.judgement.violations.push("key 1.2: not linearizable".into());
        verdict.judgement.undecided.push("1.3".into());
        verdict.kept = Some("/somewhere".into());
        let text = verdict.to_string();
        for part in ["VIOLATION: 1 finding\n", "key 1.2", "--seed 7", "data: /somewhere"] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert_eq!(verdict.exit_code(), 1);
    }

    #[test]
    fn a_run_without_evidence_is_inconclusive() {
        let mut nothing = verdict();
        nothing.fates.strong_writes = 0;
        assert_eq!(nothing.exit_code(), 3);
        assert!(nothing.to_string().contains("INCONCLUSIVE: no strong write"));
        let mut hard = verdict();
        hard.judgement.undecided.push("1.3".into());
        assert_eq!(hard.exit_code(), 3);
        assert!(hard.to_string().contains("such as 1.3"));
    }
}
