//! First packets that arrive together: lookups made for all of them at once do not change any
//! decision.
#![allow(clippy::disallowed_types, reason = "tests store what an observer reports")]

use podswitch_testkit::rig;

use std::net::IpAddr;
use std::sync::Arc;

use podswitch_core::config::Config;
use podswitch_policy::rule::{NetworkPolicy, Peer, Peers, PortRule, Ports, Protocol, Rule};
use podswitch_wire::flow_key::proto;
use rig::services::*;
use rig::{HOST, Switch, addresses, allow_udp, framed, pod_v4, pod_v6};

/// A Service with affinity, whose backends are all pods, and pods that accept UDP on a few ports.
fn world(backends: &[usize]) -> Config {
    let mut web = service("web", vip);
    web.affinity = Some(100);
    let mut config = config_with(vec![web, service("plain", second_vip)], backends);
    allow_udp(&mut config, &[8080]);
    let block = |text| Peer::IpBlock { cidr: cidr(text), except: Vec::new() };
    let some = Peers::AnyOf(vec![block("203.0.113.8/29"), block("2001:db8::8/125")]);
    let mut policy = NetworkPolicy::clone(&config.policies[0]);
    (policy.cookie, policy.name) = ("NetworkPolicy/default/some".into(), "some".into());
    let dns = PortRule::Range { protocol: Protocol::Udp, first: 53, last: 53 };
    policy.ingress = Some(vec![Rule { peers: some, ports: Ports::AnyOf(vec![dns]) }]);
    config.policies.push(Arc::new(policy));
    config
}

/// First packets of `from` to all kinds of destinations: Services and their missing ports, pods,
/// pods that policy denies, itself, the gateway, unused addresses.
fn frames(port: usize, from: &[IpAddr], f: usize, first: u16) -> Vec<Vec<u8>> {
    let nobody: [IpAddr; 2] = [pod_v4(200).into(), pod_v6(200).into()];
    let mut frames = Vec::new();
    for n in 0..5u16 {
        for (i, from) in from.iter().enumerate() {
            let own = (*from, first + 20 * n + i as u16);
            let pods = (0..3).flat_map(|pod| [53, 54].map(|port| (addresses(pod)[f], port)));
            let services = [(vip(f), 80), (second_vip(f), 80), (vip(f), 81)];
            let others = [(nobody[f], 53), (gateway(f), 53)];
            for to in services.into_iter().chain(pods).chain(others) {
                frames.push(framed(port, &packet(proto::UDP, own, to)));
            }
            frames.push(framed(port, &packet(proto::TCP, own, (second_vip(f), 80))));
        }
    }
    frames
}

/// The result of the frames, which arrive this many at a time.
fn outcome(f: usize, together: usize) -> impl PartialEq + core::fmt::Debug {
    let mut switch = Switch::new(&world(&[0, 1, 2]));
    // Policy allows some of them.
    let stranger = |n| [format!("203.0.113.{n}"), format!("2001:db8::{n:x}")][f].parse().unwrap();
    let strangers: Vec<IpAddr> = (1..16).map(stranger).collect();
    let mut all = Vec::new();
    // Clients are pinned, then backends change, so that the hash selects other backends than the
    // pinned ones.
    for (round, backends) in [&[0, 1, 2][..], &[1, 2], &[0, 1, 2]].into_iter().enumerate() {
        switch.control.apply(&world(backends)).unwrap();
        for (port, from) in [(HOST, &strangers[..]), (0, &addresses(0)[f..=f])] {
            let frames = frames(port, from, f, 2000 + 1000 * round as u16);
            for some in frames.chunks(together) {
                for frame in some {
                    switch.ends[port].send_frame(frame).unwrap();
                }
                switch.workers[0].poll(switch.now);
            }
            let mut left: Vec<_> = (0..=HOST).map(|port| switch.recv(port)).collect();
            // Only the time limits ICMP errors.
            left.iter_mut().for_each(|frames| frames.sort());
            all.push((round, left, switch.dropped(), switch.count(|c| c.misses.get())));
        }
        switch.pass_slowly(60);
    }
    switch.assert_adds_up();
    all
}

#[test]
fn a_burst_has_the_result_of_its_packets_one_by_one() {
    for f in FAMILIES {
        assert_eq!(outcome(f, 1), outcome(f, 64));
    }
}
