//! Translation on the engine: fragments, ICMP errors, source ports and masquerading, both families.
#![allow(clippy::disallowed_types, reason = "tests store what an observer reports")]

use podswitch_testkit::rig;

use std::net::IpAddr;

use podswitch_core::config::Masquerade;
use podswitch_core::flow::connection::SourceNat;
use podswitch_wire::checksum::verify_l4;
use podswitch_wire::flow_key::{HashKey, proto};
use podswitch_wire::parse::{parse, parse_quoted};
use rig::frames::{fragments, icmp, icmp_protocol, ip, udp};
use rig::services::*;
use rig::{HOST, HOST_MAC, Switch, addresses, framed};

#[test]
fn fragments_of_translated_datagrams_have_one_destination() {
    for f in FAMILIES {
        let mut switch = Switch::new(&config(&[1, 2]));
        let (client, body) = (addresses(0)[f], [7u8; 100]);
        for port in 3000..3010 {
            let message = udp(client, vip(f), (port, 80), &body);
            let mut pieces =
                fragments((client, vip(f)), proto::UDP, u32::from(port), &message, &[40, 24]);
            pieces.reverse();
            for piece in &pieces {
                switch.send(0, &framed(0, piece));
            }
            let got = [1, 2].map(|b| switch.recv(b));
            let (frames, b) = if got[0].is_empty() { (&got[1], 2) } else { (&got[0], 1) };
            assert_eq!(frames.len(), 3, "{:?}", switch.dropped());
            assert!(got[0].is_empty() || got[1].is_empty());
            let backend = addresses(b)[f];
            // The datagram's checksum holds over the new addresses and port.
            let mut whole = vec![0; 108];
            for frame in frames {
                let parsed = parse(frame, &HashKey::new(1)).unwrap();
                assert_eq!(parsed.key.dst_addr(), backend);
                let data = &frame[usize::from(parsed.l4)..parsed.end as usize];
                let at = usize::from(parsed.fragment_offset);
                whole[at..at + data.len()].copy_from_slice(data);
            }
            assert_eq!(u16::from_be_bytes([whole[2], whole[3]]), 8080);
            let rebuilt = udp(client, backend, (port, 8080), &body);
            assert_eq!(whole, rebuilt, "backend {b}");
        }
    }
}

/// ICMP errors about translated packets, from the backend and from a router, and about replies.
#[test]
fn icmp_errors_are_translated_outside_and_inside() {
    for f in FAMILIES {
        for protocol in [proto::TCP, proto::UDP, proto::SCTP] {
            let mut switch = Switch::new(&config(&[1]));
            let (client, backend) = (addresses(0)[f], addresses(1)[f]);
            switch.send(0, &framed(0, &packet(protocol, (client, 4000), (vip(f), 80))));
            let (frame, parsed) = one(&mut switch, 1);
            let seen = frame[usize::from(parsed.l3)..].to_vec();
            let unreachable: [u8; 2] = if f == 0 { [3, 3] } else { [1, 4] };
            let error = icmp(backend, client, unreachable, [0; 4], &seen);
            let error = ip(backend, client, icmp_protocol(client), 64, None, &error);
            switch.send(1, &framed(1, &error));
            let (frame, parsed) = one(&mut switch, 0);
            assert_eq!((parsed.key.src_addr(), parsed.key.dst_addr()), (vip(f), client));
            let quote = &frame[usize::from(parsed.payload)..parsed.end as usize];
            let quoted = parse_quoted(quote, parsed.network, &HashKey::new(1)).unwrap();
            ends(&quoted.key, at(client, 4000), at(vip(f), 80));
            // The quoted packet is complete, so its own checksums can be checked, too.
            let ethertype = if f == 0 { 0x0800 } else { 0x86dd };
            let inner = rig::frames::ethernet(rig::GATEWAY, HOST_MAC, ethertype, quote);
            let inner_parsed = parse(&inner, &HashKey::new(1)).expect("the quoted header holds");
            assert!(verify_l4(&inner, &inner_parsed), "inner checksum, protocol {protocol}");
            // The client sends an error about the reply: it arrives as an error about the packet
            // that the backend sent.
            let answer = match protocol {
                proto::TCP => segment(at(backend, 8080), at(client, 4000), (9, 101, SYN | ACK)),
                _ => packet(protocol, (backend, 8080), (client, 4000)),
            };
            switch.send(1, &framed(1, &answer));
            let (frame, parsed) = one(&mut switch, 0);
            let seen = frame[usize::from(parsed.l3)..].to_vec();
            let error = icmp(client, vip(f), unreachable, [0; 4], &seen);
            let error = ip(client, vip(f), icmp_protocol(client), 64, None, &error);
            switch.send(0, &framed(0, &error));
            let (frame, parsed) = one(&mut switch, 1);
            assert_eq!((parsed.key.src_addr(), parsed.key.dst_addr()), (client, backend));
            let quote = &frame[usize::from(parsed.payload)..parsed.end as usize];
            let quoted = parse_quoted(quote, parsed.network, &HashKey::new(1)).unwrap();
            ends(&quoted.key, at(backend, 8080), at(client, 4000));
            switch.assert_adds_up();
        }
    }
}

/// A router on the way to a masqueraded client's peer keeps its own address (traceroute, PMTU
/// discovery).
#[test]
fn errors_of_routers_keep_their_source() {
    for f in FAMILIES {
        let mut config = rig::config();
        let egress: [IpAddr; 2] =
            ["198.51.100.9".parse().unwrap(), "2001:db8:5::9".parse().unwrap()];
        config.masquerade = Some(Masquerade {
            ipv4: Some("198.51.100.9".parse().unwrap()),
            ipv6: Some("2001:db8:5::9".parse().unwrap()),
            cluster: Vec::new(),
        });
        let mut switch = Switch::new(&config);
        let client = addresses(0)[f];
        let router = ["203.0.113.254", "2001:db8::fe"][f].parse().unwrap();
        switch.send(0, &framed(0, &packet(proto::UDP, (client, 4000), (outside(f), 33434))));
        let (frame, parsed) = one(&mut switch, HOST);
        let mapped = parsed.key.src_port;
        ends(&parsed.key, at(egress[f], mapped), at(outside(f), 33434));
        let seen = frame[usize::from(parsed.l3)..].to_vec();
        let exceeded: [u8; 2] = if f == 0 { [11, 0] } else { [3, 0] };
        let error = icmp(router, egress[f], exceeded, [0; 4], &seen);
        let error = ip(router, egress[f], icmp_protocol(client), 64, None, &error);
        switch.send(HOST, &framed(HOST, &error));
        let (frame, parsed) = one(&mut switch, 0);
        assert_eq!((parsed.key.src_addr(), parsed.key.dst_addr()), (router, client));
        let quote = &frame[usize::from(parsed.payload)..parsed.end as usize];
        let quoted = parse_quoted(quote, parsed.network, &HashKey::new(1)).unwrap();
        ends(&quoted.key, at(client, 4000), at(outside(f), 33434));
    }
}

/// P3: one mapping for all destinations, none inside the cluster; pings are distinguished by
/// identifier.
#[test]
fn masquerade_by_the_switch() {
    for f in FAMILIES {
        let mut config = config(&[1]);
        config.masquerade = Some(Masquerade {
            ipv4: Some("198.51.100.9".parse().unwrap()),
            ipv6: Some("2001:db8:5::9".parse().unwrap()),
            cluster: vec![cidr("203.0.113.128/25"), cidr("2001:db8:77::/48")],
        });
        let mut switch = Switch::new(&config);
        let client = addresses(0)[f];
        let other: IpAddr = ["203.0.113.8", "2001:db8::8"][f].parse().unwrap();
        let inside: IpAddr = ["203.0.113.200", "2001:db8:77::1"][f].parse().unwrap();
        let mut mapped = Vec::new();
        for to in [outside(f), other] {
            switch.send(0, &framed(0, &packet(proto::UDP, (client, 4000), (to, 53))));
            mapped.push(one(&mut switch, HOST).1.key.src_port);
        }
        assert_eq!(mapped[0], mapped[1], "endpoint-independent");
        switch.send(0, &framed(0, &packet(proto::UDP, (client, 4000), (inside, 53))));
        ends(&one(&mut switch, HOST).1.key, at(client, 4000), at(inside, 53));
        switch.send(0, &framed(0, &packet(proto::UDP, (client, 4000), (addresses(2)[f], 53))));
        ends(&one(&mut switch, 2).1.key, at(client, 4000), at(addresses(2)[f], 53));
        // Echo requests from two pods with the same identifier: each gets its own reply.
        let (asks, answers): ([u8; 2], [u8; 2]) =
            if f == 0 { ([8, 0], [0, 0]) } else { ([128, 0], [129, 0]) };
        let mut identifiers = Vec::new();
        for pod in [0, 2] {
            let from = addresses(pod)[f];
            let ping = icmp(from, outside(f), asks, [0, 77, 0, 1], b"ping");
            let ping = ip(from, outside(f), icmp_protocol(from), 64, None, &ping);
            switch.send(pod, &framed(pod, &ping));
            let (frame, parsed) = one(&mut switch, HOST);
            identifiers.push([4, 5].map(|i| frame[usize::from(parsed.l4) + i]));
        }
        assert_ne!(identifiers[0], identifiers[1]);
        for (pod, id) in [0, 2].into_iter().zip(identifiers) {
            let egress = ["198.51.100.9", "2001:db8:5::9"][f].parse().unwrap();
            let pong = icmp(outside(f), egress, answers, [id[0], id[1], 0, 1], b"ping");
            let pong = ip(outside(f), egress, icmp_protocol(egress), 64, None, &pong);
            switch.send(HOST, &framed(HOST, &pong));
            let (frame, parsed) = one(&mut switch, pod);
            assert_eq!(frame[usize::from(parsed.l4) + 4..][..2], [0, 77]);
            assert_eq!(parsed.key.dst_addr(), addresses(pod)[f]);
        }
        let masked = switch
            .control
            .connections()
            .iter()
            .filter(|c| c.pinned.source_nat == SourceNat::Endpoint)
            .count();
        assert_eq!((masked, switch.control.shared().tracker.nat().in_use()), (4, 3));
        switch.pass_slowly(400);
        assert_eq!(switch.control.shared().tracker.nat().in_use(), 0, "all given back");
    }
}
