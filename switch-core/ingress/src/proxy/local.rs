//! What the connections of a worker share.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use hashbrown::HashMap;
use tokio::sync::watch;
use tokio::task::spawn_local;

use super::pool::Pool;
use super::shared::Shared;

/// What the connections of a worker share.
#[derive(Debug)]
pub(super) struct Local {
    pub(super) shared: Arc<Shared>,
    pub(super) pool: Pool,
    pub(super) stopped: watch::Receiver<Option<Duration>>,
    /// The next endpoint, by backend.
    pub(super) turns: RefCell<HashMap<Box<str>, usize>>,
    pub(super) random: Cell<u64>,
    pub(super) open: Cell<usize>,
}

impl Local {
    /// The number of the endpoint whose turn it is.
    pub(super) fn turn(&self, backend: &str) -> usize {
        let mut turns = self.turns.borrow_mut();
        let turn = match turns.get_mut(backend) {
            Some(turn) => turn,
            // Workers do not begin with the same one.
            None => turns.entry(backend.into()).or_insert(self.random() as usize),
        };
        *turn = turn.wrapping_add(1);
        *turn
    }

    /// Not secret: xorshift64*.
    pub(super) fn random(&self) -> u64 {
        let mut x = self.random.get();
        x ^= x >> 12;
        x ^= x << 25;
        x ^= x >> 27;
        self.random.set(x);
        x.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub(super) fn request_id(&self) -> String {
        format!("{:016x}{:016x}", self.random(), self.random())
    }

    /// A task that counts as an open connection.
    pub(super) async fn tunnel(self: Rc<Self>, task: impl Future<Output = ()>) {
        let _open = Open::new(self);
        task.await;
    }
}

/// A connection that is counted while it is open.
pub(super) struct Open(Rc<Local>);

impl Open {
    pub(super) fn new(local: Rc<Local>) -> Self {
        local.open.set(local.open.get() + 1);
        local.shared.metrics.open.add(1);
        Self(local)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.set(self.0.open.get() - 1);
        self.0.shared.metrics.open.sub(1);
    }
}

/// Runs tasks of HTTP/2 connections on the worker's own thread.
#[derive(Clone, Copy, Debug)]
pub(super) struct LocalExecutor;

impl<F> hyper::rt::Executor<F> for LocalExecutor
where
    F: Future<Output = ()> + 'static,
{
    fn execute(&self, task: F) {
        spawn_local(task);
    }
}
