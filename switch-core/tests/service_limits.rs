//! Services at their limits: floods, exhausted ports, full tables; and two workers that receive
//! packets of the same connection at once (T-C5, T-N1, T-N4, S9, S16).
#![allow(clippy::disallowed_types, reason = "tests store what an observer reports")]

use podswitch_testkit::rig;

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use podswitch_core::action::DropReason::{self, *};
use podswitch_core::config::{Config, Masquerade};
use podswitch_core::control::{Change, Options};
use podswitch_core::engine::Limits;
use podswitch_core::id::PortId;
use podswitch_policy::service::model::ServiceType;
use podswitch_wire::flow_key::{HashKey, proto};
use podswitch_wire::parse::parse;
use rig::services::*;
use rig::{HOST, Switch, addresses, framed};

fn limited(config: &Config, limits: Limits) -> Switch {
    Switch::with(config, 1, Options { limits, ..Options::default() })
}

const SMALL: Limits = Limits { connections: 512, connections_per_port: 256, flows: 2048, fdb: 16 };

/// An established TCP connection of `pod` to the Service, whose one backend is pod 2.
struct Living {
    pod: usize,
    client: SocketAddr,
    vip: SocketAddr,
    backend: SocketAddr,
}

impl Living {
    fn open(switch: &mut Switch, pod: usize, port: u16) -> Self {
        let f = usize::from(port % 2);
        let client = at(addresses(pod)[f], port);
        let backend = at(addresses(2)[f], 8080);
        let living = Self { pod, client, vip: at(vip(f), 80), backend };
        living.up(switch, (100, 0, SYN));
        living.down(switch, (500, 101, SYN | ACK));
        living.up(switch, (101, 501, ACK));
        living
    }

    #[track_caller]
    fn up(&self, switch: &mut Switch, fields: (u32, u32, u8)) {
        switch.send(self.pod, &framed(self.pod, &segment(self.client, self.vip, fields)));
        ends(&one(switch, 2).1.key, self.client, self.backend);
    }

    #[track_caller]
    fn down(&self, switch: &mut Switch, fields: (u32, u32, u8)) {
        switch.send(2, &framed(2, &segment(self.backend, self.client, fields)));
        ends(&one(switch, self.pod).1.key, self.vip, self.client);
    }

    /// As [`open`](Self::open); `None` if the switch refuses it.
    fn open_or_not(switch: &mut Switch, pod: usize, port: u16) -> Option<Self> {
        syn(switch, pod, port).ok()?;
        Some(Self::open(switch, pod, port))
    }

    fn is_well(&self, switch: &mut Switch) {
        self.up(switch, (101, 501, ACK));
        self.down(switch, (501, 101, ACK));
    }
}

/// A SYN of `pod` to the Service: whether it arrived at the backend, translated, or the drop
/// reason. Nothing is sent untranslated.
fn syn(switch: &mut Switch, pod: usize, port: u16) -> Result<(), DropReason> {
    let f = usize::from(port % 2);
    let (client, vip) = (at(addresses(pod)[f], port), at(vip(f), 80));
    switch.send(pod, &framed(pod, &segment(client, vip, (1, 0, SYN))));
    let dropped = switch.dropped();
    for other in (0..=HOST).filter(|&other| other != 2) {
        assert_eq!(switch.recv(other).len(), 0, "port {other}");
    }
    let arrived = switch.recv(2);
    match (&arrived[..], &dropped[..]) {
        ([frame], []) => {
            let key = parse(frame, &HashKey::new(1)).unwrap().key;
            ends(&key, client, at(addresses(2)[f], 8080));
            Ok(())
        }
        ([], [(_, reason)]) => Err(*reason),
        other => panic!("{other:?}"),
    }
}

/// A pod's flood replaces its own half-open connections, and uses no more than its share.
#[test]
fn a_flood_from_one_pod_affects_only_that_pod() {
    let mut switch = limited(&config(&[2]), SMALL);
    let living: Vec<_> =
        (0..10).map(|n| Living::open(&mut switch, n % 2, 1000 + n as u16)).collect();
    for n in 0..4000u16 {
        assert_eq!(syn(&mut switch, 0, 2000 + n), Ok(()));
        if n % 400 == 0 {
            living.iter().for_each(|one| one.is_well(&mut switch));
            assert_eq!(syn(&mut switch, 1, 20_000 + n), Ok(()), "others open theirs");
        }
    }
    let held = switch.control.shared().tracker.originated(PortId(0));
    assert!((200..=256).contains(&held), "as many as are free: {held}");
    living.iter().for_each(|one| one.is_well(&mut switch));
    switch.assert_adds_up();
}

#[test]
fn a_full_table_refuses_new_connections_and_keeps_the_old() {
    let limits = Limits { connections_per_port: 512, ..SMALL };
    let mut switch = limited(&config(&[2]), limits);
    let living: Vec<_> = (0..512).map(|n| Living::open_or_not(&mut switch, 0, 1000 + n)).collect();
    let opened = living.iter().flatten().count();
    assert_eq!(opened, 256, "as many as are free");
    let refused = living.iter().filter(|one| one.is_none()).count() as u64;
    assert_eq!(switch.count(|c| c.dropped(ConnectionLimit)), refused);
    living.iter().flatten().for_each(|one| one.is_well(&mut switch));
    // Other pods likewise use what is left; a pod without connections finds room.
    let second: Vec<_> = (0..512).map(|n| Living::open_or_not(&mut switch, 1, 1000 + n)).collect();
    assert_eq!(second.iter().flatten().count(), 128);
    living.iter().chain(&second).flatten().for_each(|one| one.is_well(&mut switch));
    switch.assert_adds_up();
}

/// Sends a reply to a datagram, so that its connection is alive.
fn answer(switch: &mut Switch, port: usize) -> bool {
    let frames = switch.recv(port);
    let Some(frame) = frames.first() else { return false };
    let key = parse(frame, &HashKey::new(1)).unwrap().key;
    let (from, to) = ((key.dst_addr(), key.dst_port), (key.src_addr(), key.src_port));
    switch.send(port, &framed(port, &packet(key.proto, from, to)));
    true
}

/// A pod may use up its own share of the masquerading ports, never those of others.
#[test]
fn one_pod_does_not_take_all_source_ports() {
    for f in FAMILIES {
        let mut config = config(&[1]);
        config.node.nat_ports = 50_000..=50_099;
        config.masquerade = Some(Masquerade {
            ipv4: Some("198.51.100.9".parse().unwrap()),
            ipv6: Some("2001:db8:5::9".parse().unwrap()),
            cluster: Vec::new(),
        });
        let mut switch = Switch::new(&config);
        let mut ask = |pod: usize, port: u16, to: u16| {
            let asked = packet(proto::UDP, (addresses(pod)[f], port), (outside(f), to));
            switch.send(pod, &framed(pod, &asked));
            let dropped = switch.dropped();
            let sent = answer(&mut switch, HOST);
            switch.recv(pod);
            match dropped[..] {
                [] => assert!(sent),
                [(_, reason)] => assert_eq!((sent, reason), (false, NatPortsExhausted)),
                ref more => panic!("{more:?}"),
            }
            sent
        };
        assert_eq!((0..200).filter(|n| ask(0, 1000 + n, 53)).count(), 50);
        assert_eq!((0..200).filter(|n| ask(1, 1000 + n, 53)).count(), 25);
        assert!(ask(2, 1000, 53) && ask(2, 1001, 53));
        assert!(ask(0, 1000, 53), "live connections continue");
        // The same address and ports serve another destination.
        assert_eq!((0..200).filter(|n| ask(0, 1000 + n, 54)).count(), 50);
    }
}

/// Two Services with one backend outside the cluster, and one port of the client: the mapping that
/// all its connections share cannot serve both (S16, RFC 4787 REQ-1).
#[test]
fn two_services_one_external_backend_one_client_port() {
    for f in FAMILIES {
        let services = vec![service("web", vip), service("api", second_vip)];
        let mut config = config_with(services, &[]);
        let external = |name: &str| {
            let mut made = slice(name, f, &[1]);
            made.endpoints[0].addresses = vec![outside(f)];
            made.endpoints[0].node = None;
            Arc::new(made)
        };
        config.slices = vec![external("web"), external("api")];
        config.masquerade = Some(Masquerade {
            ipv4: Some("198.51.100.9".parse().unwrap()),
            ipv6: Some("2001:db8:5::9".parse().unwrap()),
            cluster: Vec::new(),
        });
        let mut switch = Switch::new(&config);
        let client = (addresses(0)[f], 4000);
        let mut sources = Vec::new();
        for vip in [vip(f), second_vip(f)] {
            switch.send(0, &framed(0, &packet(proto::UDP, client, (vip, 80))));
            let key = one(&mut switch, HOST).1.key;
            assert_eq!(at(key.dst_addr(), key.dst_port), at(outside(f), 8080));
            sources.push(at(key.src_addr(), key.src_port));
        }
        assert_ne!(sources[0], sources[1]);
        for (source, vip) in sources.into_iter().zip([vip(f), second_vip(f)]) {
            let answer = packet(proto::UDP, (outside(f), 8080), (source.ip(), source.port()));
            switch.send(HOST, &framed(HOST, &answer));
            ends(&one(&mut switch, 0).1.key, at(vip, 80), at(client.0, client.1));
        }
    }
}

/// Protocols without ports are masqueraded by address alone, one peer at a time.
#[test]
fn masqueraded_protocols_without_ports_get_their_answers() {
    const GRE: u8 = 47;
    for f in FAMILIES {
        let mut config = config(&[]);
        config.masquerade = Some(Masquerade {
            ipv4: Some("198.51.100.9".parse().unwrap()),
            ipv6: Some("2001:db8:5::9".parse().unwrap()),
            cluster: Vec::new(),
        });
        let mut switch = Switch::new(&config);
        let gre = |from, to| rig::frames::ip(from, to, GRE, 64, None, &[0, 0, 8, 0, 1, 2, 3, 4]);
        switch.send(0, &framed(0, &gre(addresses(0)[f], outside(f))));
        let key = one(&mut switch, HOST).1.key;
        switch.send(HOST, &framed(HOST, &gre(outside(f), key.src_addr())));
        assert_eq!(one(&mut switch, 0).1.key.dst_addr(), addresses(0)[f]);
        // Another pod and the same peer: its replies could not be distinguished.
        switch.send(1, &framed(1, &gre(addresses(1)[f], outside(f))));
        assert_eq!(switch.dropped(), [(1, NatPortsExhausted)]);
    }
}

/// A client's pin is the same on every worker.
#[test]
fn affinity_is_shared_by_workers() {
    for f in FAMILIES {
        let mut web = service("web", vip);
        web.affinity = Some(100);
        let full = config_with(vec![web.clone()], &[0, 1, 2]);
        let mut switch = Switch::with_workers(&full, 2);
        let mut port = 1000;
        let mut ask = |switch: &mut Switch, worker: usize| {
            port += 1;
            let asked = packet(proto::UDP, (outside(f), port), (vip(f), 80));
            switch.send_by(worker, HOST, &framed(HOST, &asked));
            (0..3).find(|&b| !switch.recv(b).is_empty()).expect("a backend")
        };
        let home = ask(&mut switch, 0);
        assert_eq!(ask(&mut switch, 1), home);
        let rest: Vec<usize> = (0..3).filter(|b| *b != home).collect();
        switch.control.apply(&config_with(vec![web.clone()], &rest)).unwrap();
        let other = ask(&mut switch, 1);
        switch.control.apply(&full).unwrap();
        // Not the backend that the hash selects, but the one to which the other worker pinned it.
        for worker in [0, 1, 0] {
            assert_eq!(ask(&mut switch, worker), other);
        }
        switch.pass(Duration::from_secs(101));
        assert_eq!(ask(&mut switch, 0), home);
    }
}

/// Two datagrams at once from one port, on two workers on threads of their own, while the weights
/// of backends change (T-N4): one connection, one backend, and both arrive.
#[test]
fn two_first_packets_at_two_workers_make_one_connection() {
    // As many as one worker receives at once, so that the other one gets the second datagrams.
    const BURST: u16 = 64;
    const FLOWS: u16 = 250 * BURST;
    let mut switch = Switch::with_workers(&config(&[1, 2]), 2);
    let now = switch.now;
    let done = AtomicBool::new(false);
    let mut arrived: HashMap<(bool, u16), Vec<usize>> = HashMap::new();
    let Switch { control, workers, ends: ports, .. } = &mut switch;
    thread::scope(|scope| {
        let done = &done;
        for worker in workers {
            scope.spawn(move || {
                while !done.load(Ordering::Relaxed) {
                    worker.poll(now);
                }
            });
        }
        scope.spawn(move || {
            for turn in 0.. {
                if done.load(Ordering::Relaxed) {
                    return;
                }
                let weighed = FAMILIES.map(|f| {
                    let mut made = slice("web", f, &[1, 2]);
                    made.endpoints[turn % 2].weight = 50;
                    Change::Slice(Arc::new(made))
                });
                control.update(weighed).unwrap();
            }
        });
        for first in (0..FLOWS).step_by(usize::from(BURST)) {
            for n in (first..first + BURST).chain(first..first + BURST) {
                let f = usize::from(n % 2);
                let client = (addresses(0)[f], 1000 + n);
                let asked = framed(0, &packet(proto::UDP, client, (vip(f), 80)));
                // The workers drain it; until then there is no room for more.
                while ports[0].send_frame(&asked).is_err() {
                    thread::yield_now();
                }
            }
            let sent = 2 * usize::from(first + BURST);
            for _ in 0..20_000 {
                collect(ports, &mut arrived);
                if arrived.values().map(Vec::len).sum::<usize>() == sent {
                    break;
                }
                thread::yield_now();
            }
        }
        for _ in 0..20_000 {
            collect(ports, &mut arrived);
            if arrived.values().map(Vec::len).sum::<usize>() == 2 * usize::from(FLOWS) {
                break;
            }
            thread::sleep(Duration::from_millis(1));
        }
        done.store(true, Ordering::Relaxed);
    });
    assert_eq!(arrived.len(), usize::from(FLOWS), "{:?}", switch.dropped());
    for (flow, backends) in &arrived {
        assert_eq!(backends.len(), 2, "{flow:?}");
        assert_eq!(backends[0], backends[1], "{flow:?} at two backends");
    }
    assert_eq!(switch.control.connections().len(), usize::from(FLOWS));
}

fn collect(
    ports: &[podswitch_core::port::memory::MemoryEnd],
    arrived: &mut HashMap<(bool, u16), Vec<usize>>,
) {
    for backend in [1, 2] {
        while let Some(frame) = ports[backend].recv_frame() {
            let key = parse(&frame, &HashKey::new(1)).unwrap().key;
            let f = usize::from(key.src_addr().is_ipv6());
            // The frame contains the expected pod, and it must have left by that pod's port.
            assert_eq!(at(key.dst_addr(), key.dst_port), at(addresses(backend)[f], 8080));
            arrived.entry((f == 1, key.src_port)).or_default().push(backend);
        }
    }
}

/// Off-cluster clients with live connections use up a NodePort's source ports. Further ones are
/// refused, each with its reason. Pods, which need none, are not refused, and neither are clients
/// of another backend.
#[test]
fn exhausted_source_ports_leave_others_alone() {
    let node_port = |name: &str, vip: fn(usize) -> IpAddr, port: u16| {
        let mut service = service(name, vip);
        service.kind = ServiceType::NodePort;
        service.ports[1].node_port = Some(port);
        service
    };
    let services = vec![node_port("web", vip, 30_080), node_port("api", second_vip, 30_081)];
    let mut config = config_with(services, &[1]);
    config.slices.iter_mut().filter(|slice| &*slice.service == "api").for_each(|api| {
        let f = usize::from(api.family == podswitch_wire::flow_key::Family::V6);
        Arc::make_mut(api).endpoints[0].addresses = vec![addresses(2)[f]];
    });
    config.node.nat_ports = 50_000..=50_049;
    for f in FAMILIES {
        let mut switch = Switch::new(&config);
        let ask = |switch: &mut Switch, port: u16, (to, backend): (u16, usize)| {
            let asked = packet(proto::UDP, (outside(f), port), (node(f), to));
            switch.send(HOST, &framed(HOST, &asked));
            let dropped = switch.dropped();
            let served = answer(switch, backend);
            switch.recv(HOST);
            let refused = vec![(HOST as u16, NatPortsExhausted)];
            assert_eq!(dropped, if served { vec![] } else { refused });
            served
        };
        let web = (30_080, 1);
        assert_eq!((0..70).filter(|n| ask(&mut switch, 1000 + n, web)).count(), 50);
        assert_eq!((0..70).filter(|n| ask(&mut switch, 2000 + n, (30_081, 2))).count(), 50);
        assert_eq!(switch.control.shared().tracker.nat().in_use(), 100);
        switch.send(0, &framed(0, &packet(proto::UDP, (addresses(0)[f], 1), (vip(f), 80))));
        assert_eq!(switch.recv(1).len(), 1);
        switch.send(0, &framed(0, &packet(proto::UDP, (addresses(0)[f], 2), (node(f), 30_080))));
        assert_eq!(switch.recv(1).len(), 1);
        switch.pass_slowly(140);
        assert_eq!(switch.control.shared().tracker.nat().in_use(), 0);
        assert!(ask(&mut switch, 1100, web));
    }
}
