//! `portMappings`: ports of the node that lead to a pod.

use super::*;

#[test]
fn ports_of_the_node_lead_to_the_pod() {
    podswitch_testkit::require_tap!();
    let world = World::new("");
    world.give_address();
    let switch = world.start(&[]);
    let x = Container::new();
    let mapping = |port: u16| {
        let mapping = json!({"hostPort": port, "containerPort": 7000, "protocol": "udp"});
        json!({"runtimeConfig": {"portMappings": [mapping]}})
    };
    let of_x = world.of("ADD", &x, None, &mapping(8080)).addresses()[0];
    let server = x.socket(of_x, 7000);
    let client = world.node.enter(|| UdpSocket::bind("192.0.2.1:0")).unwrap().unwrap();
    let reaches = |port: u16| {
        (0..5).any(|_| {
            client.send_to(b"?", ("192.0.2.1", port)).expect("sent");
            server.recv_from(&mut [0; 16]).is_ok()
        })
    };
    assert!(reaches(8080));
    assert!(!reaches(8081));

    // The port is taken.
    let y = Container::new();
    let refused = world.of("ADD", &y, None, &mapping(8080));
    let (code, text) = refused.error();
    assert!(code == 100 && text.contains("8080"), "{refused:?}");
    assert_eq!(world.leases().len(), 1);
    world.del(&x);
    assert!(!reaches(8080));
    assert!(world.of("ADD", &y, None, &mapping(8080)).ok, "free again");
    assert_eq!(switch.stop(), Some(0));
}
