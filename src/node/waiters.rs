//! Where a session's thread waits for what it has asked for. A session has one waiter and uses it
//! again and again; at most one question is open at a time.

use std::time::Instant;

use parking_lot::{Condvar, Mutex};

use crate::types::{Outcome, Unserved, Writes};

/// What a session has waited for.
#[derive(Debug)]
pub enum Answer {
    /// A batch was applied: one outcome for each command.
    Outcomes(Vec<Outcome>),
    /// Eventual writes are taken: stamped, to be put into the overlay.
    Accepted(Writes),
    /// The store may be read now.
    MayRead,
    /// Neither.
    Unserved(Unserved),
}

/// See the module.
#[derive(Debug, Default)]
pub struct Waiter {
    answer: Mutex<Option<Answer>>,
    ready: Condvar,
}

impl Waiter {
    /// Hands the answer over and wakes the session. Called without any other lock held.
    pub fn answer(&self, answer: Answer) {
        *self.answer.lock() = Some(answer);
        self.ready.notify_one();
    }

    /// Waits for the answer; `None` if it has not come by `deadline`.
    pub fn wait_until(&self, deadline: Instant) -> Option<Answer> {
        let mut answer = self.answer.lock();
        while answer.is_none() {
            if self.ready.wait_until(&mut answer, deadline).timed_out() {
                break;
            }
        }
        answer.take()
    }

    /// Waits for an answer that is certain to come.
    pub fn wait(&self) -> Answer {
        let mut answer = self.answer.lock();
        loop {
            if let Some(answer) = answer.take() {
                return answer;
            }
            self.ready.wait(&mut answer);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::hint::black_box;
    use std::sync::Arc;
    use std::thread::scope;
    use std::time::Duration;

    use super::super::tests::in_time;
    use super::*;
    use crate::rng::Rng;

    const PAIRS: u64 = 128;
    const REQUESTS: i64 = 1_500;

    /// Who may answer, as the core keeps it: taken out by the one who answers, or by the one who
    /// gives up.
    type Open = Mutex<Option<(i64, Arc<Waiter>)>>;

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
            *open.lock() = Some((request, Arc::clone(&waiter)));
            let patience = match rng.below(4) {
                0 => Duration::ZERO,
                1 => Duration::from_secs(60),
                _ => Duration::from_micros(rng.below(200)),
            };
            let answer = waiter.wait_until(Instant::now() + patience).or_else(|| {
                late += 1;
                let withdrawn = open.lock().take();
                withdrawn.is_none().then(|| waiter.wait())
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
            if let Some((request, waiter)) = taken {
                dawdle(&mut rng);
                waiter.answer(Answer::Outcomes(vec![Outcome::Integer(request)]));
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
}
