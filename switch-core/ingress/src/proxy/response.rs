//! Bodies of responses on their way through, and what is done at their end.

use std::cell::{Cell, RefCell};
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
use super::pool::{Key, Slot};

/// What a response occupies of the connections to endpoints until it is over.
pub(super) enum GiveBack {
    /// A connection that can be used again.
    Connection {
        local: Rc<Local>,
        key: Key,
        sender: http1::SendRequest<RequestBody>,
        progress: Rc<Progress>,
    },
    /// A stream of a shared connection.
    Stream(#[expect(dead_code, reason = "counted until it is dropped")] Slot),
}

impl GiveBack {
    /// Keeps the connection, if the whole request was sent, too.
    pub(super) fn give_back(self) {
        if let Self::Connection { local, key, sender, progress } = self
            && progress.done.get()
        {
            local.pool.put(key, sender);
        }
    }
}

/// The part of a response that comes from an endpoint. Whoever follows the client can end it, while
/// hyper holds the body and waits for the client.
pub(super) struct Held {
    upstream: RefCell<Option<Upstream>>,
    is_released: Cell<bool>,
}

struct Upstream {
    incoming: Incoming,
    pause: Pause,
    give_back: Option<GiveBack>,
}

impl Held {
    /// Lets the endpoint go: its connection, or its stream of a shared one, ends. Returns whether
    /// there was something to end. The response is broken for the client, too.
    pub(super) fn release(&self) -> bool {
        let mut upstream = self.upstream.borrow_mut();
        let is_due = upstream.as_ref().is_some_and(|it| !it.incoming.is_end_stream());
        if is_due {
            *upstream = None;
            self.is_released.set(true);
        }
        is_due
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
    Endpoint(Rc<Held>),
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
    /// What comes from an endpoint.
    pub(super) held: Option<Rc<Held>>,
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
        // Who releases counts.
        if self.held.as_ref().is_some_and(|held| held.is_released.get()) {
            self.refused.get_or_insert(Reason::ClientStalled);
        }
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
        let upstream = RefCell::new(Some(Upstream { incoming, pause, give_back }));
        let held = Held { upstream, is_released: Cell::new(false) };
        Self { source: Source::Endpoint(Rc::new(held)), finish: None }
    }

    /// What comes from an endpoint.
    pub(super) fn held(&self) -> Option<&Rc<Held>> {
        match &self.source {
            Source::Endpoint(held) => Some(held),
            Source::Empty | Source::Text(_) => None,
        }
    }

    fn set_broken(&mut self, reason: Reason) {
        if let Some(finish) = &mut self.finish {
            finish.broken = Some(reason);
        }
    }

    pub(super) fn finish(mut self, mut finish: Finish) -> Self {
        finish.held = self.held().cloned();
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
            Source::Endpoint(held) => {
                let held = held.clone();
                let mut upstream = held.upstream.borrow_mut();
                let Some(Upstream { incoming, pause, give_back }) = &mut *upstream else {
                    return Poll::Ready(Some(Err(Broken(Reason::ClientStalled).into())));
                };
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
            Source::Endpoint(held) => {
                held.upstream.borrow().as_ref().is_some_and(|it| it.incoming.is_end_stream())
            }
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Empty => SizeHint::with_exact(0),
            Source::Text(text) => SizeHint::with_exact(text.len() as u64),
            Source::Endpoint(held) => {
                let upstream = held.upstream.borrow();
                upstream.as_ref().map_or_else(SizeHint::default, |it| it.incoming.size_hint())
            }
        }
    }
}
