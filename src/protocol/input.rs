//! The receive buffer: bytes that have arrived and are not consumed yet.
//!
//! Its size follows the bytes that arrive: an announced length alone never costs memory. It at most
//! doubles, and only for a request that is longer than the buffer or after a read that filled it.
//! An idle buffer shrinks again.

/// Least free bytes for a read. Small, because each of ten thousand idle clients keeps a buffer of
/// this size; a client that fills it gets a larger one.
pub(super) const READ_BYTES: usize = 4 << 10;

/// Largest size that a buffer keeps between requests.
pub(super) const KEEP_BYTES: usize = 256 << 10;

/// Received bytes, the consumed ones already dropped.
#[derive(Debug, Default)]
pub(super) struct InputBuffer {
    /// Initialised in full length; `start..end` is received and not consumed.
    bytes: Vec<u8>,
    start: usize,
    end: usize,
    /// The length of the latest read.
    latest: usize,
}

impl InputBuffer {
    /// The bytes that are received and not consumed.
    pub(super) fn unread(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    /// Drops the first `len` unread bytes.
    pub(super) fn consume(&mut self, len: usize) {
        self.start = self.end.min(self.start + len);
    }

    /// Drops everything.
    pub(super) fn clear(&mut self) {
        self.start = self.end;
    }

    /// The free space for the next read. `needed` is the length of the request under way, as far as
    /// the bytes so far announce it.
    pub(super) fn space(&mut self, needed: usize) -> &mut [u8] {
        let unread = self.end - self.start;
        let len = self.bytes.len();
        let idle = unread == 0 && len > READ_BYTES && self.latest < len / 8;
        let filled = self.latest > 0 && self.end == len && len < KEEP_BYTES;
        if idle {
            // Reads have become much smaller than the buffer: give memory back in steps.
            self.resize(if len > KEEP_BYTES { READ_BYTES } else { READ_BYTES.max(len / 2) });
        } else if filled || len - unread < READ_BYTES {
            // Grow to the announced length, but at most to twice the size: the client has sent half
            // of what the buffer holds.
            let wanted = needed.max(unread + READ_BYTES);
            let wanted = if filled { wanted.max(2 * len) } else { wanted };
            self.resize(wanted.min(2 * len).max(unread + READ_BYTES));
        } else if len - self.end < READ_BYTES {
            self.compact();
        }
        &mut self.bytes[self.end..]
    }

    /// Adds the first `len` bytes of the space to the unread bytes.
    ///
    /// # Panics
    /// If the space was shorter.
    pub(super) fn filled(&mut self, len: usize) {
        assert!(len <= self.bytes.len() - self.end, "more was read than there was space");
        self.end += len;
        self.latest = len;
    }

    /// Moves the unread bytes to the front.
    fn compact(&mut self) {
        self.bytes.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
    }

    /// Sets the length of the buffer to exactly `len` bytes.
    fn resize(&mut self, len: usize) {
        self.compact();
        if len > self.bytes.len() {
            self.bytes.reserve_exact(len - self.bytes.len());
            self.bytes.resize(len, 0);
        } else {
            self.bytes.truncate(len);
            self.bytes.shrink_to_fit();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One read that brings `len` bytes, or as many as fit.
    fn receive(input: &mut InputBuffer, len: usize, needed: usize) -> usize {
        let len = len.min(input.space(needed).len());
        input.filled(len);
        len
    }

    #[test]
    fn an_announced_length_costs_nothing_until_its_bytes_arrive() {
        let mut input = InputBuffer::default();
        let announced = 512 << 20;
        let mut received = receive(&mut input, 20, announced);
        assert_eq!(input.bytes.len(), READ_BYTES);
        while received < 3 << 20 {
            received += receive(&mut input, 1_000, announced);
            assert!(input.bytes.len() <= 2 * (received + READ_BYTES));
            assert!(input.bytes.len() - input.end >= READ_BYTES - 1_000);
        }
        assert_eq!(input.unread().len(), received);
    }

    #[test]
    fn the_buffer_of_a_value_is_no_longer_than_the_value_needs() {
        let mut input = InputBuffer::default();
        let (needed, mut received) = (1_000_000, 0);
        while received < needed {
            received += receive(&mut input, usize::MAX, needed).min(needed - received);
        }
        assert!(input.bytes.len() < needed + 2 * READ_BYTES, "{}", input.bytes.len());
    }

    #[test]
    fn an_idle_buffer_shrinks_to_what_a_read_needs() {
        let mut input = InputBuffer::default();
        while input.end < 4 << 20 {
            receive(&mut input, usize::MAX, 4 << 20);
        }
        input.clear();
        for _ in 0..20 {
            let len = receive(&mut input, 100, 0);
            input.consume(len);
        }
        assert_eq!(input.bytes.len(), READ_BYTES);
    }

    #[test]
    fn a_pipeline_that_fills_the_buffer_gets_a_longer_one_up_to_what_is_kept() {
        let mut input = InputBuffer::default();
        for _ in 0..20 {
            receive(&mut input, usize::MAX, 0);
            input.clear();
        }
        assert_eq!(input.bytes.len(), KEEP_BYTES);
    }

    #[test]
    fn unread_bytes_survive_compaction_and_growth() {
        let mut input = InputBuffer::default();
        let mut expected = Vec::new();
        for round in 0..200usize {
            let byte = round as u8;
            let space = input.space(0);
            let len = (round * 97).min(space.len());
            space[..len].fill(byte);
            input.filled(len);
            expected.extend(std::iter::repeat_n(byte, len));
            let consumed = (round * 53).min(expected.len());
            input.consume(consumed);
            expected.drain(..consumed);
            assert_eq!(input.unread(), expected);
        }
    }
}
