//! What waits while there is no switch is judged by the state of the next run.

use podswitch_vswitch_testkit::cluster::{Fabric, Node, put};
use podswitch_vswitch_testkit::{Folder, RunDir};

use super::{Datagrams, Open};

#[test]
fn what_has_waited_is_judged() {
    podswitch_testkit::require_privilege!();
    let fabric = Fabric::new(1500);
    let node = Node::new(&fabric, 1, &[false], &["tap", "tap", "tap"]);
    let folder = Folder::new();
    put(&folder, &[node.manifest()]);
    let run_dir = RunDir::new("hold-policy");
    let start = || {
        let switch = node.start(&folder, &["--run-dir", &run_dir.0]);
        switch.event("ready");
        switch
    };
    let [client, shut, open] = &node.pods[..] else { panic!("three pods") };
    let mut switch = start();
    let mut denied = Open::new(&client.ns, &shut.ns, shut.addresses[0], 8080);
    let mut allowed = Open::new(&client.ns, &open.ns, open.addresses[0], 8080);
    let mut known = Datagrams::new(&client.ns, &shut.ns, shut.addresses[0], 9000);
    let mut new = Datagrams::new(&client.ns, &shut.ns, shut.addresses[0], 9001);
    known.send(1);
    assert_eq!(known.receive(1), [0]);
    let policy = format!(
        "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n\
         metadata: {{name: shut, namespace: a}}\n\
         spec: {{podSelector: {{matchLabels: {{name: {}}}}}, policyTypes: [Ingress]}}\n",
        shut.name
    );
    let labelled = node.manifest().replace(
        &format!("metadata: {{name: {}, namespace: a,", shut.name),
        &format!("metadata: {{name: {0}, namespace: a, labels: {{name: {0}}},", shut.name),
    );
    for round in 0..2u8 {
        // The first time, policy comes while there is no switch; the second time, it has ended the connection before.
        drop(switch);
        put(&folder, &[labelled.clone(), policy.clone()]);
        denied.client_sends(&[7; 100]);
        known.send(3);
        new.send(3);
        allowed.client_sends(&[round; 100]);
        switch = start();
        allowed.server_gets(&[round; 100]);
        switch.has_dropped("policy_ingress", 6);
        assert!(known.is_silent() && new.is_silent(), "round {round}");
        denied.server.set_read_timeout(Some(std::time::Duration::from_millis(300))).expect("set");
        let heard = std::io::Read::read(&mut denied.server, &mut [0; 100]);
        assert!(heard.is_err(), "round {round}: {heard:?}");
    }
    assert_eq!(switch.stop(), Some(0));
}
