//! A request's words, as places in the receive buffer: finding them copies nothing, and the list of
//! places is reused from request to request.

/// Where an argument lies, in bytes from the start of its request. `u32` is enough because
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

    /// The bytes there.
    pub(super) fn of(self, request: &[u8]) -> &[u8] {
        &request[self.start as usize..self.end as usize]
    }
}

/// A whole request: the command's name, then its arguments.
#[derive(Clone, Copy)]
pub(super) struct Args<'a> {
    request: &'a [u8],
    spans: &'a [Span],
}

impl<'a> Args<'a> {
    /// `spans` of `request`.
    pub(super) fn new(request: &'a [u8], spans: &'a [Span]) -> Args<'a> {
        Args { request, spans }
    }

    /// How many words, the name counted.
    pub(super) fn count(&self) -> usize {
        self.spans.len()
    }

    /// Word `index`; 0 is the name. A command's arity, checked before, says which there are.
    pub(super) fn at(&self, index: usize) -> &'a [u8] {
        self.spans[index].of(self.request)
    }

    /// The request that begins behind the first `words` words.
    pub(super) fn behind(&self, words: usize) -> Args<'a> {
        Args { request: self.request, spans: &self.spans[words..] }
    }

    /// The words from `first` on.
    pub(super) fn rest(&self, first: usize) -> impl ExactSizeIterator<Item = &'a [u8]> + use<'a> {
        let all = *self;
        (first.min(all.count())..all.count()).map(move |index| all.at(index))
    }

    /// True if word `index` is `word`, which is given in lower case.
    pub(super) fn is(&self, index: usize, word: &str) -> bool {
        self.at(index).eq_ignore_ascii_case(word.as_bytes())
    }
}
