//! Objects for tests, and questions as clients ask them.

use std::net::IpAddr;
use std::sync::Arc;

use domain::base::iana::{Class, Rtype};
use domain::base::{Message, MessageBuilder, Name, ParsedName};
use domain::rdata::AllRecordData;
use podswitch_dns::facts::{
    EndpointFacts, PodFacts, PortFacts, Protocol, ServiceFacts, ServiceKind, SliceFacts,
};
use podswitch_dns::{MAX_TCP, Outcome, Settings, Transport, Zone, answer};

pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap_or_else(|_| panic!("{text} is not an address"))
}

/// `http/tcp/80`, `/udp/53` without a name.
pub(crate) fn port(text: &str) -> PortFacts {
    let parts: Vec<_> = text.split('/').collect();
    let protocol = match parts[1] {
        "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        _ => Protocol::Sctp,
    };
    PortFacts { name: parts[0].into(), protocol, number: parts[2].parse().ok() }
}

pub(crate) fn service(key: &str, kind: ServiceKind, ports: &[&str]) -> Arc<ServiceFacts> {
    let (name, namespace) = key.split_once('.').expect("NAME.NAMESPACE");
    Arc::new(ServiceFacts {
        namespace: namespace.into(),
        name: name.into(),
        kind,
        ports: ports.iter().map(|text| port(text)).collect(),
        publish_not_ready: false,
    })
}

pub(crate) fn ips(list: &[&str]) -> ServiceKind {
    ServiceKind::ClusterIps(list.iter().map(|text| ip(text)).collect())
}

/// `ADDRESS`, `HOSTNAME@ADDRESS`, with `!` in front if it is not ready.
pub(crate) fn endpoint(text: &str) -> EndpointFacts {
    let is_ready = !text.starts_with('!');
    let text = text.trim_start_matches('!');
    let (hostname, address) = match text.split_once('@') {
        Some((hostname, address)) => (Some(hostname.into()), address),
        None => (None, text),
    };
    EndpointFacts { addresses: vec![ip(address)], hostname, is_ready }
}

pub(crate) fn slice(key: &str, number: u8, endpoints: &[&str], ports: &[&str]) -> Arc<SliceFacts> {
    let (service, namespace) = key.split_once('.').expect("NAME.NAMESPACE");
    Arc::new(SliceFacts {
        namespace: namespace.into(),
        name: format!("{service}-{number}").into(),
        service: service.into(),
        cluster: None,
        ports: ports.iter().map(|text| port(text)).collect(),
        endpoints: endpoints.iter().map(|text| endpoint(text)).collect(),
    })
}

pub(crate) fn pod(namespace: &str, name: &str, addresses: &[&str]) -> Arc<PodFacts> {
    let addresses = addresses.iter().map(|text| ip(text)).collect();
    Arc::new(PodFacts { namespace: namespace.into(), name: name.into(), addresses })
}

/// A zone with Services of all kinds in the namespace `prod`, as the lists of cases need them.
pub(crate) fn zone(settings: Settings) -> Zone {
    let mut zone = Zone::new(settings).expect("settings");
    let put = |zone: &mut Zone, facts| zone.upsert_service(facts).expect("a Service");
    let http = ["http/tcp/80"];
    put(&mut zone, service("web.prod", ips(&["10.0.0.1"]), &http));
    put(&mut zone, service("idle.prod", ips(&["10.0.0.2"]), &http));
    put(&mut zone, service("six.prod", ips(&["1234:abcd::1"]), &http));
    put(&mut zone, service("both.prod", ips(&["10.0.0.3", "10::3"]), &http));
    put(&mut zone, service("plain.prod", ips(&["10.0.0.4"]), &["/tcp/80"]));
    put(&mut zone, service("portless.prod", ServiceKind::Headless, &[]));
    put(&mut zone, service("set.prod", ServiceKind::Headless, &http));
    put(&mut zone, service("down.prod", ServiceKind::Headless, &http));
    let early = ServiceFacts {
        publish_not_ready: true,
        ..(*service("early.prod", ServiceKind::Headless, &[])).clone()
    };
    put(&mut zone, Arc::new(early));
    let external = |target: &str| ServiceKind::External(target.into());
    put(&mut zone, service("ext.prod", external("ext.example.test"), &http));
    put(&mut zone, service("to-web.prod", external("WEB.prod.svc.cluster.local."), &[]));
    put(&mut zone, service("to-set.prod", external("set.prod.svc.cluster.local"), &[]));
    put(&mut zone, service("to-none.prod", external("none.prod.svc.cluster.local"), &[]));
    put(&mut zone, service("twice.prod", external("to-web.prod.svc.cluster.local"), &[]));
    put(&mut zone, service("self.prod", external("self.prod.svc.cluster.local"), &[]));
    put(&mut zone, service("ping.prod", external("pong.prod.svc.cluster.local"), &[]));
    put(&mut zone, service("pong.prod", external("ping.prod.svc.cluster.local"), &[]));
    put(&mut zone, service("address.prod", external("192.0.2.1"), &[]));
    let dns = ["dns/udp/53", "dns-tcp/tcp/53", "metrics/tcp/9153"];
    put(&mut zone, service("kube-dns.kube-system", ips(&["10.0.0.10", "fd00::10"]), &dns));
    for slice in [
        slice("web.prod", 0, &["172.0.0.1", "back@172.0.0.9"], &http),
        slice(
            "set.prod",
            0,
            &["172.0.0.2", "172.0.0.3", "dup@172.0.0.4", "dup@172.0.0.5", "!172.0.0.6"],
            &http,
        ),
        slice("set.prod", 1, &["5678:abcd::1", "5678:abcd::2"], &http),
        slice("portless.prod", 0, &["172.0.0.20"], &[]),
        slice("down.prod", 0, &["!172.0.0.30"], &http),
        slice("early.prod", 0, &["!first@172.0.0.40"], &[]),
    ] {
        zone.upsert_slice(slice).expect("a slice");
    }
    for namespace in ["prod", "empty", "kube-system"] {
        zone.set_namespace(namespace, true).expect("a namespace");
    }
    zone.upsert_pod(pod("prod", "a", &["10.240.0.1", "fd00::240:1"])).expect("a pod");
    zone.upsert_pod(pod("other", "b", &["10.240.0.2"])).expect("a pod");
    zone.set_serial(7);
    zone.set_synced(true);
    zone
}

/// An answer as a client understands it: records sorted, as `owner ttl IN type data`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Reply {
    pub(crate) rcode: String,
    pub(crate) truncated: bool,
    pub(crate) authoritative: bool,
    pub(crate) answer: Vec<String>,
    pub(crate) authority: Vec<String>,
    pub(crate) additional: Vec<String>,
}

/// Records of an answer, in the order of the message.
pub(crate) fn decode(bytes: &[u8]) -> Reply {
    let message = Message::from_octets(bytes).expect("a header");
    let (_, answer, authority, additional) = message.sections().expect("sections");
    let texts = |section: domain::base::message::RecordSection<'_, &[u8]>| -> Vec<String> {
        section
            .limit_to::<AllRecordData<_, ParsedName<_>>>()
            .map(|record| record.expect("a record"))
            .filter(|record| record.rtype() != Rtype::OPT)
            .map(|record| {
                let (owner, ttl) = (record.owner(), record.ttl().as_secs());
                // `domain` writes the names of this type without their last dot.
                let dot = if record.rtype() == Rtype::SRV { "." } else { "" };
                let (class, kind, data) = (record.class(), record.rtype(), record.data());
                format!("{owner}. {ttl} {class} {kind} {data}{dot}")
            })
            .collect()
    };
    // What is left over after the last record would be noise.
    let mut rest = message.additional().expect("a section");
    let ends = rest.by_ref().all(|record| record.is_ok());
    assert!(ends, "the additional section has what its count says");
    let header = message.header();
    Reply {
        rcode: header.rcode().to_string(),
        truncated: header.tc(),
        authoritative: header.aa(),
        answer: texts(answer),
        authority: texts(authority),
        additional: texts(additional),
    }
}

/// The datagram of a query, made by `domain`.
pub(crate) fn query(name: &str, kind: Rtype) -> Vec<u8> {
    let mut message = MessageBuilder::new_vec();
    message.header_mut().set_id(0x1234);
    message.header_mut().set_rd(true);
    let mut question = message.question();
    let name: Name<Vec<u8>> = name.parse().unwrap_or_else(|error| panic!("{name}: {error}"));
    question.push((name, kind, Class::IN)).expect("room");
    question.finish()
}

/// Answers a datagram whatever its length. `None`: it is not for this zone.
pub(crate) fn answered(zone: &Zone, query: &[u8], rotation: u32) -> Option<Reply> {
    let mut out = vec![0; MAX_TCP];
    match answer(zone, query, Transport::Tcp, rotation, &mut out) {
        Outcome::Answered(it) => {
            let reply = decode(&out[..it.len]);
            assert_eq!(reply.rcode, it.rcode.name());
            assert_eq!(reply.truncated, it.is_truncated);
            Some(reply)
        }
        Outcome::NotOurs(_) => None,
        Outcome::Ignored(reason) => panic!("ignored: {reason:?}"),
    }
}

/// Answers a question, records sorted.
pub(crate) fn ask(zone: &Zone, name: &str, kind: &str) -> Option<Reply> {
    let kind: Rtype = kind.parse().unwrap_or_else(|_| panic!("type {kind}"));
    let mut reply = answered(zone, &query(name, kind), 0)?;
    reply.answer.sort();
    reply.authority.sort();
    reply.additional.sort();
    Some(reply)
}

/// The SOA record of negative answers in `zone`.
pub(crate) fn authority(zone: &str) -> String {
    format!("{zone} 5 IN SOA ns.dns.{zone} hostmaster.{zone} 7 7200 1800 86400 5")
}

/// Checks a list of cases, each `NAME TYPE => RCODE` and below it the records of the answer, in any order, those of the
/// additional section after a `+`. An answer without records must have the zone's SOA.
pub(crate) fn check(zone: &Zone, cases: &str) {
    let mut count = 0;
    for case in cases.split("\n\n").filter(|case| !case.trim().is_empty()) {
        let mut lines = case.lines().map(str::trim).filter(|line| !line.is_empty());
        let question = lines.next().expect("a question");
        let (question, rcode) = question.split_once(" => ").expect("=>");
        let (name, kind) = question.split_once(' ').expect("a type");
        let normal = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
        let (mut answer, mut additional) = (Vec::new(), Vec::new());
        for line in lines {
            match line.strip_prefix("+ ") {
                Some(line) => additional.push(normal(line)),
                None => answer.push(normal(line)),
            }
        }
        answer.sort();
        additional.sort();
        let reply = ask(zone, name, kind);
        if rcode == "elsewhere" {
            assert_eq!(reply, None, "{question}");
        } else {
            let reply = reply.unwrap_or_else(|| panic!("{question}: not of the zone"));
            assert_eq!(reply.rcode, rcode, "{question}: {reply:#?}");
            assert_eq!(reply.answer, answer, "{question}");
            assert_eq!(reply.additional, additional, "{question}");
            assert!(reply.authoritative && !reply.truncated, "{question}");
            let is_alias = answer.iter().all(|line| line.contains(" CNAME "));
            if answer.is_empty() {
                assert_eq!(reply.authority.len(), 1, "{question}");
            } else if !is_alias {
                assert_eq!(reply.authority, Vec::<String>::new(), "{question}");
            }
            for soa in &reply.authority {
                let zone = soa.split(' ').next().expect("an owner");
                assert_eq!(*soa, authority(zone), "{question}");
            }
        }
        count += 1;
    }
    assert!(count > 0);
}
