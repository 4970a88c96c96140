//! The resources that one remote node may use.

use podswitch_testkit::rig;

use podswitch_core::action::DropReason::ConnectionLimit;
use podswitch_core::config::Underlay;
use podswitch_core::control::Options;
use podswitch_core::engine::Limits;
use podswitch_core::flow::connection::Account;
use podswitch_core::id::PortId;
use podswitch_core::snapshot::Reach;
use rig::overlay::*;
use rig::*;

/// A datagram through the tunnel from pod `i` of node `n` to pod 0 of this node. `answered`: pod 0 replies, so that the
/// connection is alive. Whether it was forwarded.
fn open(
    switch: &mut Switch,
    (n, i, v6): (usize, usize, bool),
    underlay: Underlay,
    port: u16,
    answered: bool,
) -> bool {
    let packet = udp(pod(n, i, v6), pod(0, 0, v6), (port, 53), b"x");
    let outer = v6 && underlay == Underlay::Inner;
    switch.send(UPLINK, &Tunnelled::new(n, 0, outer, &inner(n, 0, &packet)).frame());
    match (switch.recv(0).len(), &switch.dropped()[..]) {
        (1, []) if answered => {
            let back = udp(pod(0, 0, v6), pod(n, i, v6), (53, port), b"y");
            switch.send(0, &from_pod(0, 0, &back));
            assert_eq!(switch.recv(UPLINK).len(), 1);
            true
        }
        (1, []) => true,
        (0, [(port, ConnectionLimit)]) if usize::from(*port) == UPLINK => false,
        other => panic!("{other:?}"),
    }
}

/// A node's flood of new connections uses up only its own share. One pod of that node can use at most as many as are
/// left, so that other pods find room.
#[test]
fn connections_are_counted_for_each_tunnel_end_and_source() {
    for underlay in [Underlay::Ipv4First, Underlay::Inner] {
        const SHARE: u16 = 20;
        let limits =
            Limits { connections: 256, connections_per_port: SHARE.into(), flows: 1024, fdb: 16 };
        let options = Options { limits, ..Options::default() };
        let mut switch = Switch::with(&node_config(0, underlay), 1, options);
        let all = |switch: &mut Switch, from: (usize, usize, bool)| {
            (0..SHARE).filter(|port| open(switch, from, underlay, *port, true)).count()
        };
        assert_eq!(all(&mut switch, (1, 0, false)), 10);
        assert_eq!(all(&mut switch, (1, 1, false)), 5);
        assert_eq!(all(&mut switch, (1, 2, false)), 3, "rounded up");
        assert!(
            open(&mut switch, (1, 0, false), underlay, 0, true),
            "its existing connections continue"
        );
        // Through another tunnel, of the other node or the same one.
        let (n, v6) = if underlay == Underlay::Inner { (1, true) } else { (2, true) };
        assert_eq!(all(&mut switch, (n, 0, v6)), 10);
        // Without a tunnel there is one share for all, that of the port.
        for port in 0..SHARE {
            let to_node = udp(pod(0, 1, false), pod(0, 0, false), (port, 53), b"x");
            switch.send(1, &from_pod(0, 1, &to_node));
            assert_eq!(switch.recv(0).len(), 1);
        }
        if underlay == Underlay::Inner {
            assert!(open(&mut switch, (2, 0, false), underlay, 900, true));
        }
        let charged = |switch: &Switch, reach: Option<Reach>| {
            let Some(Reach::Tunnel(end)) = reach else { panic!("{reach:?}") };
            let account = Account::of(PortId(UPLINK as u16), Some(end));
            switch.control.shared().tracker.charged(account)
        };
        let snapshot = switch.control.snapshot();
        assert_eq!(charged(&switch, snapshot.tunnels.reach("n1", false)), 18);
        let tracker = |switch: &Switch| {
            let tracker = &switch.control.shared().tracker;
            (tracker.originated(PortId(UPLINK as u16)), tracker.originated(PortId(1)))
        };
        assert_eq!(tracker(&switch), (0, SHARE.into()));
        switch.assert_adds_up();
        // Released when they end.
        switch.pass_slowly(400);
        assert_eq!(charged(&switch, snapshot.tunnels.reach("n1", false)), 0);
        assert_eq!(tracker(&switch), (0, 0));
        assert_eq!(all(&mut switch, (1, 0, false)), 10);
    }
}

/// 10,000 new unanswered flows a second from one pod behind the tunnel: connections of all others open, from the same
/// node, from another and in the other direction, and open ones continue.
#[test]
fn a_flood_through_the_tunnel_does_not_affect_others() {
    let underlay = Underlay::Ipv4First;
    for v6 in [false, true] {
        let limits = Limits { connections_per_port: 8192, ..Limits::default() };
        let options = Options { limits, ..Options::default() };
        let mut switch = Switch::with(&node_config(0, underlay), 1, options);
        let living: Vec<u16> = (0..50).map(|n| 100 + n).collect();
        for port in &living {
            assert!(open(&mut switch, (1, 1, v6), underlay, *port, true));
        }
        let mut passed = 0;
        for second in 0..20u16 {
            for n in 0..10_000 {
                passed +=
                    u32::from(open(&mut switch, (1, 0, v6), underlay, n * 5 + second % 5, false));
                if n % 1000 == 0 {
                    let port = 1000 + second * 10 + n / 1000;
                    assert!(open(&mut switch, (1, 1, v6), underlay, port, true));
                    assert!(open(&mut switch, (2, 0, v6), underlay, port, true));
                    let out = udp(pod(0, 0, v6), pod(1, 0, v6), (port, 53), b"x");
                    switch.send(0, &from_pod(0, 0, &out));
                    assert_eq!(switch.recv(UPLINK).len(), 1);
                }
            }
            switch.pass_slowly(1);
        }
        for port in living {
            assert!(open(&mut switch, (1, 1, v6), underlay, port, true));
        }
        assert_eq!(passed, 200_000, "its own connections are ended for its new ones");
        assert!(switch.control.shared().tracker.len() < 3 * 8192);
        switch.assert_adds_up();
    }
}
