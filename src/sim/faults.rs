//! The swarm: what a seed makes of the world, and the faults that strike it.
//!
//! Each kind of fault is on or off for a whole run, and has its own weight. A run with few kinds
//! goes deep into them; a run with all of them rarely gets far (Groce et al., *Swarm Testing*,
//! 2012).

use std::time::Duration;

use super::cluster::{Event, SKEW_MICROS, World};
use super::disk::Disk;
use super::network::Travel;
use crate::replica::progress::Window;
use crate::replica::{Input, Settings};
use crate::rng::Rng;
use crate::types::NodeId;

/// What can go wrong, beside what [`Travel`] does to single messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
    /// Power loss of one node.
    Crash,
    /// Power loss of a node that has just voted, again and again.
    CrashVoters,
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
}

const ALL: [Fault; 15] = [
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
];

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

/// What a seed makes of the world.
#[derive(Clone, Debug)]
pub struct Plan {
    pub nodes: usize,
    pub clients: usize,
    /// How many requests a client may have under way.
    pub pipeline: u64,
    /// Between an answer and the next request.
    pub think_micros: u64,
    pub request_timeout: Duration,
    pub settings: Settings,
    pub travel: Travel,
    /// How late a thread wakes up.
    pub wake_micros: u64,
    pub sync_micros: u64,
    pub apply_micros: u64,
    pub image_micros: u64,
    /// How many of four requests are of eventual sessions.
    pub eventual_share: u64,
    pub append_bytes_max: usize,
    /// Before the first fault.
    pub quiet: Duration,
    /// From the first fault to the last.
    pub trouble: Duration,
    pub fault_every_micros: u64,
    /// The kinds that are on, one entry for each unit of weight.
    pub faults: Vec<Fault>,
}

impl Plan {
    /// Draws a world. `trouble` is how long faults strike.
    pub fn draw(rng: &mut Rng, trouble: Duration) -> Plan {
        let millis = Duration::from_millis;
        let mut any = |values: &[u64]| values[rng.below(values.len() as u64) as usize];
        let election_timeout = millis(any(&[150, 300, 300, 600]));
        let settings = Settings {
            heartbeat_interval: election_timeout / any(&[4, 6, 10]) as u32,
            election_timeout,
            disk_timeout: election_timeout * any(&[2, 3, 5]) as u32,
            takeover_delay: election_timeout * any(&[1, 2, 4]) as u32,
            window: Window {
                messages_max: any(&[1, 2, 8, 256]) as usize,
                bytes_max: any(&[200, 2_000, 1 << 20]) as usize,
            },
            pending_bytes_max: any(&[300, 5_000, 1 << 20]) as usize,
            snapshot_log_bytes: any(&[500, 2_000, 5_000, 20_000]) as usize,
            log_retain_bytes: any(&[0, 0, 300, 5_000]) as usize,
            drain_interval: millis(any(&[1, 10, 100])),
            backlog_bytes_max: any(&[1_000, 20_000, 1 << 20]) as usize,
            mark_interval: millis(any(&[300, 1_000, 5_000])),
            tombstone_horizon: Duration::from_secs(any(&[1, 3_600, 3_600, 3_600, 3_600])),
            ..Settings::new(NodeId(0), Vec::new())
        };
        let travel = Travel {
            delay_min_micros: any(&[20, 50, 200, 2_000]),
            delay_spread_micros: any(&[20, 500, 5_000, 30_000]),
            spikes: any(&[0, 0, 5, 50]),
            spike_micros: any(&[50_000, 500_000]),
            lost: any(&[0, 0, 0, 5, 30, 150]),
            doubled: any(&[0, 0, 0, 10, 100]),
            reorder: any(&[0, 0, 1]) == 1,
            images_failed: any(&[0, 50, 300]),
        };
        Plan {
            nodes: any(&[1, 3, 3, 3, 3, 5, 5, 5, 7]) as usize,
            clients: any(&[2, 4, 8]) as usize,
            pipeline: any(&[1, 1, 3]),
            think_micros: any(&[5_000, 20_000, 60_000]),
            request_timeout: millis(any(&[300, 1_000, 3_000])),
            settings,
            travel,
            wake_micros: any(&[50, 500, 5_000]),
            sync_micros: any(&[20, 200, 2_000, 10_000]),
            apply_micros: any(&[20, 200, 5_000]),
            image_micros: any(&[500, 20_000, 200_000]),
            eventual_share: any(&[0, 1, 1, 2, 3]),
            append_bytes_max: any(&[100, 1_000, 1 << 20]) as usize,
            quiet: millis(any(&[0, 500, 1_000, 1_500])),
            trouble,
            fault_every_micros: any(&[50_000, 150_000, 400_000, 1_000_000]),
            faults: draw_faults(rng),
        }
    }
}

fn draw_faults(rng: &mut Rng) -> Vec<Fault> {
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
    /// One fault strikes, and the next one is planned.
    pub fn fault(&mut self) {
        if self.calm {
            return;
        }
        let pause = Duration::from_micros(1 + self.rng.below(2 * self.plan.fault_every_micros));
        self.schedule(self.now + pause, Event::Fault);
        let kinds = self.plan.faults.len() as u64;
        if kinds == 0 {
            return;
        }
        let fault = self.plan.faults[self.rng.below(kinds) as usize];
        let size = self.nodes.len() as u64;
        let node = self.rng.below(size) as usize;
        let other = (node + 1 + self.rng.below(size.max(2) - 1) as usize) % self.nodes.len();
        self.note(node, [20, fault as u64, other as u64], || format!("FAULT {fault:?} #{other}"));
        match fault {
            Fault::Partition => self.partition(),
            Fault::OneWay => self.block_for_a_while(&[(node, other)]),
            Fault::IsolateLeader => self.isolate_leader(),
            Fault::Flap => self.flap(node, other),
            Fault::BreakLink => self.break_link(node, other),
            Fault::Crash => self.crash(node, false),
            Fault::CrashVoters => {} // See `after_vote`.
            Fault::CrashAll => (0..self.nodes.len()).for_each(|node| self.crash(node, false)),
            Fault::StopLeader => self.stop(self.leader().unwrap_or(node)),
            Fault::Pause => self.pause(node),
            Fault::SlowDisk => self.nodes[node].disk_slow_until = self.soon(1_000),
            Fault::StallDisk => self.nodes[node].disk_stalled_until = self.soon(3_000),
            Fault::Wipe => self.crash(node, true),
            Fault::DiskFull => self.fill_disk(node),
            Fault::ClockJump => self.jump_clock(node),
        }
    }

    /// A moment within the next `millis`, short spans being more likely.
    fn soon(&mut self, millis: u64) -> crate::clock::Now {
        let bound = 1 + self.rng.below(millis * 1_000);
        self.now + Duration::from_micros(1 + self.rng.below(bound))
    }

    /// A node that leads, the latest term's if there are several.
    fn leader(&self) -> Option<usize> {
        let leaders = self.running().into_iter().filter_map(|node| {
            let process = self.nodes[node].process.as_ref()?;
            process.replica.is_leader().then_some((process.reached.0, node))
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

    /// Power loss; with `wipe`, the directory is lost too, if the rules allow it: all nodes are
    /// founders, and no more than a minority has lost something and not caught up since.
    fn crash(&mut self, node: usize, wipe: bool) {
        let lost = |node: &super::cluster::Node| !node.ghosts.is_empty();
        let losing = self.nodes.iter().enumerate().filter(|(at, n)| lost(n) || *at == node).count();
        let founded = self.nodes.iter().all(|node| node.founded);
        if wipe && (!founded || losing > (self.nodes.len() - 1) / 2) {
            return;
        }
        // A supervisor starts it again at once, or somebody comes and looks.
        let patience = if self.rng.chance(1, 2) { 50 } else { 3_000 };
        let again = self.soon(patience);
        if self.nodes[node].process.is_some() {
            self.kill(node);
            self.schedule(again, Event::Start(node));
        } else if !wipe {
            return;
        }
        let (disk, rng) = (&mut self.nodes[node].disk, &mut self.rng);
        if let Err(how) = disk.crash(rng) {
            self.fail("records make sense", how);
        }
        self.sabotage_disk(node);
        self.note_loss(node, false);
        if wipe {
            self.wipe(node);
        }
    }

    fn wipe(&mut self, node: usize) {
        let incarnation = self.rng.bits();
        self.note(node, [21, incarnation, 0], || "loses its directory".to_owned());
        let machine = &mut self.nodes[node];
        machine.incarnation = incarnation;
        machine.ghosts.push(std::mem::take(&mut machine.disk).synced);
        machine.disk = Disk::default();
        self.note_loss(node, true);
        self.forget_candidacies(node);
        self.sabotage_wiped(node);
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
        let idle = process.replica.is_idle() && process.waiting.is_empty();
        if patience > 0 && !idle {
            let (life, patience) = (process.life, patience - 1);
            let at = self.now + Duration::from_millis(20);
            return self.schedule(at, Event::Stopped { node, life, patience });
        }
        self.kill(node);
        if let Err(how) = self.nodes[node].disk.close() {
            self.fail("records make sense", how);
        }
        self.note_loss(node, false);
        let again = self.soon(2_000);
        self.schedule(again, Event::Start(node));
    }

    fn pause(&mut self, node: usize) {
        if self.nodes[node].process.is_some() && !self.nodes[node].paused {
            self.nodes[node].paused = true;
            let end = self.soon(3_000);
            self.schedule(end, Event::Undo(Undo::Resume(node)));
        }
    }

    fn fill_disk(&mut self, node: usize) {
        let end = self.soon(3_000);
        self.schedule(end, Event::Undo(Undo::HasRoom(node)));
        self.step(node, vec![Input::DiskFull(true)]);
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
            Undo::Crash(node) => self.crash(node, false),
            Undo::Unblock(from, to) => self.unblock(from, to),
            Undo::Block(from, to) => self.block(from, to),
            Undo::Resume(node) if self.nodes[node].paused => self.resume(node),
            Undo::Resume(_) => {}
            Undo::Clock(node) => self.set_clock(node, SKEW_MICROS),
            Undo::HasRoom(node) => self.step(node, vec![Input::DiskFull(false)]),
        }
    }
}
