//! A queue with numbered members, in rising order, that leave from any place but mostly from the
//! front. Finding a member by its number is cheap: its place is as far from the front as its number
//! is above the first one, or nearer.

use std::collections::VecDeque;

/// The number of empty places up to which the queue is not compacted.
const GONE_MIN: usize = 64;

/// The room, in members, that an empty queue keeps.
pub const KEEP: usize = 1 << 16;

/// Members with rising numbers.
#[derive(Clone, Debug)]
pub struct SeqQueue<T> {
    /// Numbers and members; `None` if the member has left. The first and the last place are taken.
    places: VecDeque<(u64, Option<T>)>,
    len: usize,
}

impl<T> Default for SeqQueue<T> {
    fn default() -> SeqQueue<T> {
        SeqQueue { places: VecDeque::new(), len: 0 }
    }
}

impl<T> SeqQueue<T> {
    /// Adds a member at the end. Its number is higher than all others.
    pub fn push(&mut self, number: u64, member: T) {
        debug_assert!(self.places.back().is_none_or(|(last, _)| *last < number));
        self.places.push_back((number, Some(member)));
        self.len += 1;
    }

    /// The member with this number.
    pub fn get(&self, number: u64) -> Option<&T> {
        self.places[self.place(number)?].1.as_ref()
    }

    /// The member with this number, mutably.
    pub fn get_mut(&mut self, number: u64) -> Option<&mut T> {
        let place = self.place(number)?;
        self.places[place].1.as_mut()
    }

    /// Removes the member with this number.
    pub fn remove(&mut self, number: u64) -> Option<T> {
        let place = self.place(number)?;
        let removed = self.places[place].1.take()?;
        self.len -= 1;
        while self.places.pop_front_if(|(_, member)| member.is_none()).is_some() {}
        while self.places.pop_back_if(|(_, member)| member.is_none()).is_some() {}
        if self.places.len() > 2 * self.len + GONE_MIN {
            self.places.retain(|(_, member)| member.is_some());
        }
        if self.len == 0 {
            self.places.shrink_to(KEEP);
        }
        Some(removed)
    }

    /// Removes the first member if its number is below `end`.
    pub fn pop_below(&mut self, end: u64) -> Option<T> {
        let number = self.first().filter(|number| *number < end)?;
        self.remove(number)
    }

    /// The lowest number.
    pub fn first(&self) -> Option<u64> {
        self.places.front().map(|(number, _)| *number)
    }

    /// The members with numbers from `start` on, in order.
    pub fn from(&self, start: u64) -> impl Iterator<Item = (u64, &T)> {
        let place = self.places.partition_point(|(number, _)| *number < start);
        self.places.range(place..).filter_map(|(number, member)| Some((*number, member.as_ref()?)))
    }

    /// The number of members.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True if there are no members.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The place of the member with this number, even if it has left.
    fn place(&self, number: u64) -> Option<usize> {
        let (first, _) = self.places.front()?;
        // Numbers rise by at least one with each place, so the member lies at or before this place.
        // It lies exactly there if no place before it was compacted away.
        let furthest = usize::try_from(number.checked_sub(*first)?).ok()?;
        if self.places.get(furthest).is_some_and(|(found, _)| *found == number) {
            return Some(furthest);
        }
        self.places.binary_search_by_key(&number, |(number, _)| *number).ok()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::rng::Rng;

    #[test]
    fn it_holds_what_an_ordered_map_would_and_little_more() {
        let mut rng = Rng::new(7);
        let (mut queue, mut map) = (SeqQueue::default(), BTreeMap::new());
        let mut next = 5;
        for _ in 0..20_000 {
            // Long stretches in which it grows, and others in which it empties.
            let grows = rng.below(3) < 1 + next / 3_000 % 2;
            if grows {
                next += 1 + rng.below(2) * rng.below(3);
                queue.push(next, next);
                map.insert(next, next);
            } else {
                let number = next.saturating_sub(rng.below(300));
                assert_eq!(queue.remove(number), map.remove(&number));
                assert_eq!(queue.pop_below(number / 2), {
                    let first = map.first_entry().filter(|first| *first.key() < number / 2);
                    first.map(|first| first.remove())
                });
            }
            let number = next.saturating_sub(rng.below(100));
            assert_eq!(queue.get(number), map.get(&number));
            assert_eq!(queue.get_mut(number).copied(), map.get(&number).copied());
            assert_eq!((queue.len(), queue.first()), (map.len(), map.keys().next().copied()));
            assert!(queue.places.len() <= 2 * map.len() + GONE_MIN);
            let both = queue.from(number).zip(map.range(number..));
            assert_eq!(queue.from(number).count(), map.range(number..).count());
            assert!(
                both.into_iter()
                    .all(|((number, member), (key, value))| { (number, member) == (*key, value) })
            );
        }
        assert!(next > 9_000 && !queue.is_empty());
    }
}
