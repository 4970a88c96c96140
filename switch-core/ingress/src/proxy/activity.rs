//! What goes on on an HTTP/2 connection: when it is idle, or its client takes no response.

use std::cell::{Cell, RefCell};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hashbrown::HashMap;
use http_body::{Body, Frame, SizeHint};
use tokio::time::Instant;

use super::body::BoxError;
use super::response::ResponseBody;

/// The requests of a connection.
#[derive(Debug)]
pub(super) struct Activity {
    /// Since when the client has not taken more of a response; None: it is not the client's turn.
    exchanges: RefCell<HashMap<u64, Option<Instant>>>,
    next: Cell<u64>,
    /// When the last exchange ended.
    last: Cell<Instant>,
}

/// What a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Good until then, at least.
    Good(Instant),
    /// Without a request for too long.
    Idle,
    /// The client takes nothing of a response.
    Stalled,
}

impl Activity {
    pub(super) fn new() -> Rc<Self> {
        Rc::new(Self {
            exchanges: RefCell::default(),
            next: Cell::new(0),
            last: Cell::new(Instant::now()),
        })
    }

    /// Begins an exchange.
    pub(super) fn begin(self: &Rc<Self>) -> Exchange {
        let number = self.next.get();
        self.next.set(number + 1);
        self.exchanges.borrow_mut().insert(number, None);
        Exchange { activity: self.clone(), number }
    }

    /// Idle time begins again.
    pub(super) fn touch(&self) {
        self.last.set(Instant::now());
    }

    pub(super) fn state(&self, idle: Duration, pause: Duration) -> State {
        let now = Instant::now();
        let exchanges = self.exchanges.borrow();
        let (end, late) = if exchanges.is_empty() {
            (self.last.get() + idle, State::Idle)
        } else {
            let oldest = exchanges.values().flatten().min();
            (oldest.map_or(now, |oldest| *oldest) + pause, State::Stalled)
        };
        if end <= now { late } else { State::Good(end.min(now + idle.min(pause))) }
    }
}

/// A request until the end of its response.
#[derive(Debug)]
pub(super) struct Exchange {
    activity: Rc<Activity>,
    number: u64,
}

impl Exchange {
    fn set(&self, since: Option<Instant>) {
        self.activity.exchanges.borrow_mut().insert(self.number, since);
    }

    /// Follows the body of the response.
    pub(super) fn follow(self, body: ResponseBody) -> Followed {
        self.set(Some(Instant::now()));
        Followed { body, exchange: self }
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.activity.exchanges.borrow_mut().remove(&self.number);
        self.activity.touch();
    }
}

/// A body that reports when the client takes it: hyper polls it for more only when there is room.
pub(super) struct Followed {
    body: ResponseBody,
    exchange: Exchange,
}

impl Body for Followed {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        self.exchange.set(frame.is_ready().then(Instant::now));
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(3600);

    #[test]
    fn states() {
        let activity = Activity::new();
        assert_eq!(activity.state(Duration::ZERO, LONG), State::Idle);
        assert!(matches!(activity.state(LONG, LONG), State::Good(_)));
        let exchange = activity.begin();
        assert!(matches!(activity.state(Duration::ZERO, LONG), State::Good(_)));
        let followed = exchange.follow(ResponseBody::empty());
        assert!(matches!(activity.state(Duration::ZERO, LONG), State::Good(_)));
        assert_eq!(activity.state(LONG, Duration::ZERO), State::Stalled);
        // The endpoint's turn.
        followed.exchange.set(None);
        assert!(matches!(activity.state(LONG, LONG), State::Good(_)));
        drop(followed);
        assert_eq!(activity.state(Duration::ZERO, LONG), State::Idle);
    }
}
