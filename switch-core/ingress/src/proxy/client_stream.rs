//! A client's connection below HTTP: how long it may stall, and a scan for heads that hyper would
//! accept although they have two lengths. A client whose head takes too long is told so at the end,
//! with status 408: hyper ends the connection without a word.
//!
//! Of a request with Content-Length and Transfer-Encoding, hyper forwards the latter alone and ends
//! the connection, as RFC 9112 section 6.3 allows. It is refused here instead. As hyper does not
//! tell of the removed field, the scan follows heads and bodies on its own; where it differs from
//! hyper, hyper refuses the request.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::body::Pause;
use super::counted::Taken;

/// Sent when a head has begun and took too long (RFC 9110 section 15.5.9).
const LATE: &[u8] =
    b"HTTP/1.1 408 Request Timeout\r\nServer: podswitch\r\nContent-Type: text/plain\r\n\
                      Content-Length: 20\r\nConnection: close\r\n\r\n408 Request Timeout\n";

/// The connection of a client.
#[derive(Debug)]
pub(super) struct ClientStream<S: AsyncWrite + Unpin> {
    stream: S,
    /// While the client takes nothing.
    pause: Pause,
    /// Below TLS, which holds more than the socket takes at once.
    taken: Taken,
    scan: Option<Scan>,
    heads: Option<Heads>,
}

/// What is known of the heads of a connection.
#[derive(Clone, Debug)]
pub(super) struct Heads(Arc<Seen>);

#[derive(Debug)]
struct Seen {
    /// The number of the first ambiguous request, from 0.
    ambiguous: AtomicU64,
    /// A head has begun and is not complete.
    has_begun: AtomicBool,
    /// The time for a head is over.
    is_late: AtomicBool,
}

impl Heads {
    fn new() -> Self {
        Self(Arc::new(Seen {
            ambiguous: AtomicU64::new(u64::MAX),
            has_begun: AtomicBool::new(false),
            is_late: AtomicBool::new(false),
        }))
    }

    /// Whether the request with this number is ambiguous.
    pub(super) fn is_ambiguous(&self, number: u64) -> bool {
        self.0.ambiguous.load(Relaxed) == number
    }

    /// The time for a head is over. If one has begun, the client is told at the end of the stream.
    pub(super) fn set_late(&self) {
        self.0.is_late.store(true, Relaxed);
    }
}

impl<S: AsyncWrite + Unpin> ClientStream<S> {
    /// A connection on which HTTP/1 is spoken.
    pub(super) fn http1(stream: S, taken: Taken, pause: Duration) -> (Self, Heads) {
        let heads = Heads::new();
        let scan = Some(Scan::new(heads.clone()));
        let pause = Pause::new(pause);
        (Self { stream, pause, taken, scan, heads: Some(heads.clone()) }, heads)
    }

    /// A connection on which HTTP/2 is spoken, where a length cannot be ambiguous.
    pub(super) fn http2(stream: S, taken: Taken, pause: Duration) -> Self {
        Self { stream, pause: Pause::new(pause), taken, scan: None, heads: None }
    }
}

/// hyper owns the stream until its end, and nothing of a response is under way within a head: what
/// is sent here has room in the socket, or the client does not read.
impl<S: AsyncWrite + Unpin> Drop for ClientStream<S> {
    fn drop(&mut self) {
        let is_told = |it: &Heads| it.0.is_late.load(Relaxed) && it.0.has_begun.load(Relaxed);
        if self.heads.as_ref().is_some_and(is_told) {
            let mut cx = Context::from_waker(Waker::noop());
            if let Poll::Ready(Ok(_)) = Pin::new(&mut self.stream).poll_write(&mut cx, LATE) {
                _ = Pin::new(&mut self.stream).poll_flush(&mut cx);
            }
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for ClientStream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let result = Pin::new(&mut self.stream).poll_read(cx, buffer);
        if let Some(scan) = &mut self.scan
            && !scan.feed(&buffer.filled()[before..])
        {
            self.scan = None;
        }
        result
    }
}

impl<S: AsyncWrite + Unpin> ClientStream<S> {
    /// The result of a write; a client that takes nothing for too long is an error.
    fn written<T>(
        &mut self,
        cx: &mut Context<'_>,
        result: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if result.is_ready() {
            self.pause.end();
            return result;
        }
        if self.taken.grew() {
            self.pause.end();
        }
        self.pause.poll(cx).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for ClientStream<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.written(cx, result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write_vectored(cx, bytes);
        self.written(cx, result)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.stream).poll_flush(cx);
        self.written(cx, result)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.stream).poll_shutdown(cx);
        self.written(cx, result)
    }
}

/// What is kept of a line: enough for the names of the fields that matter, and a length.
const KEPT: usize = 128;

/// Follows heads and bodies.
#[derive(Debug)]
struct Scan {
    state: State,
    line: Vec<u8>,
    /// The current line is longer than what is kept.
    is_cut: bool,
    has_request_line: bool,
    is_chunked: bool,
    length: Option<u64>,
    /// Heads so far.
    heads: u64,
    seen: Heads,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Head,
    ChunkSize,
    Trailer,
    /// So many bytes of a body.
    Body(u64),
    /// So many bytes of a chunk and the end of its line.
    Chunk(u64),
}

impl Scan {
    fn new(seen: Heads) -> Self {
        Self {
            state: State::Head,
            line: Vec::new(),
            is_cut: false,
            has_request_line: false,
            is_chunked: false,
            length: None,
            heads: 0,
            seen,
        }
    }

    /// Follows what was read. Returns false at an ambiguous head, or where it cannot follow.
    fn feed(&mut self, bytes: &[u8]) -> bool {
        let goes_on = self.follow(bytes);
        let is_within =
            self.state == State::Head && (self.has_request_line || !self.line.is_empty());
        self.seen.0.has_begun.store(goes_on && is_within, Relaxed);
        goes_on
    }

    fn follow(&mut self, mut bytes: &[u8]) -> bool {
        while !bytes.is_empty() {
            match &mut self.state {
                State::Body(left) | State::Chunk(left) => {
                    let skipped = (*left).min(bytes.len() as u64);
                    *left -= skipped;
                    bytes = &bytes[skipped as usize..];
                    match self.state {
                        State::Body(0) => self.state = State::Head,
                        State::Chunk(0) => self.state = State::ChunkSize,
                        _ => {}
                    }
                }
                State::Head | State::ChunkSize | State::Trailer => {
                    let end = bytes.iter().position(|byte| *byte == b'\n');
                    let part = &bytes[..end.unwrap_or(bytes.len())];
                    let room = part.len().min(KEPT - self.line.len());
                    self.line.extend_from_slice(&part[..room]);
                    self.is_cut |= room < part.len();
                    let Some(end) = end else { return true };
                    bytes = &bytes[end + 1..];
                    if !self.end_of_line() {
                        return false;
                    }
                }
            }
        }
        true
    }

    fn end_of_line(&mut self) -> bool {
        let line = std::mem::take(&mut self.line);
        let is_cut = std::mem::take(&mut self.is_cut);
        let text = line.strip_suffix(b"\r").filter(|_| !is_cut).unwrap_or(&line);
        let goes_on = match self.state {
            State::Head if text.is_empty() && !self.has_request_line => true,
            State::Head if text.is_empty() => self.end_of_head(),
            State::Head => {
                if std::mem::replace(&mut self.has_request_line, true) {
                    self.field(text)
                } else {
                    true
                }
            }
            State::ChunkSize => match chunk_size(text) {
                Some(0) => {
                    self.state = State::Trailer;
                    true
                }
                Some(size) => {
                    self.state = State::Chunk(size.saturating_add(2));
                    true
                }
                None => false,
            },
            State::Trailer => {
                if text.is_empty() {
                    self.state = State::Head;
                }
                true
            }
            State::Body(_) | State::Chunk(_) => true,
        };
        self.line = line;
        self.line.clear();
        goes_on
    }

    /// A field that matters, if it is one. A length that cannot be read is ambiguous.
    fn field(&mut self, line: &[u8]) -> bool {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { return true };
        let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
        if name.eq_ignore_ascii_case(b"transfer-encoding") {
            self.is_chunked = true;
        } else if name.eq_ignore_ascii_case(b"content-length") {
            let is_digits = !value.is_empty() && value.iter().all(u8::is_ascii_digit);
            let text = str::from_utf8(value).ok().filter(|_| is_digits);
            match text.and_then(|text| text.parse().ok()) {
                Some(length) => self.length = Some(length),
                None => return self.refuse(),
            }
        }
        true
    }

    fn end_of_head(&mut self) -> bool {
        self.has_request_line = false;
        let (is_chunked, length) = (std::mem::take(&mut self.is_chunked), self.length.take());
        if is_chunked && length.is_some() {
            return self.refuse();
        }
        self.heads += 1;
        self.state = match length {
            _ if is_chunked => State::ChunkSize,
            Some(length) if length > 0 => State::Body(length),
            _ => State::Head,
        };
        true
    }

    fn refuse(&mut self) -> bool {
        self.seen.0.ambiguous.store(self.heads, Relaxed);
        false
    }
}

/// The size of a chunk, without extensions.
fn chunk_size(line: &[u8]) -> Option<u64> {
    let digits = line.split(|byte| matches!(byte, b';' | b' ' | b'\t')).next()?;
    u64::from_str_radix(str::from_utf8(digits).ok()?, 16).ok()
}

/// What is known of heads that arrive in parts of this size: the number of the first ambiguous one,
/// and whether the last has begun.
#[cfg(any(test, feature = "fuzz"))]
pub(super) fn scanned(bytes: &[u8], part: usize) -> (u64, bool) {
    let seen = Heads::new();
    let mut scan = Scan::new(seen.clone());
    let mut parts = bytes.chunks(part);
    while parts.next().is_some_and(|part| scan.feed(part)) {}
    (seen.0.ambiguous.load(Relaxed), seen.0.has_begun.load(Relaxed))
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt as _;

    use super::super::counted::Counted;
    use super::*;

    /// The number of the ambiguous request, however the bytes are cut.
    fn scanned(text: &str) -> Option<u64> {
        let results: Vec<_> = [1, 2, 7, usize::MAX]
            .into_iter()
            .map(|size| super::scanned(text.as_bytes(), size).0)
            .collect();
        assert!(results.iter().all(|result| *result == results[0]), "{results:?} of {text:?}");
        (results[0] != u64::MAX).then_some(results[0])
    }

    #[test]
    fn ambiguous_heads_are_found() {
        let good = "POST / HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc";
        let chunked = "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n\
                       3;x=y\r\na\nb\r\n0\r\nContent-Length: 1\r\n\r\n";
        let bad = "POST / HTTP/1.1\r\ncontent-length:0\r\nTRANSFER-ENCODING: chunked\r\n\r\n";
        assert_eq!(scanned(good), None);
        assert_eq!(scanned(chunked), None);
        assert_eq!(scanned(bad), Some(0));
        assert_eq!(scanned(&[good, chunked, "\r\n", good, bad, good].concat()), Some(3));
        // In a body it means nothing.
        let length = bad.len();
        let inside = format!("POST / HTTP/1.1\r\nContent-Length: {length}\r\n\r\n{bad}{good}");
        assert_eq!(scanned(&inside), None);
        let spaces = " ".repeat(500);
        assert_eq!(
            scanned(&format!("GET / HTTP/1.1\r\nContent-Length:{spaces}5\r\n\r\n")),
            Some(0)
        );
    }

    #[test]
    fn a_head_that_has_begun_is_known() {
        let seen = Heads::new();
        let mut scan = Scan::new(seen.clone());
        for (part, has_begun) in [
            ("\r\n", false),
            ("G", true),
            ("ET / HTTP/1.1\r\nHost: a\r\n", true),
            ("\r\n", false),
            ("POST / HTTP/1.1\r\nContent-Length: 5\r\n\r\nab", false),
            ("cdeGET /", true),
        ] {
            assert!(scan.feed(part.as_bytes()));
            assert_eq!(seen.0.has_begun.load(Relaxed), has_begun, "{part:?}");
        }
    }

    /// TLS flushes a lot at once. What the socket takes of it counts, before all of it is taken.
    #[tokio::test]
    async fn a_slow_flush_is_not_a_stalled_client() {
        struct Never;
        impl AsyncWrite for Never {
            fn poll_write(
                self: Pin<&mut Self>,
                _: &mut Context<'_>,
                _: &[u8],
            ) -> Poll<io::Result<usize>> {
                Poll::Pending
            }
            fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
                Poll::Pending
            }
            fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
                Poll::Pending
            }
        }
        let pause = Duration::from_millis(10);
        let (mut socket, taken) = Counted::new(tokio::io::sink());
        let mut stream = ClientStream::http2(Never, taken, pause);
        let mut flush = async || {
            std::future::poll_fn(|cx| Poll::Ready(Pin::new(&mut stream).poll_flush(cx))).await
        };
        assert!(flush().await.is_pending());
        for _ in 0..5 {
            tokio::time::sleep(2 * pause).await;
            socket.write_all(b"x").await.expect("taken");
            assert!(flush().await.is_pending());
        }
        tokio::time::sleep(2 * pause).await;
        let Poll::Ready(Err(error)) = flush().await else { panic!("nothing was taken") };
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}
