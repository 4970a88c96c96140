//! Traffic policies and topology (S2 to S4), as seen from n1 in zone z1.

use std::net::SocketAddr;

use podswitch_wire::flow_key::proto;

use crate::endpoints::spread;
use crate::play::{Play, first, udp};
use crate::world::{End, FAMILIES, NODE, NODE_PORTS, OUTSIDE, PORTS, X, Y, Z, node_ip, vip, web};

/// S4.
#[test]
fn should_respect_internal_traffic_policy_local() {
    let spec = format!("internalTrafficPolicy: Local, {PORTS}");
    for v6 in FAMILIES {
        let mut play = Play::new(&web(&spec, &[End::pod(Y), End::remote(5)]));
        assert_eq!(spread(&mut play, X, v6, 4000), ["a_y"]);
        assert_eq!(spread(&mut play, NODE, v6, 4000), ["a_y"]);
        // None here: dropped, not refused; there are some elsewhere.
        play.change(&web(&spec, &[End::remote(5)]));
        for protocol in [proto::TCP, proto::UDP, proto::SCTP] {
            let asked = first(protocol, X.at(v6, 5000), vip(10, v6, 80));
            let outcome = play.send(X, &asked);
            outcome.silent("service_no_local_endpoints");
            assert_eq!(outcome.object(), Some("Service/a/web"));
        }
    }
}

/// S1 within the node: the local set falls back by itself.
#[test]
fn should_fall_back_to_local_terminating_endpoints() {
    let terminating = End::pod(Y).state(false, true, true);
    for v6 in FAMILIES {
        let spec = format!("internalTrafficPolicy: Local, {PORTS}");
        let mut play = Play::new(&web(&spec, &[terminating.clone(), End::remote(5)]));
        assert_eq!(spread(&mut play, X, v6, 4000), ["a_y"]);
        // Cluster-wide the remote one is ready, and the local one is not asked.
        play.change(&web(PORTS, &[terminating.clone(), End::remote(5)]));
        assert_ne!(spread(&mut play, X, v6, 5000), ["a_y"]);
        // With Local policy for the outside as well.
        let spec = format!("type: NodePort, externalTrafficPolicy: Local, {NODE_PORTS}");
        play.change(&web(&spec, &[terminating.clone(), End::remote(5)]));
        let to = SocketAddr::new(node_ip(v6), 30_080);
        play.send(OUTSIDE, &udp(OUTSIDE.at(v6, 6000), to)).by("a_y");
        play.change(&web(&spec, &[End::pod(Y).state(false, false, true), End::remote(5)]));
        play.send(OUTSIDE, &udp(OUTSIDE.at(v6, 6001), to)).silent("service_no_local_endpoints");
    }
}

/// S2: a hint on every ready endpoint, and one of them for this zone.
#[test]
fn should_follow_zone_hints() {
    for v6 in FAMILIES {
        let [y, z] = [End::pod(Y).hints("z1", ""), End::pod(Z).hints("z2", "")];
        let mut play = Play::new(&web(PORTS, &[y.clone(), z.clone()]));
        assert_eq!(spread(&mut play, X, v6, 4000), ["a_y"]);
        // One ready endpoint without a hint, and hints are ignored.
        play.change(&web(PORTS, &[y.clone(), End::pod(Z)]));
        assert_eq!(spread(&mut play, X, v6, 5000), ["a_y", "a_z"]);
        // None for this zone.
        let ends = [End::pod(Y).hints("z2", ""), z.clone()];
        play.change(&web(PORTS, &ends));
        assert_eq!(spread(&mut play, X, v6, 6000), ["a_y", "a_z"]);
        // One that is not ready does not matter.
        let ends = [y.clone(), z.clone(), End::remote(5).state(false, false, false)];
        play.change(&web(PORTS, &ends));
        assert_eq!(spread(&mut play, X, v6, 7000), ["a_y"]);
    }
}

/// `trafficDistribution` is what makes controllers write hints; PreferSameNode goes before zones.
#[test]
fn should_prefer_the_same_node_then_the_same_zone() {
    for v6 in FAMILIES {
        let near = End::pod(Y).hints("z1", "n1");
        let far = End::pod(Z).hints("z1", "n2");
        let spec = format!("trafficDistribution: PreferSameNode, {PORTS}");
        let mut play = Play::new(&web(&spec, &[near.clone(), far.clone()]));
        assert_eq!(spread(&mut play, X, v6, 4000), ["a_y"]);
        // None hinted at this node, both at this zone.
        let ends = [End::pod(Y).hints("z1", "n2"), far.clone(), End::remote(5).hints("z2", "n2")];
        play.change(&web(&spec, &ends));
        assert_eq!(spread(&mut play, X, v6, 5000), ["a_y", "a_z"]);
    }
}

/// Flows stay where they are when only policy or hints change (S10).
#[test]
fn should_leave_flows_alone_when_only_hints_or_policy_change() {
    for v6 in FAMILIES {
        let plain = [End::pod(Y), End::pod(Z)];
        let mut play = Play::new(&web(PORTS, &plain));
        let all: Vec<_> = (4000..4040).map(|port| udp(X.at(v6, port), vip(10, v6, 80))).collect();
        let where_to = |play: &mut Play| -> Vec<String> {
            play.send_all(X, &all).iter().map(|o| o.sent().port).collect()
        };
        let before = where_to(&mut play);
        let hinted = [End::pod(Y).hints("z1", ""), End::pod(Z).hints("z2", "")];
        play.change(&web(PORTS, &hinted));
        assert_eq!(where_to(&mut play), before);
        let spec = format!("internalTrafficPolicy: Local, {PORTS}");
        play.change(&web(&spec, &plain));
        assert_eq!(where_to(&mut play), before);
        let spec = format!("sessionAffinity: ClientIP, {PORTS}");
        play.change(&web(&spec, &plain));
        assert_eq!(where_to(&mut play), before);
    }
}
