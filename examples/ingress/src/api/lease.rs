//! A Lease that one replica holds (coordination.k8s.io/v1), as client-go's leader election does it:
//! a Lease that has not changed for its duration, by the own clock, may be taken.

use std::time::{Duration, SystemTime};

use http::Request;
use kube::Client;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::follow::{described, refusal};

/// How long a Lease that its holder does not renew stays its own, in seconds.
const DURATION: u64 = 15;

/// Our part in a Lease.
#[derive(Debug)]
pub(super) struct Lease {
    namespace: String,
    name: String,
    identity: String,
    /// The version that was seen last, and since when.
    seen: Option<(String, Instant)>,
}

impl Lease {
    pub(super) fn new(namespace: &str, name: &str, identity: String) -> Self {
        Self { namespace: namespace.to_owned(), name: name.to_owned(), identity, seen: None }
    }

    /// Takes or renews the Lease. Returns whether it is ours.
    pub(super) async fn hold(&mut self, client: &Client) -> Result<bool, String> {
        let folder = format!("/apis/coordination.k8s.io/v1/namespaces/{}/leases", self.namespace);
        let path = format!("{folder}/{}", self.name);
        let Some(mut lease) = call(client, "GET", &path, None).await? else {
            let lease = json!({
                "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
                "metadata": {"name": self.name, "namespace": self.namespace},
                "spec": self.spec(0),
            });
            return Ok(call(client, "POST", &folder, Some(&lease)).await?.is_some());
        };
        let holder = lease["spec"]["holderIdentity"].as_str().unwrap_or_default();
        if holder != self.identity {
            let version = lease["metadata"]["resourceVersion"].as_str().unwrap_or_default();
            let since = match &self.seen {
                Some((seen, since)) if seen == version => *since,
                _ => {
                    let now = Instant::now();
                    self.seen = Some((version.to_owned(), now));
                    now
                }
            };
            let seconds = lease["spec"]["leaseDurationSeconds"].as_u64().unwrap_or(DURATION);
            if !holder.is_empty() && since.elapsed() < Duration::from_secs(seconds) {
                return Ok(false);
            }
        }
        let changes = lease["spec"]["leaseTransitions"].as_u64().unwrap_or(0);
        lease["spec"] = self.spec(changes + u64::from(holder != self.identity));
        // With the version that was read: of two replicas, one succeeds.
        Ok(call(client, "PUT", &path, Some(&lease)).await?.is_some())
    }

    fn spec(&self, changes: u64) -> Value {
        #[expect(clippy::disallowed_methods, reason = "the time of day, for those who read it")]
        let now = humantime::format_rfc3339_micros(SystemTime::now()).to_string();
        json!({
            "holderIdentity": self.identity, "leaseDurationSeconds": DURATION,
            "acquireTime": now, "renewTime": now, "leaseTransitions": changes,
        })
    }
}

/// Sends a request. None: there is no such object, or another one was faster (404, 409).
pub(super) async fn call(
    client: &Client,
    method: &str,
    path: &str,
    body: Option<&Value>,
) -> Result<Option<Value>, String> {
    let kind = if method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
    let body = body.map(ToString::to_string).unwrap_or_default().into_bytes();
    let request = Request::builder().method(method).uri(path).header("content-type", kind);
    let request = request.body(body).map_err(|error| error.to_string())?;
    match client.request::<Value>(request).await {
        Ok(value) => Ok(Some(value)),
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(None),
        Err(kube::Error::Api(status)) => {
            Err(format!("{method} {path}: {}", refusal(status.code.into(), &status.message)))
        }
        Err(error) => Err(format!("{method} {path}: {}", described(&error))),
    }
}
