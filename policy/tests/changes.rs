//! Single changes that went wrong in other implementations, one test each (threats T-L1 to T-L9).

use std::net::IpAddr;
use std::sync::Arc;

use podswitch_policy::compile::PolicyCompiler;
use podswitch_policy::rule::*;
use podswitch_policy::table::PolicyTable;
use podswitch_policy::verdict::{Traffic, Why};

fn labels(text: &str) -> Labels {
    text.split(',').filter_map(|pair| pair.split_once('=')).collect()
}

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// A small cluster to change: namespace `shop` with `db`, which accepts `app=web` on 5432/TCP.
struct Shop {
    compiler: PolicyCompiler,
    table: Arc<PolicyTable>,
}

impl Shop {
    fn new() -> Self {
        let mut compiler = PolicyCompiler::new();
        let name: Arc<str> = "shop".into();
        compiler.upsert_namespace(&Namespace { name, labels: labels("team=one") });
        compiler.upsert_network_policy(&Arc::new(db_policy("app=web", None)));
        let mut shop = Self { table: compiler.publish(), compiler };
        shop.pod("db", "10.0.0.1", "app=db", "n1");
        shop.pod("web", "10.0.0.2", "app=web", "n1");
        shop
    }

    fn pod(&mut self, name: &str, ip: &str, text: &str, node: &str) {
        let workload = Workload {
            namespace: "shop".into(),
            name: name.into(),
            labels: labels(text),
            addresses: vec![address(ip)],
            ports: Vec::new(),
            host_network: false,
        };
        let cookie = format!("Pod/shop/{name}").into();
        self.compiler.upsert_pod(&cookie, &workload, &node.into());
        self.table = self.compiler.publish();
    }

    fn remove_pod(&mut self, name: &str) {
        self.compiler.remove_pod(&format!("Pod/shop/{name}"));
        self.table = self.compiler.publish();
    }

    fn allows(&self, from: &str) -> bool {
        let (from, to) = (self.table.party(address(from)), self.table.party(address("10.0.0.1")));
        self.table.verdict(&from, &to, Traffic::to_port(Protocol::Tcp, 5432)).allow()
    }
}

fn db_policy(peer: &str, namespaces: Option<&str>) -> NetworkPolicy {
    let peer = Peer::Selectors {
        pods: Some(Selector::of_labels(labels(peer))),
        namespaces: namespaces.map(|text| Selector::of_labels(labels(text))),
    };
    let rule = Rule {
        peers: Peers::AnyOf(vec![peer]),
        ports: Ports::AnyOf(vec![PortRule::port(Protocol::Tcp, 5432)]),
    };
    NetworkPolicy {
        cookie: "NetworkPolicy/shop/db".into(),
        namespace: "shop".into(),
        name: "db".into(),
        pods: Selector::of_labels(labels("app=db")),
        ingress: Some(vec![rule]),
        egress: None,
    }
}

#[test]
fn a_reused_address_has_no_previous_rights() {
    let mut shop = Shop::new();
    assert!(shop.allows("10.0.0.2"));
    shop.remove_pod("web");
    assert!(!shop.allows("10.0.0.2"), "nobody's address");
    shop.pod("batch", "10.0.0.2", "app=batch", "n2");
    assert!(!shop.allows("10.0.0.2"), "somebody else's address");
}

#[test]
fn an_address_may_be_reused_before_it_is_released() {
    let mut shop = Shop::new();
    shop.pod("batch", "10.0.0.2", "app=batch", "n2");
    shop.remove_pod("web");
    assert!(!shop.allows("10.0.0.2"));
    shop.remove_pod("batch");
    shop.pod("web", "10.0.0.2", "app=web", "n1");
    assert!(shop.allows("10.0.0.2"));
}

#[test]
fn current_labels_are_evaluated() {
    let mut shop = Shop::new();
    shop.pod("web", "10.0.0.2", "app=web,quarantine=yes", "n1");
    assert!(shop.allows("10.0.0.2"), "more labels than the rule requires");
    shop.pod("web", "10.0.0.2", "app=webby", "n1");
    assert!(!shop.allows("10.0.0.2"));
    shop.pod("db", "10.0.0.1", "app=cache", "n1");
    assert!(shop.allows("10.0.0.2"), "no longer isolated");
}

#[test]
fn a_namespace_relabelled() {
    let mut shop = Shop::new();
    let policy = db_policy("app=web", Some("team=one"));
    shop.compiler.upsert_network_policy(&Arc::new(policy));
    shop.table = shop.compiler.publish();
    assert!(shop.allows("10.0.0.2"));
    let name: Arc<str> = "shop".into();
    shop.compiler.upsert_namespace(&Namespace { name, labels: labels("team=two") });
    shop.table = shop.compiler.publish();
    assert!(!shop.allows("10.0.0.2"));
}

#[test]
fn a_published_table_does_not_change() {
    let mut shop = Shop::new();
    let before = Shop { compiler: PolicyCompiler::new(), table: Arc::clone(&shop.table) };
    shop.remove_pod("web");
    shop.compiler.remove_policy("NetworkPolicy/shop/db");
    shop.table = shop.compiler.publish();
    assert!(before.allows("10.0.0.2") && !before.allows("10.0.0.3"));
    assert!(shop.allows("10.0.0.3"));
}

#[test]
fn a_pod_that_moves_gets_another_own_node() {
    let mut shop = Shop::new();
    for (name, ip) in [("n1", "172.16.0.1"), ("n2", "172.16.0.2")] {
        let addresses = vec![address(ip)];
        let node = Node { name: name.into(), labels: Labels::default(), addresses };
        shop.compiler.upsert_node(&node);
    }
    shop.table = shop.compiler.publish();
    assert!(shop.allows("172.16.0.1") && !shop.allows("172.16.0.2"));
    shop.pod("db", "10.0.0.1", "app=db", "n2");
    assert!(!shop.allows("172.16.0.1") && shop.allows("172.16.0.2"));
}

#[test]
fn a_policy_keeps_its_number_and_its_counters_apart() {
    let mut shop = Shop::new();
    let decide = |shop: &Shop, from: &str| {
        let (from, to) = (shop.table.party(address(from)), shop.table.party(address("10.0.0.1")));
        shop.table.evaluate_ingress(&from, &to, Traffic::to_port(Protocol::Tcp, 5432))
    };
    let (allowed, denied) = (decide(&shop, "10.0.0.2"), decide(&shop, "10.0.0.9"));
    assert_eq!((allowed.rule, denied.rule, denied.why), (Some(0), None, Why::Isolated));
    assert_eq!(allowed.policy, denied.policy);
    assert_ne!(allowed.counter, denied.counter);
    let info = shop.table.policy(allowed.policy).unwrap();
    assert_eq!(&**info.object.cookie(), "NetworkPolicy/shop/db");
    assert_eq!(info.counter(Direction::Ingress, Some(0)), allowed.counter);
    assert_eq!(info.counter(Direction::Ingress, None), denied.counter);
    assert!((allowed.counter as usize) < shop.table.counters());

    shop.compiler.upsert_network_policy(&Arc::new(db_policy("app=batch", None)));
    shop.table = shop.compiler.publish();
    let after = decide(&shop, "10.0.0.2");
    assert_eq!((after.policy, after.counter), (denied.policy, denied.counter));
}

#[test]
fn repeated_upserts_change_nothing() {
    let mut shop = Shop::new();
    let before = Arc::clone(&shop.table);
    shop.pod("web", "10.0.0.2", "app=web", "n1");
    shop.compiler.upsert_network_policy(&Arc::new(db_policy("app=web", None)));
    shop.table = shop.compiler.publish();
    let party = |table: &PolicyTable| table.party(address("10.0.0.2"));
    assert_eq!(party(&before), party(&shop.table));
    let count = |table: &PolicyTable| table.policies().count();
    assert_eq!((count(&before), count(&shop.table)), (1, 1));
}
