//! Any bytes as the datagram of a DNS query, after a byte that selects the zone. The result is an answer within its
//! size limit in which every count is right, or a reason for no answer. The result is the same again, and the answer
//! over TCP never has less than the one over UDP.

use std::net::IpAddr;
use std::sync::{Arc, LazyLock};

use podswitch_dns::facts::{
    EndpointFacts, PodFacts, PortFacts, Protocol, ServiceFacts, ServiceKind, SliceFacts,
};
use podswitch_dns::{
    MAX_SIZE, MAX_TCP, Name, Outcome, PodNames, Rcode, Settings, Transport, Zone, answer,
};

/// A zone for each choice.
static ZONES: LazyLock<Vec<Zone>> = LazyLock::new(|| (0..32).map(zone).collect());

/// See the module's description.
pub(crate) fn run(input: &[u8]) {
    let Some((choices, query)) = input.split_first() else { return };
    let zone = &ZONES[usize::from(*choices & 31)];
    let rotation = u32::from(*choices >> 5);
    let mut out = [0xa5; MAX_SIZE];
    let outcome = answer(zone, query, Transport::Udp, rotation, &mut out);
    let mut more = vec![0x5a; MAX_TCP];
    let by_tcp = answer(zone, query, Transport::Tcp, rotation, &mut more);
    let Outcome::Answered(it) = outcome else {
        assert_eq!(outcome, by_tcp);
        return;
    };
    let Outcome::Answered(whole) = by_tcp else { panic!("{by_tcp:?} by TCP only") };
    assert!((12..=MAX_SIZE).contains(&it.len) && it.len <= whole.len);
    assert_eq!((it.rcode, it.rule), (whole.rcode, whole.rule));
    assert!(!whole.is_truncated);
    if !zone.is_synced() {
        assert!(!matches!(it.rcode, Rcode::NxDomain | Rcode::NoError));
    } else {
        assert_ne!(it.rcode, Rcode::ServFail);
    }
    for (bytes, it) in [(&out[..it.len], it), (&more[..whole.len], whole)] {
        assert_eq!((&bytes[..2], bytes[2] & 0x80), (&query[..2], 0x80));
        assert_eq!(bytes[2] & 0x02 != 0, it.is_truncated);
        walk(bytes);
    }
    let mut again = [0; MAX_SIZE];
    assert_eq!(answer(zone, query, Transport::Udp, rotation, &mut again), outcome);
    assert_eq!(again[..it.len], out[..it.len]);
}

/// Parses a message completely: it has the records that the header counts, and nothing else.
fn walk(message: &[u8]) {
    let count = |at: usize| usize::from(u16::from_be_bytes([message[at], message[at + 1]]));
    let mut at = 12;
    for _ in 0..count(4) {
        at = after_name(message, at) + 4;
    }
    for _ in 0..count(6) + count(8) + count(10) {
        let fixed = after_name(message, at);
        let len = usize::from(u16::from_be_bytes([message[fixed + 8], message[fixed + 9]]));
        at = fixed + 10 + len;
    }
    assert_eq!(at, message.len());
}

/// The end of a name. Pointers only point backwards, and to a name.
fn after_name(message: &[u8], start: usize) -> usize {
    let (mut at, mut end, mut bound) = (start, None, message.len());
    loop {
        let len = message[at];
        if len & 0xc0 == 0xc0 {
            end = end.or(Some(at + 2));
            at = usize::from(u16::from_be_bytes([len & 0x3f, message[at + 1]]));
            assert!((12..bound).contains(&at));
            bound = at;
        } else if len == 0 {
            return end.unwrap_or(at + 1);
        } else {
            assert!(len < 64);
            at += 1 + usize::from(len);
        }
    }
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// A zone with Services of every kind. The bits of a byte select how pods are answered, whether the zone is complete,
/// and whether there are imports and reverse zones.
fn zone(choices: u8) -> Zone {
    let pods = [PodNames::Verified, PodNames::Insecure, PodNames::Disabled];
    let reverse = Name::reverse_zone(ip("10.0.0.0"), 16);
    let mut zone = Zone::new(Settings {
        pods: pods[usize::from(choices & 3) % 3],
        reverse_zones: if choices & 16 == 0 { Vec::new() } else { vec![reverse] },
        ..Settings::default()
    })
    .expect("settings");
    let http =
        || vec![PortFacts { name: "http".into(), protocol: Protocol::Tcp, number: Some(80) }];
    let service = |name: &str, kind| {
        let (namespace, name) = ("prod".into(), name.into());
        Arc::new(ServiceFacts { namespace, name, kind, ports: http(), publish_not_ready: false })
    };
    let alias = |to: &str| ServiceKind::External(format!("{to}.prod.svc.cluster.local").into());
    let both = ServiceKind::ClusterIps(vec![ip("10.0.0.1"), ip("fd00::1")]);
    for facts in [
        service("web", both.clone()),
        service("set", ServiceKind::Headless),
        service("to-set", alias("set")),
        service("to-to-set", alias("to-set")),
        service("ping", alias("pong")),
        service("pong", alias("ping")),
        service("out", ServiceKind::External("out.example".into())),
    ] {
        zone.upsert_service(facts).expect("a Service");
    }
    // More than any datagram holds.
    let endpoints: Vec<_> = (0..90_u8)
        .map(|n| EndpointFacts {
            addresses: vec![IpAddr::from([10, 1, 0, n])],
            hostname: (n % 3 == 0).then(|| "h".into()),
            is_ready: n % 7 != 0,
        })
        .collect();
    let slice = |cluster: Option<&str>| {
        Arc::new(SliceFacts {
            namespace: "prod".into(),
            name: "set-1".into(),
            service: "set".into(),
            cluster: cluster.map(Into::into),
            ports: http(),
            endpoints: endpoints.clone(),
        })
    };
    zone.upsert_slice(slice(None)).expect("a slice");
    if choices & 8 != 0 {
        zone.upsert_import(service("set", ServiceKind::Headless)).expect("an import");
        zone.upsert_import(service("web", both)).expect("an import");
        zone.upsert_slice(slice(Some("east"))).expect("a slice");
    }
    let addresses = vec![ip("10.240.0.1")];
    zone.upsert_pod(Arc::new(PodFacts { namespace: "prod".into(), name: "a".into(), addresses }))
        .expect("a pod");
    zone.set_synced(choices & 4 == 0);
    zone
}
