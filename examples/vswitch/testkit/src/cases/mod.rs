//! A truth table of policies, written by hand: policies, and the resulting reachability.
//!
//! Based on the upstream end-to-end suite, cyclonus and the text of the API. All cases use one
//! cluster (see `cluster()`). Pairs that no line mentions are allowed.

mod blocks;
mod isolation;
mod ports;
mod selectors;
mod tiers;

/// `allow` or `deny`, source, destination, port. Names and ports are patterns with `*`, several
/// separated by `|`. A port that ends in `@ipv4` or `@ipv6` applies to that family only.
pub type Line = (&'static str, &'static str, &'static str, &'static str);

/// One case.
pub struct Case {
    pub name: &'static str,
    /// Namespace and `spec` of NetworkPolicies; ClusterNetworkPolicies have no namespace.
    objects: Vec<(&'static str, String)>,
    /// Evaluated from top to bottom: the last line that matches decides; without one the pair is
    /// allowed. What holds in every case is not written: a pod reaches itself, and its own node in
    /// both directions.
    expect: Vec<Line>,
}

/// Namespaces x, y, z, each with the pods a, b, c: those of x on n1, the others on n2. Namespaces
/// have the label `ns`, pods the label `pod`. Each pod has the port `web` on 80/TCP and `dns` on
/// 81/UDP, but z/c has `web` on 81/TCP. x/h is a pod in the network of n1.
pub const NAMESPACES: [&str; 3] = ["x", "y", "z"];
pub const PODS: [&str; 3] = ["a", "b", "c"];

/// Addresses outside the cluster: two of each family.
pub const OUTSIDE: [&str; 4] = ["198.51.100.7", "203.0.113.9", "2001:db8:1::7", "2001:db8:2::9"];

/// The ports that are probed between all endpoints.
pub const ASKED: [&str; 7] = ["80/TCP", "81/TCP", "80/UDP", "81/UDP", "80/SCTP", "81/SCTP", "ICMP"];

/// The cluster without policies; `nodes`: the nodes of the pods of x, y and z.
pub fn cluster(nodes: [&str; 3]) -> String {
    let mut text = String::new();
    for (number, node) in [(1, "n1"), (2, "n2")] {
        text += &format!(
            "---\napiVersion: v1\nkind: Node\nmetadata: {{name: {node}, labels: {{node: {node}}}}}\n\
             status: {{addresses: [{{type: InternalIP, address: 192.0.2.{number}}}, \
             {{type: InternalIP, address: 'fd01::{number}'}}]}}\n"
        );
    }
    for (number, (namespace, node)) in NAMESPACES.into_iter().zip(nodes).enumerate() {
        text += &format!(
            "---\napiVersion: v1\nkind: Namespace\n\
             metadata: {{name: {namespace}, labels: {{ns: {namespace}}}}}\n"
        );
        for (at, pod) in PODS.into_iter().enumerate() {
            let (at, web) = (at + 1, if (namespace, pod) == ("z", "c") { 81 } else { 80 });
            text += &format!(
                "---\napiVersion: v1\nkind: Pod\n\
                 metadata: {{name: {pod}, namespace: {namespace}, labels: {{pod: {pod}}}}}\n\
                 spec: {{nodeName: {node}, containers: [{{name: c, ports: [\
                 {{name: web, containerPort: {web}}}, \
                 {{name: dns, containerPort: 81, protocol: UDP}}]}}]}}\n\
                 status: {{phase: Running, podIPs: [\
                 {{ip: 10.0.{number}.{at}}}, {{ip: 'fd00:0:0:{number}::{at}'}}]}}\n"
            );
        }
    }
    text + "---\napiVersion: v1\nkind: Pod\n\
            metadata: {name: h, namespace: x, labels: {pod: h}}\n\
            spec: {nodeName: n1, hostNetwork: true}\n\
            status: {phase: Running, podIPs: [{ip: 192.0.2.1}, {ip: 'fd01::1'}]}\n"
}

impl Case {
    /// The policies as manifests.
    pub fn policies(&self) -> String {
        let one = |(number, (namespace, spec)): (usize, &(&str, String))| match *namespace {
            "" => format!(
                "---\napiVersion: policy.networking.k8s.io/v1alpha2\nkind: ClusterNetworkPolicy\n\
                 metadata: {{name: p{number}}}\nspec: {spec}\n"
            ),
            _ => format!(
                "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n\
                 metadata: {{name: p{number}, namespace: {namespace}}}\nspec: {spec}\n"
            ),
        };
        self.objects.iter().enumerate().map(one).collect()
    }

    /// The expected verdict for a pair.
    pub fn allows(&self, from: &str, to: &str, family: &str, what: &str) -> bool {
        let at_own_node = |pod: &str, other: &str| {
            let own = if pod.starts_with("x/") { "node/n1|x/h" } else { "node/n2" };
            is_pod(pod) && pod != "x/h" && fits(own, other)
        };
        if from == to || at_own_node(from, to) || at_own_node(to, from) {
            return true;
        }
        let counts = |line: &&Line| {
            let (ports, of) = line.3.split_once('@').unwrap_or((line.3, family));
            fits(line.1, from) && fits(line.2, to) && fits(ports, what) && of == family
        };
        self.expect.iter().rev().find(counts).is_none_or(|line| line.0 == "allow")
    }
}

impl Case {
    /// Expected lines that match no pair, by mistake.
    pub fn idle_lines(&self) -> Vec<Line> {
        let mut names: Vec<String> =
            OUTSIDE.iter().chain(&["node/n1", "node/n2", "x/h"]).map(|n| (*n).to_owned()).collect();
        names.extend(NAMESPACES.iter().flat_map(|n| PODS.map(|pod| format!("{n}/{pod}"))));
        let meant = |patterns: &str, known: &[String]| {
            patterns
                .split('|')
                .all(|p| p == "nobody" || p == "nothing" || known.iter().any(|name| fits(p, name)))
        };
        let asked = ASKED.map(str::to_owned);
        let fails = |line: &&Line| {
            let ports = line.3.split_once('@').map_or(line.3, |(ports, _)| ports);
            !(meant(line.1, &names) && meant(line.2, &names) && meant(ports, &asked))
        };
        self.expect.iter().filter(fails).copied().collect()
    }
}

fn is_pod(name: &str) -> bool {
    NAMESPACES.iter().any(|n| name.split_once('/').is_some_and(|(namespace, _)| namespace == *n))
}

/// Whether a name is one of several patterns. `pods` are all pods with a network of their own.
fn fits(patterns: &str, name: &str) -> bool {
    patterns.split('|').any(|pattern| match pattern.split_once('*') {
        None if pattern == "pods" => is_pod(name) && name != "x/h",
        None => pattern == name,
        // A pattern for the pods of x means those with a network of their own.
        Some(("x/", "")) => name.starts_with("x/") && name != "x/h",
        Some((front, back)) => {
            name.len() >= front.len() + back.len()
                && name.starts_with(front)
                && name.ends_with(back)
        }
    })
}

/// Any number of policies.
fn case<const N: usize, const M: usize>(
    name: &'static str,
    objects: [(&'static str, &str); N],
    expect: [Line; M],
) -> Case {
    let objects = objects.map(|(namespace, spec)| (namespace, spec.to_owned()));
    Case { name, objects: objects.to_vec(), expect: expect.to_vec() }
}

/// x/a accepts what these rules allow, and nothing else.
fn into_a<const M: usize>(name: &'static str, rules: &str, expect: [Line; M]) -> Case {
    let spec = format!(
        "{{podSelector: {{matchLabels: {{pod: a}}}}, policyTypes: [Ingress], ingress: {rules}}}"
    );
    let all = [&[("deny", "*", "x/a", "*")], &expect[..]].concat();
    Case { name, objects: vec![("x", spec)], expect: all }
}

/// x/a accepts these peers, on all ports and ICMP, and nothing else.
fn lets_in(name: &'static str, peers: &str, who: &'static str) -> Case {
    into_a(name, &format!("[{{from: {peers}}}]"), [("allow", who, "x/a", "*")])
}

/// x/a accepts connections to these ports from everyone.
fn opens(name: &'static str, ports: &str, what: &'static str) -> Case {
    into_a(name, &format!("[{{ports: {ports}}}]"), [("allow", "*", "x/a", what)])
}

/// x/a may connect to what these rules allow, and to nothing else.
fn out_of_a<const M: usize>(name: &'static str, rules: &str, expect: [Line; M]) -> Case {
    let spec = format!(
        "{{podSelector: {{matchLabels: {{pod: a}}}}, policyTypes: [Egress], egress: {rules}}}"
    );
    let all = [&[("deny", "x/a", "*", "*")], &expect[..]].concat();
    Case { name, objects: vec![("x", spec)], expect: all }
}

/// All cases.
pub fn all() -> Vec<Case> {
    [isolation::cases(), selectors::cases(), ports::cases(), blocks::cases(), tiers::cases()]
        .into_iter()
        .flatten()
        .collect()
}
