//! The cluster's state as Kubernetes objects: the same text for both nodes.

use std::fmt::Write;

use serde_json::Value;

use super::links::NODE_ADDRESSES;
use super::pod::{DemoPod, Family, NODE_NAMES};

/// The objects besides nodes and pods. They change while the demo runs.
#[derive(Clone, Debug, Default)]
pub(in crate::demo) struct Setup {
    /// NetworkPolicies of the namespace: name and `spec`, in YAML's flow style.
    pub(in crate::demo) policies: Vec<(&'static str, &'static str)>,
    pub(in crate::demo) services: Vec<Service>,
    /// Objects as they are.
    pub(in crate::demo) others: Vec<Value>,
}

/// The backends' port, and the port of every Service's cluster IP.
pub(in crate::demo) const TARGET_PORT: u16 = 8080;
pub(in crate::demo) const SERVICE_PORT: u16 = 80;
/// Where backends of the ingress proxy listen.
#[cfg(feature = "ingress")]
pub(in crate::demo) const HTTP_PORT: u16 = 8081;

/// A Service over TCP and UDP.
#[derive(Clone, Debug)]
pub(in crate::demo) struct Service {
    pub(in crate::demo) name: &'static str,
    /// Last part of its cluster IPs and NodePort.
    pub(in crate::demo) number: u8,
    /// Whether it has session affinity.
    pub(in crate::demo) affinity: bool,
    /// Names of pods.
    pub(in crate::demo) backends: Vec<&'static str>,
}

impl Service {
    pub(in crate::demo) fn cluster_ips(&self) -> Family {
        Family {
            v4: [10, 96, 0, self.number].into(),
            v6: [0xfd96, 0, 0, 0, 0, 0, 0, u16::from(self.number)].into(),
        }
    }

    pub(in crate::demo) fn node_port(&self) -> u16 {
        30_000 + u16::from(self.number)
    }
}

/// The whole state.
pub(super) fn write(pods: &[DemoPod], setup: &Setup) -> String {
    let mut text = "apiVersion: v1\nkind: Namespace\nmetadata: {name: demo}\n---\n\
                    apiVersion: networking.k8s.io/v1\nkind: ServiceCIDR\nmetadata: {name: demo}\n\
                    spec: {cidrs: [10.96.0.0/24, \"fd96::/112\"]}\n"
        .to_owned();
    for (number, name) in NODE_NAMES.into_iter().enumerate() {
        let Family { v4, v6 } = NODE_ADDRESSES[number];
        object(
            &mut text,
            format_args!(
                "apiVersion: v1\nkind: Node\nmetadata: {{name: {name}}}\n\
                 spec: {{podCIDRs: [10.77.{number}.0/24, \"fd77:0:0:{number}::/64\"]}}\n\
                 status:\n  addresses:\n  - {{type: InternalIP, address: {v4}}}\n  \
                 - {{type: InternalIP, address: \"{v6}\"}}\n"
            ),
        );
    }
    for pod in pods {
        let Family { v4, v6 } = pod.addresses;
        let kind = if pod.tap { "tap" } else { "veth" };
        let (name, netns) = (pod.name, pod.namespace.path());
        object(
            &mut text,
            format_args!(
                "apiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\n  namespace: demo\n  \
                 labels: {{name: {name}}}\n  \
                 annotations:\n    podswitch.io/netns: {}\n    podswitch.io/port: {kind}\n\
                 spec: {{nodeName: {}}}\n\
                 status: {{phase: Running, podIPs: [{{ip: {v4}}}, {{ip: \"{v6}\"}}]}}\n",
                netns.display(),
                NODE_NAMES[pod.node],
            ),
        );
    }
    for (name, spec) in &setup.policies {
        object(
            &mut text,
            format_args!(
                "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n\
                 metadata: {{name: {name}, namespace: demo}}\nspec: {spec}\n"
            ),
        );
    }
    for service in &setup.services {
        write_service(&mut text, service, pods);
    }
    for other in &setup.others {
        // JSON is YAML.
        object(&mut text, format_args!("{other}\n"));
    }
    text
}

fn write_service(text: &mut String, service: &Service, pods: &[DemoPod]) {
    let Family { v4, v6 } = service.cluster_ips();
    let (name, node_port) = (service.name, service.node_port());
    let affinity = if service.affinity { "ClientIP" } else { "None" };
    let port = |protocol: &str, lower: &str| {
        format!(
            "{{name: {lower}, protocol: {protocol}, port: {SERVICE_PORT}, \
             targetPort: {TARGET_PORT}, nodePort: {node_port}}}"
        )
    };
    object(
        text,
        format_args!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: demo}}\nspec:\n  \
             type: NodePort\n  sessionAffinity: {affinity}\n  ipFamilyPolicy: RequireDualStack\n  \
             ipFamilies: [IPv4, IPv6]\n  clusterIP: {v4}\n  clusterIPs: [{v4}, \"{v6}\"]\n  \
             ports: [{}, {}]\n",
            port("TCP", "tcp"),
            port("UDP", "udp"),
        ),
    );
    for family in ["IPv4", "IPv6"] {
        let mut slice = format!(
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  \
             name: {name}-{}\n  namespace: demo\n  \
             labels: {{kubernetes.io/service-name: {name}}}\naddressType: {family}\n\
             ports: [{{name: tcp, port: {TARGET_PORT}, protocol: TCP}}, \
             {{name: udp, port: {TARGET_PORT}, protocol: UDP}}]\nendpoints:\n",
            family.to_lowercase(),
        );
        for pod in pods.iter().filter(|pod| service.backends.contains(&pod.name)) {
            let addresses = pod.addresses.each().into_iter();
            for (_, address) in addresses.filter(|(its, _)| *its == family) {
                let node = NODE_NAMES[pod.node];
                let _ = writeln!(
                    slice,
                    "- {{addresses: [\"{address}\"], nodeName: {node}, conditions: {{ready: true}}}}"
                );
            }
        }
        if service.backends.is_empty() {
            slice = slice.replace("endpoints:\n", "endpoints: []\n");
        }
        object(text, format_args!("{slice}"));
    }
}

/// Appends an object to a multi-document text.
fn object(text: &mut String, object: std::fmt::Arguments<'_>) {
    // Writing to a string cannot fail.
    let _ = write!(text, "---\n{object}");
}
