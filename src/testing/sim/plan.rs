//! The world that a seed draws: its size, timings and limits, the habits of its clients, and the
//! kinds of faults that strike it.

use std::time::Duration;

use crate::protocol::Limits;
use crate::replica::Settings;
use crate::replica::progress::Window;
use crate::rng::Rng;
use crate::testing::sim::faults::{self, Fault};
use crate::testing::sim::link::Travel;
use crate::testing::sim::options::Options;
use crate::types::NodeId;

/// The world that a seed draws.
#[derive(Clone, Debug)]
pub struct Plan {
    pub nodes: usize,
    pub clients: usize,
    /// A client with this many requests under way sends no other pipeline.
    pub pipeline: u64,
    /// The mean pause between two attempts of a client to send requests.
    pub think_micros: u64,
    /// The longest time that bytes travel between a client and its node.
    pub client_micros: u64,
    /// Of 100 batches of replies, the number that their client takes slowly.
    pub slow_clients: u64,
    pub request_timeout: Duration,
    /// The number of loops that serve a node's clients; 0: each client has a thread.
    pub loops: usize,
    pub limits: Limits,
    pub settings: Settings,
    pub travel: Travel,
    /// A thread wakes up less than this too late.
    pub wake_micros: u64,
    pub sync_micros: u64,
    pub apply_micros: u64,
    pub image_micros: u64,
    /// Of 1000 images, the number that find no room on the disk.
    pub images_failed: u64,
    pub segment_bytes: u64,
    /// The greatest error of a monotonic clock's speed, in millionths.
    pub rate_ppm_max: u64,
    /// Of four requests, the number that come from eventual sessions.
    pub eventual_share: u64,
    pub append_bytes_max: usize,
    /// The time before the first fault.
    pub quiet: Duration,
    /// The time in which faults strike.
    pub trouble: Duration,
    /// The mean time between two faults.
    pub fault_every_micros: u64,
    /// The kinds that are on, one entry for each unit of weight.
    pub faults: Vec<Fault>,
}

impl Plan {
    /// Draws a world, within `options`. A value that an option decides is drawn all the same: so an
    /// option changes nothing but its own value.
    pub fn draw(rng: &mut Rng, options: &Options) -> Plan {
        let mut plan = Plan::draw_freely(rng, options.trouble);
        plan.nodes = options.nodes.unwrap_or(plan.nodes);
        plan.faults.retain(|fault| !options.without.contains(fault));
        if options.gentle {
            plan.travel = Travel { lost: 0, doubled: 0, spikes: 0, reorder: false, ..plan.travel };
            (plan.slow_clients, plan.images_failed, plan.rate_ppm_max) = (0, 0, 0);
        }
        if options.strong_only {
            plan.eventual_share = 0;
        }
        plan
    }

    fn draw_freely(rng: &mut Rng, trouble: Duration) -> Plan {
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
            checkpoint_interval: millis(any(&[300, 1_000, 5_000])),
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
        };
        Plan {
            nodes: any(&[1, 3, 3, 3, 3, 5, 5, 5, 7]) as usize,
            clients: any(&[2, 4, 8, 16]) as usize,
            pipeline: any(&[1, 1, 3]),
            think_micros: any(&[5_000, 20_000, 60_000]),
            client_micros: any(&[20, 500, 5_000]),
            slow_clients: any(&[0, 0, 2, 20]),
            request_timeout: millis(any(&[300, 1_000, 3_000])),
            loops: any(&[0, 1, 1, 2]) as usize,
            limits: Limits {
                batch_commands_max: any(&[1, 2, 4096, 4096]) as usize,
                batch_bytes_max: any(&[300, 1 << 20, 1 << 20]) as usize,
                output_bytes_max: any(&[1, 10, 1 << 20, 1 << 20]) as usize,
                stamp_writes_max: any(&[1, 2, 1024, 1024]) as usize,
                request_bytes_max: any(&[300, 1 << 20, 1 << 20, 1 << 20]) as usize,
                ..Limits::default()
            },
            settings,
            travel,
            wake_micros: any(&[50, 500, 5_000]),
            sync_micros: any(&[20, 200, 2_000, 10_000]),
            apply_micros: any(&[20, 200, 5_000]),
            image_micros: any(&[500, 20_000, 200_000]),
            images_failed: any(&[0, 50, 300]),
            segment_bytes: any(&[2_000, 8_000, 64_000]),
            rate_ppm_max: any(&[0, 100, 10_000, 100_000]),
            eventual_share: any(&[0, 1, 1, 2, 3]),
            append_bytes_max: any(&[1, 100, 1_000, 1 << 20]) as usize,
            quiet: millis(any(&[0, 500, 1_000, 1_500])),
            trouble,
            fault_every_micros: any(&[50_000, 150_000, 400_000, 1_000_000]),
            faults: faults::draw(rng),
        }
    }

    /// The error of one clock's speed, in millionths.
    pub fn draw_rate(&self, rng: &mut Rng) -> i64 {
        rng.below(2 * self.rate_ppm_max + 1).cast_signed() - self.rate_ppm_max.cast_signed()
    }
}
