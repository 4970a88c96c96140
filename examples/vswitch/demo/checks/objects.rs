//! Services with endpoints in pods, as Kubernetes objects: for the switches, and for the proxy.

use serde_json::{Value, json};

use crate::demo::world::{DemoPod, Family};

/// A Service over one port, of both families.
pub(super) struct Front<'a> {
    pub(super) namespace: &'a str,
    pub(super) name: &'a str,
    /// `None`: headless.
    pub(super) cluster_ips: Option<Family>,
    /// Addresses of a load balancer.
    pub(super) balanced: Option<Family>,
    pub(super) protocol: &'a str,
    pub(super) port: u16,
    pub(super) target: u16,
}

impl Front<'_> {
    /// The Service, and its EndpointSlices with these pods.
    pub(super) fn objects(&self, pods: &[&DemoPod]) -> Vec<Value> {
        let Self { namespace, name, protocol, port, target, .. } = self;
        let ips = |family: Family| family.each().map(|(_, address)| address.to_string());
        let cluster_ips = match self.cluster_ips {
            Some(family) => ips(family).to_vec(),
            None => vec!["None".to_owned()],
        };
        let kind = if self.balanced.is_some() { "LoadBalancer" } else { "ClusterIP" };
        let balanced = self.balanced.map_or(Vec::new(), |family| ips(family).to_vec());
        let balanced: Vec<_> = balanced.into_iter().map(|ip| json!({"ip": ip})).collect();
        let mut objects = vec![json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"name": name, "namespace": namespace},
            "spec": {
                "type": kind, "ipFamilyPolicy": "RequireDualStack", "ipFamilies": ["IPv4", "IPv6"],
                "clusterIP": cluster_ips[0], "clusterIPs": cluster_ips,
                "ports": [{"name": "it", "protocol": protocol, "port": port, "targetPort": target}],
            },
            "status": {"loadBalancer": {"ingress": balanced}},
        })];
        for family in ["IPv4", "IPv6"] {
            let of_family = |pod: &&DemoPod| {
                let address = pod.addresses.each().into_iter().find(|(its, _)| *its == family)?;
                let node = crate::demo::world::NODE_NAMES[pod.node];
                let ready = json!({"ready": true});
                Some(json!({"addresses": [address.1], "nodeName": node, "conditions": ready}))
            };
            let endpoints: Vec<_> = pods.iter().filter_map(of_family).collect();
            objects.push(json!({
                "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
                "metadata": {
                    "name": format!("{name}-{}", family.to_lowercase()), "namespace": namespace,
                    "labels": {"kubernetes.io/service-name": name},
                },
                "addressType": family,
                "ports": [{"name": "it", "protocol": protocol, "port": target}],
                "endpoints": endpoints,
            }));
        }
        objects
    }
}
