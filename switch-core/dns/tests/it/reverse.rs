//! Names of addresses: CoreDNS's test `reverse`.

use podswitch_dns::{Name, Settings};

use crate::world::{check, ip, slice, zone};

fn with(zones: &[(&str, u8)]) -> podswitch_dns::Zone {
    let zones = zones.iter().map(|(address, prefix)| Name::reverse_zone(ip(address), *prefix));
    zone(Settings { reverse_zones: zones.collect(), ..Settings::default() })
}

#[test]
fn addresses_that_are_known() {
    let mut zone = with(&[]);
    zone.upsert_slice(slice("set.prod", 3, &["deep@fd00:77:30::2:9ba6"], &[])).expect("a slice");
    zone.upsert_slice(slice("early.prod", 1, &["also@172.0.0.2"], &[])).expect("a slice");
    check(
        &zone,
        "
        1.0.0.10.in-addr.arpa PTR => NOERROR
        1.0.0.10.in-addr.arpa. 5 IN PTR web.prod.svc.cluster.local.

        9.0.0.172.in-addr.arpa PTR => NOERROR
        9.0.0.172.in-addr.arpa. 5 IN PTR back.web.prod.svc.cluster.local.

        4.0.0.172.IN-ADDR.ARPA PTR => NOERROR
        4.0.0.172.IN-ADDR.ARPA. 5 IN PTR dup.set.prod.svc.cluster.local.

        2.0.0.172.in-addr.arpa PTR => NOERROR
        2.0.0.172.in-addr.arpa. 5 IN PTR 172-0-0-2.set.prod.svc.cluster.local.
        2.0.0.172.in-addr.arpa. 5 IN PTR also.early.prod.svc.cluster.local.

        6.a.b.9.2.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.3.0.0.7.7.0.0.0.0.d.f.ip6.arpa PTR => NOERROR
        6.a.b.9.2.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.3.0.0.7.7.0.0.0.0.d.f.ip6.arpa. 5 IN PTR deep.set.prod.svc.cluster.local.

        1.0.0.10.in-addr.arpa A => NOERROR

        6.0.0.172.in-addr.arpa PTR => elsewhere

        30.0.0.172.in-addr.arpa PTR => elsewhere

        8.8.8.8.in-addr.arpa PTR => elsewhere

        0.10.in-addr.arpa PTR => elsewhere

        in-addr.arpa SOA => elsewhere

        100.0.0.10.cluster.local PTR => NXDOMAIN

        example.org.cluster.local PTR => NXDOMAIN
        ",
    );
}

#[test]
fn zones_of_ours() {
    let zone = with(&[("10.0.0.0", 16), ("172.0.0.0", 8), ("fd00::", 8)]);
    check(
        &zone,
        "
        1.0.0.10.in-addr.arpa PTR => NOERROR
        1.0.0.10.in-addr.arpa. 5 IN PTR web.prod.svc.cluster.local.

        101.0.0.10.in-addr.arpa PTR => NXDOMAIN

        6.0.0.172.in-addr.arpa PTR => NXDOMAIN

        web.prod.svc.0.10.in-addr.arpa A => NXDOMAIN

        0.0.10.in-addr.arpa PTR => NOERROR

        0.10.in-addr.arpa A => NOERROR

        0.10.in-addr.arpa SOA => NOERROR
        0.10.in-addr.arpa. 5 IN SOA ns.dns.0.10.in-addr.arpa. hostmaster.0.10.in-addr.arpa. 7 7200 1800 86400 5

        0.0.d.f.ip6.arpa PTR => NOERROR

        1.1.10.in-addr.arpa PTR => elsewhere

        10.in-addr.arpa NS => elsewhere
        ",
    );
}

/// A cluster IP that is an endpoint as well is the Service's.
#[test]
fn services_come_before_endpoints() {
    let mut zone = with(&[]);
    zone.upsert_slice(slice("set.prod", 2, &["odd@10.0.0.1"], &[])).expect("a slice");
    let service = "
        1.0.0.10.in-addr.arpa PTR => NOERROR
        1.0.0.10.in-addr.arpa. 5 IN PTR web.prod.svc.cluster.local.
        ";
    check(&zone, service);
    zone.delete_service("prod", "web").expect("a name");
    let endpoint = "
        1.0.0.10.in-addr.arpa PTR => NOERROR
        1.0.0.10.in-addr.arpa. 5 IN PTR odd.set.prod.svc.cluster.local.

        9.0.0.172.in-addr.arpa PTR => elsewhere
        ";
    check(&zone, endpoint);
}
