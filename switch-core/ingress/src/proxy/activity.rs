//! What goes on on an HTTP/2 connection: when it is idle, or its client takes no response.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hashbrown::{HashMap, HashSet};
use http_body::{Body, Frame, SizeHint};
use tokio::time::Instant;

use super::body::BoxError;
use super::response::{Held, ResponseBody};

/// Streams whose responses are followed at most: more than a connection may have.
const MOST_OPEN: usize = 4096;

/// The requests of a connection.
#[derive(Debug)]
pub(super) struct Activity {
    exchanges: RefCell<HashMap<u64, Turn>>,
    next: Cell<u64>,
    /// When the client last took a part of a response, or an exchange ended.
    last: Cell<Instant>,
    /// Streams with a response whose end is not written: hyper and h2 keep what the client's window
    /// has no room for, after the exchange is over.
    open: RefCell<HashSet<u32>>,
    /// Streams that the client reset before the head of a response was written. The head may be on
    /// its way still.
    reset: RefCell<HashSet<u32>>,
    /// The connection takes nothing more at the moment.
    is_blocked: Cell<bool>,
}

/// Whose turn it is in an exchange.
#[derive(Default)]
struct Turn {
    /// Since when the client has not taken more of a response; None: it is not the client's turn.
    since: Option<Instant>,
    /// What holds the endpoint.
    held: Option<Rc<Held>>,
}

impl fmt::Debug for Turn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.since.fmt(f)
    }
}

/// What a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Good until then, at least.
    Good(Instant),
    /// Without a request for too long.
    Idle,
    /// The client takes nothing of any response.
    Stalled,
}

impl Activity {
    pub(super) fn new() -> Rc<Self> {
        Rc::new(Self {
            exchanges: RefCell::default(),
            next: Cell::new(0),
            last: Cell::new(Instant::now()),
            open: RefCell::default(),
            reset: RefCell::default(),
            is_blocked: Cell::new(false),
        })
    }

    /// Begins an exchange.
    pub(super) fn begin(self: &Rc<Self>) -> Exchange {
        let number = self.next.get();
        self.next.set(number + 1);
        self.exchanges.borrow_mut().insert(number, Turn::default());
        Exchange { activity: self.clone(), number }
    }

    /// The client took something, or idle time begins again.
    pub(super) fn touch(&self) {
        self.last.set(Instant::now());
    }

    /// The head of a response was written, without the end of the stream.
    pub(super) fn opened(&self, stream: u32) {
        let mut open = self.open.borrow_mut();
        if !self.reset.borrow_mut().remove(&stream) && open.len() < MOST_OPEN {
            open.insert(stream);
        }
    }

    /// The end of a stream was written, or the proxy reset it.
    pub(super) fn closed(&self, stream: u32) {
        self.open.borrow_mut().remove(&stream);
    }

    /// The client reset a stream.
    pub(super) fn was_reset(&self, stream: u32) {
        if self.open.borrow_mut().remove(&stream) {
            return;
        }
        let mut reset = self.reset.borrow_mut();
        // Most never have a head.
        if reset.len() >= MOST_OPEN {
            reset.clear();
        }
        reset.insert(stream);
    }

    pub(super) fn set_blocked(&self, is_blocked: bool) {
        self.is_blocked.set(is_blocked);
    }

    /// `idle`: the longest time without a request. `pause`: the longest time in which the client
    /// takes nothing, although it is its turn in every exchange. One stream that the client pauses
    /// does not end the others.
    pub(super) fn state(&self, idle: Duration, pause: Duration) -> State {
        let now = Instant::now();
        let next = now + idle.min(pause);
        let exchanges = self.exchanges.borrow();
        // While an endpoint has its turn, its own time limits apply.
        if exchanges.values().any(|turn| turn.since.is_none()) {
            return State::Good(next);
        }
        let is_client_due =
            !exchanges.is_empty() || !self.open.borrow().is_empty() || self.is_blocked.get();
        let newest = exchanges.values().filter_map(|turn| turn.since).max();
        let last = newest.map_or(self.last.get(), |newest| self.last.get().max(newest));
        let (end, late) =
            if is_client_due { (last + pause, State::Stalled) } else { (last + idle, State::Idle) };
        if end <= now { late } else { State::Good(end.min(next)) }
    }

    /// Lets go of the endpoints of responses of which the client has taken nothing for `pause`, while
    /// it may take others. Returns how many there were.
    pub(super) fn release(&self, pause: Duration) -> usize {
        let now = Instant::now();
        let mut exchanges = self.exchanges.borrow_mut();
        let late = exchanges.values_mut().filter(|it| it.since.is_some_and(|at| at + pause <= now));
        late.filter_map(|it| it.held.take()).filter(|held| held.release()).count()
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
        if let Some(turn) = self.activity.exchanges.borrow_mut().get_mut(&self.number) {
            turn.since = since;
        }
    }

    /// Follows the body of the response.
    pub(super) fn follow(self, body: ResponseBody) -> Followed {
        let turn = Turn { since: Some(Instant::now()), held: body.held().cloned() };
        self.activity.exchanges.borrow_mut().insert(self.number, turn);
        Followed { body, rest: Bytes::new(), exchange: self }
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.activity.exchanges.borrow_mut().remove(&self.number);
        self.activity.touch();
    }
}

/// What hyper is given at once, in bytes: a frame (RFC 9113 section 4.2). A client that takes less
/// for the time of a pause has paused the stream.
const PART: usize = 16 << 10;

/// A body that reports when the client takes it: hyper polls one part ahead of what it has room for.
pub(super) struct Followed {
    body: ResponseBody,
    /// What came with the last part.
    rest: Bytes,
    exchange: Exchange,
}

impl Body for Followed {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let mut frame = match self.rest.is_empty() {
            true => Pin::new(&mut self.body).poll_frame(cx),
            false => Poll::Ready(Some(Ok(Frame::data(std::mem::take(&mut self.rest))))),
        };
        if let Poll::Ready(Some(Ok(frame))) = &mut frame
            && let Some(data) = frame.data_mut().filter(|data| data.len() > PART)
        {
            self.rest = data.split_off(PART);
        }
        self.exchange.set(frame.is_ready().then(Instant::now));
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (hint, rest) = (self.body.size_hint(), self.rest.len() as u64);
        let mut all = SizeHint::new();
        all.set_lower(hint.lower() + rest);
        if let Some(upper) = hint.upper() {
            all.set_upper(upper + rest);
        }
        all
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
        assert!(matches!(activity.state(Duration::ZERO, Duration::ZERO), State::Good(_)));
        let followed = exchange.follow(ResponseBody::empty());
        assert!(matches!(activity.state(Duration::ZERO, LONG), State::Good(_)));
        assert_eq!(activity.state(LONG, Duration::ZERO), State::Stalled);
        // The endpoint's turn in another exchange.
        let other = activity.begin();
        assert!(matches!(activity.state(LONG, Duration::ZERO), State::Good(_)));
        drop(other);
        followed.exchange.set(None);
        assert!(matches!(activity.state(LONG, Duration::ZERO), State::Good(_)));
        drop(followed);
        assert_eq!(activity.state(Duration::ZERO, LONG), State::Idle);
    }

    /// After the exchange, the client has the time of a pause for what is not written.
    #[test]
    fn the_rest_of_a_response_is_not_idle_time() {
        let activity = Activity::new();
        activity.opened(1);
        assert!(matches!(activity.state(Duration::ZERO, LONG), State::Good(_)));
        assert_eq!(activity.state(LONG, Duration::ZERO), State::Stalled);
        activity.closed(1);
        assert_eq!(activity.state(Duration::ZERO, LONG), State::Idle);
        activity.set_blocked(true);
        assert!(matches!(activity.state(Duration::ZERO, LONG), State::Good(_)));
        activity.set_blocked(false);
        assert_eq!(activity.state(Duration::ZERO, LONG), State::Idle);
    }

    /// With a pause that is over for the paused stream, but not since the last part of another one.
    #[test]
    fn what_the_client_takes_of_one_stream_keeps_the_others() {
        let activity = Activity::new();
        let _paused = activity.begin().follow(ResponseBody::empty());
        std::thread::sleep(Duration::from_millis(2));
        let since = activity.exchanges.borrow()[&0].since.expect("the client's turn");
        assert_eq!(activity.state(LONG, Duration::from_millis(1)), State::Stalled);
        activity.touch();
        let State::Good(until) = activity.state(2 * LONG, LONG) else { panic!("it moves") };
        assert!(until > since + LONG);
    }
}
