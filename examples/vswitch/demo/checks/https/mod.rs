//! The front door: a client outside the cluster gets `https://shop.demo.test` from the ingress proxy,
//! which is a pod of the switch behind a Service of the type LoadBalancer.

mod client;

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use podswitch_ingress::proxy::{Options, Proxy};
use podswitch_ingress::{Objects, compile};
use podswitch_linux::netlink::Route;
use podswitch_linux::{HostError, NetNs, Netlink};
use podswitch_wire::cidr::Cidr;
use serde_json::{Value, json};

use super::objects::Front;
use crate::Done;
use crate::demo::report::Report;
use crate::demo::servers::Servers;
use crate::demo::sockets::{self, Outcome};
use crate::demo::world::{Family, HTTP_PORT, NODE_ADDRESSES, SEGMENT, World};
use client::{CERTIFICATE, Client, HOST, Page};

const HTTPS: u16 = 443;
/// Requests without a cookie; each backend gets every other one.
const MANY: usize = 8;

const CLUSTER_IPS: Family =
    Family { v4: Ipv4Addr::new(10, 96, 0, 30), v6: Ipv6Addr::new(0xfd96, 0, 0, 0, 0, 0, 0, 0x30) };
/// Outside the cluster's ranges; the network outside has a route to node one for them.
const BALANCED: Family = Family {
    v4: Ipv4Addr::new(203, 0, 113, 10),
    v6: Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 0x10),
};

/// The key of the certificate. Both are here for everybody to read: they are of no use but in this demo.
const KEY: &str = include_str!("shop.demo.test.key");

/// See the module's description.
pub(in crate::demo) fn https(world: &mut World, report: &mut Report) -> Done {
    let proxy = world.pod("blue").clone();
    let backends = ["green", "cyan"].map(|name| world.pod(name).clone());
    let _servers = match Servers::start_http(&backends) {
        Ok(servers) => servers,
        Err(error) => return report.check("HTTPS: servers", Err(error)),
    };
    let shop = Front {
        namespace: "demo",
        name: "shop",
        cluster_ips: None,
        balanced: None,
        protocol: "TCP",
        port: HTTP_PORT,
        target: HTTP_PORT,
    };
    let front = Front {
        name: "front",
        cluster_ips: Some(CLUSTER_IPS),
        balanced: Some(BALANCED),
        port: HTTPS,
        target: HTTPS,
        ..shop
    };
    let shop = shop.objects(&backends.each_ref());
    let front = front.objects(&[&proxy]);
    let put = world.change(|setup| setup.others = [&shop[..], &front[..]].concat());
    let put = put.and_then(|()| reachable(&world.outside));
    report.check("HTTPS: the Service of the proxy is applied on both nodes", put)?;
    let started = start(&proxy.namespace, shop);
    let proxy = match started {
        Ok(proxy) => proxy,
        Err(error) => return report.check("HTTPS: the proxy starts in a pod", Err(error)),
    };
    let result = ask(world, report);
    proxy.stop(Duration::ZERO);
    result?;
    let gone = world.change(|setup| *setup = Default::default());
    report.check("HTTPS: removed", gone)
}

/// What the client checks.
fn ask(world: &World, report: &mut Report) -> Done {
    let client = match Client::new() {
        Ok(client) => client,
        Err(error) => return report.check("HTTPS: a client", Err(error)),
    };
    for (family, address) in BALANCED.each() {
        // The client resolves nothing: it is told the address.
        let get = |cookie: Option<&str>| {
            client.get(&world.outside, SocketAddr::new(address, HTTPS), cookie)
        };
        let at = "at a LoadBalancer address, from outside";
        let outcome = spreads(get);
        report.check(format!("HTTPS: https://{HOST} {at}, {family}"), outcome)?;
        let outcome = sticks(get);
        let name = "HTTPS: a cookie keeps the client at one backend";
        report.check(format!("{name}, {family}"), outcome)?;
    }
    Ok(())
}

/// Without a cookie, every backend is reached.
fn spreads(get: impl Fn(Option<&str>) -> Outcome<Page>) -> Outcome<()> {
    let mut seen = BTreeSet::new();
    for _ in 0..MANY {
        seen.insert(get(None)?.body);
    }
    match seen.iter().map(String::as_str).eq(["cyan", "green"]) {
        true => Ok(()),
        false => Err(format!("{MANY} requests went to {seen:?} only")),
    }
}

/// With the cookie of the first response, the same backend answers every time.
fn sticks(get: impl Fn(Option<&str>) -> Outcome<Page>) -> Outcome<()> {
    let Page { cookie, body: first } = get(None)?;
    let cookie = cookie.ok_or("the response sets no cookie")?;
    for _ in 0..MANY {
        let body = get(Some(&cookie))?.body;
        if body != first {
            return Err(format!("{first} first, and then {body}"));
        }
    }
    Ok(())
}

/// Routes from the network outside to the load balancer's addresses, through node one.
fn reachable(outside: &NetNs) -> Outcome<()> {
    let text = |e: HostError| e.to_string();
    let mut netlink = Netlink::open(outside).map_err(text)?;
    let link = netlink.link(SEGMENT).map_err(text)?.index;
    for (_, address) in BALANCED.each() {
        let bits = if address.is_ipv4() { 32 } else { 128 };
        let to = Cidr::new(address, bits).expect("as many bits as the family has");
        let via: IpAddr = NODE_ADDRESSES[0].like(address);
        netlink.add_route(&Route::to(to).via(via).link(link)).map_err(text)?;
    }
    Ok(())
}

/// Starts the proxy in a pod's namespace, where its threads stay.
fn start(pod: &NetNs, shop: Vec<Value>) -> Outcome<Proxy> {
    let options = Options {
        https: Some(SocketAddr::from((Ipv6Addr::UNSPECIFIED, HTTPS))),
        workers: 1,
        ..Options::default()
    };
    let proxy = sockets::open(pod, || Proxy::start(options, None))?;
    let mut objects = Objects::default();
    for object in shop.into_iter().chain(ingress()) {
        objects.upsert(None, object);
    }
    let compiled = compile(&objects, &podswitch_ingress::Options::default());
    let mut records = compiled.records;
    records.extend(proxy.publish(compiled.routes));
    match records.first() {
        None => Ok(proxy),
        Some(record) => Err(record.to_string()),
    }
}

/// What the proxy serves: a host with TLS and a cookie.
fn ingress() -> [Value; 3] {
    [
        json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "IngressClass",
            "metadata": {"name": "podswitch"}, "spec": {"controller": "podswitch.io/ingress"},
        }),
        json!({
            "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls",
            "metadata": {"name": "shop-tls", "namespace": "demo"},
            "data": {"tls.crt": STANDARD.encode(CERTIFICATE), "tls.key": STANDARD.encode(KEY)},
        }),
        json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "Ingress",
            "metadata": {
                "name": "shop", "namespace": "demo",
                "annotations": {"nginx.ingress.kubernetes.io/affinity": "cookie"},
            },
            "spec": {
                "ingressClassName": "podswitch",
                "tls": [{"hosts": [HOST], "secretName": "shop-tls"}],
                "rules": [{"host": HOST, "http": {"paths": [{
                    "path": "/", "pathType": "Prefix",
                    "backend": {"service": {"name": "shop", "port": {"name": "it"}}},
                }]}}],
            },
        }),
    ]
}
