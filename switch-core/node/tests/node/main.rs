//! A node's switch as its embedders use it: pods in real namespaces, real sockets, single changes, events.

mod held;
mod other_nodes;

use std::fs::File;
use std::net::{IpAddr, UdpSocket};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use podswitch_core::config::{Config, Endpoint, LocalNode, RemoteNode, VtepMac};
use podswitch_core::control::Change;
use podswitch_core::id::{Cookie, PortId};
use podswitch_linux::{NetNs, Netlink};
use podswitch_node::{
    CloseReason, Connection, Event, Failure, InterfaceKind, Node, NodeError, NodeOptions, Outcome,
    PodAttachment, PodError, PodInterfaces, PodName, State, StateChanges, UnderlayError,
    UnderlayOptions, node_addresses,
};
use podswitch_policy::rule::{Labels, NetworkPolicy, Selector, Workload};
use podswitch_wire::addr::Mac;
use podswitch_wire::flow_key::proto;

fn config() -> Config {
    let node = LocalNode { name: "n1".into(), ..LocalNode::default() };
    Config { node, ..Config::default() }
}

fn name(pod: &str) -> PodName {
    PodName::new("default", pod).unwrap()
}

fn address(number: u8) -> IpAddr {
    [10, 8, 0, number].into()
}

/// A pod of addresses 10.8.0.n and fd08::n, without labels.
fn pod(pod: &str, netns: &NetNs, number: u8) -> PodAttachment {
    let v6 = IpAddr::from([0xfd08, 0, 0, 0, 0, 0, 0, u16::from(number)]);
    PodAttachment::new(name(pod), netns.clone(), [address(number), v6])
}

fn labels(pod: &str) -> Labels {
    [("app", pod)].into_iter().collect()
}

/// The pod as the state knows it.
fn endpoint(pod: &str, number: u8, node: &str) -> Arc<Endpoint> {
    let v6 = IpAddr::from([0xfd08, 0, 0, 0, 0, 0, 0, u16::from(number)]);
    Arc::new(Endpoint {
        cookie: Cookie::new(format!("Pod/default/{pod}")),
        workload: Workload {
            namespace: "default".into(),
            name: pod.into(),
            labels: labels(pod),
            addresses: vec![address(number), v6],
            ports: Vec::new(),
            host_network: false,
        },
        node: node.into(),
        attachment: None,
        precedence: Default::default(),
    })
}

/// Isolates a pod.
fn shut(pod: &str) -> Arc<NetworkPolicy> {
    Arc::new(NetworkPolicy {
        cookie: format!("NetworkPolicy/default/shut-{pod}").into(),
        namespace: "default".into(),
        name: format!("shut-{pod}").into(),
        pods: Selector::of_labels(labels(pod)),
        ingress: Some(Vec::new()),
        egress: None,
    })
}

fn start(options: NodeOptions, state: impl Into<State>) -> (Node, Receiver<Event>) {
    let (sender, events) = channel();
    let options = options.on_event(move |event| drop(sender.send(event)));
    (Node::start(options, state).unwrap(), events)
}

fn socket(netns: &NetNs, number: u8, port: u16) -> UdpSocket {
    let socket = netns.enter(|| UdpSocket::bind((address(number), port))).unwrap().unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    socket
}

/// Whether a datagram arrives; the first ones may be lost while neighbours are asked for.
fn reaches(from: &UdpSocket, to: &UdpSocket) -> bool {
    let target = to.local_addr().unwrap();
    (0..50).any(|_| from.send_to(b"?", target).is_ok() && to.recv_from(&mut [0; 16]).is_ok())
}

/// Whether nothing arrives of some datagrams.
fn is_cut_off(from: &UdpSocket, to: &UdpSocket) -> bool {
    let target = to.local_addr().unwrap();
    (0..3).all(|_| {
        let _ = from.send_to(b"?", target);
        to.recv_from(&mut [0; 16]).is_err()
    })
}

fn has_interface(netns: &NetNs, name: &str) -> bool {
    Netlink::open(netns).unwrap().find_link(name).unwrap().is_some()
}

fn namespaces<const N: usize>() -> [NetNs; N] {
    [(); N].map(|()| NetNs::anonymous().unwrap())
}

#[test]
fn pods_come_and_go_by_name_and_namespace() {
    podswitch_testkit::require_privilege!();
    let [node_ns, red, blue] = namespaces();
    let (mut node, events) = start(NodeOptions::new("n1").namespace(node_ns.clone()), config());
    let port = node.add_pod(pod("red", &red, 2).labels(labels("red"))).unwrap();
    let veth = pod("blue", &blue, 3).labels(labels("blue")).kind(InterfaceKind::Veth);
    node.add_pod(veth.clone().interface("net1")).unwrap();
    assert!(reaches(&socket(&red, 2, 1), &socket(&blue, 3, 1)));
    assert!(reaches(&socket(&blue, 3, 2), &socket(&red, 2, 2)));
    // The node itself reaches a pod that no range holds.
    let (at_node, at_pod) =
        (node_ns.enter(|| UdpSocket::bind("0.0.0.0:0")).unwrap().unwrap(), socket(&red, 2, 3));
    assert!(node_addresses(&node_ns).unwrap().is_empty());
    let lo = Netlink::open(&node_ns).unwrap().link("lo").unwrap().index;
    Netlink::open(&node_ns).unwrap().add_address(lo, "192.0.2.1/32".parse().unwrap()).unwrap();
    assert!(reaches(&at_node, &at_pod));

    // A descriptor is as good as a path or a namespace; what is no network namespace is refused.
    let open = |path: &str| OwnedFd::from(File::open(path).unwrap());
    assert!(NetNs::try_from(open(red.path().to_str().unwrap())).unwrap().is_same(&red));
    for other in ["/proc/self/ns/mnt", "/proc/self/status"] {
        assert!(NetNs::try_from(open(other)).is_err(), "{other}");
    }

    // The same again is nothing; another interface is made anew.
    assert_eq!(node.add_pod(pod("red", &red, 2).labels(labels("red"))).unwrap(), port);
    node.add_pod(veth).unwrap();
    assert!(!has_interface(&blue, "net1") && has_interface(&blue, "eth0"));
    assert!(reaches(&socket(&red, 2, 4), &socket(&blue, 3, 4)));

    // What cannot be is refused by field, or by what it clashes with, and leaves nothing.
    let [green] = namespaces();
    match node.add_pod(pod("green", &green, 4).interface("no/name")) {
        Err(NodeError::Pod { pod, error: PodError::Invalid { field: "interface", .. } }) => {
            assert_eq!(pod, name("green"));
        }
        other => panic!("{other:?}"),
    }
    match node.add_pod(pod("green", &green, 2).labels(labels("green"))) {
        Err(NodeError::Refused(errors)) => assert!(!errors.is_empty()),
        other => panic!("{other:?}"),
    }
    let nowhere = PodAttachment::new(name("green"), "/nowhere", [address(4)]);
    assert!(matches!(
        node.add_pod(nowhere),
        Err(NodeError::Pod { error: PodError::Host(error), .. }) if error.is_not_found()
    ));
    assert!(!has_interface(&green, "eth0") && node.ports().len() == 2);
    assert!(reaches(&socket(&red, 2, 5), &socket(&blue, 3, 5)), "the others go on");

    assert!(node.remove_pod(&name("blue")).unwrap());
    assert!(!node.remove_pod(&name("blue")).unwrap());
    assert!(!has_interface(&blue, "eth0") && node.port(&name("blue")).is_none());
    node.stop(PodInterfaces::Remove).unwrap();
    assert!(has_interface(&red, "eth0"), "only remove_pod removes what was added");
    assert!(!has_interface(&node_ns, "podswitch0"));
    let told: Vec<Event> = events.iter().collect();
    let attached = |n: &PodName| {
        told.iter().filter(|e| matches!(e, Event::PodAttached { pod, .. } if pod == n)).count()
    };
    assert_eq!((attached(&name("red")), attached(&name("blue"))), (1, 2));
    let detached =
        told.iter().filter(|e| matches!(e, Event::PodDetached { pod } if *pod == name("blue")));
    assert_eq!(detached.count(), 2);
    assert!(!told.iter().any(|e| matches!(e, Event::Failure(_))), "{told:?}");
}

#[test]
fn a_pod_does_not_have_the_counts_of_an_earlier_one_at_its_port() {
    podswitch_testkit::require_privilege!();
    let [node_ns, red, blue, green] = namespaces();
    let (mut node, _events) = start(NodeOptions::new("n1").namespace(node_ns), config());
    for (pod_name, netns, number) in [("red", &red, 2), ("blue", &blue, 3)] {
        node.add_pod(pod(pod_name, netns, number).labels(labels(pod_name))).unwrap();
    }
    let sent = |node: &Node, pod_name: &str| {
        let pods = node.pods();
        let info = pods.iter().find(|info| info.pod == name(pod_name).to_string());
        info.map(|info| (info.port, info.sent_packets)).unwrap()
    };
    let (from, to) = (socket(&red, 2, 1), socket(&blue, 3, 1));
    assert!((0..100).all(|_| reaches(&from, &to)));
    let (port, before) = sent(&node, "red");
    assert!(before >= 100, "{before}");
    // Another pod gets the number; so does one of the same name.
    node.remove_pod(&name("red")).unwrap();
    node.add_pod(pod("green", &green, 4).labels(labels("green"))).unwrap();
    let (other, counted) = sent(&node, "green");
    assert_eq!(other, port);
    assert!(counted < 50, "what its kernel says of itself: {counted}");
    node.remove_pod(&name("green")).unwrap();
    node.add_pod(pod("red", &red, 2).labels(labels("red"))).unwrap();
    let (again, counted) = sent(&node, "red");
    assert_eq!(again, port);
    assert!(counted < 50, "{counted}");
    node.stop(PodInterfaces::Remove).unwrap();
}

#[test]
fn single_changes_are_in_force_when_they_return() {
    podswitch_testkit::require_privilege!();
    let [node_ns, red, blue] = namespaces();
    let (mut node, _events) = start(NodeOptions::new("n1").namespace(node_ns), config());
    // Attached, and closed before the state knows them (N13).
    node.add_pod(pod("red", &red, 2)).unwrap();
    node.add_pod(pod("blue", &blue, 3)).unwrap();
    assert!(is_cut_off(&socket(&red, 2, 1), &socket(&blue, 3, 1)));
    node.update([endpoint("red", 2, "n1"), endpoint("blue", 3, "n1")].map(Change::Pod)).unwrap();
    assert!(reaches(&socket(&red, 2, 2), &socket(&blue, 3, 2)));

    let connection = Connection {
        src: address(2),
        dst: address(3),
        protocol: proto::UDP,
        sport: 40_000,
        dport: 53,
    };
    assert!(node.explain(&connection).unwrap().is_allowed());
    assert!(node.explain(&Connection { dst: "fd08::3".parse().unwrap(), ..connection }).is_none());
    let before = node.epoch();
    assert!(node.update([Change::Policy(shut("blue"))]).unwrap() > before);
    assert!(is_cut_off(&socket(&red, 2, 3), &socket(&blue, 3, 3)));
    assert!(reaches(&socket(&blue, 3, 4), &socket(&red, 2, 4)), "only blue is shut");
    let verdict = node.explain(&connection).unwrap();
    assert!(!verdict.is_allowed());
    match &verdict.outcome {
        Some(Outcome::Drop { object: Some(object), .. }) => {
            assert_eq!(object.as_str(), "NetworkPolicy/default/shut-blue");
        }
        other => panic!("{other:?}"),
    }
    // A changed pod that is attached keeps its port.
    let mut other = (*endpoint("blue", 3, "n1")).clone();
    other.workload.labels = labels("open");
    node.update([Change::Pod(Arc::new(other))]).unwrap();
    assert!(reaches(&socket(&red, 2, 5), &socket(&blue, 3, 5)), "the policy selects it no more");
    node.update([Change::Pod(endpoint("blue", 3, "n1"))]).unwrap();
    assert!(is_cut_off(&socket(&red, 2, 6), &socket(&blue, 3, 6)));
    node.update([Change::PolicyDeleted("NetworkPolicy/default/shut-blue".into())]).unwrap();
    assert!(reaches(&socket(&red, 2, 7), &socket(&blue, 3, 7)));

    // Refused as a whole: blue's address is red's. The state in force stays.
    let epoch = node.epoch();
    let wrong = [Change::Policy(shut("red")), Change::Pod(endpoint("green", 3, "n1"))];
    assert!(matches!(node.update(wrong), Err(NodeError::Refused(errors)) if !errors.is_empty()));
    assert_eq!(node.epoch(), epoch);
    assert!(reaches(&socket(&blue, 3, 8), &socket(&red, 2, 8)));

    // Other nodes come and go; what was changed before holds.
    let remote = Arc::new(RemoteNode {
        cookie: Cookie::new("Node/n2"),
        name: "n2".into(),
        labels: Labels::default(),
        addresses: Vec::new(),
        pod_cidrs: vec!["10.8.2.0/24".parse().unwrap()],
        vtep: VtepMac::default(),
        underlay_mac: Mac::ZERO,
        precedence: Default::default(),
    });
    node.update([Change::Node(remote)]).unwrap();
    assert!(reaches(&socket(&red, 2, 9), &socket(&blue, 3, 9)));
    node.update([Change::NodeDeleted("n2".into())]).unwrap();
    // A pod that the state moves away, or forgets, passes nothing here.
    node.update([Change::Pod(endpoint("blue", 3, "n2"))]).unwrap();
    assert!(is_cut_off(&socket(&red, 2, 10), &socket(&blue, 3, 10)));
    node.update([Change::Pod(endpoint("blue", 3, "n1"))]).unwrap();
    assert!(reaches(&socket(&red, 2, 11), &socket(&blue, 3, 11)));
    node.update([Change::PodDeleted(Cookie::new("Pod/default/blue"))]).unwrap();
    assert!(is_cut_off(&socket(&red, 2, 12), &socket(&blue, 3, 12)));
    node.stop(PodInterfaces::Remove).unwrap();
}

#[test]
fn a_pod_with_labels_follows_the_state_that_describes_it() {
    podswitch_testkit::require_privilege!();
    let [node_ns, red, blue] = namespaces();
    let (mut node, _events) = start(NodeOptions::new("n1").namespace(node_ns), config());
    node.add_pod(pod("red", &red, 2).labels(labels("red"))).unwrap();
    node.add_pod(pod("blue", &blue, 3).labels(labels("blue"))).unwrap();
    assert!(reaches(&socket(&red, 2, 1), &socket(&blue, 3, 1)), "published by the node itself");
    let blue_cookie = Cookie::new("Pod/default/blue");
    let labels_of = |node: &Node| {
        let pod = node.control().objects().endpoint(&blue_cookie)?;
        assert!(pod.attachment.is_some());
        Some(pod.workload.labels.clone())
    };
    assert_eq!(labels_of(&node), Some(labels("blue")));

    // The state's description goes before the attachment's labels, and these are back without it.
    let mut described = (*endpoint("blue", 3, "n1")).clone();
    described.workload.labels = labels("described");
    node.update([Change::Pod(Arc::new(described.clone()))]).unwrap();
    assert_eq!(labels_of(&node), Some(labels("described")));
    assert!(reaches(&socket(&red, 2, 2), &socket(&blue, 3, 2)));
    node.update([Change::PodDeleted(blue_cookie.clone())]).unwrap();
    assert_eq!(labels_of(&node), Some(labels("blue")));
    assert!(reaches(&socket(&red, 2, 3), &socket(&blue, 3, 3)));

    // Nothing of it is left once it is removed, and a state that names it attaches nothing.
    assert!(node.remove_pod(&name("blue")).unwrap());
    assert!(node.control().objects().endpoint(&blue_cookie).is_none());
    node.update([Change::Pod(Arc::new(described))]).unwrap();
    let known = node.control().objects().endpoint(&blue_cookie).unwrap();
    assert!(known.attachment.is_none());
    node.stop(PodInterfaces::Remove).unwrap();
}

#[test]
fn a_state_changes_piece_by_piece() {
    podswitch_testkit::require_privilege!();
    let [node_ns, red, blue] = namespaces();
    let (mut node, _events) = start(NodeOptions::new("n1").namespace(node_ns.clone()), config());
    let mut changes = StateChanges::default();
    for (text, netns, number) in [("red", &red, 2), ("blue", &blue, 3)] {
        changes.objects.push(Change::Pod(endpoint(text, number, "n1")));
        changes.pods.push((name(text), Some(pod(text, netns, number))));
    }
    node.update_state(changes).unwrap();
    assert!(reaches(&socket(&red, 2, 1), &socket(&blue, 3, 1)));
    let leads_to = |destination: &str| {
        let destination = destination.parse().unwrap();
        let mut netlink = Netlink::open(&node_ns).unwrap();
        netlink.routes().unwrap().iter().any(|route| route.destination == destination)
    };
    assert!(leads_to("10.8.0.2/32"), "outside of all ranges");

    // What is no object: this node's ranges, which hold its pods now.
    let mut settings = config();
    settings.node.pod_cidrs = vec!["10.8.0.0/24".parse().unwrap()];
    node.update([Change::Settings(Arc::new(settings))]).unwrap();
    assert!(leads_to("10.8.0.0/24") && !leads_to("10.8.0.2/32"));
    assert!(reaches(&socket(&red, 2, 2), &socket(&blue, 3, 2)), "pods are as they were");

    // Refused as a whole: neither the settings nor the pod go.
    let mut wrong = config();
    wrong.node.gateway.mac = Mac::BROADCAST;
    let mut changes = StateChanges::from(vec![Change::Settings(Arc::new(wrong))]);
    changes.pods.push((name("blue"), None));
    assert!(matches!(node.update_state(changes), Err(NodeError::Refused(_))));
    assert!(node.port(&name("blue")).is_some() && leads_to("10.8.0.0/24"));
    node.poll().unwrap();
    assert!(reaches(&socket(&red, 2, 3), &socket(&blue, 3, 3)));

    // A pod that the state attaches no more is detached.
    let mut changes = StateChanges::from(vec![Change::PodDeleted(Cookie::new("Pod/default/blue"))]);
    changes.pods.push((name("blue"), None));
    node.update_state(changes).unwrap();
    assert!(node.port(&name("blue")).is_none() && !has_interface(&blue, "eth0"));
    // A pod's addresses are those that it is attached with: an object may be of a former sandbox.
    let elsewhere: IpAddr = [198, 51, 100, 7].into();
    let mut moved = (*endpoint("red", 2, "n1")).clone();
    moved.workload.addresses = vec![elsewhere];
    let moved = Change::Pod(Arc::new(moved));
    node.update([moved.clone()]).unwrap();
    assert!(!leads_to("198.51.100.7/32") && node.port(&name("red")).is_some());
    // Attached with another address: the route follows.
    let mut changes = StateChanges::from(vec![moved]);
    changes
        .pods
        .push((name("red"), Some(PodAttachment::new(name("red"), red.clone(), [elsewhere]))));
    node.update_state(changes).unwrap();
    assert!(leads_to("198.51.100.7/32") && node.port(&name("red")).is_some());
    node.stop(PodInterfaces::Remove).unwrap();
}

#[test]
fn what_is_missing_is_reported_once_and_mended_when_it_comes() {
    podswitch_testkit::require_privilege!();
    let [node_ns, red] = namespaces();
    let later = format!("podswitch-test-{}", std::process::id());
    let path = NetNs::directory().join(&later);
    let mut state = State::new(config());
    state.config.endpoints = vec![endpoint("red", 2, "n1"), endpoint("late", 3, "n1")];
    state.pods.push(pod("red", &red, 2));
    state.pods.push(PodAttachment::new(name("late"), path.as_path(), [address(3)]));
    let (mut node, events) =
        start(NodeOptions::new("n1").namespace(node_ns.clone()), state.clone());
    let failures = || {
        let list: Vec<PodName> = events
            .try_iter()
            .filter_map(|event| match event {
                Event::Failure(Failure::PodNotAttached { pod, error: PodError::Host(_) }) => {
                    Some(pod)
                }
                _ => None,
            })
            .collect();
        list
    };
    assert_eq!(failures(), [name("late")]);
    node.apply(state).unwrap();
    assert_eq!(failures(), [], "told once");
    let late = NetNs::create(&later).unwrap();
    // Prefetched after in time, however often it is polled.
    while node.port(&name("late")).is_none() {
        let pause = node.poll().unwrap();
        assert!(pause <= Duration::from_secs(2));
        thread::sleep(pause);
    }
    assert!(reaches(&socket(&red, 2, 1), &socket(&late, 3, 1)));

    // An interface that goes under the switch is made again.
    let index = Netlink::open(&red).unwrap().link("eth0").unwrap().index;
    Netlink::open(&red).unwrap().delete_link(index).unwrap();
    while !has_interface(&red, "eth0") {
        thread::sleep(node.poll().unwrap());
    }
    let lost = events.try_iter().any(
        |e| matches!(e, Event::Failure(Failure::PodInterfaceLost { pod, .. }) if pod == name("red")),
    );
    assert!(lost);
    assert!(reaches(&socket(&red, 2, 2), &socket(&late, 3, 2)));
    node.stop(PodInterfaces::Remove).unwrap();
    assert!(!has_interface(&red, "eth0") && !has_interface(&late, "eth0"));
}

#[test]
fn drops_and_flows_are_told_of() {
    podswitch_testkit::require_privilege!();
    let [node_ns, red, blue] = namespaces();
    let options = NodeOptions::new("n1").namespace(node_ns).report_drops().report_flows();
    let (mut node, events) = start(options, config());
    let red_port = node.add_pod(pod("red", &red, 2).labels(labels("red"))).unwrap();
    node.add_pod(pod("blue", &blue, 3).labels(labels("blue"))).unwrap();
    let (from, to) = (socket(&red, 2, 5000), socket(&blue, 3, 53));
    assert!(reaches(&from, &to));
    let mut wait_for = |wanted: &dyn Fn(&Event) -> bool| {
        for _ in 0..400 {
            if let Some(event) = events.try_iter().find(|event| wanted(event)) {
                return event;
            }
            thread::sleep(node.poll().unwrap());
        }
        panic!("no such event");
    };
    let opened = wait_for(
        &|event| matches!(event, Event::FlowOpened(flow) if flow.record.target.port() == 53),
    );
    let Event::FlowOpened(flow) = opened else { unreachable!() };
    let record = &flow.record;
    assert_eq!((record.client.address, record.server.address), (address(2), address(3)));
    assert_eq!((record.client.port, record.server.port), (5000, 53));
    assert_eq!(record.client.pod.as_deref(), Some("red"));
    assert_eq!(record.server.pod.as_deref(), Some("blue"));
    assert_eq!((record.protocol, &record.service, record.tcp), (proto::UDP, &None, None));

    // A pod sends with another's address: dropped, and told with its name and port.
    let lo = Netlink::open(&red).unwrap().link("lo").unwrap().index;
    Netlink::open(&red).unwrap().add_address(lo, "10.8.0.99/32".parse().unwrap()).unwrap();
    let liar = red.enter(|| UdpSocket::bind("10.8.0.99:1")).unwrap().unwrap();
    liar.send_to(b"?", (address(3), 53)).unwrap();
    let dropped = wait_for(&|event| matches!(event, Event::Dropped(_)));
    let Event::Dropped(frame) = dropped else { unreachable!() };
    assert_eq!((&frame.pod, frame.record.port), (&Some(name("red")), Some(red_port)));
    assert_eq!(frame.record.reason.name(), "spoofed_ip");
    assert_eq!(frame.record.dst.as_ref().unwrap().pod.as_deref(), Some("blue"));
    let text = frame.to_string();
    assert!(text.ends_with("spoofed_ip UDP 10.8.0.99:1 -> default/blue 10.8.0.3:53"), "{text}");

    // The switch stops: so do its connections, and no packet is missing.
    for _ in 0..10 {
        from.send_to(b"!", to.local_addr().unwrap()).unwrap();
    }
    for _ in 0..10 {
        to.recv_from(&mut [0; 16]).unwrap();
    }
    node.stop(PodInterfaces::Remove).unwrap();
    let closed = events.try_iter().find_map(|event| match event {
        Event::FlowClosed(flow) if flow.record.target.port() == 53 => Some(flow),
        _ => None,
    });
    let closed = closed.expect("a last record");
    assert_eq!(closed.close_reason(), Some(CloseReason::Shutdown));
    assert_eq!((closed.record.id, &*closed.node), (flow.record.id, "n1"));
    assert!(closed.record.packets[0] >= 11, "{closed}");
    assert!(closed.start < closed.end && closed.end <= closed.time, "{closed}");
}

#[test]
fn a_handle_serves_many_threads() {
    podswitch_testkit::require_privilege!();
    let [node_ns, red, blue] = namespaces();
    let (node, events) =
        start(NodeOptions::new("n1").namespace(node_ns.clone()).workers(2), config());
    let handle = node.spawn().unwrap();
    let ports: Vec<PortId> = thread::scope(|scope| {
        let add = |pod_name: &'static str, ns: &NetNs, number: u8| {
            let attachment = pod(pod_name, ns, number).labels(labels(pod_name));
            scope.spawn(|| handle.add_pod(attachment).unwrap())
        };
        let threads = [add("red", &red, 2), add("blue", &blue, 3)];
        threads.map(|thread| thread.join().unwrap()).to_vec()
    });
    assert_ne!(ports[0], ports[1]);
    assert!(reaches(&socket(&red, 2, 1), &socket(&blue, 3, 1)));
    assert_eq!(handle.stats().unwrap().pods, 2);
    assert_eq!(handle.flows().unwrap()[0].dst_pod.as_deref(), Some("default/blue"));
    assert_eq!(handle.with(|node| node.ports().len()).unwrap(), 2);
    handle.update(vec![Change::Policy(shut("blue"))]).unwrap();
    assert!(is_cut_off(&socket(&red, 2, 2), &socket(&blue, 3, 2)));
    assert!(handle.remove_pod(name("red")).unwrap());
    handle.stop(PodInterfaces::Remove).unwrap();
    assert!(events.iter().any(|event| matches!(event, Event::PodDetached { .. })));
    assert!(!has_interface(&node_ns, "podswitch0"));
}

#[test]
fn a_node_that_cannot_be_leaves_nothing() {
    podswitch_testkit::require_privilege!();
    let [node_ns] = namespaces();
    let mut underlay = UnderlayOptions::default();
    underlay.uplink = Some("nowhere".into());
    let options = NodeOptions::new("n1").namespace(node_ns.clone()).underlay(underlay);
    match Node::start(options, config()) {
        Err(NodeError::Underlay(UnderlayError::Uplink { interface, .. })) => {
            assert_eq!(interface, "nowhere");
        }
        other => panic!("{other:?}"),
    }
    assert!(!has_interface(&node_ns, "podswitch0"));
    let mut wrong = config();
    wrong.endpoints = vec![endpoint("a", 2, "n1"), endpoint("b", 2, "n1")];
    let options = NodeOptions::new("n1").namespace(node_ns.clone());
    assert!(matches!(Node::start(options, wrong), Err(NodeError::Refused(_))));
    assert!(!has_interface(&node_ns, "podswitch0"));
    let options = NodeOptions::new("n1").namespace(node_ns).workers(0);
    assert!(matches!(
        Node::start(options, config()),
        Err(NodeError::Option { option: "workers", .. })
    ));
}
