//! ServiceImports: CoreDNS's test `handler` for a multicluster zone, and the names of KEP-1645.

use std::sync::Arc;

use podswitch_dns::facts::{ServiceKind, SliceFacts};
use podswitch_dns::{Settings, Zone};

use crate::world::{check, ips, service, slice, zone};

fn of_cluster(slice: Arc<SliceFacts>, cluster: &str) -> Arc<SliceFacts> {
    Arc::new(SliceFacts { cluster: Some(cluster.into()), ..(*slice).clone() })
}

fn with_imports() -> Zone {
    let mut zone = zone(Settings::default());
    let http = ["http/tcp/80"];
    let put = |zone: &mut Zone, facts| zone.upsert_import(facts).expect("an import");
    put(&mut zone, service("web.prod", ips(&["10.128.0.1"]), &http));
    put(&mut zone, service("set.prod", ServiceKind::Headless, &http));
    for (cluster, endpoints) in
        [("east", &["172.1.0.2", "dup@172.1.0.4"][..]), ("west", &["dup@172.2.0.4", "!172.2.0.5"])]
    {
        let slice = slice("set.prod", cluster.len() as u8, endpoints, &http);
        let slice = SliceFacts { name: format!("set-{cluster}").into(), ..(*slice).clone() };
        zone.upsert_slice(of_cluster(Arc::new(slice), cluster)).expect("a slice");
    }
    zone
}

#[test]
fn imports_have_names_of_their_own() {
    check(
        &with_imports(),
        "
        web.prod.svc.clusterset.local A => NOERROR
        web.prod.svc.clusterset.local. 5 IN A 10.128.0.1

        web.prod.svc.cluster.local A => NOERROR
        web.prod.svc.cluster.local. 5 IN A 10.0.0.1

        _http._tcp.web.prod.svc.clusterset.local SRV => NOERROR
        _http._tcp.web.prod.svc.clusterset.local. 5 IN SRV 0 100 80 web.prod.svc.clusterset.local.
        + web.prod.svc.clusterset.local. 5 IN A 10.128.0.1

        set.prod.svc.clusterset.local A => NOERROR
        set.prod.svc.clusterset.local. 5 IN A 172.1.0.2
        set.prod.svc.clusterset.local. 5 IN A 172.1.0.4
        set.prod.svc.clusterset.local. 5 IN A 172.2.0.4

        dup.east.set.prod.svc.clusterset.local A => NOERROR
        dup.east.set.prod.svc.clusterset.local. 5 IN A 172.1.0.4

        172-1-0-2.east.set.prod.svc.clusterset.local A => NOERROR
        172-1-0-2.east.set.prod.svc.clusterset.local. 5 IN A 172.1.0.2

        172-1-0-2.set.prod.svc.clusterset.local A => NXDOMAIN

        172-1-0-2.west.set.prod.svc.clusterset.local A => NXDOMAIN

        east.set.prod.svc.clusterset.local A => NOERROR

        north.set.prod.svc.clusterset.local A => NXDOMAIN

        _http._tcp.set.prod.svc.clusterset.local SRV => NOERROR
        _http._tcp.set.prod.svc.clusterset.local. 5 IN SRV 0 33 80 172-1-0-2.east.set.prod.svc.clusterset.local.
        _http._tcp.set.prod.svc.clusterset.local. 5 IN SRV 0 33 80 dup.east.set.prod.svc.clusterset.local.
        _http._tcp.set.prod.svc.clusterset.local. 5 IN SRV 0 33 80 dup.west.set.prod.svc.clusterset.local.
        + 172-1-0-2.east.set.prod.svc.clusterset.local. 5 IN A 172.1.0.2
        + dup.east.set.prod.svc.clusterset.local. 5 IN A 172.1.0.4
        + dup.west.set.prod.svc.clusterset.local. 5 IN A 172.2.0.4

        idle.prod.svc.clusterset.local A => NXDOMAIN

        10-240-0-1.prod.pod.clusterset.local A => NXDOMAIN

        clusterset.local SOA => NOERROR
        clusterset.local. 5 IN SOA ns.dns.clusterset.local. hostmaster.clusterset.local. 7 7200 1800 86400 5

        4.0.1.172.in-addr.arpa PTR => elsewhere
        ",
    );
}

#[test]
fn without_imports_the_zone_is_elsewhere() {
    let mut zone = with_imports();
    zone.delete_import("prod", "web").expect("a name");
    zone.delete_import("prod", "set").expect("a name");
    check(&zone, "web.prod.svc.clusterset.local A => elsewhere");
}
