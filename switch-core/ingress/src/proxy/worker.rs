//! A worker: one thread with one runtime, its listeners and its connections.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::TcpListener as StdListener;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use hashbrown::HashSet;
use ring::rand::{SecureRandom as _, SystemRandom};
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::watch;
use tokio::task::{LocalSet, spawn_local};
use tokio::time::{interval, sleep, timeout};

use super::connection;
use super::local::{Local, Open};
use super::metrics::Reason;
use super::pool::Pool;
use super::shared::Shared;

/// How often connections to endpoints are looked after.
const SWEEP: Duration = Duration::from_secs(5);

/// The pause after an error of `accept` that lasts, such as no free descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

pub(super) struct Listeners {
    pub(super) http: Option<StdListener>,
    pub(super) https: Option<StdListener>,
}

/// Seeds of the workers differ.
static WORKERS: AtomicU64 = AtomicU64::new(0);

/// A worker before it runs.
pub(super) struct Worker {
    runtime: Runtime,
    shared: Arc<Shared>,
    /// With whether TLS is spoken.
    listeners: Vec<(TcpListener, bool)>,
    stopped: watch::Receiver<Option<Duration>>,
}

impl Worker {
    pub(super) fn prepare(
        shared: Arc<Shared>,
        listeners: Listeners,
        stopped: watch::Receiver<Option<Duration>>,
    ) -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_io().enable_time().build()?;
        let entered = runtime.enter();
        let all = [(listeners.http, false), (listeners.https, true)];
        let listeners = all
            .into_iter()
            .filter_map(|(listener, is_tls)| Some((listener?, is_tls)))
            .map(|(listener, is_tls)| Ok((TcpListener::from_std(listener)?, is_tls)))
            .collect::<io::Result<_>>()?;
        drop(entered);
        Ok(Self { runtime, shared, listeners, stopped })
    }

    /// Serves until the proxy stops.
    pub(super) fn run(self) {
        let Self { runtime, shared, listeners, stopped } = self;
        let mut seed = [0; 8];
        _ = SystemRandom::new().fill(&mut seed);
        let seed = u64::from_ne_bytes(seed) ^ WORKERS.fetch_add(1, Relaxed);
        let pool = Pool::new(shared.options.idle_connections, shared.options.idle_timeout);
        let local = Rc::new(Local {
            shared,
            pool,
            stopped,
            turns: RefCell::default(),
            random: Cell::new(seed | 1),
            open: Cell::new(0),
        });
        LocalSet::new().block_on(&runtime, serve(local, listeners));
    }
}

async fn serve(local: Rc<Local>, listeners: Vec<(TcpListener, bool)>) {
    let accepting: Vec<_> = listeners
        .into_iter()
        .map(|(listener, is_tls)| spawn_local(accept(local.clone(), listener, is_tls)))
        .collect();
    spawn_local(look_after(local.clone()));
    let mut stopped = local.stopped.clone();
    let patience = match stopped.wait_for(Option::is_some).await {
        Ok(patience) => patience.unwrap_or_default(),
        Err(_) => Duration::ZERO,
    };
    for task in accepting {
        task.abort();
    }
    let drained = async {
        while local.open.get() > 0 {
            sleep(Duration::from_millis(20)).await;
        }
    };
    _ = timeout(patience, drained).await;
}

async fn accept(local: Rc<Local>, listener: TcpListener, is_tls: bool) {
    loop {
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
            Err(_) => {
                local.shared.metrics.accept_errors.add(1);
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let metrics = &local.shared.metrics;
        metrics.connections.add(1);
        if metrics.open.get() >= local.shared.options.max_connections as u64 {
            metrics.refused(Reason::ConnectionLimit);
            continue;
        }
        let open = Open::new(local.clone());
        let task = connection::serve(local.clone(), stream, peer, is_tls);
        spawn_local(async move {
            let _open = open;
            task.await;
        });
    }
}

/// Lets go of connections to endpoints that are idle for too long or gone.
async fn look_after(local: Rc<Local>) {
    let mut ticks = interval(SWEEP);
    let mut known = Arc::as_ptr(&local.shared.state.load_full()) as usize;
    loop {
        ticks.tick().await;
        local.pool.sweep();
        let state = local.shared.state.load_full();
        if known != Arc::as_ptr(&state) as usize {
            known = Arc::as_ptr(&state) as usize;
            let backends = || state.routes.all().map(|route| &route.backend);
            let endpoints: HashSet<_> =
                backends().flat_map(|backend| backend.endpoints.iter().copied()).collect();
            local.pool.retain(|endpoint| endpoints.contains(&endpoint));
            let names: HashSet<&str> = backends().map(|backend| &*backend.name).collect();
            local.turns.borrow_mut().retain(|name, _| names.contains(&**name));
        }
    }
}
