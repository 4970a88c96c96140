//! Labels and policies hold from the first packet on, and follow the manifests.

use super::*;

fn pod(name: &str, app: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: a, uid: uid-{name}, labels: {{app: {app}}}}}\n\
         spec: {{nodeName: n1, containers: [{{name: c, ports: [{{name: web, containerPort: 7000, protocol: UDP}}]}}]}}\n"
    )
}

/// Pods with app=db are reached by app=web alone, at the port named web.
const POLICY: &str = "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: db, namespace: a}\n\
    spec: {podSelector: {matchLabels: {app: db}}, ingress: [{from: [{podSelector: {matchLabels: {app: web}}}], \
    ports: [{port: web, protocol: UDP}]}]}\n";

#[test]
fn labels_hold_from_the_first_packet_and_follow_the_manifests() {
    podswitch_testkit::require_tap!();
    let state = |x: &str| pod("x", x) + &pod("y", "db") + POLICY;
    let world = World::new(&state("other"));
    let switch = world.start(&[]);
    let (x, y) = (Container::new(), Container::new());
    let (of_x, of_y) = (world.add(&x, Some("x"))[0], world.add(&y, Some("y"))[0]);
    let (from, to) = (x.socket(of_x, 7000), y.socket(of_y, 7000));
    let other = y.socket(of_y, 7001);
    assert!(!arrives(&from, &to, 3), "app=other may not");

    world.manifest(&state("web"));
    switch.says("applied");
    assert!(arrives(&from, &to, 50), "app=web may");
    assert!(!arrives(&from, &other, 3), "at the named port alone");
    world.manifest(&state("other"));
    switch.says("applied");
    // The labels of a pod that the agent attached follow the state.
    assert!(closes(&from, &to), "no more");

    // A former pod of that name, whose manifest is still there.
    let z = Container::new();
    world.manifest(&(state("web") + &pod("z", "web").replace("uid-z", "uid-old")));
    switch.says("applied");
    let waiting = std::thread::scope(|scope| {
        let add = scope.spawn(|| world.of("ADD", &z, Some("z"), &json!({})));
        std::thread::sleep(Duration::from_millis(300));
        world.manifest(&(state("web") + &pod("z", "web")));
        add.join().expect("it ends")
    });
    let from = z.socket(waiting.addresses()[0], 7000);
    assert!(next_arrives(&from, &to), "the new pod's labels hold");
    assert_eq!(switch.stop(), Some(0));
}

#[test]
fn an_address_of_a_former_sandbox_does_not_count() {
    podswitch_testkit::require_tap!();
    let with = |status: &str| pod("x", "web") + status + &pod("y", "db") + POLICY;
    // The object still says what an earlier sandbox had, as after a restart of the machine.
    let world = World::new(&with("status: {phase: Running, podIPs: [{ip: 10.1.0.99}]}\n"));
    let switch = world.start(&[]);
    let (x, y) = (Container::new(), Container::new());
    let (of_x, of_y) = (world.add(&x, Some("x")), world.add(&y, Some("y")));
    assert_ne!(of_x[0], IpAddr::from([10, 1, 0, 99]));
    let (from, to) = (x.socket(of_x[0], 7000), y.socket(of_y[0], 7000));
    assert!(next_arrives(&from, &to), "what was added holds");
    let now = format!("status: {{phase: Running, podIPs: [{{ip: {}}}]}}\n", of_x[0]);
    world.manifest(&with(&now));
    switch.says("applied");
    assert!(arrives(&from, &to, 50));
    world.del(&x);
    assert_eq!(switch.stop(), Some(0));
}
