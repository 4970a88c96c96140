//! Bodies of responses on their way through, and what is done at their end.

use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use tokio::time::Instant;

use super::body::{BoxError, Broken, Pause, Progress, RequestBody};
use super::local::Local;
use super::log::Entry;
use super::metrics::Reason;
use super::pool::Key;

/// A connection that can be used again when its response is over.
pub(super) struct GiveBack {
    pub(super) local: Rc<Local>,
    pub(super) key: Key,
    pub(super) sender: http1::SendRequest<RequestBody>,
    pub(super) progress: Rc<Progress>,
}

impl GiveBack {
    /// Keeps the connection, if the whole request was sent, too.
    pub(super) fn give_back(self) {
        if self.progress.done.get() {
            self.local.pool.put(self.key, self.sender);
        }
    }
}

/// The body of a response.
pub(super) struct ResponseBody {
    source: Source,
    finish: Option<Finish>,
}

enum Source {
    Empty,
    Text(Bytes),
    Endpoint { incoming: Incoming, pause: Pause, give_back: Option<GiveBack> },
}

/// What is recorded at the end of a response.
pub(super) struct Finish {
    pub(super) local: Rc<Local>,
    pub(super) start: Instant,
    pub(super) status: u16,
    pub(super) sent: u64,
    pub(super) progress: Option<Rc<Progress>>,
    pub(super) entry: Option<Box<Entry>>,
}

impl Drop for Finish {
    fn drop(&mut self) {
        let duration = self.start.elapsed();
        let metrics = &self.local.shared.metrics;
        let received = self.progress.as_ref().map_or(0, |progress| progress.bytes.get());
        metrics.response(self.status, duration.as_micros() as u64);
        metrics.received.add(received);
        metrics.sent.add(self.sent);
        let Some(mut entry) = self.entry.take() else { return };
        (entry.received, entry.sent) = (received, self.sent);
        (entry.status, entry.duration) = (self.status, duration);
        if let Some(log) = &self.local.shared.log
            && !log.add(entry.line())
        {
            metrics.log_lost.add(1);
        }
    }
}

impl ResponseBody {
    pub(super) fn empty() -> Self {
        Self { source: Source::Empty, finish: None }
    }

    pub(super) fn text(text: Bytes) -> Self {
        Self { source: Source::Text(text), finish: None }
    }

    pub(super) fn endpoint(
        incoming: Incoming,
        pause: Duration,
        give_back: Option<GiveBack>,
    ) -> Self {
        let mut give_back = give_back;
        if incoming.is_end_stream()
            && let Some(it) = give_back.take()
        {
            it.give_back();
        }
        let pause = Pause::new(pause);
        Self { source: Source::Endpoint { incoming, pause, give_back }, finish: None }
    }

    pub(super) fn finish(mut self, finish: Finish) -> Self {
        self.finish = Some(finish);
        self
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = &mut *self;
        let frame = match &mut this.source {
            Source::Empty => return Poll::Ready(None),
            Source::Text(text) => {
                let text = std::mem::take(text);
                this.source = Source::Empty;
                Some(Ok(Frame::data(text)))
            }
            Source::Endpoint { incoming, pause, give_back } => {
                let frame = match Pin::new(&mut *incoming).poll_frame(cx) {
                    Poll::Ready(frame) => frame,
                    Poll::Pending => {
                        ready!(pause.poll(cx));
                        let broken = Broken(Reason::EndpointTimeout);
                        return Poll::Ready(Some(Err(broken.into())));
                    }
                };
                pause.end();
                let is_over = frame.is_none() || incoming.is_end_stream();
                if let Some(it) = give_back.take_if(|_| is_over) {
                    it.give_back();
                }
                frame.map(|frame| frame.map_err(Into::into))
            }
        };
        if let Some(Ok(frame)) = &frame
            && let (Some(data), Some(finish)) = (frame.data_ref(), &mut this.finish)
        {
            finish.sent += data.len() as u64;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::Empty => true,
            Source::Text(_) => false,
            Source::Endpoint { incoming, .. } => incoming.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Empty => SizeHint::with_exact(0),
            Source::Text(text) => SizeHint::with_exact(text.len() as u64),
            Source::Endpoint { incoming, .. } => incoming.size_hint(),
        }
    }
}
