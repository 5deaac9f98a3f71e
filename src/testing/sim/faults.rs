//! The swarm: the faults that strike the world.
//!
//! Each kind of fault is on or off for a whole run, and has its own weight. A run with few kinds
//! goes deep into them; a run with all of them rarely gets far (Groce et al., *Swarm Testing*,
//! 2012).

use std::time::Duration;

use clap::ValueEnum;

use crate::clock::Now;
use crate::replica::Input;
use crate::rng::Rng;
use crate::testing::sim::cluster::{SKEW_MICROS, World};
use crate::testing::sim::disk::{Death, Disk};
use crate::testing::sim::events::Event;
use crate::testing::sim::trace::mix;

/// What can go wrong, beside what happens to single messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Fault {
    /// Two groups of nodes that do not hear each other.
    Partition,
    /// One direction between two nodes.
    OneWay,
    /// The leader hears nobody, or nobody hears it, or both.
    IsolateLeader,
    /// A link that is blocked and free in quick succession.
    Flap,
    /// A connection breaks.
    BreakLink,
    /// Power loss of one node, also while it starts.
    Crash,
    /// The process ends, as by kill -9; the system goes on.
    Kill,
    /// Power loss of a node that has just voted, again and again.
    CrashVoters,
    /// Power loss of a node that has just begun to lead, or to commit, again and again.
    CrashLeaders,
    /// Power loss of all nodes at one moment.
    CrashAll,
    /// The leader is asked to stop, and starts again later.
    StopLeader,
    /// SIGSTOP and SIGCONT.
    Pause,
    /// Each sync takes much longer.
    SlowDisk,
    /// Syncs do not return for a while.
    StallDisk,
    /// Power loss, and the directory is lost too.
    Wipe,
    /// No room for further log segments.
    DiskFull,
    /// The wall clock jumps.
    ClockJump,
    /// A sync fails, and the node stops.
    SyncFails,
    /// A write fails, and the node stops.
    WriteFails,
    /// A bit flips in a sealed log segment or in an image.
    Rot,
    /// A client loses its connection.
    LoseClient,
}

const ALL: [Fault; 21] = [
    Fault::Partition,
    Fault::OneWay,
    Fault::IsolateLeader,
    Fault::Flap,
    Fault::BreakLink,
    Fault::Crash,
    Fault::CrashVoters,
    Fault::CrashAll,
    Fault::StopLeader,
    Fault::Pause,
    Fault::SlowDisk,
    Fault::StallDisk,
    Fault::Wipe,
    Fault::DiskFull,
    Fault::ClockJump,
    Fault::Kill,
    Fault::SyncFails,
    Fault::WriteFails,
    Fault::Rot,
    Fault::LoseClient,
    Fault::CrashLeaders,
];

/// A fault that has struck.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Struck {
    /// Its number within the run.
    pub number: u64,
    /// What it was.
    pub fault: Fault,
    /// When, in microseconds of virtual time.
    pub at_micros: u64,
}

/// The end of a fault, or its later part.
#[derive(Clone, Copy, Debug)]
pub enum Undo {
    Crash(usize),
    Unblock(usize, usize),
    Block(usize, usize),
    Resume(usize),
    HasRoom(usize),
    Clock(usize),
}

/// Draws the kinds that are on.
pub fn draw(rng: &mut Rng) -> Vec<Fault> {
    let density = 1 + rng.below(4);
    let mut faults = Vec::new();
    for fault in ALL {
        if rng.chance(density, 5) {
            let weight = 1 + rng.below(4);
            faults.extend((0..weight).map(|_| fault));
        }
    }
    faults
}

impl World {
    /// One fault strikes, and the next one is planned. Each has a stream of random numbers of its
    /// own: that one of them is left out changes nothing about the others.
    pub fn fault(&mut self) {
        if self.calm {
            return;
        }
        let number = self.faults;
        self.faults += 1;
        let own = Rng::new(mix(self.fault_seed, number));
        let rng = std::mem::replace(&mut self.rng, own);
        let pause = Duration::from_micros(1 + self.rng.below(2 * self.plan.fault_every_micros));
        self.schedule(self.now + pause, Event::Fault);
        let kinds = self.plan.faults.len() as u64;
        let spared = self.only.as_ref().is_some_and(|only| !only.contains(&number));
        if kinds > 0 && !spared {
            let fault = self.plan.faults[self.rng.below(kinds) as usize];
            self.struck.push(Struck { number, fault, at_micros: self.age_micros() });
            self.strike(number, fault);
        }
        self.rng = rng;
    }

    fn strike(&mut self, number: u64, fault: Fault) {
        let size = self.nodes.len() as u64;
        let node = self.rng.below(size) as usize;
        let other = (node + 1 + self.rng.below(size.max(2) - 1) as usize) % self.nodes.len();
        let what = || format!("FAULT {number}: {fault:?} (other: #{other})");
        self.note(node, [20, fault as u64, other as u64], what);
        match fault {
            Fault::Partition => self.partition(),
            Fault::OneWay => self.block_for_a_while(&[(node, other)]),
            Fault::IsolateLeader => self.isolate_leader(),
            Fault::Flap => self.flap(node, other),
            Fault::BreakLink => self.break_link(node, other),
            Fault::Crash => self.crash(node, Death::PowerCut),
            Fault::Kill => self.crash(node, Death::Killed),
            Fault::CrashVoters | Fault::CrashLeaders => {} // See `after_vote`, `after_leading`.
            Fault::CrashAll => {
                (0..self.nodes.len()).for_each(|node| self.crash(node, Death::PowerCut));
            }
            Fault::StopLeader => self.stop(self.leader().unwrap_or(node)),
            Fault::Pause => self.pause(node),
            Fault::SlowDisk => self.nodes[node].disk_slow_until = self.soon(1_000),
            Fault::StallDisk => self.nodes[node].disk_stalled_until = self.soon(3_000),
            Fault::Wipe => self.lose_directory(node),
            Fault::DiskFull => self.fill_disk(node),
            Fault::ClockJump => self.jump_clock(node),
            Fault::SyncFails => self.nodes[node].disk.files.fail_next_sync(),
            Fault::WriteFails => self.nodes[node].disk.files.fail_next_write(),
            Fault::Rot => self.rot(node),
            Fault::LoseClient => self.lose_client(),
        }
    }

    /// A moment within the next `millis`, short spans being more likely.
    pub fn soon(&mut self, millis: u64) -> Now {
        let bound = 1 + self.rng.below(millis * 1_000);
        self.now + Duration::from_micros(1 + self.rng.below(bound))
    }

    /// A node that leads, the latest term's if there are several.
    fn leader(&self) -> Option<usize> {
        let leaders = self.running().into_iter().filter_map(|node| {
            let process = self.nodes[node].process.as_ref()?;
            process.shell.replica().is_leader().then_some((process.reached.0, node))
        });
        leaders.max().map(|(_, node)| node)
    }

    fn block_for_a_while(&mut self, links: &[(usize, usize)]) {
        let end = self.soon(4_000);
        for &(from, to) in links.iter().filter(|(from, to)| from != to) {
            self.block(from, to);
            self.schedule(end, Event::Undo(Undo::Unblock(from, to)));
        }
    }

    fn partition(&mut self) {
        let size = self.nodes.len();
        let side = self.rng.below(1 << size);
        let apart = |from: usize, to: usize| (side >> from & 1) != (side >> to & 1);
        let pairs = (0..size).flat_map(|from| (0..size).map(move |to| (from, to)));
        let links: Vec<_> = pairs.filter(|&(from, to)| apart(from, to)).collect();
        self.block_for_a_while(&links);
    }

    fn isolate_leader(&mut self) {
        let Some(leader) = self.leader() else { return };
        let (deaf, mute) = [(true, true), (true, false), (false, true)][self.rng.below(3) as usize];
        let mut links = Vec::new();
        for peer in (0..self.nodes.len()).filter(|&peer| peer != leader) {
            links.extend(deaf.then_some((peer, leader)));
            links.extend(mute.then_some((leader, peer)));
        }
        self.block_for_a_while(&links);
    }

    fn flap(&mut self, from: usize, to: usize) {
        if from == to {
            return;
        }
        let mut at = self.now;
        for _ in 0..=self.rng.below(10) {
            at += Duration::from_micros(self.rng.below(100_000));
            self.schedule(at, Event::Undo(Undo::Block(from, to)));
            at += Duration::from_micros(self.rng.below(100_000));
            self.schedule(at, Event::Undo(Undo::Unblock(from, to)));
        }
    }

    /// A node's vote has left.
    pub fn after_vote(&mut self, node: usize) {
        let strikes = !self.calm && self.plan.faults.contains(&Fault::CrashVoters);
        if strikes && self.rng.chance(1, 5) {
            self.schedule(self.now, Event::Undo(Undo::Crash(node)));
        }
    }

    /// A node has begun to lead, or has just learned of something that it committed: these are the
    /// moments at which a leader that dies leaves most behind.
    pub fn after_leading(&mut self, node: usize) {
        let strikes = !self.calm && self.plan.faults.contains(&Fault::CrashLeaders);
        if strikes && self.rng.chance(2, 5) {
            let now = self.rng.chance(2, 3);
            let micros = if now { 0 } else { self.rng.below(4 * self.plan.sync_micros) };
            let at = self.now + Duration::from_micros(micros);
            self.schedule(at, Event::Undo(Undo::Crash(node)));
        }
    }

    /// Power may fail while a node recovers.
    pub fn interrupt_start(&mut self, node: usize) -> bool {
        let strikes = !self.calm && self.plan.faults.contains(&Fault::Crash);
        let interrupted = strikes && self.rng.chance(1, 6);
        if interrupted {
            let files = &self.nodes[node].disk.files;
            files.stop_after(files.changes() + self.rng.below(4));
        }
        interrupted
    }

    /// The process dies, alone or with its machine.
    fn crash(&mut self, node: usize, death: Death) {
        let ran = self.nodes[node].process.is_some();
        if !ran && death == Death::Killed {
            return;
        }
        self.die(node, death);
        self.spoil_disk(node);
        self.note_loss(node, false);
        if ran {
            // A supervisor starts it again at once, or somebody comes and looks.
            let patience = if self.rng.chance(2, 3) { 50 } else { 3_000 };
            self.start_again(node, patience);
        }
    }

    /// True if the rules allow that this node's directory is lost: all nodes are founders, and no
    /// more than a minority has lost something and not caught up since.
    fn may_lose_directory(&self, node: usize) -> bool {
        let loses = |at: usize, node: &crate::testing::sim::cluster::Node, this: usize| {
            !node.ghosts.is_empty() || !node.rotten.is_empty() || at == this
        };
        let losing = self.nodes.iter().enumerate().filter(|(at, n)| loses(*at, n, node)).count();
        let founded = self.nodes.iter().all(|node| node.founded);
        founded && losing <= (self.nodes.len() - 1) / 2
    }

    /// Power loss, and the directory is lost too.
    fn lose_directory(&mut self, node: usize) {
        if self.may_lose_directory(node) {
            self.crash(node, Death::PowerCut);
            self.wipe(node);
        }
    }

    fn rot(&mut self, node: usize) {
        if self.may_lose_directory(node) {
            let rotten = self.nodes[node].disk.rot(&mut self.rng);
            self.note(node, [24, 0, 0], || format!("ROT in {rotten:?}"));
            self.nodes[node].rotten.extend(rotten);
        }
    }

    /// The node has an empty directory now.
    pub fn wipe(&mut self, node: usize) {
        let incarnation = self.rng.bits();
        self.note(node, [21, incarnation, 0], || "LOSES ITS DIRECTORY".to_owned());
        let machine = &mut self.nodes[node];
        machine.incarnation = incarnation;
        machine.ghosts.push(std::mem::take(&mut machine.disk).synced);
        machine.disk = Disk::default();
        machine.begun = false;
        machine.rotten.clear();
        self.spoil_disk(node);
        self.note_loss(node, true);
        self.forget_candidacies(node);
    }

    fn stop(&mut self, node: usize) {
        let Some(process) = &mut self.nodes[node].process else { return };
        if std::mem::replace(&mut process.stopping, true) {
            return;
        }
        let life = process.life;
        self.schedule(self.now, Event::Stopped { node, life, patience: 50 });
        self.step(node, vec![Input::Stop]);
    }

    /// A stopping process looks whether it has finished; at last it goes anyway.
    pub fn stopped(&mut self, node: usize, patience: u32) {
        let Some(process) = &self.nodes[node].process else { return };
        let idle = process.shell.is_idle();
        if patience > 0 && !idle {
            let (life, patience) = (process.life, patience - 1);
            let at = self.now + Duration::from_millis(20);
            return self.schedule(at, Event::Stopped { node, life, patience });
        }
        let process = self.nodes[node].process.take();
        self.note(node, [25, 0, 0], || "STOPS".to_owned());
        self.forget_deferred(node);
        self.links_of_the_dead(node);
        self.connections_of_the_dead(node);
        drop(process);
        if let Err(error) = self.nodes[node].disk.close() {
            self.note(node, [26, 0, 0], || format!("the log was not closed cleanly: {error}"));
        }
        self.note_loss(node, false);
        self.start_again(node, 2_000);
    }

    fn pause(&mut self, node: usize) {
        if self.nodes[node].process.is_some() && !self.nodes[node].paused {
            self.nodes[node].paused = true;
            let end = self.soon(3_000);
            self.schedule(end, Event::Undo(Undo::Resume(node)));
        }
    }

    /// There is room for a little more, or for nothing.
    fn fill_disk(&mut self, node: usize) {
        let end = self.soon(3_000);
        self.schedule(end, Event::Undo(Undo::HasRoom(node)));
        let files = &self.nodes[node].disk.files;
        let room = self.rng.below(2 * self.plan.segment_bytes);
        files.set_capacity(Some(files.used_bytes() + room));
    }

    fn jump_clock(&mut self, node: usize) {
        const JUMP_MICROS: i64 = 3_000_000;
        self.set_clock(node, JUMP_MICROS);
        let end = self.soon(3_000);
        self.schedule(end, Event::Undo(Undo::Clock(node)));
    }

    /// A fault ends.
    pub fn undo(&mut self, undo: Undo) {
        match undo {
            Undo::Unblock(..) | Undo::Block(..) | Undo::Crash(_) if self.calm => {}
            Undo::Crash(node) if self.nodes[node].process.is_some() => {
                self.crash(node, Death::PowerCut);
            }
            Undo::Crash(_) => {}
            Undo::Unblock(from, to) => self.unblock(from, to),
            Undo::Block(from, to) => self.block(from, to),
            Undo::Resume(node) if self.nodes[node].paused => self.resume(node),
            Undo::Resume(_) => {}
            Undo::Clock(node) => self.set_clock(node, SKEW_MICROS),
            Undo::HasRoom(node) => self.nodes[node].disk.files.set_capacity(None),
        }
    }
}
