//! What the tasks that follow the API server tell the thread that owns the store: bounded, so that a store that is
//! slower than the API server slows the reading down and memory stays as it is.

use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

use podswitch_core::id::Cookie;
use podswitch_core::time::Clock;
use podswitch_kubernetes::{Kind, Object};
use tokio::sync::mpsc;

/// Messages in the queue, of up to [`BATCH`] objects each.
const QUEUE: usize = 8;
/// Objects in a message.
pub(crate) const BATCH: usize = 256;

/// Which pods are listed and watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PodScope {
    /// Those of this node.
    Node,
    /// All of the cluster: a policy names pods or namespaces as peers.
    Cluster,
}

/// See the module's description.
#[derive(Debug)]
pub(crate) enum Message {
    /// A list begins: what it does not have is gone when it ends.
    ListBegins(Kind),
    /// Objects that are there now.
    Objects(Kind, Vec<Object>),
    /// An object is gone.
    Deleted(Cookie),
    /// A list has ended. Of pods: which were listed.
    ListEnds(Kind, PodScope),
    /// Something that came is no object: why.
    Unreadable(Kind, String),
}

/// What both sides know.
#[derive(Debug)]
pub(crate) struct Shared {
    clock: Clock,
    /// When the API server answered last, in ms of `clock`; 0: never.
    answered: AtomicU64,
    /// Why it did not, if it did not.
    error: Mutex<Option<String>>,
    wake: UnixStream,
}

impl Shared {
    /// The API server answered.
    pub(crate) fn answered(&self) {
        let now = self.clock.now().since(podswitch_core::time::Instant::default());
        self.answered.store(u64::try_from(now.as_millis()).unwrap_or(u64::MAX).max(1), Relaxed);
    }

    /// The API server did not answer, or refuses a request.
    pub(crate) fn failed(&self, reason: String) {
        let mut error = self.error.lock().unwrap_or_else(PoisonError::into_inner);
        // Once an outage; each new try has an event of its own.
        if error.is_none() {
            tracing::warn!(target: "kubernetes", reason, "the API server does not answer, or refuses");
        }
        *error = Some(reason);
    }

    /// What went well ends what went wrong.
    pub(crate) fn recovered(&self) {
        let mut error = self.error.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(earlier) = error.take() {
            tracing::info!(target: "kubernetes", earlier, "the API server answers again");
        }
    }

    /// Why the API server does not answer.
    pub(crate) fn error(&self) -> Option<String> {
        self.error.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How long ago the API server answered, in ms; since the source began if it never did.
    pub(crate) fn silence_ms(&self) -> u64 {
        let now = self.clock.now().since(podswitch_core::time::Instant::default());
        u64::try_from(now.as_millis())
            .unwrap_or(u64::MAX)
            .saturating_sub(self.answered.load(Relaxed))
    }

    /// Wakes the thread that owns the store.
    pub(crate) fn wake(&self) {
        // Full: it is woken already.
        let _ = (&self.wake).write(&[1]);
    }
}

/// The tasks' end.
#[derive(Clone, Debug)]
pub(crate) struct Feed {
    sender: mpsc::Sender<Message>,
    pub(crate) shared: Arc<Shared>,
}

impl Feed {
    /// Hands a message over. Returns false if nobody takes it any more.
    pub(crate) async fn send(&self, message: Message) -> bool {
        let sent = self.sender.send(message).await.is_ok();
        self.shared.wake();
        sent
    }
}

/// The store's end.
#[derive(Debug)]
pub(crate) struct Inbox {
    receiver: mpsc::Receiver<Message>,
    wake: UnixStream,
}

impl Inbox {
    /// The next message, if one is there.
    pub(crate) fn next(&mut self) -> Option<Message> {
        self.receiver.try_recv().ok()
    }

    /// Takes back that there is something to do. Before [`next`](Self::next), or what comes in between is missed.
    pub(crate) fn clear(&mut self) {
        let mut noted = [0; 256];
        while matches!(self.wake.read(&mut noted), Ok(n) if n > 0) {}
    }

    /// Readable when there is something to do.
    pub(crate) fn wake_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }
}

/// Both ends.
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
