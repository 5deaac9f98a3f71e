//! A queue whose members leave from anywhere, though mostly from the front: each has a number, and
//! numbers rise. Finding one by its number costs next to nothing, as its place is where it would be
//! had nobody left before it, or a little ahead.

use std::collections::VecDeque;

/// So many places of members that have left are not worth a walk.
const GONE_MIN: usize = 64;

/// Room for more members than this is given back by an empty queue.
pub const KEEP: usize = 1 << 16;

/// See the module.
#[derive(Clone, Debug)]
pub struct SeqQueue<T> {
    /// With rising numbers, the first one and the last one not gone.
    places: VecDeque<(u64, Option<T>)>,
    len: usize,
}

impl<T> Default for SeqQueue<T> {
    fn default() -> SeqQueue<T> {
        SeqQueue { places: VecDeque::new(), len: 0 }
    }
}

impl<T> SeqQueue<T> {
    /// Puts a member at the end. Its number is higher than all before it.
    pub fn push(&mut self, number: u64, member: T) {
        debug_assert!(self.places.back().is_none_or(|(last, _)| *last < number));
        self.places.push_back((number, Some(member)));
        self.len += 1;
    }

    /// The member with this number.
    pub fn get(&self, number: u64) -> Option<&T> {
        self.places[self.place(number)?].1.as_ref()
    }

    /// The same, to be changed.
    pub fn get_mut(&mut self, number: u64) -> Option<&mut T> {
        let place = self.place(number)?;
        self.places[place].1.as_mut()
    }

    /// Takes the member with this number out.
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

    /// Takes the first member out if its number is below `end`.
    pub fn pop_below(&mut self, end: u64) -> Option<T> {
        let number = self.first().filter(|number| *number < end)?;
        self.remove(number)
    }

    /// The lowest number.
    pub fn first(&self) -> Option<u64> {
        self.places.front().map(|(number, _)| *number)
    }

    /// The members with numbers from `start` on.
    pub fn from(&self, start: u64) -> impl Iterator<Item = (u64, &T)> {
        let place = self.places.partition_point(|(number, _)| *number < start);
        self.places.range(place..).filter_map(|(number, member)| Some((*number, member.as_ref()?)))
    }

    /// How many members there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True if there is none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Where a member with this number is or was. As numbers rise by one at least, no further from
    /// the front than the number is above the first.
    fn place(&self, number: u64) -> Option<usize> {
        let (first, _) = self.places.front()?;
        let most = usize::try_from(number.checked_sub(*first)?).ok()?;
        if self.places.get(most).is_some_and(|(found, _)| *found == number) {
            return Some(most);
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
