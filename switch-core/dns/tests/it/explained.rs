//! Explanations say what the answer says, and why.

use podswitch_dns::{Name, Rcode, Rule, Settings, explain, record_type, type_name, type_number};

use crate::world::{ask, zone};

#[test]
fn steps_lead_to_the_answer() {
    let zone = zone(Settings::default());
    let name = Name::parse("twice.prod.svc.cluster.local").expect("a name");
    let it = explain(&zone, &name, record_type::A);
    let steps: Vec<_> = it.steps.iter().map(|step| (step.rule, step.object.as_deref())).collect();
    assert_eq!(
        steps,
        [
            (Some(Rule::ExternalName), Some("Service/prod/twice")),
            (Some(Rule::ExternalName), Some("Service/prod/to-web")),
            (Some(Rule::ClusterIps), Some("Service/prod/web")),
        ]
    );
    assert_eq!((it.rcode, it.is_partial), (Some(Rcode::NoError), false));
}

/// Our own reading of our records against `domain`'s.
#[test]
fn records_are_those_of_the_answer() {
    let zone = zone(Settings::default());
    for (name, kind) in [
        ("web.prod.svc.cluster.local", "A"),
        ("six.prod.svc.cluster.local", "AAAA"),
        ("_http._tcp.set.prod.svc.cluster.local", "SRV"),
        ("to-web.prod.svc.cluster.local", "A"),
        ("1.0.0.10.in-addr.arpa", "PTR"),
        ("cluster.local", "NS"),
        ("cluster.local", "SOA"),
        ("dns-version.cluster.local", "TXT"),
        ("none.cluster.local", "A"),
    ] {
        let it =
            explain(&zone, &Name::parse(name).expect("a name"), type_number(kind).expect("a type"));
        let texts = |section: &str| {
            let of = it.records.iter().filter(|record| record.section == section);
            let mut texts: Vec<_> =
                of.map(|r| format!("{} {} IN {} {}", r.name, r.ttl, r.kind, r.data)).collect();
            texts.sort();
            texts
        };
        let reply = ask(&zone, name, kind).expect("ours");
        assert_eq!(texts("answer"), reply.answer, "{name}");
        assert_eq!(texts("authority"), reply.authority, "{name}");
        assert_eq!(texts("additional"), reply.additional, "{name}");
    }
}

#[test]
fn other_servers_names_are_said_to_be() {
    let zone = zone(Settings::default());
    let it = explain(&zone, &Name::parse("example.test").expect("a name"), record_type::A);
    assert_eq!((it.rcode, it.steps[0].rule), (None, None));
    let name = Name::parse("ext.prod.svc.cluster.local").expect("a name");
    let it = explain(&zone, &name, record_type::A);
    assert!(it.is_partial && it.steps[1].rule.is_none());
}

#[test]
fn types_have_names() {
    for number in [1, 2, 5, 6, 12, 16, 28, 33, 255, 1234] {
        assert_eq!(type_number(&type_name(number)), Some(number));
    }
    assert_eq!((type_number("srv"), type_number("type65000")), (Some(33), Some(65_000)));
    assert_eq!((type_number("TYPE"), type_number("XYZ"), type_number("é")), (None, None, None));
}
