//! The head of an HTTP/1 request, read incrementally. Only the first and the last word of its first
//! line are used.

/// Maximum length of a request's head, in bytes; Go's server, and therefore kube-proxy, accepts the
/// same.
const LONGEST: usize = 1 << 20;
/// Bytes of a word that are compared: the longest method and version are shorter.
const WORD: usize = 16;

/// A word of the request line.
#[derive(Clone, Copy, Debug, Default)]
struct Word {
    bytes: [u8; WORD],
    /// May be longer than the bytes kept.
    len: usize,
}

impl Word {
    fn push(&mut self, byte: u8) {
        if let Some(place) = self.bytes.get_mut(self.len) {
            *place = byte;
        }
        self.len += 1;
    }

    fn is(&self, text: &[u8]) -> bool {
        self.bytes.get(..self.len) == Some(text)
    }

    fn starts_with(&self, text: &[u8]) -> bool {
        self.len >= text.len() && self.bytes.starts_with(text)
    }
}

/// A complete request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Wants {
    /// The answer, with a body or without.
    Answer { body: bool },
    /// It is not an HTTP/1 request.
    Bad,
    /// It is too long.
    TooLong,
}

/// See the module's description.
#[derive(Debug, Default)]
pub(super) struct Request {
    /// Words of the request line: method, target, version.
    words: [Word; 3],
    /// Number of words that have begun.
    begun: usize,
    in_word: bool,
    /// Number of bytes so far.
    len: usize,
    /// The request line has ended.
    has_line: bool,
    /// Only a line end since the last one.
    is_empty: bool,
}

impl Request {
    /// Adds input. `Some`: the head is complete, or can never be; further input is ignored.
    pub(super) fn read(&mut self, bytes: &[u8]) -> Option<Wants> {
        for &byte in bytes {
            self.len += 1;
            match byte {
                b'\n' if self.is_empty => return Some(self.wants()),
                b'\n' => (self.has_line, self.is_empty, self.in_word) = (true, true, false),
                b'\r' => {}
                _ => self.take(byte),
            }
            if self.len >= LONGEST {
                return Some(Wants::TooLong);
            }
        }
        None
    }

    fn take(&mut self, byte: u8) {
        self.is_empty = false;
        if self.has_line {
            return;
        }
        if byte.is_ascii_whitespace() {
            self.in_word = false;
            return;
        }
        if !self.in_word {
            (self.begun, self.in_word) = (self.begun + 1, true);
        }
        if let Some(word) = self.words.get_mut(self.begun - 1) {
            word.push(byte);
        }
    }

    fn wants(&self) -> Wants {
        let [method, _, version] = &self.words;
        if self.begun != 3 || !version.starts_with(b"HTTP/1.") {
            return Wants::Bad;
        }
        Wants::Answer { body: !method.is(b"HEAD") }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn wants(request: &[u8]) -> Option<Wants> {
        Request::default().read(request)
    }

    #[test]
    fn requests_of_all_kinds() {
        let answer = |body| Some(Wants::Answer { body });
        for method in
            ["GET", "OPTIONS", "POST", "PUT", "DELETE", "PATCH", "TRACE", "ANY-OTHER-METHOD-AT-ALL"]
        {
            for version in ["1.0", "1.1"] {
                for end in ["\r\n", "\n"] {
                    let request =
                        format!("{method} /path HTTP/{version}{end}Host: x{end}{end}rest");
                    assert_eq!(wants(request.as_bytes()), answer(true), "{request}");
                }
            }
        }
        assert_eq!(wants(b"OPTIONS / HTTP/1.0\r\n\r\n"), answer(true), "HAProxy's default");
        assert_eq!(wants(b"HEAD /healthz HTTP/1.0\r\n\r\n"), answer(false));
        for bad in [
            "GET /\r\n\r\n",
            "PRI * HTTP/2.0\r\n\r\n",
            "a b c d\r\n\r\n",
            "\r\n\r\n",
            "\x16\x03\n\n",
        ] {
            assert_eq!(wants(bad.as_bytes()), Some(Wants::Bad), "{bad:?}");
        }
        assert_eq!(wants(b"GET / HTTP/1.1\r\nHost: x\r\n"), None, "the head is not complete");
        assert_eq!(wants(b""), None);
    }

    #[test]
    fn the_length_of_heads_is_limited() {
        let long = format!("GET / HTTP/1.1\r\nX: {}\r\n\r\n", "a".repeat(1_000_000));
        assert_eq!(wants(long.as_bytes()), Some(Wants::Answer { body: true }));
        assert_eq!(wants(&vec![b'x'; LONGEST - 1]), None);
        assert_eq!(wants(&vec![b'x'; LONGEST]), Some(Wants::TooLong));
    }

    proptest! {
        /// The result does not depend on how the head is split.
        #[test]
        fn split_heads_are_read_as_whole_ones(
            request in prop::collection::vec(prop_oneof![
                Just(b'\r'), Just(b'\n'), Just(b' '), Just(b'/'), any::<u8>(),
            ], 0..200),
            cuts in prop::collection::vec(0usize..200, 0..6),
        ) {
            let mut pieces = Request::default();
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(request.len())).collect();
            cuts.extend([0, request.len()]);
            cuts.sort_unstable();
            let got = cuts.windows(2).find_map(|cut| pieces.read(&request[cut[0]..cut[1]]));
            prop_assert_eq!(got, wants(&request));
        }
    }
}
