//! The commands of the progress scripts. `progress last=5 window=2 window_bytes=100` makes the
//! progress of a new follower at a leader with that last index. `sent 7 30`,
//! `acknowledged 6`, `refused 6 next=4`, `probe`, `link last=9`, `image 8` and `image-sent true`
//! call the method of that name and show the progress. `overdue after=300` lets time pass and tells
//! whether an answer is overdue.

use std::error::Error;
use std::time::Duration;

use goldenscript::{Command, Context};
use nodesync::clock::Now;
use nodesync::replica::progress::{Progress, ProgressState, Window};

pub struct ProgressRunner {
    progress: Progress,
    window: Window,
    now: Now,
}

impl Default for ProgressRunner {
    fn default() -> ProgressRunner {
        let now = Now(3_600_000_000);
        let window = Window { messages_max: 256, bytes_max: 1 << 20 };
        ProgressRunner { progress: Progress::new(now, 0), window, now }
    }
}

impl ProgressRunner {
    fn show(&self) -> String {
        let Progress { matched, next, state, .. } = &self.progress;
        let state = match state {
            ProgressState::Probe { waiting: true } => "probe, waiting".to_owned(),
            ProgressState::Probe { waiting: false } => "probe".to_owned(),
            ProgressState::Replicate { inflight, inflight_bytes } => {
                let last: Vec<String> = inflight.iter().map(|(l, _)| l.to_string()).collect();
                format!("replicate, {inflight_bytes} bytes under way up to [{}]", last.join(" "))
            }
            ProgressState::Snapshot { .. } => format!("{:?}", self.progress.state).to_lowercase(),
        };
        let may_send = if self.progress.may_send(self.window) { "may send" } else { "must wait" };
        format!("matched {matched} next {next}: {state}; {may_send}")
    }
}

impl goldenscript::Runner for ProgressRunner {
    type Command = Command;

    fn run(&mut self, command: &Command, _: &Context) -> Result<String, Box<dyn Error>> {
        let mut args = command.consume_args();
        let (now, last) = (self.now, args.take_key("last").map(str::parse).transpose()?);
        let mut number = || -> Result<u64, Box<dyn Error>> {
            Ok(args.next_pos().ok_or("an argument is missing")?.parse()?)
        };
        match command.name.as_str() {
            "progress" => {
                *self = ProgressRunner::default();
                self.progress = Progress::new(now, last.unwrap_or(0));
                if let Some(window) = args.take_key("window") {
                    self.window.messages_max = window.parse()?;
                }
                if let Some(bytes) = args.take_key("window_bytes") {
                    self.window.bytes_max = bytes.parse()?;
                }
            }
            "sent" => {
                let (last, bytes) = (number()?, number()?);
                self.progress.sent(now, last, bytes as usize, 0);
            }
            "acknowledged" => {
                let news = self.progress.acknowledged(now, number()?);
                return Ok(format!("{}; {}", if news { "news" } else { "no news" }, self.show()));
            }
            "refused" => {
                let prev = number()?;
                let next = args.take_key("next").ok_or("next is missing")?.parse()?;
                self.progress.refused(prev, next);
            }
            "probe" => self.progress.probe(),
            "link" => self.progress.link_is_new(now, last.unwrap_or(0)),
            "image" => self.progress.snapshot(now, number()?),
            "image-sent" => {
                let sent = args.next_pos().ok_or("true or false")?.parse()?;
                self.progress.snapshot_ended(self.now, sent);
            }
            "overdue" => {
                let after = args.take_key("after").ok_or("after is missing")?.parse()?;
                self.now += Duration::from_millis(after);
                let overdue = self.progress.is_overdue(self.now, Duration::from_millis(300));
                return Ok(overdue.to_string());
            }
            name => return Err(format!("there is no command {name}").into()),
        }
        args.reject_next()?;
        Ok(self.show())
    }
}
