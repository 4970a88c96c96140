//! The frames of an HTTP/2 connection, followed below hyper: what of responses is written, and which
//! streams end. PING and SETTINGS are no progress of a client.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::activity::Activity;
use super::counted::Taken;

/// Frame types and a flag (RFC 9113 section 6).
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;

/// What a client sends first (RFC 9113 section 3.4).
const PREFACE: usize = 24;

/// The head of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Head {
    kind: u8,
    flags: u8,
    stream: u32,
}

/// Follows the frames of one direction (RFC 9113 section 4.1).
#[derive(Debug)]
struct Frames {
    /// Bytes before the first frame.
    preface: usize,
    head: [u8; 9],
    /// Bytes of `head`.
    have: usize,
    /// Bytes of the payload that are still to come.
    left: usize,
}

impl Frames {
    const fn new(preface: usize) -> Self {
        Self { preface, head: [0; 9], have: 0, left: 0 }
    }

    /// Follows bytes. `part`: called for every part of a frame, with whether the frame is complete.
    fn feed(&mut self, mut bytes: &[u8], mut part: impl FnMut(Head, bool)) {
        let skipped = self.preface.min(bytes.len());
        self.preface -= skipped;
        bytes = &bytes[skipped..];
        while !bytes.is_empty() {
            if self.have < self.head.len() {
                let length = bytes.len().min(self.head.len() - self.have);
                self.head[self.have..self.have + length].copy_from_slice(&bytes[..length]);
                self.have += length;
                bytes = &bytes[length..];
                if self.have < self.head.len() {
                    return;
                }
                let [a, b, c, ..] = self.head;
                self.left = u32::from_be_bytes([0, a, b, c]) as usize;
            }
            let length = bytes.len().min(self.left);
            self.left -= length;
            bytes = &bytes[length..];
            let [_, _, _, kind, flags, a, b, c, d] = self.head;
            let stream = u32::from_be_bytes([a, b, c, d]) & (u32::MAX >> 1);
            let is_complete = self.left == 0;
            if is_complete {
                self.have = 0;
            }
            part(Head { kind, flags, stream }, is_complete);
        }
    }
}

/// A connection on which HTTP/2 is spoken.
#[derive(Debug)]
pub(super) struct FramedStream<S> {
    stream: S,
    activity: Rc<Activity>,
    taken: Taken,
    sent: Frames,
    received: Frames,
}

impl<S> FramedStream<S> {
    pub(super) fn new(stream: S, taken: Taken, activity: Rc<Activity>) -> Self {
        let (sent, received) = (Frames::new(0), Frames::new(PREFACE));
        Self { stream, activity, taken, sent, received }
    }

    fn wrote(&mut self, bytes: &[u8]) {
        let activity = &self.activity;
        self.sent.feed(bytes, |Head { kind, flags, stream }, is_complete| match kind {
            DATA | HEADERS | CONTINUATION => {
                activity.touch();
                let is_end = kind != CONTINUATION && flags & END_STREAM != 0;
                match (is_complete, is_end) {
                    (true, true) => activity.closed(stream),
                    (true, false) if kind == HEADERS => activity.opened(stream),
                    _ => {}
                }
            }
            RST_STREAM if is_complete => activity.closed(stream),
            _ => {}
        });
    }

    /// What the socket takes of earlier bytes is progress as well.
    fn pending<T>(&mut self, result: &Poll<io::Result<T>>) {
        self.activity.set_blocked(result.is_pending());
        if self.taken.grew() && result.is_pending() {
            self.activity.touch();
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for FramedStream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let before = buffer.filled().len();
        let result = Pin::new(&mut this.stream).poll_read(cx, buffer);
        let activity = &this.activity;
        this.received.feed(&buffer.filled()[before..], |head, is_complete| {
            if head.kind == RST_STREAM && is_complete {
                activity.was_reset(head.stream);
            }
        });
        result
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for FramedStream<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write(cx, bytes);
        if let Poll::Ready(Ok(length)) = result {
            self.wrote(&bytes[..length]);
        }
        self.pending(&result);
        result
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write_vectored(cx, bytes);
        if let Poll::Ready(Ok(mut left)) = result {
            for slice in bytes {
                let length = left.min(slice.len());
                self.wrote(&slice[..length]);
                left -= length;
            }
        }
        self.pending(&result);
        result
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.stream).poll_flush(cx);
        self.pending(&result);
        result
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::AsyncReadExt as _;

    use super::super::activity::State;
    use super::*;

    fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).expect("short").to_be_bytes();
        [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
    }

    #[test]
    fn frames_are_found_however_they_are_cut() {
        let bytes = [
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
            frame(4, 0, 0, &[0; 6]),
            frame(HEADERS, 4, 1, b"abc"),
            // The highest bit is reserved.
            frame(DATA, END_STREAM, 1 | 1 << 31, &[DATA; 300]),
            frame(DATA, 0, 3, b""),
            frame(RST_STREAM, 0, 3, &[0; 4]),
        ]
        .concat();
        for size in [1, 2, 7, 9, 100, bytes.len()] {
            let mut frames = Frames::new(PREFACE);
            let mut found = Vec::new();
            for part in bytes.chunks(size) {
                frames.feed(part, |head, is_complete| {
                    if is_complete {
                        found.push((head.kind, head.flags, head.stream));
                    }
                });
            }
            let expected =
                [(4, 0, 0), (HEADERS, 4, 1), (DATA, 1, 1), (DATA, 0, 3), (RST_STREAM, 0, 3)];
            assert_eq!(found, expected, "parts of {size}");
        }
    }

    /// A response's head that was under way when the client reset the stream opens it no more.
    #[tokio::test]
    async fn a_late_head_opens_no_stream() {
        let (none, long) = (Duration::ZERO, Duration::from_secs(3600));
        let reset = frame(RST_STREAM, 0, 3, &[0; 4]);
        let bytes = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), reset].concat();
        let activity = Activity::new();
        let mut stream = FramedStream::new(&bytes[..], Taken::default(), activity.clone());
        stream.read_to_end(&mut Vec::new()).await.expect("all of it");
        stream.wrote(&frame(HEADERS, 4, 3, b"abc"));
        assert_eq!(activity.state(none, long), State::Idle);
        stream.wrote(&frame(HEADERS, 4, 5, b"abc"));
        assert!(matches!(activity.state(none, long), State::Good(_)), "the client has to read it");
    }
}
