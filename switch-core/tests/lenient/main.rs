//! Lenient publishing: one object never blocks the others. The state in force after any sequence of
//! publishes is the one that a strict publish of the valid objects alone would produce. For an
//! invalid policy it is the last valid version, or a policy that isolates its pods.
#![allow(clippy::disallowed_types, reason = "tests store what an observer reports")]

mod look;
mod mix;

use std::net::IpAddr;
use std::sync::Arc;

use look::look;
use mix::Mix;
use podswitch_core::action::DropReason::{PolicyIngress, UnknownPod};
use podswitch_core::config::{
    Attachment, Config, ConfigError, Endpoint, PortConfig, PortRole, Precedence, RefusedPolicy,
};
use podswitch_core::control::{Cause, Change, ControlPlane, Effect, LeftOut};
use podswitch_core::id::{Cookie, PortId};
use podswitch_policy::rule::{NetworkPolicy, Peers, PortRule, Ports, Protocol, Rule, Selector};
use podswitch_policy::service::model::{Service, ServicePort, ServiceType};
use podswitch_testkit::rig;
use rig::random::Rng;
use rig::*;

/// Every object and field that is left out.
fn fields(left_out: &[LeftOut]) -> Vec<String> {
    left_out.iter().map(|l| format!("{}: {}", l.error.object, l.error.field)).collect()
}

#[test]
fn any_sequence_gives_the_state_of_the_valid_objects() {
    let (mut left_out, mut taken) = (0, 0);
    for seed in 0..10 {
        let mut rng = Rng::new(seed);
        let mut mix = Mix::new();
        let mut switch = Switch::new(&mix.config);
        for round in 0..150 {
            let before = mix.config.clone();
            let mut changes = Vec::new();
            for _ in 0..rng.below(4) {
                changes.push(mix.change(&mut rng));
            }
            // Refused strict publishes in between change nothing.
            let published = if rng.chance(15) {
                let strict = match rng.chance(50) {
                    true => switch.control.update(changes),
                    false => switch.control.apply(&mix.config),
                };
                if strict.is_err() {
                    mix.config = before;
                }
                None
            } else if rng.chance(25) {
                mix.shuffle(&mut rng);
                Some(switch.control.apply_lenient(&mix.config).unwrap())
            } else {
                Some(switch.control.update_lenient(changes).unwrap())
            };
            if let Some(published) = published {
                left_out += published.left_out.len();
                taken += published.taken.len();
            }
            let good = mix.settle();
            if round % 3 == 0 {
                let fresh = Switch::new(&good);
                let (now, wanted) =
                    (look(&switch.control.snapshot()), look(&fresh.control.snapshot()));
                assert_eq!(now, wanted, "seed {seed}, round {round}");
                assert_eq!(ControlPlane::check(&good), []);
                let mut names: Vec<String> = switch
                    .control
                    .left_out()
                    .iter()
                    .filter(|l| l.effect != Effect::OneFrontend)
                    .map(|l| l.error.object.to_string())
                    .collect();
                names.sort();
                names.dedup();
                assert_eq!(names, mix.left_out(), "seed {seed}, round {round}");
            }
        }
    }
    assert!(left_out > 1000 && taken > 100, "{left_out}, {taken}");
}

/// Pod `n` on another port or node, with the address of pod `of`.
fn with_address_of(of: usize, name: &str, precedence: Precedence) -> Arc<Endpoint> {
    let mut pod = (*config().endpoints[of]).clone();
    pod.cookie = Cookie::new(format!("Pod/default/{name}"));
    pod.workload.name = name.into();
    pod.attachment = None;
    pod.node = "n9".into();
    pod.precedence = precedence;
    Arc::new(pod)
}

fn holder(switch: &Switch, address: IpAddr) -> String {
    let snapshot = switch.control.snapshot();
    snapshot.endpoints.get(&address).map_or("-".into(), |f| f.endpoint.cookie.to_string())
}

#[test]
fn the_running_pod_has_the_address_and_the_next_one_gets_it() {
    let mut switch = Switch::new(&config());
    let address = IpAddr::from(pod_v4(0));
    let rank = |living, running, created| Precedence { living, running, created };
    let p0 = |precedence| {
        let mut pod = (*config().endpoints[0]).clone();
        pod.precedence = precedence;
        Change::Pod(Arc::new(pod))
    };
    // p0 is being deleted, the newer one has its address.
    let newer = Change::Pod(with_address_of(0, "a", rank(true, false, 50)));
    let changes = [p0(rank(false, true, 90)), newer];
    let published = switch.control.update_lenient(changes).unwrap();
    assert_eq!(
        fields(&published.left_out),
        ["Pod/default/p0: addresses[0]", "Pod/default/p0: addresses[1]"]
    );
    let holds = Cause::Conflict { holder: Cookie::new("Pod/default/a") };
    assert!(published.left_out.iter().all(|l| l.cause == holds && l.effect == Effect::Absent));
    assert_eq!(holder(&switch, address), "Pod/default/a");
    // A pod that is left out may not send: the address is not its own.
    switch.send(0, &udp4(0, pod_v4(1), (1, 2), b"x"));
    assert_eq!(switch.recv(1).len(), 0);
    switch.drops.lock().unwrap().clear();

    for (name, precedence, wins) in [
        ("b", rank(true, false, 49), "a"),
        ("c", rank(true, false, 51), "c"),
        ("d", rank(true, true, 1), "d"),
        ("e", rank(false, true, 99), "d"),
    ] {
        let change = Change::Pod(with_address_of(0, name, precedence));
        switch.control.update_lenient([change]).unwrap();
        assert_eq!(holder(&switch, address), format!("Pod/default/{wins}"));
    }
    // In the order of their precedence, each as soon as the one before is deleted.
    for (gone, next) in [("d", "c"), ("c", "a"), ("a", "b"), ("b", "e"), ("e", "p0")] {
        let gone = Change::PodDeleted(Cookie::new(format!("Pod/default/{gone}")));
        let published = switch.control.update_lenient([gone]).unwrap();
        assert_eq!(holder(&switch, address), format!("Pod/default/{next}"));
        assert_eq!(published.taken, [Cookie::new(format!("Pod/default/{next}"))]);
    }
    assert_eq!(switch.control.left_out(), []);
    switch.send(0, &udp4(0, pod_v4(1), (1, 2), b"x"));
    assert_eq!(switch.recv(1).len(), 1, "attached again");
}

fn network_policy(ports: (u16, u16)) -> NetworkPolicy {
    let (first, last) = ports;
    let port = PortRule::Range { protocol: Protocol::Udp, first, last };
    NetworkPolicy {
        cookie: "NetworkPolicy/default/p".into(),
        namespace: "default".into(),
        name: "p".into(),
        pods: Selector::everything(),
        ingress: Some(vec![Rule { peers: Peers::Any, ports: Ports::AnyOf(vec![port]) }]),
        egress: None,
    }
}

fn refused(policy: NetworkPolicy) -> Change {
    let error = ConfigError {
        object: Cookie::new(policy.cookie.clone()),
        field: "spec.podSelector".into(),
        reason: "cannot be read".into(),
    };
    Change::RefusedPolicy(Arc::new(RefusedPolicy::Network { policy: Arc::new(policy), error }))
}

#[test]
fn an_invalid_policy_allows_nothing() {
    let bad = || Change::Policy(Arc::new(network_policy((9, 8))));
    let good = |port| Change::Policy(Arc::new(network_policy((port, port))));
    let passes = |switch: &mut Switch, port: u16| {
        switch.send(0, &udp4(0, pod_v4(1), (1000 + port, port), b"x"));
        let dropped = switch.dropped();
        assert!(dropped.is_empty() || dropped == [(0, PolicyIngress)], "{dropped:?}");
        switch.recv(1).len() == 1
    };
    for bad in [bad(), refused(network_policy((1, 1)))] {
        let mut switch = Switch::new(&config());
        assert!(passes(&mut switch, 53));
        // Without an earlier version: isolated.
        let published = switch.control.update_lenient([bad.clone()]).unwrap();
        assert_eq!(published.left_out[0].effect, Effect::Isolated);
        assert!(!passes(&mut switch, 53) && !passes(&mut switch, 1));
        // With an earlier version: that version stays until a valid one arrives.
        let published = switch.control.update_lenient([good(53)]).unwrap();
        assert_eq!(published.taken, [Cookie::new("NetworkPolicy/default/p")]);
        assert!(passes(&mut switch, 53) && !passes(&mut switch, 54));
        let published = switch.control.update_lenient([bad.clone()]).unwrap();
        assert_eq!(published.left_out[0].effect, Effect::LastVersion);
        assert!(passes(&mut switch, 53) && !passes(&mut switch, 54));
        // Independent of other changes.
        switch.control.update_lenient([Change::NamespaceDeleted("x".into())]).unwrap();
        assert!(passes(&mut switch, 53) && !passes(&mut switch, 54));
        switch.control.update_lenient([good(54)]).unwrap();
        assert!(!passes(&mut switch, 53) && passes(&mut switch, 54));
        // After a deletion in between, the earlier version does not count.
        switch
            .control
            .update_lenient([Change::PolicyDeleted("NetworkPolicy/default/p".into())])
            .unwrap();
        assert!(passes(&mut switch, 53));
        switch.control.update_lenient([bad]).unwrap();
        assert!(!passes(&mut switch, 53) && !passes(&mut switch, 54));
    }
}

#[test]
fn two_policies_of_one_name_isolate() {
    let mut config = config();
    let narrow = NetworkPolicy { egress: Some(Vec::new()), ..network_policy((54, 54)) };
    config.policies = vec![Arc::new(network_policy((53, 53))), Arc::new(narrow)];
    let mut switch = Switch::new(&rig::config());
    assert!(switch.control.apply(&config).is_err());
    let published = switch.control.apply_lenient(&config).unwrap();
    assert_eq!(fields(&published.left_out), ["NetworkPolicy/default/p: name"]);
    for port in [53, 54] {
        switch.send(0, &udp4(0, pod_v4(1), (1, port), b"x"));
        assert_eq!(switch.recv(1).len(), 0);
    }
}

#[test]
fn strict_publishes_refuse_what_lenient_ones_leave_out() {
    let mut switch = Switch::new(&config());
    let before = switch.control.snapshot();
    let clash = || Change::Pod(with_address_of(0, "z", Precedence::default()));
    let error = switch.control.update([clash()]).unwrap_err();
    assert_eq!(error.0[0].object.as_str(), "Pod/default/z");
    assert!(Arc::ptr_eq(&before, &switch.control.snapshot()));
    // An object that is already left out does not make changes of other objects fail, but it makes
    // a whole state fail.
    switch.control.update_lenient([clash()]).unwrap();
    switch.control.update([Change::NamespaceDeleted("x".into())]).unwrap();
    let mut whole = config();
    whole.endpoints.push(with_address_of(0, "z", Precedence::default()));
    assert!(switch.control.apply(&whole).is_err());
    assert_eq!(switch.control.left_out().len(), 2, "both addresses");
    switch.control.apply(&config()).unwrap();
    assert_eq!(switch.control.left_out(), []);
}

#[test]
fn invalid_settings_refuse_every_publish() {
    let mut switch = Switch::new(&config());
    let before = switch.control.snapshot();
    let mut config = config();
    config.node.nat_ports = 80..=90;
    config.endpoints.push(with_address_of(0, "z", Precedence::default()));
    let errors = switch.control.apply_lenient(&config).unwrap_err().0;
    let errors: Vec<String> = errors.iter().map(|e| format!("{}: {}", e.object, e.field)).collect();
    assert_eq!(errors, ["Node/n1: nat_ports"]);
    assert!(Arc::ptr_eq(&before, &switch.control.snapshot()));
}

#[test]
fn the_dependency_of_an_object_may_be_added_later() {
    let mut switch = Switch::new(&config());
    let mut pod = (*config().endpoints[2]).clone();
    pod.cookie = Cookie::new("Pod/default/late");
    pod.workload.addresses = vec![IpAddr::from([10, 1, 0, 77])];
    pod.attachment = Some(Attachment { port: PortId(9), mac: pod_mac(67), mtu: 1500 });
    let published = switch.control.update_lenient([Change::Pod(Arc::new(pod))]).unwrap();
    assert_eq!(published.left_out[0].cause, Cause::Missing);
    switch.send(0, &udp4(0, [10, 1, 0, 77], (1, 2), b"x"));
    assert_eq!(switch.dropped(), [(0, UnknownPod)]);
    let port = PortConfig { port: PortId(9), role: PortRole::Pod };
    let published = switch.control.update_lenient([Change::Port(port)]).unwrap();
    assert_eq!(published.taken, [Cookie::new("Pod/default/late")]);
    assert_eq!(holder(&switch, [10, 1, 0, 77].into()), "Pod/default/late");
    let published = switch.control.update_lenient([Change::PortDeleted(PortId(9))]).unwrap();
    assert_eq!(fields(&published.left_out), ["Pod/default/late: attachment.port"]);
    assert_eq!(holder(&switch, [10, 1, 0, 77].into()), "-");
}

#[test]
fn frontends_that_two_services_claim_are_reported() {
    let service = |name: &str, last: u8, node_port: u16| {
        let mut service = Service::cluster_ip("ns", name, [IpAddr::from([10, 96, 0, last])]);
        service.kind = ServiceType::NodePort;
        let port = ServicePort { node_port: Some(node_port), ..ServicePort::tcp("", 80) };
        service.ports = vec![port];
        Change::Service(Arc::new(service))
    };
    let mut switch = Switch::new(&config());
    // Neither Service makes the other fail, even in strict publishes.
    switch.control.update([service("b", 1, 30_000)]).unwrap();
    let changes = [service("a", 1, 30_001), service("c", 2, 30_000)];
    let published = switch.control.update_lenient(changes).unwrap();
    let mut told = fields(&published.left_out);
    told.sort();
    assert_eq!(told, ["Service/ns/b: spec.clusterIPs", "Service/ns/c: spec.ports.nodePort"]);
    assert!(published.left_out.iter().all(|l| l.effect == Effect::OneFrontend));
    assert_eq!(switch.control.left_out().len(), 2);
    let gone = Change::ServiceDeleted(podswitch_policy::service::model::ServiceName {
        namespace: "ns".into(),
        name: "a".into(),
    });
    let published = switch.control.update_lenient([gone]).unwrap();
    assert_eq!(published.taken, [Cookie::new("Service/ns/b")]);
    assert_eq!(fields(&switch.control.left_out()), ["Service/ns/c: spec.ports.nodePort"]);
}

#[test]
fn an_empty_configuration_leaves_nothing_out() {
    let mut control = ControlPlane::new(podswitch_core::control::Options::default());
    let published = control.apply_lenient(&Config::default()).unwrap();
    assert_eq!((published.left_out, published.taken), (vec![], vec![]));
}
