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
    /// Why the request was refused; that is counted already.
    pub(super) refused: Option<Reason>,
    /// Why the body of the response ended early.
    pub(super) broken: Option<Reason>,
    pub(super) entry: Option<Box<Entry>>,
}

impl Finish {
    /// Why the exchange broke after its response had begun. A request's body that breaks may end the
    /// endpoint's response: it goes first.
    fn broken(&self) -> Option<Reason> {
        let fault = self.progress.as_ref().and_then(|progress| progress.fault.get());
        fault.or(self.broken).filter(|_| self.refused.is_none())
    }
}

impl Drop for Finish {
    fn drop(&mut self) {
        let duration = self.start.elapsed();
        let metrics = &self.local.shared.metrics;
        let received = self.progress.as_ref().map_or(0, |progress| progress.bytes.get());
        metrics.response(self.status, duration.as_micros() as u64);
        metrics.received.add(received);
        metrics.sent.add(self.sent);
        let broken = self.broken();
        if let Some(reason) = broken {
            metrics.refused(reason);
        }
        let Some(mut entry) = self.entry.take() else { return };
        (entry.received, entry.sent) = (received, self.sent);
        (entry.status, entry.duration) = (self.status, duration);
        entry.reason = self.refused.or(broken).map(Reason::name);
        if let Some(log) = &self.local.shared.log {
            log.add(entry.line());
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

    fn set_broken(&mut self, reason: Reason) {
        if let Some(finish) = &mut self.finish {
            finish.broken = Some(reason);
        }
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
                        let reason = Reason::EndpointTimeout;
                        this.set_broken(reason);
                        return Poll::Ready(Some(Err(Broken(reason).into())));
                    }
                };
                pause.end();
                let is_over = frame.is_none() || incoming.is_end_stream();
                if let Some(it) = give_back.take_if(|_| is_over) {
                    it.give_back();
                }
                if matches!(frame, Some(Err(_))) {
                    this.set_broken(Reason::Endpoint);
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
