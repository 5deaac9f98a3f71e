//! The inbox of a thread that has one request open at a time and sleeps until its answer comes.

use std::sync::Arc;
use std::time::Instant;

use parking_lot::{Condvar, Mutex};

use crate::clock::Now;
use crate::service::{Answer, Inbox, ReplyTo, Ticket};

/// The inbox of one thread. An answer to any ticket but the latest is dropped.
#[derive(Debug, Default)]
pub struct Waiter {
    request: Mutex<OpenRequest>,
    ready: Condvar,
}

/// The latest request of the thread.
#[derive(Debug, Default)]
struct OpenRequest {
    ticket: Ticket,
    answer: Option<Answer>,
}

impl Inbox for Waiter {
    fn put(&self, ticket: Ticket, answer: Answer) -> bool {
        let mut request = self.request.lock();
        let is_open = request.ticket == ticket;
        if is_open {
            request.answer = Some(answer);
        }
        is_open
    }

    fn wake(&self) {
        self.ready.notify_one();
    }
}

impl Waiter {
    /// Opens a request that must have its answer by `deadline`. Closes the one before it: its
    /// answer, should it still come, has an older ticket.
    pub fn open(self: &Arc<Waiter>, deadline: Now) -> ReplyTo {
        let mut request = self.request.lock();
        request.ticket += 1;
        request.answer = None;
        ReplyTo { inbox: Arc::<Waiter>::clone(self), ticket: request.ticket, deadline }
    }

    /// Waits for the answer; `None` if it has not come by `deadline`. That alone says nothing about
    /// the request: it must be cancelled to learn whether it may be done.
    pub fn wait_until(&self, deadline: Instant) -> Option<Answer> {
        let mut request = self.request.lock();
        while request.answer.is_none() {
            if self.ready.wait_until(&mut request, deadline).timed_out() {
                break;
            }
        }
        request.answer.take()
    }

    /// Waits for an answer that is certain to come.
    pub fn wait(&self) -> Answer {
        let mut request = self.request.lock();
        loop {
            if let Some(answer) = request.answer.take() {
                return answer;
            }
            self.ready.wait(&mut request);
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
    use crate::node::tests::time::in_time;
    use crate::rng::Rng;
    use crate::service::Answers;
    use crate::types::Outcome;

    const PAIRS: u64 = 128;
    const REQUESTS: i64 = 1_500;

    /// An open request, as the core's table keeps it. The thread that takes it out answers it, or
    /// has cancelled it.
    type Open = Mutex<Option<(i64, ReplyTo)>>;

    fn dawdle(rng: &mut Rng) {
        match rng.below(8) {
            0 => std::thread::yield_now(),
            1 => std::thread::sleep(Duration::from_micros(rng.below(100))),
            _ => (0..rng.below(500)).for_each(|step| {
                black_box(step);
            }),
        }
    }

    /// Makes one request after the other with one waiter. Returns the number of time-outs.
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
            *open.lock() = Some((request, waiter.open(Now(0))));
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

    /// Answers requests until the asking thread has ended. Returns the number of answers.
    fn serve(open: &Open, mut rng: Rng, asker_has_ended: impl Fn() -> bool) -> u64 {
        let mut served = 0;
        while !asker_has_ended() {
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
                            let has_ended = || asker.is_finished();
                            let served = serve(open, Rng::new(PAIRS + pair), has_ended);
                            (asker.join().unwrap(), served)
                        })
                    })
                    .collect();
                let sums = pairs.into_iter().map(|pair| pair.join().unwrap());
                sums.fold((0, 0), |sum, pair| (sum.0 + pair.0, sum.1 + pair.1))
            })
        });
        // The race was won by each side.
        assert!(late > PAIRS && served > PAIRS, "{late} late, {served} served");
    }

    #[test]
    fn an_answer_to_an_earlier_request_is_dropped() {
        let waiter = Arc::<Waiter>::default();
        let late = waiter.open(Now(0));
        assert!(waiter.wait_until(Instant::now()).is_none());
        let open = waiter.open(Now(0));
        assert!(!late.inbox.put(late.ticket, Answer::MayRead));
        assert!(waiter.wait_until(Instant::now()).is_none());
        assert!(open.inbox.put(open.ticket, Answer::MayRead));
        assert!(matches!(waiter.wait_until(Instant::now()), Some(Answer::MayRead)));
    }
}
