//! `status.loadBalancer.ingress` of the Ingresses that are served, and the status of Gateway API's
//! objects.

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::mpsc::Sender;
use std::time::Duration;

use kube::Client;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::{interval, timeout};

use podswitch_ingress::{Compiled, GatewayStatus};

use super::follow::Change;
use super::gateway_status::{Writer, Written};
use super::lease::{Lease, call};

/// How often the Lease is renewed.
const RENEW: Duration = Duration::from_secs(5);

/// Time for the requests of one round.
const PATIENCE: Duration = Duration::from_secs(10);

/// What the status is to name, and where the Lease is.
#[derive(Clone, Debug)]
pub(crate) struct Publish {
    /// Addresses and host names.
    pub(crate) addresses: Vec<String>,
    /// Namespace and name of the Lease.
    pub(crate) lease: (String, String),
    /// Distinguishes replicas.
    pub(crate) identity: String,
    /// Our name in the status of routes.
    pub(crate) controller: String,
    /// The only Gateway that is served.
    pub(crate) gateway: Option<(String, String)>,
}

/// What is served.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Served {
    ingresses: Vec<(String, String)>,
    gateways: GatewayStatus,
}

impl Served {
    pub(super) fn new(compiled: &Compiled) -> Self {
        Self { ingresses: compiled.served.clone(), gateways: compiled.status.clone() }
    }
}

/// Writes the status while the Lease is held.
pub(super) async fn run(
    client: Client,
    publish: Publish,
    mut served: watch::Receiver<Served>,
    changes: Sender<Change>,
) {
    let points: Vec<Value> = publish
        .addresses
        .iter()
        .map(|text| match text.parse::<IpAddr>() {
            Ok(address) => json!({"ip": address}),
            Err(_) => json!({"hostname": text}),
        })
        .collect();
    let writer = Writer {
        controller: publish.controller,
        only: publish.gateway,
        addresses: publish.addresses,
    };
    let mut told = Written::new();
    let mut lease = Lease::new(&publish.lease.0, &publish.lease.1, publish.identity);
    // What was written as the holder.
    let mut written: HashSet<(String, String)> = HashSet::new();
    let mut ticks = interval(RENEW);
    let mut has_failed = false;
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            Ok(()) = served.changed() => {}
        }
        let Served { ingresses: names, gateways } = served.borrow_and_update().clone();
        let round = async {
            if !lease.hold(&client).await? {
                written.clear();
                told.clear();
                return Ok(());
            }
            written.retain(|name| names.contains(name));
            // One that fails does not keep the others from being written.
            let mut result = writer.write(&client, &gateways, &mut told).await;
            for name in names {
                if !written.contains(&name) {
                    match write(&client, &name, &points).await {
                        Ok(()) => _ = written.insert(name),
                        Err(reason) => result = result.and(Err(reason)),
                    }
                }
            }
            result
        };
        let change = match timeout(PATIENCE, round).await {
            Ok(Ok(())) if !has_failed => continue,
            Ok(Ok(())) => Change::Works("status"),
            Ok(Err(reason)) => Change::Failed("status", reason),
            Err(_) => Change::Failed("status", "no response".to_owned()),
        };
        has_failed = matches!(change, Change::Failed(..));
        if changes.send(change).is_err() {
            return;
        }
    }
}

async fn write(client: &Client, name: &(String, String), points: &[Value]) -> Result<(), String> {
    let (namespace, name) = name;
    let path = format!("/apis/networking.k8s.io/v1/namespaces/{namespace}/ingresses/{name}");
    // An Ingress that is gone needs no status.
    let Some(before) = call(client, "GET", &path, None).await? else { return Ok(()) };
    if before["status"]["loadBalancer"]["ingress"].as_array().is_some_and(|it| it == points) {
        return Ok(());
    }
    let patch = json!({"status": {"loadBalancer": {"ingress": points}}});
    call(client, "PATCH", &format!("{path}/status"), Some(&patch)).await.map(drop)
}
