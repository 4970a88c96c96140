//! Two switches joined by VXLAN, each family inside and outside: what leaves one node's pod comes
//! to the other's.

mod rig;

use rig::overlay::*;
use rig::*;
use switch_core::config::Underlay;

const UNDERLAYS: [(Underlay, bool); 2] =
    [(Underlay::Ipv4First, false), (Underlay::Ipv6First, true)];

/// Inner family, underlay: all four.
fn each(test: impl Fn(bool, bool, Pair)) {
    for v6 in [false, true] {
        for (underlay, outer_v6) in UNDERLAYS {
            test(v6, outer_v6, Pair::new(underlay));
        }
    }
}

#[test]
fn pods_of_two_nodes_reach_each_other() {
    each(|v6, outer_v6, mut pair| {
        let (a, b) = (pod(0, 0, v6), pod(1, 1, v6));
        // First packets, and those that hit.
        for n in 0..3u8 {
            pair.0[0].send(0, &from_pod(0, 0, &udp(a, b, (1000, 2000), &[n; 30])));
            let carried = pair.carry();
            assert_eq!(carried.len(), 1);
            let seen = dissect(&carried[0].1);
            assert_eq!(
                (seen.source, seen.destination),
                (node_address(0, outer_v6), node_address(1, outer_v6))
            );
            assert_eq!(seen.macs, (underlay_mac(1), underlay_mac(0)));
            assert_eq!((seen.vni, seen.port), (1, VXLAN));
            assert!(seen.source_port >= 49152 && seen.checksum_holds && seen.dont_fragment);
            assert_eq!(seen.checksum == 0, !outer_v6);
            assert_eq!(seen.inner[..6], vtep(1).0);
            assert_eq!(seen.inner[6..12], vtep(0).0);
            assert_eq!((ttl(&seen.inner), is_sound(&seen.inner)), (63, true));

            let got = pair.recv(1, 1);
            assert_eq!(got.len(), 1);
            assert_eq!((ttl(&got[0]), is_sound(&got[0])), (62, true));
            assert_eq!(got[0][..6], mac_of_pod(1, 1).0);
            assert_eq!(got[0][6..12], GATEWAY.0);
            assert!(got[0].ends_with(&[n; 30]));

            pair.send(1, 1, &udp(b, a, (2000, 1000), &[n; 9]));
            let got = pair.recv(0, 0);
            assert_eq!(got.len(), 1);
            assert_eq!((ttl(&got[0]), is_sound(&got[0])), (62, true));
        }
        pair.assert_no_drops();
        for switch in &pair.0 {
            assert_eq!(switch.count(|c| c.misses.get()), 2, "one for each direction");
            assert_eq!(switch.count(|c| c.hits.get()), 4);
        }
    });
}
