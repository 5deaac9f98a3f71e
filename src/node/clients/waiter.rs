//! Where answers go. Whoever asks the core names an [`Inbox`], which is a thread that waits for one
//! answer ([`Waiter`]) or a loop that serves many clients (`front/poll.rs`).

use std::sync::Arc;
use std::time::Instant;

use parking_lot::{Condvar, Mutex};

use crate::types::{Outcome, Unserved, Writes};

/// What has been waited for.
#[derive(Debug)]
pub enum Answer {
    /// A batch was applied: one outcome for each command.
    Outcomes(Vec<Outcome>),
    /// Eventual writes are taken: stamped, to be put into the overlay.
    Stamped(Writes),
    /// The store may be read now.
    MayRead,
    /// Neither.
    Unserved(Unserved),
}

/// Names one question of an inbox; it never asks two by the same name.
pub type Ticket = u64;

/// Takes answers in, in any order, from any thread.
pub trait Inbox: Send + Sync {
    /// Puts an answer in. True if the owner has to be woken for it. An answer to a question that
    /// is not open any more is dropped, here or by the owner.
    fn put(&self, ticket: Ticket, answer: Answer) -> bool;

    /// Wakes the owner. Called without any other lock held, and once for many answers.
    fn wake(&self);
}

/// Who asks.
#[derive(Clone)]
pub struct Asker {
    /// Where the answer goes.
    pub inbox: Arc<dyn Inbox>,
    /// By which name.
    pub ticket: Ticket,
    /// Until when it is of use.
    pub deadline: Instant,
}

/// Answers on their way: all are put into their inboxes first, then each inbox is woken once.
#[derive(Default)]
pub struct Answers {
    given: Vec<(Asker, Answer)>,
}

impl Answers {
    /// Adds an answer.
    pub fn push(&mut self, asker: Asker, answer: Answer) {
        self.given.push((asker, answer));
    }

    /// Hands them over. To be called without any lock held.
    pub fn deliver(&mut self) {
        if self.given.is_empty() {
            return;
        }
        let mut sleeping: Vec<Arc<dyn Inbox>> = Vec::new();
        for (asker, answer) in self.given.drain(..) {
            if asker.inbox.put(asker.ticket, answer) {
                sleeping.push(asker.inbox);
            }
        }
        for inbox in sleeping {
            inbox.wake();
        }
    }
}

/// The inbox of a thread that has one question open at a time and waits for its answer.
#[derive(Debug, Default)]
pub struct Waiter {
    slot: Mutex<Slot>,
    ready: Condvar,
}

#[derive(Debug, Default)]
struct Slot {
    /// The open question, or the latest.
    ticket: Ticket,
    answer: Option<Answer>,
}

impl Inbox for Waiter {
    fn put(&self, ticket: Ticket, answer: Answer) -> bool {
        let mut slot = self.slot.lock();
        let is_open = slot.ticket == ticket;
        if is_open {
            slot.answer = Some(answer);
        }
        is_open
    }

    fn wake(&self) {
        self.ready.notify_one();
    }
}

impl Waiter {
    /// Opens a question, to be answered by `deadline`. The one before it is closed.
    pub fn open(self: &Arc<Waiter>, deadline: Instant) -> Asker {
        let mut slot = self.slot.lock();
        slot.ticket += 1;
        slot.answer = None;
        Asker { inbox: Arc::<Waiter>::clone(self), ticket: slot.ticket, deadline }
    }

    /// Waits for the answer; `None` if it has not come by `deadline`.
    pub fn wait_until(&self, deadline: Instant) -> Option<Answer> {
        let mut slot = self.slot.lock();
        while slot.answer.is_none() {
            if self.ready.wait_until(&mut slot, deadline).timed_out() {
                break;
            }
        }
        slot.answer.take()
    }

    /// Waits for an answer that is certain to come.
    pub fn wait(&self) -> Answer {
        let mut slot = self.slot.lock();
        loop {
            if let Some(answer) = slot.answer.take() {
                return answer;
            }
            self.ready.wait(&mut slot);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::hint::black_box;
    use std::sync::Arc;
    use std::thread::scope;
    use std::time::Duration;

    use super::*;
    use crate::node::tests::in_time;
    use crate::rng::Rng;

    const PAIRS: u64 = 128;
    const REQUESTS: i64 = 1_500;

    /// Who may answer, as the core keeps it: taken out by the one who answers, or by the one who
    /// gives up.
    type Open = Mutex<Option<(i64, Asker)>>;

    fn dawdle(rng: &mut Rng) {
        match rng.below(8) {
            0 => std::thread::yield_now(),
            1 => std::thread::sleep(Duration::from_micros(rng.below(100))),
            _ => (0..rng.below(500)).for_each(|step| {
                black_box(step);
            }),
        }
    }

    /// Asks again and again with one waiter; how often the answer was late.
    fn ask(open: &Open, mut rng: Rng) -> u64 {
        let waiter = Arc::<Waiter>::default();
        let mut late = 0;
        for request in 1..=REQUESTS {
            let patience = match rng.below(4) {
                0 => Duration::ZERO,
                1 => Duration::from_secs(60),
                _ => Duration::from_micros(rng.below(200)),
            };
            let deadline = Instant::now() + patience;
            *open.lock() = Some((request, waiter.open(deadline)));
            let answer = waiter.wait_until(deadline).or_else(|| {
                late += 1;
                let cancelled = open.lock().take();
                cancelled.is_none().then(|| waiter.wait())
            });
            match answer {
                Some(Answer::Outcomes(outcomes)) => {
                    assert_eq!(outcomes, [Outcome::Integer(request)], "another one's answer");
                }
                Some(other) => panic!("{other:?}"),
                None => {}
            }
            assert!(open.lock().is_none(), "answered, and may be answered again");
        }
        late
    }

    /// Answers whatever is asked until the asker is through.
    fn serve(open: &Open, mut rng: Rng, asker_is_through: impl Fn() -> bool) -> u64 {
        let mut served = 0;
        while !asker_is_through() {
            dawdle(&mut rng);
            let taken = open.lock().take();
            if let Some((request, asker)) = taken {
                dawdle(&mut rng);
                let mut answers = Answers::default();
                answers.push(asker, Answer::Outcomes(vec![Outcome::Integer(request)]));
                answers.deliver();
                served += 1;
            }
        }
        served
    }

    #[test]
    fn each_answer_reaches_the_request_that_it_is_for_whenever_it_comes() {
        let (late, served) = in_time("all answers have come", || {
            let open: Vec<Open> = (0..PAIRS).map(|_| Open::default()).collect();
            scope(|scope| {
                let pairs: Vec<_> = (0..PAIRS)
                    .zip(&open)
                    .map(|(pair, open)| {
                        let asker = scope.spawn(move || ask(open, Rng::new(pair)));
                        scope.spawn(move || {
                            let through = || asker.is_finished();
                            let served = serve(open, Rng::new(PAIRS + pair), through);
                            (asker.join().unwrap(), served)
                        })
                    })
                    .collect();
                let sums = pairs.into_iter().map(|pair| pair.join().unwrap());
                sums.fold((0, 0), |sum, pair| (sum.0 + pair.0, sum.1 + pair.1))
            })
        });
        // Both ends of the race were seen.
        assert!(late > PAIRS && served > PAIRS, "{late} late, {served} served");
    }

    #[test]
    fn an_answer_to_an_earlier_question_is_dropped() {
        let waiter = Arc::<Waiter>::default();
        let late = waiter.open(Instant::now());
        assert!(waiter.wait_until(late.deadline).is_none());
        let open = waiter.open(Instant::now());
        assert!(!late.inbox.put(late.ticket, Answer::MayRead));
        assert!(waiter.wait_until(open.deadline).is_none());
        assert!(open.inbox.put(open.ticket, Answer::MayRead));
        assert!(matches!(waiter.wait_until(open.deadline), Some(Answer::MayRead)));
    }
}
