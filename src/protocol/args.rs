//! The words of a request, as spans of the receive buffer: finding them copies nothing, and the
//! list of spans is reused from request to request.

/// The place of one word, in bytes from the start of its request. `u32` is enough because
/// `request_bytes_max` is checked before a span is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    start: u32,
    end: u32,
}

impl Span {
    /// The bytes `start..end` of a request.
    pub(super) fn new(start: usize, end: usize) -> Span {
        let narrow = |at| u32::try_from(at).expect("limits keep requests below 4 GiB");
        Span { start: narrow(start), end: narrow(end) }
    }

    /// The bytes of `request` in this span.
    pub(super) fn of(self, request: &[u8]) -> &[u8] {
        &request[self.start as usize..self.end as usize]
    }
}

/// The words of one request: the command's name, then its arguments.
#[derive(Clone, Copy)]
pub(super) struct Args<'a> {
    request: &'a [u8],
    spans: &'a [Span],
}

impl<'a> Args<'a> {
    /// The words at `spans` of `request`.
    pub(super) fn new(request: &'a [u8], spans: &'a [Span]) -> Args<'a> {
        Args { request, spans }
    }

    /// The number of words, the name counted.
    pub(super) fn count(&self) -> usize {
        self.spans.len()
    }

    /// Word `index`; 0 is the name. Panics beyond the last word, so check the arity before.
    pub(super) fn at(&self, index: usize) -> &'a [u8] {
        self.spans[index].of(self.request)
    }

    /// The request without its first `words` words.
    pub(super) fn behind(&self, words: usize) -> Args<'a> {
        Args { request: self.request, spans: &self.spans[words..] }
    }

    /// The words from `first` on.
    pub(super) fn rest(&self, first: usize) -> impl ExactSizeIterator<Item = &'a [u8]> + use<'a> {
        let all = *self;
        (first.min(all.count())..all.count()).map(move |index| all.at(index))
    }

    /// True if word `index` is `word` in upper or lower case; `word` itself is in lower case.
    pub(super) fn is(&self, index: usize, word: &str) -> bool {
        self.at(index).eq_ignore_ascii_case(word.as_bytes())
    }
}
