//! TCP connections through the engine, in virtual time: opening, closing, timeouts, segments that
//! do not fit, and full tables (threats T-C5, T-N2).

use podswitch_testkit::rig;

use std::net::IpAddr;

use podswitch_core::action::DropReason::{self, *};
use podswitch_core::control::Options;
use podswitch_core::engine::Limits;
use podswitch_core::flow::tcp::TcpState::{self, Closed, Closing, Established, Reset, SynSent};
use podswitch_core::id::PortId;
use rig::frames;
use rig::*;

const FIN: u8 = 1;
const SYN: u8 = 2;
const RST: u8 = 4;
const PSH: u8 = 8;
const ACK: u8 = 16;

/// A pod that opens connections, and one that accepts them.
const CLIENT: usize = 0;
const SERVER: usize = 1;

/// One connection of the client to the server's port 80, in one family.
struct Talk {
    family: usize,
    port: u16,
}

impl Talk {
    fn new(family: usize, port: u16) -> Self {
        Self { family, port }
    }

    fn frame(&self, from: usize, seq: u32, ack: u32, flags: u8, len: usize) -> Vec<u8> {
        let to = CLIENT + SERVER - from;
        let (src, dst) = (addresses(from)[self.family], addresses(to)[self.family]);
        let ports = if from == CLIENT { (self.port, 80) } else { (80, self.port) };
        let message = frames::tcp(src, dst, ports, (seq, ack, flags), &vec![7; len]);
        framed(from, &frames::ip(src, dst, 6, 64, None, &message))
    }

    /// Sends a segment; the drop reason if the peer did not get it.
    fn send(
        &self,
        switch: &mut Switch,
        (from, seq, ack, flags, len): (usize, u32, u32, u8, usize),
    ) -> Result<(), DropReason> {
        switch.send(from, &self.frame(from, seq, ack, flags, len));
        let arrived = switch.recv(CLIENT + SERVER - from).len();
        let dropped = switch.dropped();
        match dropped[..] {
            [] => assert_eq!(arrived, 1),
            [(port, reason)] => {
                assert_eq!((usize::from(port), arrived), (from, 0));
                return Err(reason);
            }
            _ => panic!("{dropped:?}"),
        }
        Ok(())
    }

    /// Opens the connection: the client continues with 101, the server with 901.
    fn open(&self, switch: &mut Switch) {
        self.send(switch, (CLIENT, 100, 0, SYN, 0)).unwrap();
        assert_eq!(self.states(switch), Some([SynSent, TcpState::None]));
        self.send(switch, (SERVER, 900, 101, SYN | ACK, 0)).unwrap();
        assert_eq!(self.states(switch), Some([Established, SynSent]));
        self.send(switch, (CLIENT, 101, 901, ACK, 0)).unwrap();
        assert_eq!(self.states(switch), Some([Established; 2]));
    }

    /// Both sides finish: after 101 and 901 nothing was sent.
    fn close(&self, switch: &mut Switch) {
        self.send(switch, (CLIENT, 101, 901, FIN | ACK, 0)).unwrap();
        assert_eq!(self.states(switch), Some([Closing, Established]));
        self.send(switch, (SERVER, 901, 102, ACK, 0)).unwrap();
        assert_eq!(self.states(switch), Some([Closed, Established]));
        self.send(switch, (SERVER, 901, 102, FIN | ACK, 0)).unwrap();
        assert_eq!(self.states(switch), Some([Closed, Closing]));
        self.send(switch, (CLIENT, 102, 902, ACK, 0)).unwrap();
        assert_eq!(self.states(switch), Some([Closed; 2]));
    }

    /// States of client and server; `None` if there is no such connection.
    fn states(&self, switch: &Switch) -> Option<[TcpState; 2]> {
        let list = switch.control.connections();
        let client = addresses(CLIENT)[self.family];
        let mine = |ports: (u16, u16), src: IpAddr| {
            ports == (self.port, 80) && src == client || ports == (80, self.port) && src != client
        };
        let found = list.iter().find(|c| {
            let key = &c.pinned.original;
            key.src_addr().is_ipv4() == client.is_ipv4()
                && mine((key.src_port, key.dst_port), key.src_addr())
        })?;
        let mut states = found.tcp?;
        if found.pinned.original.src_addr() != client {
            states.reverse();
        }
        Some(states)
    }
}

/// Segments that close or reset a connection take the fast path like data, unless they do not fit.
#[test]
fn closing_and_resetting_segments_hit() {
    let mut switch = Switch::new(&config());
    let misses = |switch: &Switch| switch.count(|c| c.misses.get());
    for family in [0, 1] {
        let talk = Talk::new(family, 1000);
        talk.open(&mut switch);
        let before = misses(&switch);
        talk.close(&mut switch);
        assert_eq!(misses(&switch), before);
        let talk = Talk::new(family, 1001);
        talk.open(&mut switch);
        let before = misses(&switch);
        for (flags, reason) in [(RST | ACK, TcpOutOfWindow), (FIN, TcpInvalidState)] {
            let wild = talk.send(&mut switch, (CLIENT, 900_000_000, 901, flags, 0));
            assert_eq!(wild, Err(reason));
        }
        assert_eq!(misses(&switch), before + 2, "the slow path says so");
        assert_eq!(talk.states(&switch), Some([Established; 2]));
        talk.send(&mut switch, (SERVER, 901, 101, RST | ACK, 0)).unwrap();
        assert_eq!(talk.states(&switch), Some([Reset; 2]));
        assert_eq!(misses(&switch), before + 2);
    }
}

#[test]
fn from_the_first_segment_to_the_last() {
    let mut switch = Switch::new(&config());
    for family in [0, 1] {
        let talk = Talk::new(family, 1000);
        talk.open(&mut switch);
        let before = switch.count(|c| c.hits.get());
        for n in 0..10 {
            let (seq, ack) = (101 + n * 100, 901 + n * 10);
            talk.send(&mut switch, (CLIENT, seq, ack, ACK | PSH, 100)).unwrap();
            talk.send(&mut switch, (SERVER, ack, seq + 100, ACK | PSH, 10)).unwrap();
        }
        // The server's first segment was a SYN, so both directions have flow entries.
        assert_eq!(switch.count(|c| c.hits.get()) - before, 20);
        let list = switch.control.connections();
        assert_eq!(list[family].packets.iter().sum::<u64>(), 23);
        // The client closes, the server continues to send, then closes too.
        talk.send(&mut switch, (CLIENT, 1101, 1001, FIN | ACK, 0)).unwrap();
        talk.send(&mut switch, (SERVER, 1001, 1102, ACK, 500)).unwrap();
        talk.send(&mut switch, (CLIENT, 1102, 1501, ACK, 0)).unwrap();
        assert_eq!(talk.states(&switch), Some([Closed, Established]));
        talk.send(&mut switch, (SERVER, 1501, 1102, FIN | ACK, 0)).unwrap();
        talk.send(&mut switch, (CLIENT, 1102, 1502, ACK, 0)).unwrap();
        assert_eq!(talk.states(&switch), Some([Closed; 2]));
    }
    switch.assert_adds_up();
}

/// The connection that `prepare` creates stays for `seconds` of idle time and no longer.
fn lives(seconds: u64, prepare: impl Fn(&mut Switch, &Talk)) {
    for family in [0, 1] {
        let mut switch = Switch::new(&config());
        let talk = Talk::new(family, 1000);
        prepare(&mut switch, &talk);
        switch.pass_slowly(seconds - 1);
        assert_eq!(switch.control.connections().len(), 1, "gone before {seconds} s");
        // The sweep takes up to ten seconds for a round.
        switch.pass_slowly(12);
        assert_eq!(switch.control.connections().len(), 0, "still there after {seconds} s");
        assert_eq!(switch.workers[0].engine().flows().len(), 0, "and so is its entry");
    }
}

#[test]
fn idle_timeouts_of_tcp() {
    lives(7440, |switch, talk| talk.open(switch));
    lives(30, |switch, talk| {
        talk.open(switch);
        talk.close(switch);
    });
    lives(240, |switch, talk| talk.send(switch, (CLIENT, 100, 0, SYN, 0)).unwrap());
    // Half open, half closed.
    lives(240, |switch, talk| {
        talk.send(switch, (CLIENT, 100, 0, SYN, 0)).unwrap();
        talk.send(switch, (SERVER, 900, 101, SYN | ACK, 0)).unwrap();
    });
    lives(3600, |switch, talk| {
        talk.open(switch);
        talk.send(switch, (CLIENT, 101, 901, FIN | ACK, 0)).unwrap();
    });
    // Further data of the other side restarts the hour.
    lives(3600, |switch, talk| {
        talk.open(switch);
        talk.send(switch, (SERVER, 901, 101, FIN | ACK, 0)).unwrap();
        talk.send(switch, (CLIENT, 101, 902, ACK, 0)).unwrap();
        switch.pass_slowly(3500);
        talk.send(switch, (CLIENT, 101, 902, ACK, 9)).unwrap();
        assert_eq!(talk.states(switch), Some([Established, Closed]));
    });
    lives(10, |switch, talk| {
        talk.open(switch);
        talk.send(switch, (SERVER, 901, 101, RST, 0)).unwrap();
    });
    // A packet of either side restarts the timeout.
    lives(7440, |switch, talk| {
        talk.open(switch);
        switch.pass_slowly(7000);
        talk.send(switch, (SERVER, 901, 101, ACK, 5)).unwrap();
        switch.pass_slowly(7000);
        talk.send(switch, (CLIENT, 101, 906, ACK, 0)).unwrap();
    });
}

#[test]
fn idle_timeouts_of_other_protocols() {
    let udp = |switch: &mut Switch, talk: &Talk| match talk.family {
        0 => switch.send(0, &udp4(0, pod_v4(1), (1, 2), b"x")),
        _ => switch.send(0, &udp6(0, pod_v6(1), (1, 2), b"x")),
    };
    lives(120, udp);
    lives(60, |switch, talk| {
        let (src, dst) = (addresses(0)[talk.family], addresses(1)[talk.family]);
        let head = if talk.family == 0 { [8, 0] } else { [128, 0] };
        let protocol = frames::icmp_protocol(src);
        let ping = frames::icmp(src, dst, head, [0, 1, 0, 1], b"ping");
        switch.send(0, &framed(0, &frames::ip(src, dst, protocol, 64, None, &ping)));
    });
}

#[test]
fn a_reset_closes_only_from_inside_the_window() {
    for family in [0, 1] {
        let mut switch = Switch::new(&config());
        let talk = Talk::new(family, 1000);
        talk.open(&mut switch);
        talk.send(&mut switch, (CLIENT, 101, 901, ACK, 100)).unwrap();
        talk.send(&mut switch, (SERVER, 901, 201, ACK, 0)).unwrap();
        // The window is 64,000.
        for (from, seq, ack) in [
            (CLIENT, 200, 901),
            (CLIENT, 201 + 64_001, 901),
            (CLIENT, 201 + (1 << 31), 901),
            (CLIENT, 0, 901),
            (SERVER, 900, 201),
            (SERVER, 901 + 70_000, 201),
            (SERVER, 0xffff_0000, 201),
        ] {
            for flags in [RST, RST | ACK] {
                let sent = talk.send(&mut switch, (from, seq, ack, flags, 0));
                assert_eq!(sent, Err(TcpOutOfWindow), "{from} {seq}");
                assert_eq!(talk.states(&switch), Some([Established; 2]));
            }
        }
        talk.send(&mut switch, (CLIENT, 201, 901, ACK, 100)).unwrap();
        talk.send(&mut switch, (CLIENT, 301, 901, RST | ACK, 0)).unwrap();
        assert_eq!(talk.states(&switch), Some([Reset; 2]));
        switch.pass_slowly(22);
        assert_eq!(talk.states(&switch), None);
        // A reset of an unknown connection passes if policy allows it, and leaves no state.
        talk.send(&mut switch, (SERVER, 901, 201, RST, 0)).unwrap();
        assert_eq!(talk.states(&switch), None);
        switch.assert_adds_up();
    }
}

/// SYN and FIN outside the window do not close, and do not prevent the real ones from closing.
#[test]
fn segments_outside_the_window_change_nothing() {
    let mut switch = Switch::new(&config());
    let talk = Talk::new(0, 1000);
    talk.open(&mut switch);
    for seq in [100, 5_000_000, 1 << 30, 1 << 31] {
        talk.send(&mut switch, (CLIENT, seq, 0, SYN, 0)).unwrap();
        let again = talk.send(&mut switch, (SERVER, seq, 101, SYN | ACK, 0));
        assert_eq!(again, if seq == 100 { Ok(()) } else { Err(TcpOutOfWindow) });
        assert_eq!(talk.states(&switch), Some([Established; 2]), "unheeded");
    }
    for seq in [5_000_000, 1 << 30, 1 << 31] {
        let sent = talk.send(&mut switch, (CLIENT, seq, 901, FIN | ACK, 0));
        assert_eq!(sent, Err(TcpOutOfWindow));
    }
    talk.close(&mut switch);
    switch.assert_adds_up();
}

#[test]
fn a_new_syn_opens_an_ended_connection_again() {
    for family in [0, 1] {
        let mut switch = Switch::new(&config());
        let talk = Talk::new(family, 1000);
        talk.open(&mut switch);
        talk.close(&mut switch);
        talk.open(&mut switch);
        // Also at once after a reset.
        talk.send(&mut switch, (CLIENT, 101, 901, RST, 0)).unwrap();
        talk.open(&mut switch);
        // In the opposite direction: the former server connects from its port 80.
        talk.close(&mut switch);
        talk.send(&mut switch, (SERVER, 5000, 0, SYN, 0)).unwrap();
        assert_eq!(talk.states(&switch), Some([TcpState::None, SynSent]));
        assert_eq!(switch.control.connections().len(), 1);
        assert_eq!(switch.control.shared().tracker.len(), 1);
        assert_eq!(switch.control.connections()[0].pinned.origin.index(), SERVER);
        switch.assert_adds_up();
    }
}

/// A side that has closed may still receive: a SYN does not end that.
#[test]
fn a_syn_does_not_end_a_half_closed_connection() {
    let mut switch = Switch::new(&config());
    let talk = Talk::new(0, 1000);
    talk.open(&mut switch);
    talk.send(&mut switch, (CLIENT, 101, 901, FIN | ACK, 0)).unwrap();
    talk.send(&mut switch, (SERVER, 901, 102, ACK, 0)).unwrap();
    for (from, seq) in [(CLIENT, 102), (CLIENT, 90_000), (SERVER, 901), (SERVER, 7)] {
        talk.send(&mut switch, (from, seq, 0, SYN, 0)).unwrap();
        assert_eq!(talk.states(&switch), Some([Closed, Established]));
    }
    talk.send(&mut switch, (SERVER, 901, 102, FIN | ACK, 700)).unwrap();
    talk.send(&mut switch, (CLIENT, 102, 1602, ACK, 0)).unwrap();
    assert_eq!(talk.states(&switch), Some([Closed; 2]));
}

/// A worker removes the entry of a flow whose packets stop or arrive elsewhere; the connection
/// stays.
#[test]
fn entries_expire_before_their_connections() {
    let mut switch = Switch::new(&config());
    let talk = Talk::new(1, 1000);
    talk.open(&mut switch);
    switch.pass_slowly(299);
    assert_eq!(switch.workers[0].engine().flows().len(), 2);
    switch.pass_slowly(15);
    assert_eq!(switch.workers[0].engine().flows().len(), 0);
    let (hits, packets) = (switch.count(|c| c.hits.get()), switch.control.connections()[0].packets);
    talk.send(&mut switch, (SERVER, 901, 101, ACK, 10)).unwrap();
    talk.send(&mut switch, (SERVER, 911, 101, ACK, 10)).unwrap();
    assert_eq!(switch.count(|c| c.hits.get()), hits + 1);
    assert_eq!(switch.control.connections()[0].packets, [packets[0], packets[1] + 2]);
    assert_eq!(talk.states(&switch), Some([Established; 2]));
}

#[test]
fn connections_are_picked_up_in_mid_stream() {
    for family in [0, 1] {
        let mut switch = Switch::new(&config());
        let talk = Talk::new(family, 1000);
        talk.send(&mut switch, (SERVER, 7_000, 3_000, ACK, 50)).unwrap();
        talk.send(&mut switch, (CLIENT, 3_000, 7_050, ACK, 10)).unwrap();
        assert_eq!(talk.states(&switch), Some([Established; 2]));
        let before = switch.count(|c| c.hits.get());
        talk.send(&mut switch, (SERVER, 7_050, 3_010, ACK, 50)).unwrap();
        assert_eq!(switch.count(|c| c.hits.get()), before + 1);
        // The scaling of its windows is not known, but their start is.
        let sent = talk.send(&mut switch, (CLIENT, 2_900, 7_100, RST, 0));
        assert_eq!(sent, Err(TcpOutOfWindow));
    }
    lives(7440, |switch, talk| {
        talk.send(switch, (SERVER, 7_000, 3_000, ACK, 50)).unwrap();
        talk.send(switch, (CLIENT, 3_000, 7_050, ACK, 10)).unwrap();
    });
}

#[test]
fn impossible_flags_are_dropped_first_and_later() {
    let impossible = [
        0,
        PSH,
        SYN | FIN,
        SYN | RST,
        SYN | FIN | ACK,
        FIN,
        FIN | PSH,
        FIN | RST,
        FIN | RST | ACK,
        0x3f,
        0x29,
    ];
    let mut switch = Switch::new(&config());
    let talk = Talk::new(0, 1000);
    for flags in impossible {
        let sent = talk.send(&mut switch, (CLIENT, 100, 0, flags, 0));
        assert_eq!(sent, Err(TcpInvalidState), "{flags:#x} first");
    }
    assert_eq!(switch.control.connections().len(), 0);
    talk.open(&mut switch);
    for flags in impossible {
        for from in [CLIENT, SERVER] {
            let (seq, ack) = if from == CLIENT { (101, 901) } else { (901, 101) };
            let sent = talk.send(&mut switch, (from, seq, ack, flags, 0));
            assert_eq!(sent, Err(TcpInvalidState), "{flags:#x} later");
        }
    }
    assert_eq!(talk.states(&switch), Some([Established; 2]));
    switch.assert_adds_up();
}

fn limited(limits: Limits) -> Switch {
    Switch::with(&config(), 1, Options { limits, ..Options::default() })
}

const SMALL: Limits = Limits { connections: 64, connections_per_port: 64, flows: 256, fdb: 16 };

/// Opens a connection from pod `from` to pod 2; whether the SYN passed.
fn syn(switch: &mut Switch, from: usize, port: u16) -> Result<(), DropReason> {
    let (src, dst) = (addresses(from)[0], addresses(2)[0]);
    let message = frames::tcp(src, dst, (port, 80), (1, 0, SYN), b"");
    switch.send(from, &framed(from, &frames::ip(src, dst, 6, 64, None, &message)));
    match switch.dropped()[..] {
        [] => {
            assert_eq!(switch.recv(2).len(), 1);
            Ok(())
        }
        [(_, reason)] => {
            assert!(switch.recv(2).is_empty(), "never forwarded untracked");
            Err(reason)
        }
        ref more => panic!("{more:?}"),
    }
}

#[test]
fn a_flood_of_syns_harms_no_established_flow() {
    let mut switch = limited(SMALL);
    let talks: Vec<_> = (0..10).map(|n| Talk::new(usize::from(n % 2), 1000 + n)).collect();
    talks.iter().for_each(|talk| talk.open(&mut switch));
    // It has as many as are left, and those are ended for its next ones.
    let passed = (0..2000).filter(|n| syn(&mut switch, 0, 10_000 + n).is_ok()).count();
    let tracker = |switch: &Switch| switch.control.shared().tracker.originated(PortId(0));
    assert_eq!((passed, tracker(&switch)), (2000, 32));
    assert_eq!(syn(&mut switch, 1, 5), Ok(()));
    let all_live = |switch: &mut Switch| {
        for talk in &talks {
            talk.send(switch, (CLIENT, 101, 901, ACK, 0)).unwrap();
            talk.send(switch, (SERVER, 901, 101, ACK, 0)).unwrap();
            assert_eq!(talk.states(switch), Some([Established; 2]));
        }
    };
    all_live(&mut switch);
    // Connections of others open during the flood.
    for round in 0..100u16 {
        switch.pass_slowly(1);
        for n in 0..40 {
            let _ = syn(&mut switch, 0, 20_000 + round * 40 + n);
        }
        assert_eq!(syn(&mut switch, 1, 100 + round), Ok(()));
        assert!(switch.control.shared().tracker.len() <= 64);
    }
    all_live(&mut switch);
    // Without the flood there is room again.
    switch.pass_slowly(20);
    assert_eq!(syn(&mut switch, 1, 9), Ok(()));
    all_live(&mut switch);
    switch.assert_adds_up();
}

#[test]
fn a_port_has_a_share_of_the_table() {
    let mut switch = limited(Limits { connections_per_port: 5, ..SMALL });
    let talks: Vec<_> = (0..6).map(|n| Talk::new(usize::from(n % 2), 1000 + n)).collect();
    talks[..5].iter().for_each(|talk| talk.open(&mut switch));
    let more = talks[5].send(&mut switch, (CLIENT, 100, 0, SYN, 0));
    assert_eq!(more, Err(ConnectionLimit));
    assert_eq!(switch.control.shared().tracker.originated(PortId(0)), 5);
    // Its existing connections continue, other ports have their own share, and it is not charged
    // for connections that others open to it.
    talks[0].send(&mut switch, (CLIENT, 101, 901, ACK, 0)).unwrap();
    assert_eq!(syn(&mut switch, 1, 2000), Ok(()));
    switch.send(2, &udp4(2, pod_v4(0), (1, 2), b"x"));
    assert_eq!((switch.recv(0).len(), switch.dropped().len()), (1, 0));
    // Ended connections are replaced at once, whether they were reset or closed.
    talks[0].send(&mut switch, (SERVER, 901, 101, RST, 0)).unwrap();
    talks[5].open(&mut switch);
    talks[1].close(&mut switch);
    talks[0].open(&mut switch);
    let more = talks[1].send(&mut switch, (CLIENT, 100, 0, SYN, 0));
    assert_eq!(more, Err(ConnectionLimit));
    // So are unanswered ones.
    talks[2].send(&mut switch, (SERVER, 901, 101, RST, 0)).unwrap();
    for n in 0..20 {
        assert_eq!(syn(&mut switch, 0, 3000 + n), Ok(()));
    }
    assert_eq!(switch.control.shared().tracker.originated(PortId(0)), 5);
    for n in [0, 3, 4, 5] {
        assert_eq!(talks[n].states(&switch), Some([Established; 2]));
    }
    switch.assert_adds_up();
}

/// A worker whose own table is full forwards by the slow path; nothing is lost.
#[test]
fn a_full_flow_table_costs_speed_only() {
    let mut switch = limited(Limits { flows: 4, ..SMALL });
    let talks: Vec<_> = (0..10).map(|n| Talk::new(usize::from(n % 2), 1000 + n)).collect();
    for talk in &talks {
        talk.open(&mut switch);
        talk.close(&mut switch);
    }
    assert_eq!(switch.workers[0].engine().flows().len(), 4);
    assert_eq!(switch.control.connections().len(), 10);
    switch.assert_adds_up();
}
