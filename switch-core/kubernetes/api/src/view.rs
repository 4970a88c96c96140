//! The view of pods for the CNI agent, from a source that follows the API server.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use podswitch_core::id::Cookie;
use podswitch_kubernetes::{Kind, Object};
use podswitch_node::PodName;
use podswitch_node::cni::{ClusterView, PodDirectory, PodFacts, PodListener, ViewError};
use tokio::runtime::Handle;
use tokio::time::sleep;

use crate::agent::{Agent, PodPatch, object_path};
use crate::feed::Shared;
use crate::servers::Servers;
use crate::watch::get;

/// Time between two GETs of a pod that is awaited.
const GET_INTERVAL: Duration = Duration::from_millis(500);
/// After how long without a response the API server counts as unreachable.
const UNREACHABLE_AFTER_MS: u64 = 3_000;

/// See the module's description.
#[derive(Debug)]
pub(crate) struct ApiView {
    node: String,
    directory: Arc<PodDirectory>,
    servers: Arc<Servers>,
    shared: Arc<Shared>,
    agent: Agent,
    handle: Handle,
}

impl ApiView {
    pub(crate) fn new(
        node: &str,
        servers: Arc<Servers>,
        shared: Arc<Shared>,
        agent: Agent,
        handle: Handle,
    ) -> Self {
        Self { node: node.to_owned(), directory: Arc::default(), servers, shared, agent, handle }
    }

    /// Records an upserted pod.
    pub(crate) fn upsert(&self, pod: &Object, node: &str) {
        enter(&self.directory, pod, node);
    }

    /// Records a deleted object.
    pub(crate) fn delete(&self, object: &Cookie) {
        if let Some(pod) = pod_name(object) {
            self.directory.delete(&pod);
        }
    }

    /// Whether the object is a pod of this node.
    pub(crate) fn knows(&self, object: &Cookie) -> bool {
        pod_name(object).is_some_and(|pod| self.directory.get(&pod).is_some())
    }
}

/// Adds a pod of this node; removes one that moved to another node.
fn enter(directory: &PodDirectory, pod: &Object, node: &str) {
    let Some(name) = pod_name(pod.name()) else { return };
    if pod.node_name() == Some(node) {
        directory.upsert(name, facts(pod));
    } else if pod.node_name().is_some() {
        directory.delete(&name);
    }
}

fn facts(pod: &Object) -> PodFacts {
    let is_relevant =
        |key: &str| key.starts_with("podswitch.io/") || key == "kubernetes.io/config.hash";
    PodFacts::new(pod.uid().map(str::to_owned), pod.labels().collect())
        .ports(pod.named_ports())
        .annotations(pod.annotations().filter(|(key, _)| is_relevant(key)).collect())
}

fn pod_name(object: &Cookie) -> Option<PodName> {
    let (namespace, name) = object.as_str().strip_prefix("Pod/")?.split_once('/')?;
    PodName::new(namespace, name).ok()
}

impl ClusterView for ApiView {
    #[expect(
        clippy::disallowed_methods,
        reason = "the caller's deadline uses the standard library's clock"
    )]
    fn pod(
        &self,
        pod: &PodName,
        uid: Option<&str>,
        deadline: Instant,
    ) -> Result<PodFacts, ViewError> {
        if let Ok(facts) = self.directory.wait(pod, uid, Instant::now()) {
            return Ok(facts);
        }
        // The watch lags or was interrupted: get the pod directly.
        let (servers, directory) = (self.servers.clone(), self.directory.clone());
        let path = object_path(Kind::Pod, Some(pod.namespace()), pod.name());
        let (node, shared) = (self.node.clone(), self.shared.clone());
        let asking = self.handle.spawn(async move {
            loop {
                let found = servers.call(|| get(&path)).await;
                if let Ok(text) = found {
                    shared.answered();
                    let object = std::str::from_utf8(&text).ok();
                    let object = object.and_then(|text| Object::decode(Kind::Pod, text).ok());
                    if let Some(object) = object {
                        enter(&directory, &object, &node);
                    }
                }
                sleep(GET_INTERVAL).await;
            }
        });
        let found = self.directory.wait(pod, uid, deadline);
        asking.abort();
        found.map_err(|error| match error {
            ViewError::Unknown if self.shared.silence_ms() >= UNREACHABLE_AFTER_MS => {
                ViewError::Away(self.shared.error().unwrap_or_else(|| "it is silent".to_owned()))
            }
            error => error,
        })
    }

    fn report_addresses(&self, pod: &PodName, uid: Option<&str>, addresses: &[IpAddr]) {
        let uid = uid.map(str::to_owned);
        self.agent.pod(PodPatch { pod: pod.clone(), uid, addresses: addresses.to_vec() });
    }

    fn on_change(&self, listener: PodListener) {
        self.directory.on_change(listener);
    }
}
