//! The commands of the log scripts. `log snapshot=2@1 3@1 4@2` makes a log; `push 5@2`,
//! `truncate 4`, `compact 4@2 keep=3` and `restore 9@3` change it; `hint 7 3`, `covers 5@2` and
//! `term 4` query it. Each change shows the log: `base 2@1 [3@1, 4@2] snapshot 2@1`.

use std::error::Error;

use goldenscript::{Command, Context};
use nodesync::replica::log::Log;
use nodesync::types::{Entry, Payload, SnapshotMeta};

use super::show;

#[derive(Default)]
pub struct LogRunner(Log);

fn parse(text: &str) -> Result<SnapshotMeta, Box<dyn Error>> {
    let (index, term) = text.split_once('@').ok_or("a position is written index@term")?;
    Ok(SnapshotMeta { index: index.parse()?, term: term.parse()? })
}

fn entry(at: SnapshotMeta) -> Entry {
    Entry { index: at.index, term: at.term, payload: Payload::Noop }
}

impl LogRunner {
    fn show(&self) -> String {
        let log = &self.0;
        let base = log.base_index();
        let base_term = log.term_at(base).map_or("?".to_owned(), |term| term.to_string());
        let kept = log.range(base + 1, log.last_index());
        let kept = show::list(kept.map(|e| format!("{}@{}", e.index, e.term)));
        format!("base {base}@{base_term} {kept} snapshot {}", show::meta(&log.snapshot()))
    }
}

impl goldenscript::Runner for LogRunner {
    type Command = Command;

    fn run(&mut self, command: &Command, _: &Context) -> Result<String, Box<dyn Error>> {
        let mut args = command.consume_args();
        let mut next = || args.next_pos().ok_or("an argument is missing");
        let output = match command.name.as_str() {
            "log" => {
                let snapshot = args.take_key("snapshot").map(parse).transpose()?;
                let mut entries = Vec::new();
                while let Some(text) = args.next_pos() {
                    entries.push(entry(parse(text)?));
                }
                self.0 = Log::new(snapshot.unwrap_or_default(), entries);
                self.show()
            }
            "push" => {
                self.0.push(entry(parse(next()?)?));
                self.show()
            }
            "truncate" => {
                self.0.truncate(next()?.parse()?);
                self.show()
            }
            "compact" => {
                let meta = parse(next()?)?;
                let keep = args.take_key("keep").map(str::parse).transpose()?;
                self.0.compact(meta, keep.unwrap_or(meta.index));
                self.show()
            }
            "restore" => {
                let kept = self.0.restore(parse(next()?)?);
                format!("{} {}", if kept { "kept the tail:" } else { "all gave way:" }, self.show())
            }
            "hint" => {
                let (index, term) = (next()?.parse()?, next()?.parse()?);
                let (index, term) = self.0.hint(index, term);
                format!("{index}@{term}")
            }
            "covers" => {
                let at = parse(next()?)?;
                self.0.is_covered_by(at.index, at.term).to_string()
            }
            "term" => format!("{:?}", self.0.term_at(next()?.parse()?)),
            name => return Err(format!("there is no command {name}").into()),
        };
        args.reject_next()?;
        Ok(output)
    }
}
