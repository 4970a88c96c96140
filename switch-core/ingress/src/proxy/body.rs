//! Bodies of requests on their way through: limits and time-outs.

use std::cell::Cell;
use std::error::Error;
use std::fmt;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::{Instant, Sleep, sleep};

use super::metrics::Reason;

/// Why a body ends early.
#[derive(Debug)]
pub(super) struct Broken(pub(super) Reason);

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.name())
    }
}

impl Error for Broken {}

pub(super) type BoxError = Box<dyn Error + Send + Sync>;

/// The longest pause.
#[derive(Debug)]
pub(super) struct Pause {
    most: Duration,
    sleep: Option<Pin<Box<Sleep>>>,
    is_over: bool,
}

impl Pause {
    pub(super) fn new(most: Duration) -> Self {
        Self { most, sleep: None, is_over: true }
    }

    /// There was progress.
    pub(super) fn end(&mut self) {
        self.is_over = true;
    }

    /// Ready when the pause is too long.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let most = self.most;
        let sleep = self.sleep.get_or_insert_with(|| Box::pin(sleep(most)));
        if std::mem::take(&mut self.is_over) {
            sleep.as_mut().reset(Instant::now() + most);
        }
        sleep.as_mut().poll(cx)
    }
}

/// What became of a request's body.
#[derive(Debug, Default)]
pub(super) struct Progress {
    /// The whole body was passed on.
    pub(super) done: Cell<bool>,
    /// Why it ended early.
    pub(super) fault: Cell<Option<Reason>>,
    /// Bytes so far.
    pub(super) bytes: Cell<u64>,
}

/// The body of a request.
#[derive(Debug)]
pub(super) struct RequestBody {
    incoming: Option<Incoming>,
    most: Option<u64>,
    pause: Pause,
    progress: Rc<Progress>,
}

impl RequestBody {
    /// `most`: bytes.
    pub(super) fn new(incoming: Incoming, most: Option<u64>, pause: Duration) -> Self {
        let progress = Rc::new(Progress::default());
        progress.done.set(incoming.is_end_stream());
        Self { incoming: Some(incoming), most, pause: Pause::new(pause), progress }
    }

    /// None, for a request that is sent again.
    pub(super) fn empty(progress: Rc<Progress>) -> Self {
        Self { incoming: None, most: None, pause: Pause::new(Duration::ZERO), progress }
    }

    pub(super) fn progress(&self) -> &Rc<Progress> {
        &self.progress
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = &mut *self;
        let Some(incoming) = &mut this.incoming else { return Poll::Ready(None) };
        let fail = |reason: Reason| {
            this.progress.fault.set(Some(reason));
            Poll::Ready(Some(Err(Broken(reason).into())))
        };
        match Pin::new(&mut *incoming).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                this.pause.end();
                let length = frame.data_ref().map_or(0, |data| data.len() as u64);
                let bytes = this.progress.bytes.get() + length;
                this.progress.bytes.set(bytes);
                if this.most.is_some_and(|most| bytes > most) {
                    return fail(Reason::BodyTooLarge);
                }
                this.progress.done.set(this.progress.done.get() || incoming.is_end_stream());
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(_))) => fail(Reason::Body),
            Poll::Ready(None) => {
                this.progress.done.set(true);
                Poll::Ready(None)
            }
            Poll::Pending => {
                ready!(this.pause.poll(cx));
                fail(Reason::BodyTimeout)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.as_ref().map_or(SizeHint::with_exact(0), Body::size_hint)
    }
}
