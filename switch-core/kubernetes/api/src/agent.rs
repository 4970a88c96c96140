//! Writes to the API server: annotations and a condition of this node's Node object, pod addresses,
//! and Events. Nothing waits for these writes. Failed writes are retried, except Events.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::{Method, Request};
use kube::client::Body;
use podswitch_core::config::LocalNode;
use podswitch_core::time::Instant;
use podswitch_kubernetes::{Kind, Object, Overlay};
use podswitch_node::PodName;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::sleep;

use crate::error::RequestError;
use crate::events::Draft;
use crate::feed::Shared;
use crate::names::{ADDRESSES, FLANNEL, PUBLIC_ADDRESS, VTEP_MAC};
use crate::servers::Servers;
use crate::watch::{Backoff, get};

/// First and longest pause between two writes of our Node object. Another writer may keep
/// overwriting our values.
const NODE_PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// Concurrent requests.
const REQUESTS: usize = 8;
/// Attempts to write a pod's addresses. With the pauses this takes about an hour.
const POD_TRIES: usize = 120;

/// Our Node object: current and desired values.
#[derive(Debug, Default)]
pub(crate) struct OwnNode {
    seen: Option<Seen>,
    wanted: BTreeMap<String, String>,
    is_acknowledged: bool,
    next: Instant,
    pause: Duration,
}

#[derive(Debug, PartialEq, Eq)]
struct Seen {
    annotations: BTreeMap<String, String>,
    is_available: bool,
}

impl OwnNode {
    /// Records our Node object as the API server has it.
    pub(crate) fn see(&mut self, node: &Object) {
        let ours = |key: &str| {
            key == VTEP_MAC || key == PUBLIC_ADDRESS || key.split('/').next() == Some(FLANNEL)
        };
        let annotations = node.annotations().filter(|(key, _)| ours(key));
        self.seen = Some(Seen {
            annotations: annotations.map(|(k, v)| (k.to_owned(), v.to_owned())).collect(),
            is_available: node.node_condition("NetworkUnavailable") == Some("False"),
        });
    }

    /// Sets the desired values from the state in force.
    pub(crate) fn set_in_force(&mut self, node: &LocalNode, flannel: Option<Overlay>) {
        self.wanted = annotations(node, flannel);
    }

    /// Called when every worker has acknowledged the first state.
    pub(crate) fn acknowledged(&mut self) {
        self.is_acknowledged = true;
    }

    /// The patch to write now, if one is needed and due.
    pub(crate) fn patch(&mut self, now: Instant) -> Option<NodePatch> {
        let seen = self.seen.as_ref().filter(|_| self.is_acknowledged)?;
        let differs =
            |(key, value): &(&String, &String)| seen.annotations.get(*key) != Some(*value);
        let annotations: BTreeMap<_, _> = self
            .wanted
            .iter()
            .filter(differs)
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect();
        let patch = NodePatch { annotations, available: !seen.is_available };
        if patch.annotations.is_empty() && !patch.available {
            if now >= self.next + NODE_PAUSES.1 {
                self.pause = NODE_PAUSES.0;
            }
            return None;
        }
        if now < self.next {
            return None;
        }
        self.pause = (self.pause * 2).clamp(NODE_PAUSES.0, NODE_PAUSES.1);
        self.next = now + self.pause;
        Some(patch)
    }
}

/// The annotations of a node with these facts. In a cluster with Flannel nodes they are Flannel's.
fn annotations(node: &LocalNode, flannel: Option<Overlay>) -> BTreeMap<String, String> {
    let mut wanted = BTreeMap::new();
    let first = |v6: bool| node.addresses.iter().find(|address| address.is_ipv6() == v6);
    if !node.addresses.is_empty() {
        wanted.insert(PUBLIC_ADDRESS.to_owned(), list(&node.addresses));
    }
    let Some(overlay) = flannel else {
        if !node.addresses.is_empty() {
            wanted.insert(VTEP_MAC.to_owned(), node.vtep.ipv4.to_string());
        }
        return wanted;
    };
    let mut flannel =
        |key: &str, value: String| drop(wanted.insert(format!("{FLANNEL}/{key}"), value));
    let data = |mac| json!({ "VNI": overlay.vni.unwrap_or(1), "VtepMAC": mac }).to_string();
    flannel("kube-subnet-manager", "true".into());
    flannel("backend-type", "vxlan".into());
    if let Some(address) = first(false) {
        flannel("public-ip", address.to_string());
        flannel("backend-data", data(node.vtep.of(false).to_string()));
    }
    if let Some(address) = first(true) {
        flannel("public-ipv6", address.to_string());
        flannel("backend-v6-data", data(node.vtep.of(true).to_string()));
    }
    wanted
}

fn list(addresses: &[IpAddr]) -> String {
    addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

/// A patch of our Node object.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct NodePatch {
    annotations: BTreeMap<String, String>,
    /// Whether to set the condition NetworkUnavailable to False.
    available: bool,
}

/// The addresses of a pod, to be written as an annotation.
#[derive(Debug)]
pub(crate) struct PodPatch {
    pub(crate) pod: PodName,
    pub(crate) uid: Option<String>,
    pub(crate) addresses: Vec<IpAddr>,
}

#[derive(Debug)]
enum Write {
    Node(NodePatch),
    Pod(PodPatch),
    Event(Draft),
}

/// Sends writes to the API thread. The channel is unbounded but stays short: Events are
/// rate-limited, there is one Node object, and each pod of the node has its addresses written once.
#[derive(Clone, Debug)]
pub(crate) struct Agent(Option<mpsc::UnboundedSender<Write>>);

/// The receiver of the writes.
pub(crate) struct Writes(mpsc::UnboundedReceiver<Write>);

/// Creates the channel. If `enabled` is false, nothing is written.
pub(crate) fn agent(enabled: bool) -> (Agent, Writes) {
    let (sender, receiver) = mpsc::unbounded_channel();
    (Agent(enabled.then_some(sender)), Writes(receiver))
}

impl Agent {
    pub(crate) fn node(&self, patch: NodePatch) {
        self.send(Write::Node(patch));
    }

    pub(crate) fn pod(&self, patch: PodPatch) {
        self.send(Write::Pod(patch));
    }

    pub(crate) fn event(&self, event: Draft) {
        self.send(Write::Event(event));
    }

    fn send(&self, write: Write) {
        if let Some(sender) = &self.0 {
            // The receiver is dropped with the source; then there is nothing left to write.
            let _ = sender.send(write);
        }
    }
}

/// Performs the writes until the channel is closed.
pub(crate) async fn run(
    mut writes: Writes,
    servers: Arc<Servers>,
    shared: Arc<Shared>,
    node: String,
) {
    let permits = Arc::new(Semaphore::new(REQUESTS));
    while let Some(write) = writes.0.recv().await {
        let (servers, shared, node) = (servers.clone(), shared.clone(), node.clone());
        let permits = permits.clone();
        tokio::spawn(async move {
            let result = match write {
                Write::Node(patch) => write_node(&servers, &node, &patch).await,
                Write::Pod(patch) => write_pod(&servers, &patch, &permits).await,
                Write::Event(draft) => {
                    let Ok(_permit) = permits.acquire().await else { return };
                    write_event(&servers, &node, &draft).await
                }
            };
            if let Err(error) = result {
                shared.failed(format!("status: {error}"));
            }
        });
    }
}

async fn write_node(servers: &Servers, node: &str, patch: &NodePatch) -> Result<(), RequestError> {
    if !patch.annotations.is_empty() {
        let body = json!({ "metadata": { "annotations": patch.annotations } });
        let path = format!("/api/v1/nodes/{node}");
        servers.call(|| send(&Method::PATCH, &path, MERGE, &body)).await?;
    }
    if patch.available {
        let now = timestamp();
        let body = json!({ "status": { "conditions": [{
            "type": "NetworkUnavailable", "status": "False", "reason": "PodswitchIsUp",
            "message": "podswitch forwards on this node",
            "lastTransitionTime": now, "lastHeartbeatTime": now,
        }]}});
        let path = format!("/api/v1/nodes/{node}/status");
        servers.call(|| send(&Method::PATCH, &path, STRATEGIC, &body)).await?;
    }
    Ok(())
}

async fn write_pod(
    servers: &Servers,
    patch: &PodPatch,
    permits: &Semaphore,
) -> Result<(), RequestError> {
    let mut metadata = json!({ "annotations": { ADDRESSES: list(&patch.addresses) } });
    if let Some(uid) = &patch.uid {
        // With the UID, a different pod of the same name is not patched: the API server returns
        // 409.
        metadata["uid"] = Value::String(uid.clone());
    }
    let body = json!({ "metadata": metadata });
    let path = format!("/api/v1/namespaces/{}/pods/{}", patch.pod.namespace(), patch.pod.name());
    let mut backoff = Backoff::default();
    let mut tries = 1;
    loop {
        let result = {
            let Ok(_permit) = permits.acquire().await else { return Ok(()) };
            servers.call(|| send(&Method::PATCH, &path, MERGE, &body)).await
        };
        match result {
            Ok(_) => return Ok(()),
            // The pod is gone, or was replaced by another one.
            Err(error) if matches!(error.code(), Some(404 | 409 | 422)) => return Ok(()),
            Err(error) if tries >= POD_TRIES => return Err(error),
            Err(_) => sleep(backoff.next()).await,
        }
        tries += 1;
    }
}

/// Writes an Event. A failed write is not retried.
async fn write_event(servers: &Servers, node: &str, draft: &Draft) -> Result<(), RequestError> {
    #[derive(Deserialize)]
    struct WithUid {
        metadata: Uid,
    }
    #[derive(Deserialize)]
    struct Uid {
        uid: String,
    }
    let (kind, version) = (draft.kind, draft.kind.versions()[0]);
    let api_version = match kind.group() {
        "" => version.to_owned(),
        group => format!("{group}/{version}"),
    };
    let path = object_path(kind, draft.namespace.as_deref(), &draft.name);
    // `kubectl describe` shows the Event only if it has the object's UID.
    let found = servers.call(|| get(&path)).await.ok();
    let uid = found.and_then(|text| serde_json::from_slice::<WithUid>(&text).ok());
    let mut object = json!({ "apiVersion": api_version, "kind": kind.name(), "name": draft.name });
    if let Some(found) = uid {
        object["uid"] = Value::String(found.metadata.uid);
    }
    if let Some(namespace) = &draft.namespace {
        object["namespace"] = Value::String(namespace.clone());
    }
    let (namespace, now) = (draft.namespace.as_deref().unwrap_or("default"), timestamp());
    let body = json!({
        "apiVersion": "v1", "kind": "Event",
        "metadata": { "generateName": "podswitch-", "namespace": namespace },
        "involvedObject": object, "type": "Warning", "reason": draft.reason,
        "message": draft.message, "source": { "component": "podswitch", "host": node },
        "firstTimestamp": now, "lastTimestamp": now, "count": 1,
        "reportingComponent": "podswitch.io/agent", "reportingInstance": node,
    });
    let path = format!("/api/v1/namespaces/{namespace}/events");
    servers.call(|| send(&Method::POST, &path, JSON, &body)).await?;
    Ok(())
}

/// The path of an object.
pub(crate) fn object_path(kind: Kind, namespace: Option<&str>, name: &str) -> String {
    let version = kind.versions()[0];
    let root = match kind.group() {
        "" => format!("/api/{version}"),
        group => format!("/apis/{group}/{version}"),
    };
    match namespace {
        Some(namespace) => format!("{root}/namespaces/{namespace}/{}/{name}", kind.plural()),
        None => format!("{root}/{}/{name}", kind.plural()),
    }
}

const JSON: &str = "application/json";
const MERGE: &str = "application/merge-patch+json";
const STRATEGIC: &str = "application/strategic-merge-patch+json";

fn send(method: &Method, path: &str, content: &'static str, body: &Value) -> Request<Body> {
    let mut request = Request::new(Body::from(body.to_string().into_bytes()));
    *request.method_mut() = method.clone();
    *request.uri_mut() = path.parse().unwrap_or_default();
    let headers = request.headers_mut();
    headers.insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static(content));
    headers.insert(http::header::ACCEPT, http::HeaderValue::from_static(JSON));
    request
}

/// The current time in RFC 3339 format, in seconds.
#[expect(
    clippy::disallowed_methods,
    reason = "the API wants the time of day; nothing here is near a packet"
)]
fn timestamp() -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    rfc3339(now.as_secs())
}

/// Converts seconds since 1970 to RFC 3339.
fn rfc3339(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    // Days since 0000-03-01, in eras of 400 years. Years begin in March, so that leap days come
    // last.
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let date = day - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = era * 400 + year + u64::from(month <= 2);
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    format!("{year:04}-{month:02}-{date:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use podswitch_core::config::VtepMac;
    use podswitch_core::time::Clock;
    use podswitch_wire::addr::Mac;

    use super::*;

    #[test]
    fn times_of_day() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00Z");
        assert_eq!(rfc3339(1_796_015_129), "2026-11-30T05:05:29Z");
        assert_eq!(rfc3339(1_709_251_199), "2024-02-29T23:59:59Z");
        assert_eq!(rfc3339(1_709_251_200), "2024-03-01T00:00:00Z");
    }

    fn local() -> LocalNode {
        let vtep = VtepMac { ipv4: Mac([0x0e, 0x58, 192, 0, 2, 1]), ipv6: None };
        let addresses = vec!["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()];
        LocalNode { name: "n".into(), addresses, vtep, ..LocalNode::default() }
    }

    fn node(annotations: &str, condition: &str) -> Object {
        let json = format!(
            r#"{{"metadata":{{"name":"n","annotations":{{{annotations}}}}},"status":{{"conditions":
                [{{"type":"NetworkUnavailable","status":"{condition}"}}]}}}}"#
        );
        Object::decode(Kind::Node, &json).unwrap()
    }

    #[test]
    fn our_node_is_written_only_when_it_differs() {
        let (mut own, clock) = (OwnNode::default(), Clock::start());
        let mut now = clock.now();
        own.set_in_force(&local(), None);
        own.see(&node("", "True"));
        assert_eq!(own.patch(now), None, "no state is in force yet");
        own.acknowledged();
        let patch = own.patch(now).unwrap();
        assert!(patch.available);
        let expected = [(PUBLIC_ADDRESS, "192.0.2.1,2001:db8::1"), (VTEP_MAC, "0e:58:c0:00:02:01")];
        assert_eq!(patch.annotations, expected.map(|(k, v)| (k.into(), v.into())).into());
        assert_eq!(own.patch(now), None, "not again at once");
        now = now + NODE_PAUSES.1;
        assert!(own.patch(now).is_some(), "the first write had no effect");
        let right = r#""podswitch.io/public-address":"192.0.2.1,2001:db8::1","podswitch.io/vtep-mac":"0e:58:c0:00:02:01""#;
        own.see(&node(right, "False"));
        now = now + NODE_PAUSES.1;
        assert_eq!(own.patch(now), None);
        own.see(&node(&right.replace("192.0.2.1", "192.0.2.9"), "False"));
        now = now + NODE_PAUSES.1;
        let patch = own.patch(now).unwrap();
        assert_eq!((patch.annotations.len(), patch.available), (1, false), "restored");
    }

    #[test]
    fn among_flannel_nodes_it_writes_flannels_annotations() {
        let wanted = annotations(&local(), Some(Overlay { vni: Some(7) }));
        let get = |key: &str| wanted[&format!("{FLANNEL}/{key}")].clone();
        assert_eq!(get("public-ip"), "192.0.2.1");
        assert_eq!(get("public-ipv6"), "2001:db8::1");
        assert_eq!(get("kube-subnet-manager"), "true");
        let data: Value = serde_json::from_str(&get("backend-data")).unwrap();
        assert_eq!(data, json!({ "VNI": 7, "VtepMAC": "0e:58:c0:00:02:01" }));
        assert!(!wanted.contains_key(VTEP_MAC));
    }
}
