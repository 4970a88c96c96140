//! Messages from the tasks that follow the API server to the thread that owns the store. The queue
//! is bounded: if the store is slower than the API server, reading slows down and memory use stays
//! constant.

use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

use podswitch_core::id::Cookie;
use podswitch_core::time::Clock;
use podswitch_kubernetes::{Kind, Object};
use tokio::sync::mpsc;

/// Messages in the queue, each with up to [`BATCH`] objects.
const QUEUE: usize = 8;
/// Objects per message.
pub(crate) const BATCH: usize = 256;

/// Which pods are listed and watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PodScope {
    /// The pods of this node.
    Node,
    /// All pods of the cluster: a policy names pods or namespaces as peers.
    Cluster,
}

/// See the module's description.
#[derive(Debug)]
pub(crate) enum Message {
    /// A list begins. Objects that it does not contain are gone when it ends.
    ListBegins(Kind),
    /// Objects that exist now.
    Objects(Kind, Vec<Object>),
    /// An object was deleted.
    Deleted(Cookie),
    /// A list has ended. For pods: the scope that was listed.
    ListEnds(Kind, PodScope),
    /// A received item could not be decoded, and why.
    Unreadable(Kind, String),
}

/// State shared by the tasks and the store's thread.
#[derive(Debug)]
pub(crate) struct Shared {
    clock: Clock,
    /// Time of the API server's last response, in ms of `clock`; 0: never.
    answered: AtomicU64,
    /// The last error, if the last request failed.
    error: Mutex<Option<String>>,
    wake: UnixStream,
}

impl Shared {
    /// Records that the API server responded.
    pub(crate) fn answered(&self) {
        let now = self.clock.now().since(podswitch_core::time::Instant::default());
        self.answered.store(u64::try_from(now.as_millis()).unwrap_or(u64::MAX).max(1), Relaxed);
    }

    /// Records that the API server did not respond or refused a request.
    pub(crate) fn failed(&self, reason: String) {
        let mut error = self.error.lock().unwrap_or_else(PoisonError::into_inner);
        // Logged once per outage. Each retry is logged separately.
        if error.is_none() {
            tracing::warn!(target: "kubernetes", reason, "the API server does not respond or refuses requests");
        }
        *error = Some(reason);
    }

    /// Clears the error after a successful request.
    pub(crate) fn recovered(&self) {
        let mut error = self.error.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(earlier) = error.take() {
            tracing::info!(target: "kubernetes", earlier, "the API server responds again");
        }
    }

    /// The last error, if the last request failed.
    pub(crate) fn error(&self) -> Option<String> {
        self.error.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Time since the API server's last response, in ms. If it never responded: since the source
    /// started.
    pub(crate) fn silence_ms(&self) -> u64 {
        let now = self.clock.now().since(podswitch_core::time::Instant::default());
        u64::try_from(now.as_millis())
            .unwrap_or(u64::MAX)
            .saturating_sub(self.answered.load(Relaxed))
    }

    /// Wakes the thread that owns the store.
    pub(crate) fn wake(&self) {
        // If the socket is full, the thread is already woken.
        let _ = (&self.wake).write(&[1]);
    }
}

/// The sending side, used by the tasks.
#[derive(Clone, Debug)]
pub(crate) struct Feed {
    sender: mpsc::Sender<Message>,
    pub(crate) shared: Arc<Shared>,
}

impl Feed {
    /// Sends a message. Returns false if the receiver is gone.
    pub(crate) async fn send(&self, message: Message) -> bool {
        let sent = self.sender.send(message).await.is_ok();
        self.shared.wake();
        sent
    }
}

/// The receiving side, used by the thread that owns the store.
#[derive(Debug)]
pub(crate) struct Inbox {
    receiver: mpsc::Receiver<Message>,
    wake: UnixStream,
}

impl Inbox {
    /// The next message, if one is queued.
    pub(crate) fn next(&mut self) -> Option<Message> {
        self.receiver.try_recv().ok()
    }

    /// Clears the wake-up. Call it before [`next`](Self::next), or a message that arrives in
    /// between is missed.
    pub(crate) fn clear(&mut self) {
        let mut noted = [0; 256];
        while matches!(self.wake.read(&mut noted), Ok(n) if n > 0) {}
    }

    /// Readable when messages are queued.
    pub(crate) fn wake_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }
}

/// Creates the queue: both sides.
pub(crate) fn feed() -> std::io::Result<(Feed, Inbox)> {
    let (wake, woken) = UnixStream::pair()?;
    wake.set_nonblocking(true)?;
    woken.set_nonblocking(true)?;
    let (sender, receiver) = mpsc::channel(QUEUE);
    let shared = Shared {
        clock: Clock::start(),
        answered: AtomicU64::new(0),
        error: Mutex::default(),
        wake,
    };
    Ok((Feed { sender, shared: Arc::new(shared) }, Inbox { receiver, wake: woken }))
}
