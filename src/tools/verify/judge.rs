//! The judge: checks a history against the promises of the product. Knows no cluster and no clock.
//!
//! Strong operations must be linearizable, key by key. For eventual sessions these promises hold:
//!
//! - A session reads its own writes: a key that no other session writes shows the last acknowledged
//!   write, or a write that may or may not be done.
//! - No key ever shows a value that no client wrote to it, or whose write was refused.
//! - In the end all nodes show the same values.
//! - If no process ended during the run, no acknowledged write is lost. (A process that ends may
//!   lose eventual writes of its last second, so then this is not checked.)

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use crate::testing::linearizability::{self, Verdict};
use crate::tools::verify::history::{
    EventualAction, EventualRecord, History, StrongRecord, describe,
};

/// States that the search may visit for one key.
const BUDGET: usize = 1_000_000;
/// Most keys for which the judge searches a counterexample; it reports the smallest one.
const EXPLAINED_MAX: usize = 5;
/// Most operations of a counterexample, and most names of further keys, in the report.
const SHOWN_MAX: usize = 50;
const NAMED_MAX: usize = 10;
/// Most findings about eventual keys in the report.
const REPORTED_MAX: usize = 3;

/// The final values of each eventual key, node by node.
pub type Ends = BTreeMap<String, Vec<Option<Vec<u8>>>>;

/// The findings about a history.
#[derive(Debug, Default)]
pub struct Judgement {
    /// Broken promises, each a paragraph.
    pub violations: Vec<String>,
    /// Keys whose histories were too hard to decide.
    pub undecided: Vec<String>,
    /// Keys with strong operations.
    pub keys: usize,
    /// Keys of eventual sessions.
    pub eventual_keys: usize,
}

/// Judges a history. `lossless` is true if no process ended during the run; `names` are the nodes'.
pub fn judge(history: &History, ends: &Ends, lossless: bool, names: &[String]) -> Judgement {
    let mut judgement = Judgement::default();
    strong(&history.records, names, &mut judgement);
    eventual(&history.eventual, ends, lossless, names, &mut judgement);
    judgement
}

fn strong(records: &[StrongRecord], names: &[String], judgement: &mut Judgement) {
    let mut keys: BTreeMap<&str, Vec<&StrongRecord>> = BTreeMap::new();
    for record in records {
        keys.entry(&record.key).or_default().push(record);
    }
    judgement.keys = keys.len();
    let keys: Vec<(&str, Vec<&StrongRecord>)> = keys.into_iter().collect();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let verdicts: Vec<Verdict> = std::thread::scope(|scope| {
        let part = |part: &[(&str, Vec<&StrongRecord>)]| -> Vec<Verdict> {
            part.iter().map(|(_, records)| check(records)).collect()
        };
        let parts = keys.chunks(keys.len().div_ceil(threads).max(1));
        let workers: Vec<_> = parts.map(|keys| scope.spawn(move || part(keys))).collect();
        let join = |worker: std::thread::ScopedJoinHandle<'_, Vec<Verdict>>| {
            worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        workers.into_iter().flat_map(join).collect()
    });
    let mut impossible = Vec::new();
    for (key, verdict) in keys.into_iter().zip(verdicts) {
        match verdict {
            Verdict::Linearizable => {}
            Verdict::Undecided => judgement.undecided.push(key.0.into()),
            Verdict::Impossible => impossible.push(key),
        }
    }
    judgement.violations.extend(smallest(impossible, names));
}

/// The smallest counterexample among the keys with the shortest histories, and the names of the
/// other keys.
fn smallest(mut impossible: Vec<(&str, Vec<&StrongRecord>)>, names: &[String]) -> Option<String> {
    impossible.sort_by_key(|(_, records)| records.len());
    let tried = impossible.iter().take(EXPLAINED_MAX);
    let explained = tried.map(|(key, records)| (*key, explain(records)));
    let (key, shown) = explained.min_by_key(|(_, shown)| shown.len())?;
    let mut text = counterexample(key, &shown, names);
    let others: Vec<&str> =
        impossible.iter().map(|(other, _)| *other).filter(|other| *other != key).collect();
    if !others.is_empty() {
        let named = others[..others.len().min(NAMED_MAX)].join(", ");
        let _ = write!(text, "\n    not linearizable either: {} keys, {named}", others.len());
    }
    Some(text)
}

fn check(records: &[&StrongRecord]) -> Verdict {
    linearizability::check(records.iter().map(|record| record.operation()).collect(), BUDGET)
}

/// A few of a key's operations that no order explains.
fn explain<'a>(records: &[&'a StrongRecord]) -> Vec<&'a StrongRecord> {
    let operations = records.iter().map(|record| record.operation()).collect();
    let kept: BTreeSet<u64> =
        linearizability::explain(operations, BUDGET).iter().map(|kept| kept.invoked).collect();
    let mut shown: Vec<&StrongRecord> =
        records.iter().copied().filter(|record| kept.contains(&record.invoked)).collect();
    shown.sort_by_key(|record| record.invoked);
    shown
}

/// The operations as a table.
fn counterexample(key: &str, shown: &[&StrongRecord], names: &[String]) -> String {
    let count = shown.len();
    let mut text = format!("key {key}: not linearizable; no order explains these operations");
    for record in shown.iter().take(SHOWN_MAX) {
        let returned = record.returned.map_or("?".into(), |at| at.to_string());
        let _ = write!(
            text,
            "\n    {:>9} to {returned:>9}  client {:<3} at {}  {}",
            record.invoked,
            record.client,
            name(names, record.node),
            describe(record)
        );
    }
    if count > SHOWN_MAX {
        let _ = write!(text, "\n    and {} more", count - SHOWN_MAX);
    }
    text
}

/// The past of one eventual key.
#[derive(Default)]
struct Past<'a> {
    own: bool,
    /// Values whose writes were not refused.
    tried: BTreeSet<&'a [u8]>,
    deletes: bool,
    acknowledged: bool,
    /// The last certain write.
    last: Option<&'a [u8]>,
    /// The values of writes that may or may not be done.
    uncertain: BTreeSet<Option<&'a [u8]>>,
}

impl Past<'_> {
    /// True if the session that owns the key may see the value.
    fn is_own(&self, value: Option<&[u8]>) -> bool {
        value == self.last || self.uncertain.contains(&value)
    }

    fn was_tried(&self, value: Option<&[u8]>) -> bool {
        value.is_none_or(|value| self.tried.contains(value))
    }
}

fn eventual(
    records: &[EventualRecord],
    ends: &Ends,
    lossless: bool,
    names: &[String],
    judgement: &mut Judgement,
) {
    let mut pasts: BTreeMap<&str, Past<'_>> = BTreeMap::new();
    // Collect all written values first: a read may precede the record of the write in this order.
    for record in records {
        let past = pasts.entry(&record.key).or_default();
        if let EventualAction::Write(Some(value)) = &record.action {
            past.tried.insert(value);
        }
    }
    let mut wrong = Vec::new();
    for record in records {
        let past = pasts.entry(&record.key).or_default();
        past.own = record.own;
        match &record.action {
            EventualAction::Write(value) => {
                past.deletes |= value.is_none();
                if record.certain {
                    past.last = value.as_deref();
                    past.acknowledged |= value.is_some();
                } else {
                    past.uncertain.insert(value.as_deref());
                }
            }
            EventualAction::Read(value) => {
                let value = value.as_deref();
                let client = format!("client {} at {}", record.client, name(names, record.node));
                if record.own && !past.is_own(value) {
                    let (seen, last) = (show(value), show(past.last));
                    wrong.push(format!(
                        "eventual key {}: {client} read {seen} after its own write of {last}",
                        record.key
                    ));
                } else if !past.was_tried(value) {
                    let seen = show(value);
                    wrong.push(format!(
                        "eventual key {}: {client} read {seen}, which no client wrote",
                        record.key
                    ));
                }
            }
        }
    }
    judgement.eventual_keys = pasts.len();
    for (key, values) in ends {
        let past = pasts.entry(key).or_default();
        wrong.extend(final_violation(key, values, past, lossless, names));
    }
    report(wrong, judgement);
}

/// The broken promise that the final values of a key show, if any.
fn final_violation(
    key: &str,
    values: &[Option<Vec<u8>>],
    past: &Past<'_>,
    lossless: bool,
    names: &[String],
) -> Option<String> {
    let first = values.first()?.as_deref();
    if values.iter().any(|value| value.as_deref() != first) {
        let shown = values.iter().enumerate();
        let shown: Vec<_> = shown
            .map(|(at, value)| format!("{} at {}", show(value.as_deref()), name(names, at)))
            .collect();
        return Some(format!(
            "eventual key {key}: the nodes still differ at the end: {}",
            shown.join(", ")
        ));
    }
    let seen = show(first);
    if !past.was_tried(first) {
        return Some(format!("eventual key {key}: ends as {seen}, which no client wrote"));
    }
    let lost = match past.own {
        true => !past.is_own(first),
        false => first.is_none() && past.acknowledged && !past.deletes,
    };
    (lossless && lost).then(|| {
        let last = show(past.last);
        format!("eventual key {key}: ends as {seen}; an acknowledged write of {last} is lost")
    })
}

/// Adds findings about eventual keys, not more than the report has room for.
fn report(mut wrong: Vec<String>, judgement: &mut Judgement) {
    let more = wrong.len().saturating_sub(REPORTED_MAX);
    wrong.truncate(REPORTED_MAX);
    judgement.violations.extend(wrong);
    if more > 0 {
        judgement.violations.push(format!("and {more} more findings about eventual keys"));
    }
}

fn show(value: Option<&[u8]>) -> String {
    value.map_or("nil".into(), |value| format!("\"{}\"", String::from_utf8_lossy(value)))
}

fn name(names: &[String], node: usize) -> &str {
    names.get(node).map_or("?", String::as_str)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::linearizability::{Action, Seen};
    use crate::types::When;

    fn record(invoked: u64, returned: u64, action: Action, seen: Seen) -> StrongRecord {
        let (returned, seen) = (Some(returned), Some(seen));
        StrongRecord { client: 1, node: 0, key: "k".into(), action, invoked, returned, seen }
    }

    fn set(value: &str) -> Action {
        Action::Set { value: value.into(), when: When::Always, get: false }
    }

    fn eventual_record(key: &str, own: bool, action: EventualAction) -> EventualRecord {
        EventualRecord { client: 2, node: 1, key: key.into(), own, action, certain: true }
    }

    fn text(value: &str) -> Option<Vec<u8>> {
        Some(value.into())
    }

    fn violations(history: &History, ends: &Ends, lossless: bool) -> Vec<String> {
        let names = ["first".into(), "second".into()];
        judge(history, ends, lossless, &names).violations
    }

    fn strong(records: Vec<StrongRecord>) -> Vec<String> {
        violations(&History { records, ..History::default() }, &Ends::new(), true)
    }

    #[test]
    fn a_sound_history_passes() {
        let records = vec![
            record(1, 2, set("5"), Seen::Done),
            record(3, 6, Action::Increment(1), Seen::Integer(6)),
            record(4, 5, Action::Get, Seen::Value(b"5".into())),
        ];
        assert_eq!(strong(records), [""; 0]);
    }

    #[test]
    fn a_stale_read_is_found_and_shown_with_its_client_and_node() {
        let found = strong(vec![
            record(1, 2, set("a"), Seen::Done),
            record(3, 4, set("b"), Seen::Done),
            record(5, 6, Action::Get, Seen::Value(b"a".into())),
        ]);
        assert_eq!(found.len(), 1);
        assert!(found[0].contains("client 1   at first  GET k -> \"a\""), "{found:?}");
    }

    #[test]
    fn of_many_keys_the_smallest_counterexample_is_told_and_the_others_named() {
        let wrong = |key: &str, reads: u64| {
            let read = move |at| record(3 + 2 * at, 4 + 2 * at, Action::Get, Seen::Nil);
            let write = record(1, 2, set("a"), Seen::Done);
            let records = std::iter::once(write).chain((0..reads).map(read));
            let key = key.to_string();
            records
                .map(move |record| StrongRecord { key: key.clone(), ..record })
                .collect::<Vec<_>>()
        };
        let records = [wrong("long", 200), wrong("short", 1), wrong("other", 3)].concat();
        let found = strong(records);
        assert_eq!(found.len(), 1);
        assert!(found[0].starts_with("key short: not linearizable"), "{found:?}");
        assert!(found[0].ends_with("not linearizable either: 2 keys, other, long"), "{found:?}");
        let long = strong(wrong("long", 200));
        assert!(long[0].lines().count() <= SHOWN_MAX + 2, "{long:?}");
    }

    #[test]
    fn a_lost_write_is_found() {
        let found =
            strong(vec![record(1, 2, set("a"), Seen::Done), record(3, 4, Action::Get, Seen::Nil)]);
        assert!(found[0].contains("key k: not linearizable"), "{found:?}");
    }

    #[test]
    fn an_increment_that_was_done_twice_is_found() {
        let lost = StrongRecord {
            returned: None,
            seen: None,
            ..record(3, 4, Action::Increment(1), Seen::Integer(2))
        };
        let end = |sum: &str| record(5, 6, Action::Get, Seen::Value(sum.into()));
        let first = record(1, 2, Action::Increment(1), Seen::Integer(1));
        assert_eq!(strong(vec![first.clone(), lost.clone(), end("2")]), [""; 0]);
        assert_eq!(strong(vec![first, lost, end("3")]).len(), 1);
    }

    #[test]
    fn an_eventual_key_that_differs_between_nodes_is_found() {
        let history = History {
            eventual: vec![
                eventual_record("e", false, EventualAction::Write(text("a"))),
                eventual_record("e", false, EventualAction::Write(text("b"))),
            ],
            ..History::default()
        };
        let ends = |first: &str, second: &str| {
            Ends::from([("e".to_string(), vec![text(first), text(second)])])
        };
        assert_eq!(violations(&history, &ends("a", "a"), false), [""; 0]);
        let found = violations(&history, &ends("a", "b"), false);
        assert!(found[0].contains("\"a\" at first, \"b\" at second"), "{found:?}");
        let found = violations(&history, &ends("c", "c"), false);
        assert!(found[0].contains("no client wrote"), "{found:?}");
    }

    #[test]
    fn a_session_that_does_not_see_its_own_write_is_found() {
        let steps = |seen: Option<Vec<u8>>, certain: bool| {
            let write = EventualRecord {
                certain,
                ..eventual_record("o", true, EventualAction::Write(text("b")))
            };
            let first = eventual_record("o", true, EventualAction::Write(text("a")));
            vec![first, write, eventual_record("o", true, EventualAction::Read(seen))]
        };
        let check = |steps| {
            violations(&History { eventual: steps, ..History::default() }, &Ends::new(), false)
                .len()
        };
        assert_eq!(check(steps(text("b"), true)), 0);
        assert_eq!(check(steps(text("a"), true)), 1);
        assert_eq!(check(steps(None, true)), 1);
        assert_eq!(check(steps(text("a"), false)), 0);
    }

    #[test]
    fn an_eventual_write_may_be_lost_only_if_a_process_ended() {
        let write = |own| eventual_record("e", own, EventualAction::Write(text("a")));
        let ends = Ends::from([("e".to_string(), vec![None, None])]);
        for own in [true, false] {
            let history = History { eventual: vec![write(own)], ..History::default() };
            assert_eq!(violations(&history, &ends, true).len(), 1);
            assert_eq!(violations(&history, &ends, false).len(), 0);
        }
        let deleted = vec![write(false), eventual_record("e", false, EventualAction::Write(None))];
        let history = History { eventual: deleted, ..History::default() };
        assert_eq!(violations(&history, &ends, true).len(), 0);
    }
}
