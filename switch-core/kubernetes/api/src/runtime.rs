//! The thread that communicates with the API server.

use std::fmt;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;

use podswitch_kubernetes::Kind;
use tokio::runtime::{Builder, Handle};
use tokio::sync::{oneshot, watch};

use crate::agent::{self, Agent};
use crate::error::ApiError;
use crate::feed::{Inbox, PodScope, Shared, feed};
use crate::options::ApiOptions;
use crate::servers::{Access, Servers};
use crate::view::ApiView;
use crate::watch::Follower;

/// The thread. It ends when this is dropped.
pub(crate) struct Runtime {
    scope: watch::Sender<Option<PodScope>>,
    servers: Arc<Servers>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl fmt::Debug for Runtime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Runtime").field("servers", &self.servers).finish_non_exhaustive()
    }
}

/// What the owner of the thread receives.
pub(crate) struct Started {
    pub(crate) inbox: Inbox,
    pub(crate) shared: Arc<Shared>,
    pub(crate) agent: Agent,
    pub(crate) view: Arc<ApiView>,
}

/// The result of starting the thread.
struct Begun {
    started: Started,
    servers: Arc<Servers>,
}

impl Runtime {
    /// Starts the thread.
    ///
    /// # Errors
    /// There are no credentials, or the system cannot create the thread.
    pub(crate) fn start(options: &ApiOptions, access: Access) -> Result<(Self, Started), ApiError> {
        let (stop, stopped) = oneshot::channel();
        let (scope, wanted) = watch::channel(None);
        let (begun, begins) = channel();
        let options = options.clone();
        let run = move || {
            if let Some(hook) = options.on_thread_start {
                hook();
            }
            let runtime = match Builder::new_current_thread().enable_all().build() {
                Ok(runtime) => runtime,
                Err(error) => return drop(begun.send(Err(system("a runtime", &error)))),
            };
            let handle = runtime.handle().clone();
            runtime.block_on(async move {
                if begin(options, access, wanted, handle, &begun).await {
                    // `stopped` resolves when the source is dropped.
                    let _ = stopped.await;
                }
            });
            // Name lookups run on threads of their own; do not wait for them.
            runtime.shutdown_background();
        };
        let thread = std::thread::Builder::new().name("podswitch-api".into()).spawn(run);
        let thread = thread.map_err(|error| system("a thread", &error))?;
        let begun = begins.recv().map_err(|_| ApiError::System("the API thread ended".into()))?;
        let Begun { started, servers } = begun?;
        let runtime = Self { scope, servers, stop: Some(stop), thread: Some(thread) };
        Ok((runtime, started))
    }

    /// Sets which pods are watched from now on.
    pub(crate) fn set_scope(&self, scope: PodScope) {
        self.scope.send_replace(Some(scope));
    }

    /// Sets the endpoints of the Service `default/kubernetes`.
    pub(crate) fn set_endpoints(&self, endpoints: &[String]) {
        self.servers.set_endpoints(endpoints);
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            // The thread returns no result.
            let _ = thread.join();
        }
    }
}

fn system(what: &str, error: &std::io::Error) -> ApiError {
    ApiError::System(format!("cannot create {what}: {error}"))
}

/// Starts all tasks. Returns whether that succeeded.
async fn begin(
    options: ApiOptions,
    access: Access,
    scope: watch::Receiver<Option<PodScope>>,
    handle: Handle,
    begun: &Sender<Result<Begun, ApiError>>,
) -> bool {
    let result = async {
        let servers = Arc::new(Servers::open(access).await?);
        let (feed, inbox) = feed().map_err(|error| system("a pair of sockets", &error))?;
        let (agent, writes) = agent::agent(options.write_status);
        let shared = feed.shared.clone();
        let (node, to_view) = (&options.node, (servers.clone(), shared.clone()));
        let view = Arc::new(ApiView::new(node, to_view.0, to_view.1, agent.clone(), handle));
        let writing = agent::run(writes, servers.clone(), shared.clone(), node.clone());
        tokio::spawn(writing);
        for kind in Kind::ALL {
            let follower = Follower {
                kind,
                servers: servers.clone(),
                feed: feed.clone(),
                node: node.clone(),
                scope: scope.clone(),
                meters: options.meters.clone(),
            };
            tokio::spawn(follower.run());
        }
        let started = Started { inbox, shared, agent, view };
        Ok(Begun { started, servers })
    };
    let result = result.await;
    let is_good = result.is_ok();
    begun.send(result).is_ok() && is_good
}
