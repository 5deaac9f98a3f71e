//! The nemesis: faults of nodes and links while clients work.
//!
//! The seed shuffles the kinds of faults and draws victims, shapes and times. A strike is one fault
//! or two; then everything is healed, and after a pause comes the next strike. Real processes do
//! not repeat their timing: the same seed gives the same sequence of faults, not the same run.
//!
//! A directory is wiped or damaged only while all nodes serve, one node at a time, and the next one
//! only after that node serves again: the product promises to survive no more. A node with a
//! damaged file must refuse to start with exit code 65, or serve if it does not need the damaged
//! bytes. A node that ends by itself at any other time is a violation.

use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

use clap::ValueEnum;
use rustix::process::Signal;

use crate::rng::Rng;
use crate::tools::verify::cluster::Cluster;
use crate::tools::verify::ending;
use crate::tools::verify::proxy::LinkMode;
use crate::tools::verify::workload::Board;
use crate::tools::watch::Watch;

/// Time between two checks of the nodes.
const STEP: Duration = Duration::from_millis(20);
/// Time before the first strike.
const CALM: Duration = Duration::from_millis(800);
/// Least time before the end of the run for a strike, and for a node to rejoin.
const STRIKE_MIN: Duration = Duration::from_millis(1000);
const REJOIN_MIN: Duration = Duration::from_millis(2500);
/// The exit code of a node that refuses its data.
const DATA_REFUSED: i32 = 65;

/// A kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum FaultKind {
    /// A node is killed (SIGKILL) and restarted
    Kill,
    /// A node is stopped (SIGSTOP) and continued
    Pause,
    /// All nodes are killed at once
    All,
    /// Links are closed
    Cut,
    /// Links hold bytes back, in both directions or one, or delay them
    Stall,
    /// A node loses its directory
    Wipe,
    /// A bit flips in a sealed log segment or an image
    Corrupt,
    /// No faults
    None,
}

impl FaultKind {
    /// All kinds of faults that a cluster of this size must survive.
    pub fn fitting(size: usize) -> Vec<FaultKind> {
        let all =
            FaultKind::value_variants().iter().copied().filter(|fault| *fault != FaultKind::None);
        all.filter(|fault| fault.fits(size)).collect()
    }

    /// True if a cluster of this size must survive the fault.
    pub fn fits(self, size: usize) -> bool {
        match self {
            FaultKind::Kill | FaultKind::Pause | FaultKind::All | FaultKind::None => true,
            FaultKind::Cut | FaultKind::Stall => size >= 2,
            // A lost disk needs a majority without that node: two of three.
            FaultKind::Wipe | FaultKind::Corrupt => size >= 3,
        }
    }

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            FaultKind::Kill => "kill",
            FaultKind::Pause => "pause",
            FaultKind::All => "all",
            FaultKind::Cut => "cut",
            FaultKind::Stall => "stall",
            FaultKind::Wipe => "wipe",
            FaultKind::Corrupt => "corrupt",
            FaultKind::None => "none",
        }
    }
}

/// The cause of a run's early end.
#[derive(Debug)]
pub enum EndCause {
    /// A signal.
    Asked,
    /// A finding of a client.
    Finding,
    /// Behaviour of a node that breaks a promise.
    Violation(String),
    /// A failure of the machine.
    Io(io::Error),
}

impl From<io::Error> for EndCause {
    fn from(error: io::Error) -> EndCause {
        EndCause::Io(error)
    }
}

/// The faults of one run.
#[derive(Debug)]
pub struct Nemesis<'a> {
    cluster: &'a mut Cluster,
    board: &'a Board,
    watch: &'a Watch,
    rng: Rng,
    kinds: Vec<FaultKind>,
    /// The rest of a shuffled round of all kinds.
    deck: Vec<FaultKind>,
    time: Duration,
    activity: String,
    /// Number of directories set aside after damage.
    damaged: usize,
    /// The node that may end by itself, because its data is damaged.
    may_end: Option<usize>,
    /// The number of strikes of each kind.
    pub struck: BTreeMap<FaultKind, u64>,
}

impl<'a> Nemesis<'a> {
    /// A nemesis that strikes with these kinds of faults for `time`.
    pub fn new(
        cluster: &'a mut Cluster,
        board: &'a Board,
        watch: &'a Watch,
        rng: Rng,
        kinds: Vec<FaultKind>,
        time: Duration,
    ) -> Nemesis<'a> {
        let (deck, struck) = (Vec::new(), BTreeMap::new());
        let activity = "all well".into();
        let (damaged, may_end) = (0, None);
        Nemesis {
            cluster,
            board,
            watch,
            rng,
            kinds,
            deck,
            time,
            activity,
            damaged,
            may_end,
            struck,
        }
    }

    /// Strikes until the time is over, and leaves everything healed.
    pub fn run(&mut self) -> Result<(), EndCause> {
        let result = self.strikes();
        self.cluster.heal()?;
        result
    }

    fn strikes(&mut self) -> Result<(), EndCause> {
        self.wait(CALM)?;
        while let Some(fault) = self.draw() {
            self.activity = fault.name().into();
            match fault {
                FaultKind::Wipe => self.wipe()?,
                FaultKind::Corrupt => self.corrupt()?,
                fault => self.strike(fault)?,
            }
            self.activity = "all well".into();
            let moment = self.millis(200, 1200);
            self.wait(moment.min(self.left()))?;
        }
        self.wait(self.left())
    }

    fn left(&self) -> Duration {
        self.time.saturating_sub(self.watch.elapsed())
    }

    /// The next kind of fault that fits into the remaining time, if any.
    fn draw(&mut self) -> Option<FaultKind> {
        let left = self.left();
        let fits = |fault: &FaultKind| match fault {
            FaultKind::None => false,
            FaultKind::Wipe | FaultKind::Corrupt => left > REJOIN_MIN,
            _ => left > STRIKE_MIN,
        };
        // Deal from a shuffled deck, so that a short run still sees every kind.
        if !self.deck.iter().any(fits) {
            self.deck = self.kinds.clone();
            for at in (1..self.deck.len()).rev() {
                self.deck.swap(at, self.rng.below(at as u64 + 1) as usize);
            }
        }
        let at = self.deck.iter().position(fits)?;
        Some(self.deck.remove(at))
    }

    fn millis(&mut self, least: u64, most: u64) -> Duration {
        Duration::from_millis(least + self.rng.below(most - least))
    }

    /// Waits, and checks the nodes meanwhile.
    fn wait(&mut self, time: Duration) -> Result<(), EndCause> {
        let until = self.watch.elapsed() + time;
        loop {
            self.check_nodes()?;
            let left = until.saturating_sub(self.watch.elapsed());
            if left.is_zero() {
                return Ok(());
            }
            std::thread::sleep(left.min(STEP));
        }
    }

    /// Ends the run on a signal, a finding, or a node that ended by itself.
    fn check_nodes(&mut self) -> Result<(), EndCause> {
        self.watch.show(self.board.requests(), &self.activity);
        if self.watch.must_stop() {
            return Err(EndCause::Asked);
        }
        if self.board.has_findings() {
            return Err(EndCause::Finding);
        }
        for (at, node) in self.cluster.nodes.iter_mut().enumerate() {
            if self.may_end != Some(at)
                && let Some(status) = node.take_exit_status()?
            {
                let (port, log) = (node.port, node.last_lines());
                let text = format!("node {port} ended by itself with {status}; its last lines:");
                return Err(EndCause::Violation(format!("{text}\n{log}")));
            }
        }
        Ok(())
    }

    /// Repeats the attempt until it succeeds. A violation if that takes too long.
    fn until<T>(
        &mut self,
        goal: &str,
        mut attempt: impl FnMut(&mut Self) -> Result<T, String>,
    ) -> Result<T, EndCause> {
        let started = self.watch.elapsed();
        loop {
            let error = match attempt(self) {
                Ok(done) => return Ok(done),
                Err(error) => error,
            };
            if self.watch.elapsed() - started > ending::RECOVERY {
                let limit = ending::RECOVERY.as_secs();
                return Err(EndCause::Violation(format!("{goal}: not within {limit} s: {error}")));
            }
            self.wait(STEP)?;
        }
    }

    fn until_all_well(&mut self, after: &str) -> Result<(), EndCause> {
        self.until(&format!("all nodes serve {after}"), |nemesis| ending::all_well(nemesis.board))
    }

    /// Counts a strike and prints it.
    fn note(&mut self, fault: FaultKind, target: &str) {
        *self.struck.entry(fault).or_default() += 1;
        self.watch.print(&format!("{:<8} {target}", fault.name()));
    }

    /// A running node; in half of the draws the leader, if one is known.
    fn victim(&mut self) -> usize {
        let size = self.cluster.nodes.len();
        let mut at = self.rng.below(size as u64) as usize;
        if self.rng.chance(1, 2) {
            let leader = ending::leader(self.board);
            let named = |port: u16| Some(i64::from(port)) == leader;
            at = self.cluster.nodes.iter().position(|node| named(node.port)).unwrap_or(at);
        }
        let runs = |at: &usize| self.cluster.nodes[*at].is_running();
        (at..at + size).map(|at| at % size).find(runs).unwrap_or(at)
    }

    /// Injects one fault, sometimes a second one beside it, and heals.
    fn strike(&mut self, fault: FaultKind) -> Result<(), EndCause> {
        let together = [FaultKind::Kill, FaultKind::Pause, FaultKind::Cut, FaultKind::Stall];
        let others: Vec<FaultKind> = self
            .kinds
            .iter()
            .copied()
            .filter(|other| *other != fault && together.contains(other))
            .collect();
        let longest = if fault == FaultKind::All { 1000 } else { 3500 };
        let mut hold = self.millis(300, longest).min(self.left());
        self.begin(fault, hold)?;
        // Faults in combination find more: a third of the strikes overlaps with another kind.
        if !others.is_empty() && together.contains(&fault) && self.rng.chance(1, 3) {
            let delay = self.millis(0, 500).min(hold);
            self.wait(delay)?;
            hold -= delay;
            let other = others[self.rng.below(others.len() as u64) as usize];
            self.activity = format!("{} and {}", fault.name(), other.name());
            self.begin(other, hold)?;
        }
        self.wait(hold)?;
        Ok(self.cluster.heal()?)
    }

    /// Injects a fault that is to last for `hold`.
    fn begin(&mut self, fault: FaultKind, hold: Duration) -> Result<(), EndCause> {
        let target = match fault {
            FaultKind::Kill => {
                let victim = self.victim();
                self.cluster.nodes[victim].kill()?;
                format!("node {}", self.cluster.nodes[victim].port)
            }
            FaultKind::Pause => {
                let victim = self.victim();
                self.cluster.nodes[victim].signal(Signal::STOP)?;
                format!("node {}", self.cluster.nodes[victim].port)
            }
            FaultKind::All => {
                for node in &mut self.cluster.nodes {
                    node.kill()?;
                }
                "all nodes".into()
            }
            FaultKind::Cut => {
                let reset = self.rng.chance(1, 2);
                self.links(LinkMode::Cut { reset })
            }
            _ => {
                let mode = match self.rng.below(4) {
                    0 => LinkMode::Stall { forth: true, back: true },
                    1 => LinkMode::Stall { forth: true, back: false },
                    2 => LinkMode::Stall { forth: false, back: true },
                    _ => LinkMode::Delay(self.millis(5, 80)),
                };
                self.links(mode)
            }
        };
        self.note(fault, &format!("{target}, for {} ms", hold.as_millis()));
        Ok(())
    }

    /// Sets some links to `mode`. Returns their description.
    fn links(&mut self, mode: LinkMode) -> String {
        let (size, victim) = (self.cluster.nodes.len(), self.victim());
        let other = (victim + 1 + self.rng.below(size as u64 - 1) as usize) % size;
        let mut half = self.rng.bits();
        // A split into two halves needs a node on each side.
        if (half >> victim) & 1 == (half >> other) & 1 {
            half ^= 1 << victim;
        }
        let shape = self.rng.below(5);
        for from in 0..size {
            for to in (0..size).filter(|to| *to != from) {
                // Isolated node, broken pair, one-way pair, one-way node, split in two.
                let is_hit = match shape {
                    0 => from == victim || to == victim,
                    1 => (from, to) == (victim, other) || (from, to) == (other, victim),
                    2 => (from, to) == (victim, other),
                    3 => from == victim,
                    _ => (half >> from) & 1 != (half >> to) & 1,
                };
                if is_hit {
                    self.cluster.set_link(from, to, mode);
                }
            }
        }
        let port = |at: usize| self.cluster.nodes[at].port;
        let (victim, other) = (port(victim), port(other));
        let which = match shape {
            0 => format!("all links of node {victim}"),
            1 => format!("links between {victim} and {other}"),
            2 => format!("link from {victim} to {other}"),
            3 => format!("links from {victim}"),
            _ => {
                let side = (0..size).filter(|at| (half >> at) & 1 == 0).map(port);
                let side: Vec<_> = side.map(|port| port.to_string()).collect();
                format!("links between {} and the others", side.join(", "))
            }
        };
        format!("{which}: {mode}")
    }

    /// Removes the directory of a killed node and restarts it: it must rejoin.
    fn wipe(&mut self) -> Result<(), EndCause> {
        // Raft loses no acknowledged write as long as a majority keeps its disks, so the node wiped
        // before must have rejoined.
        self.until_all_well("before a directory is wiped")?;
        let victim = self.victim();
        let node = &mut self.cluster.nodes[victim];
        node.kill()?;
        node.wipe()?;
        node.start()?;
        let target = format!("directory of node {}", node.port);
        self.note(FaultKind::Wipe, &target);
        self.until_all_well("after a directory was wiped")
    }

    /// Flips a bit in a file of a killed node and restarts it: it must refuse its data or serve.
    fn corrupt(&mut self) -> Result<(), EndCause> {
        self.until_all_well("before a file is damaged")?;
        let victim = self.victim();
        let node = &mut self.cluster.nodes[victim];
        let port = node.port;
        node.kill()?;
        let place = node.corrupt(&mut self.rng)?;
        node.start()?;
        let Some(place) = place else {
            self.watch.print(&format!("corrupt  node {port} has no sealed file yet"));
            return self.until_all_well("after a kill");
        };
        self.note(FaultKind::Corrupt, &format!("node {port}, {place}"));
        let goal = format!("node {port} refuses or serves");
        self.may_end = Some(victim);
        let refused = self.until(&goal, |nemesis| {
            let node = &mut nemesis.cluster.nodes[victim];
            // Checksums must catch the damage (exit code 65), unless the node never reads that
            // place.
            match node.take_exit_status().map_err(|error| error.to_string())? {
                Some(status) if status.code() == Some(DATA_REFUSED) => Ok(Ok(true)),
                Some(status) => Ok(Err(format!(
                    "node {port} ended with {status} after damage to {place}; its last lines:\n{}",
                    node.last_lines()
                ))),
                None => ending::well(nemesis.board, victim).map(|_| Ok(false)),
            }
        });
        self.may_end = None;
        let refused = refused?;
        if refused.map_err(EndCause::Violation)? {
            self.watch.print(&format!(
                "         node {port} refuses its data; it rejoins with an empty directory"
            ));
            self.damaged += 1;
            let node = &mut self.cluster.nodes[victim];
            node.set_aside(self.damaged)?;
            node.start()?;
        }
        self.until_all_well("after a file was damaged")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_gets_the_faults_that_it_must_survive() {
        assert_eq!(FaultKind::fitting(1), [FaultKind::Kill, FaultKind::Pause, FaultKind::All]);
        assert!(!FaultKind::fitting(2).contains(&FaultKind::Wipe));
        assert_eq!(FaultKind::fitting(3).len(), 7);
        for fault in FaultKind::value_variants() {
            let name = fault.to_possible_value().unwrap();
            assert_eq!(name.get_name(), fault.name());
        }
    }
}
