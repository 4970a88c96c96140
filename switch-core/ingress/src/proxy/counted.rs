//! Counts the bytes that a client's socket takes, below TLS: whether the client reads.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// The bytes that a socket took so far.
#[derive(Clone, Debug, Default)]
pub(super) struct Taken {
    bytes: Arc<AtomicU64>,
    /// What [`grew`](Self::grew) saw last.
    seen: u64,
}

impl Taken {
    /// Whether the socket took more since the last call.
    pub(super) fn grew(&mut self) -> bool {
        let before = std::mem::replace(&mut self.seen, self.bytes.load(Relaxed));
        self.seen != before
    }

    fn add(&self, written: &Poll<io::Result<usize>>) {
        if let Poll::Ready(Ok(length)) = written {
            self.bytes.fetch_add(*length as u64, Relaxed);
        }
    }
}

/// A socket whose written bytes are counted.
#[derive(Debug)]
pub(super) struct Counted<S> {
    stream: S,
    taken: Taken,
}

impl<S> Counted<S> {
    pub(super) fn new(stream: S) -> (Self, Taken) {
        let taken = Taken::default();
        (Self { stream, taken: taken.clone() }, taken)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Counted<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Counted<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.taken.add(&result);
        result
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write_vectored(cx, bytes);
        self.taken.add(&result);
        result
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
