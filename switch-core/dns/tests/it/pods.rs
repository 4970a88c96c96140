//! Names of pods: CoreDNS's tests `handler_pod_disabled`, `_insecure` and `_verified`.

use podswitch_dns::{PodNames, Settings};

use crate::world::{check, pod, zone};

fn with(pods: PodNames) -> podswitch_dns::Zone {
    zone(Settings { pods, ..Settings::default() })
}

#[test]
fn disabled() {
    check(
        &with(PodNames::Disabled),
        "
        10-240-0-1.prod.pod.cluster.local A => NXDOMAIN

        172-0-0-2.prod.pod.cluster.local A => NXDOMAIN

        prod.pod.cluster.local A => NXDOMAIN

        pod.cluster.local A => NOERROR
        ",
    );
}

#[test]
fn insecure() {
    check(
        &with(PodNames::Insecure),
        "
        10-240-0-1.prod.pod.cluster.local A => NOERROR
        10-240-0-1.prod.pod.cluster.local. 5 IN A 10.240.0.1

        172-0-0-2.prod.pod.cluster.local A => NOERROR
        172-0-0-2.prod.pod.cluster.local. 5 IN A 172.0.0.2

        172-0-0-2.prod.pod.cluster.local AAAA => NOERROR

        fd00--7.prod.pod.cluster.local AAAA => NOERROR
        fd00--7.prod.pod.cluster.local. 5 IN AAAA fd00::7

        blah.prod.pod.cluster.local A => NXDOMAIN

        blah.prod.pod.cluster.local AAAA => NXDOMAIN

        blah.prod.pod.cluster.local HINFO => NXDOMAIN

        10-240-0-256.prod.pod.cluster.local A => NXDOMAIN

        a.10-240-0-1.prod.pod.cluster.local A => NXDOMAIN

        10-240-0-1.none.pod.cluster.local A => NXDOMAIN

        none.pod.cluster.local A => NXDOMAIN

        prod.pod.cluster.local A => NOERROR
        ",
    );
}

#[test]
fn verified() {
    let mut zone = with(PodNames::Verified);
    check(
        &zone,
        "
        10-240-0-1.prod.pod.cluster.local A => NOERROR
        10-240-0-1.prod.pod.cluster.local. 5 IN A 10.240.0.1

        fd00--240-1.prod.pod.cluster.local AAAA => NOERROR
        fd00--240-1.prod.pod.cluster.local. 5 IN AAAA fd00::240:1

        10-240-0-1.prod.pod.cluster.local AAAA => NOERROR

        10-240-0-1.other.pod.cluster.local A => NXDOMAIN

        10-240-0-2.prod.pod.cluster.local A => NXDOMAIN

        172-0-0-2.prod.pod.cluster.local A => NXDOMAIN

        prod.pod.cluster.local A => NOERROR

        none.pod.cluster.local A => NXDOMAIN
        ",
    );
    // The address goes to another pod before the first is gone.
    zone.upsert_pod(pod("other", "c", &["10.240.0.1"])).expect("a pod");
    zone.upsert_pod(pod("prod", "a", &["10.240.0.3"])).expect("a pod");
    zone.delete_pod("other", "b").expect("a name");
    check(
        &zone,
        "
        10-240-0-1.prod.pod.cluster.local A => NXDOMAIN

        10-240-0-3.prod.pod.cluster.local A => NOERROR
        10-240-0-3.prod.pod.cluster.local. 5 IN A 10.240.0.3

        10-240-0-1.other.pod.cluster.local A => NOERROR
        10-240-0-1.other.pod.cluster.local. 5 IN A 10.240.0.1

        10-240-0-2.other.pod.cluster.local A => NXDOMAIN
        ",
    );
}
