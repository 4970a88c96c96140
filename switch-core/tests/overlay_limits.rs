//! What one remote node may use up.

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

/// One node's flood of new connections uses up its own share, and nobody else's.
#[test]
fn connections_are_counted_for_each_tunnel_end() {
    for underlay in [Underlay::Ipv4First, Underlay::Inner] {
        const SHARE: u16 = 20;
        let limits =
            Limits { connections: 256, connections_per_port: SHARE.into(), flows: 1024, fdb: 16 };
        let options = Options { limits, ..Options::default() };
        let mut switch = Switch::with(&node_config(0, underlay), 1, options);
        let open = |switch: &mut Switch, n: usize, v6: bool, port: u16| {
            let packet = udp(pod(n, 1, v6), pod(0, 0, v6), (port, 53), b"x");
            let outer = v6 && underlay == Underlay::Inner;
            switch.send(UPLINK, &Tunnelled::new(n, 0, outer, &inner(n, 0, &packet)).frame());
            (switch.recv(0).len(), switch.dropped())
        };
        let refused = (0, vec![(UPLINK as u16, ConnectionLimit)]);
        for port in 0..SHARE {
            assert_eq!(open(&mut switch, 1, false, port), (1, vec![]), "{port}");
        }
        for port in SHARE..3 * SHARE {
            assert_eq!(open(&mut switch, 1, false, port), refused, "{port}");
        }
        assert_eq!(open(&mut switch, 1, false, 0), (1, vec![]), "what it has goes on");
        // Through another tunnel, of the other node or the same one.
        let other = if underlay == Underlay::Inner { (1, true) } else { (2, true) };
        for port in 0..SHARE {
            assert_eq!(open(&mut switch, other.0, other.1, port), (1, vec![]), "{port}");
            // Without a tunnel there is a share for all, which is the port's.
            let to_node = udp(pod(0, 1, false), pod(0, 0, false), (port, 53), b"x");
            switch.send(1, &from_pod(0, 1, &to_node));
            assert_eq!(switch.recv(0).len(), 1);
        }
        assert_eq!(open(&mut switch, other.0, other.1, SHARE), refused);
        if underlay == Underlay::Inner {
            assert_eq!(open(&mut switch, 2, false, 900), (1, vec![]));
        }
        let charged = |switch: &Switch, reach: Option<Reach>| {
            let Some(Reach::Tunnel(end)) = reach else { panic!("{reach:?}") };
            let account = Account::of(PortId(UPLINK as u16), Some(end));
            switch.control.shared().tracker.charged(account)
        };
        let snapshot = switch.control.snapshot();
        assert_eq!(charged(&switch, snapshot.tunnels.reach("n1", false)), SHARE.into());
        let tracker = |switch: &Switch| {
            let tracker = &switch.control.shared().tracker;
            (tracker.originated(PortId(UPLINK as u16)), tracker.originated(PortId(1)))
        };
        assert_eq!(tracker(&switch), (0, SHARE.into()));
        switch.assert_adds_up();
        // Given back when they end.
        switch.pass_slowly(400);
        assert_eq!(charged(&switch, snapshot.tunnels.reach("n1", false)), 0);
        assert_eq!(tracker(&switch), (0, 0));
        assert_eq!(open(&mut switch, 1, false, 2000), (1, vec![]));
    }
}
