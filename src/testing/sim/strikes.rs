//! Faults strike, go on and end.

use std::time::Duration;

use crate::clock::Now;
use crate::rng::Rng;
use crate::testing::sim::cluster::{SKEW_MICROS, SimNode, World};
use crate::testing::sim::disk::{Death, SimDisk};
use crate::testing::sim::events::SimEvent;
use crate::testing::sim::faults::{Fault, FaultStep, Struck};
use crate::testing::sim::trace::mix;

impl World {
    /// One fault strikes, and the next one is scheduled.
    pub fn fault(&mut self) {
        if self.calm {
            return;
        }
        let number = self.faults;
        self.faults += 1;
        // Each fault has its own stream of random numbers. So a run that leaves one fault out stays
        // the same up to that fault, and `shrink` can drop faults one by one.
        let own = Rng::new(mix(self.fault_seed, number));
        let rng = std::mem::replace(&mut self.rng, own);
        let pause = Duration::from_micros(1 + self.rng.below(2 * self.plan.fault_every_micros));
        self.schedule(self.now + pause, SimEvent::Fault);
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
            // These strike at their own moments: `after_vote`, `after_leading`.
            Fault::CrashVoters | Fault::CrashLeaders => {}
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

    /// A moment within the next `millis`. Short spans are more likely.
    pub fn soon(&mut self, millis: u64) -> Now {
        let bound = 1 + self.rng.below(millis * 1_000);
        self.now + Duration::from_micros(1 + self.rng.below(bound))
    }

    /// The node that leads. If several believe so, the one of the latest term.
    fn leader(&self) -> Option<usize> {
        let leaders = self.running().into_iter().filter_map(|node| {
            let process = self.nodes[node].process.as_ref()?;
            process.shell.replica().is_leader().then_some((process.reached.0, node))
        });
        leaders.max().map(|(_, node)| node)
    }

    /// Blocks links for some time.
    fn block_for_a_while(&mut self, links: &[(usize, usize)]) {
        let end = self.soon(4_000);
        for &(from, to) in links.iter().filter(|(from, to)| from != to) {
            self.block(from, to);
            self.schedule(end, SimEvent::FaultStep(FaultStep::Unblock(from, to)));
        }
    }

    fn partition(&mut self) {
        let size = self.nodes.len();
        // Each bit puts one node on one of two sides.
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
            self.schedule(at, SimEvent::FaultStep(FaultStep::Block(from, to)));
            at += Duration::from_micros(self.rng.below(100_000));
            self.schedule(at, SimEvent::FaultStep(FaultStep::Unblock(from, to)));
        }
    }

    /// A vote has left its node. A crash now shows whether the vote is durable (§5.2).
    pub fn after_vote(&mut self, node: usize) {
        let strikes = !self.calm && self.plan.faults.contains(&Fault::CrashVoters);
        if strikes && self.rng.chance(1, 5) {
            self.schedule(self.now, SimEvent::FaultStep(FaultStep::Crash(node)));
        }
    }

    /// A node has begun to lead, or has learnt of its first commits. A leader that dies at these
    /// moments leaves the most unfinished work behind.
    pub fn after_leading(&mut self, node: usize) {
        let strikes = !self.calm && self.plan.faults.contains(&Fault::CrashLeaders);
        if strikes && self.rng.chance(2, 5) {
            let now = self.rng.chance(2, 3);
            let micros = if now { 0 } else { self.rng.below(4 * self.plan.sync_micros) };
            let at = self.now + Duration::from_micros(micros);
            self.schedule(at, SimEvent::FaultStep(FaultStep::Crash(node)));
        }
    }

    /// Plans a power cut while a node recovers, by chance. True if it has planned one.
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
        // A power cut also strikes a machine without a process: its disk may have unsynced changes.
        if !ran && death == Death::Killed {
            return;
        }
        self.die(node, death);
        self.spoil_disk(node);
        self.note_loss(node, false);
        if ran {
            // A supervisor starts it again at once, or an operator does so later.
            let patience = if self.rng.chance(2, 3) { 50 } else { 3_000 };
            self.start_again(node, patience);
        }
    }

    /// True if this node may lose its directory. Raft survives the loss of a minority's disks, so
    /// all nodes must have been full members, and only a minority may have lost or damaged
    /// something and not caught up since.
    fn may_lose_directory(&self, node: usize) -> bool {
        let loses = |(at, other): &(usize, &SimNode)| {
            *at == node || !other.ghosts.is_empty() || !other.rotten.is_empty()
        };
        let losing = self.nodes.iter().enumerate().filter(loses).count();
        let founded = self.nodes.iter().all(|node| node.founded);
        founded && losing <= (self.nodes.len() - 1) / 2
    }

    /// Power fails, and the directory is lost.
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

    /// Gives a node an empty directory. The lost one becomes a ghost, because the cluster may still
    /// count on what was durable there.
    pub fn wipe(&mut self, node: usize) {
        let incarnation = self.rng.bits();
        self.note(node, [21, incarnation, 0], || "LOSES ITS DIRECTORY".to_owned());
        let machine = &mut self.nodes[node];
        machine.incarnation = incarnation;
        machine.ghosts.push(std::mem::take(&mut machine.disk).synced);
        machine.disk = SimDisk::default();
        machine.has_log = false;
        machine.rotten.clear();
        self.spoil_disk(node);
        self.note_loss(node, true);
        self.forget_candidacies(node);
    }

    fn pause(&mut self, node: usize) {
        if self.nodes[node].process.is_some() && !self.nodes[node].paused {
            self.nodes[node].paused = true;
            let end = self.soon(3_000);
            self.schedule(end, SimEvent::FaultStep(FaultStep::Resume(node)));
        }
    }

    /// The disk has room for a little more, or for nothing.
    fn fill_disk(&mut self, node: usize) {
        let end = self.soon(3_000);
        self.schedule(end, SimEvent::FaultStep(FaultStep::HasRoom(node)));
        let files = &self.nodes[node].disk.files;
        let room = self.rng.below(2 * self.plan.segment_bytes);
        files.set_capacity(Some(files.used_bytes() + room));
    }

    fn jump_clock(&mut self, node: usize) {
        const JUMP_MICROS: i64 = 3_000_000;
        self.set_clock(node, JUMP_MICROS);
        let end = self.soon(3_000);
        self.schedule(end, SimEvent::FaultStep(FaultStep::Clock(node)));
    }

    /// A fault goes on, or ends.
    pub fn fault_step(&mut self, step: FaultStep) {
        match step {
            // The calm has freed all links, and spares all nodes.
            FaultStep::Unblock(..) | FaultStep::Block(..) | FaultStep::Crash(_) if self.calm => {}
            FaultStep::Crash(node) if self.nodes[node].process.is_some() => {
                self.crash(node, Death::PowerCut);
            }
            FaultStep::Crash(_) => {}
            FaultStep::Unblock(from, to) => self.unblock(from, to),
            FaultStep::Block(from, to) => self.block(from, to),
            FaultStep::Resume(node) if self.nodes[node].paused => self.resume(node),
            FaultStep::Resume(_) => {}
            FaultStep::Clock(node) => self.set_clock(node, SKEW_MICROS),
            FaultStep::HasRoom(node) => self.nodes[node].disk.files.set_capacity(None),
        }
    }
}
