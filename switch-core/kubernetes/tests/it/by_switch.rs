//! Objects that only the switch leaves out when a state is applied.

use std::path::Path;
use std::sync::Arc;

use podswitch_core::config::Config;
use podswitch_core::control::ControlPlane;
use podswitch_kubernetes::{Action, Counts, Manifests, Record};

#[test]
fn what_the_switch_leaves_out_is_a_record() {
    let text = r#"
{apiVersion: v1, kind: Pod, metadata: {name: p, namespace: a}, status: {podIP: 10.1.0.2}}
---
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: bad, namespace: a}, spec: {podSelector: 7}}
    "#;
    let manifests = Manifests::parse(Path::new("x.yaml"), text).unwrap();
    let mut compiled = manifests.compile(None, &podswitch_kubernetes::Options::default());
    let own = compiled.records.clone();
    // The pod as nothing but the switch sees it.
    let pod = Arc::make_mut(&mut compiled.config.endpoints[0]);
    pod.workload.addresses = vec!["224.0.0.1".parse().unwrap()];
    let mut control = ControlPlane::new(podswitch_core::control::Options::default());
    control.apply_lenient(&compiled.config).unwrap();
    let mut records = own.clone();
    for _ in 0..2 {
        Record::set_left_out(&mut records, &control.left_out());
        let new: Vec<&Record> = records.iter().filter(|record| record.by_switch).collect();
        assert_eq!(new.len(), 1, "the policy has a record: {records:?}");
        assert_eq!(new[0].object.as_str(), "Pod/a/p");
        assert_eq!(
            (&*new[0].field, new[0].action, new[0].refused),
            ("addresses[0]", Action::LeftOut, true)
        );
        let counts = Counts::of(&records);
        assert_eq!((counts.left_out, counts.closed), (1, 1));
    }
    control.apply_lenient(&Config::default()).unwrap();
    Record::set_left_out(&mut records, &control.left_out());
    assert_eq!(records, own);
}
