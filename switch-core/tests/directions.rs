//! A connection has one direction, that of its client, regardless of packets that the other side sent before, after a
//! restart, after a timeout, and before an address became a Service's.

use podswitch_testkit::rig;

use std::net::IpAddr;
use std::sync::Arc;

use podswitch_core::action::DropReason::{self, *};
use podswitch_core::config::Config;
use podswitch_core::flow::connection::Opened;
use podswitch_policy::rule::{Labels, NamedPort, NetworkPolicy, Protocol, Selector};
use podswitch_wire::flow_key::{HashKey, proto};
use podswitch_wire::parse::{Parsed, parse};
use rig::frames;
use rig::services::{self, at, service, vip};
use rig::*;

const FIN: u8 = 1;
const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 16;

/// A pod that opens connections from an ephemeral port, and one that accepts them.
const CLIENT: usize = 0;
const SERVER: usize = 1;
const PORTS: [u16; 2] = [40_000, 80];

/// The pods with the label `n` = their number; some of them accept connections from nobody.
fn isolating(isolated: &[usize]) -> Config {
    let mut config = config();
    for (n, endpoint) in config.endpoints.iter_mut().enumerate() {
        let labels = Labels::new([("n".into(), n.to_string().into())]);
        Arc::make_mut(endpoint).workload.labels = labels;
    }
    let policy = |n: &usize| {
        let labels = Labels::new([("n".into(), n.to_string().into())]);
        Arc::new(NetworkPolicy {
            cookie: format!("NetworkPolicy/default/closed-{n}").into(),
            namespace: "default".into(),
            name: format!("closed-{n}").into(),
            pods: Selector::of_labels(labels),
            ingress: Some(Vec::new()),
            egress: None,
        })
    };
    config.policies = isolated.iter().map(policy).collect();
    config
}

/// A connection between the two in one family.
struct Talk {
    family: usize,
    ports: [u16; 2],
}

const TALKS: [Talk; 2] = [Talk { family: 0, ports: PORTS }, Talk { family: 1, ports: PORTS }];

impl Talk {
    fn frame(&self, from: usize, (seq, ack, flags, len): (u32, u32, u8, usize)) -> Vec<u8> {
        let to = 1 - from;
        let (src, dst) = (addresses(from)[self.family], addresses(to)[self.family]);
        let ports = (self.ports[from], self.ports[to]);
        let message = frames::tcp(src, dst, ports, (seq, ack, flags), &vec![7; len]);
        framed(from, &frames::ip(src, dst, 6, 64, None, &message))
    }

    /// Sends a segment; returns the reason if it was dropped. No other frame arrives.
    #[track_caller]
    fn send(
        &self,
        switch: &mut Switch,
        from: usize,
        segment: (u32, u32, u8, usize),
    ) -> Result<(), DropReason> {
        switch.send(from, &self.frame(from, segment));
        match switch.dropped()[..] {
            [] => {
                assert_eq!(switch.recv(1 - from).len(), 1);
                assert!(switch.recv(from).is_empty());
                Ok(())
            }
            [(port, reason)] => {
                assert_eq!(usize::from(port), from);
                Err(reason)
            }
            ref more => panic!("{more:?}"),
        }
    }

    fn open(&self, switch: &mut Switch, from: usize) {
        self.send(switch, from, (100, 0, SYN, 0)).unwrap();
        self.send(switch, 1 - from, (900, 101, SYN | ACK, 0)).unwrap();
        self.send(switch, from, (101, 901, ACK, 0)).unwrap();
    }

    /// The client pod of the only connection, and how the connection was opened.
    #[track_caller]
    fn client(&self, switch: &Switch) -> (usize, Opened) {
        let list = switch.control.connections();
        assert_eq!(list.len(), 1);
        let pinned = &list[0].pinned;
        let client = (0..2).find(|n| addresses(*n)[self.family] == pinned.original.src_addr());
        assert_eq!(usize::from(pinned.origin.0), client.unwrap());
        (client.unwrap(), pinned.opened)
    }
}

#[track_caller]
fn parsed(frame: &[u8]) -> Parsed {
    parse(frame, &HashKey::new(1)).expect("parses")
}

fn tcp_fields(frame: &[u8]) -> (u32, u32, u8) {
    let l4 = usize::from(parsed(frame).l4);
    let word = |at: usize| u32::from_be_bytes(frame[l4 + at..l4 + at + 4].try_into().unwrap());
    (word(4), word(8), frame[l4 + 13])
}

#[test]
fn a_denied_syn_stays_denied_after_packets_of_its_receiver() {
    type Before = fn(&Talk, &mut Switch);
    fn denied(talk: &Talk, switch: &mut Switch, flags: u8, len: usize) {
        let sent = talk.send(switch, SERVER, (5001, 1101, flags, len));
        assert_eq!(sent, Err(PolicyIngress));
    }
    let before: [Before; 6] = [
        |_, _| {},
        |talk, switch| denied(talk, switch, ACK, 10),
        |talk, switch| {
            denied(talk, switch, ACK, 0);
            switch.pass_slowly(3600);
        },
        |talk, switch| talk.open(switch, SERVER),
        |talk, switch| {
            talk.open(switch, SERVER);
            talk.send(switch, SERVER, (101, 901, FIN | ACK, 0)).unwrap();
            talk.send(switch, CLIENT, (901, 102, FIN | ACK, 0)).unwrap();
        },
        |talk, switch| denied(talk, switch, SYN | ACK, 0),
    ];
    for talk in TALKS {
        for (n, before) in before.iter().enumerate() {
            let mut switch = Switch::new(&isolating(&[SERVER]));
            before(&talk, &mut switch);
            switch.recv(CLIENT);
            switch.dropped();
            let syn = talk.send(&mut switch, CLIENT, (900_000, 0, SYN, 0));
            assert_eq!(syn, Err(PolicyIngress), "case {n}");
            // Nor as an answer to a SYN-ACK or data of the server.
            let ack = talk.send(&mut switch, CLIENT, (900_001, 5002, ACK, 5));
            assert_eq!(ack.is_ok(), n == 3, "case {n}: {ack:?}");
            switch.assert_adds_up();
        }
    }
}

/// Both may open at once; neither needs the permission of the other (RFC 9293 §3.5).
#[test]
fn both_opening_at_once_is_one_connection() {
    for talk in TALKS {
        let mut switch = Switch::new(&isolating(&[SERVER]));
        talk.send(&mut switch, SERVER, (900, 0, SYN, 0)).unwrap();
        talk.send(&mut switch, CLIENT, (100, 0, SYN, 0)).unwrap();
        talk.send(&mut switch, CLIENT, (100, 0, SYN, 0)).unwrap();
        talk.send(&mut switch, SERVER, (900, 101, SYN | ACK, 0)).unwrap();
        talk.send(&mut switch, CLIENT, (100, 901, SYN | ACK, 0)).unwrap();
        talk.send(&mut switch, CLIENT, (101, 901, ACK, 9)).unwrap();
        assert_eq!(talk.client(&switch), (SERVER, Opened::First));
        // Later SYNs are evaluated again.
        assert_eq!(talk.send(&mut switch, CLIENT, (777, 0, SYN, 0)), Err(PolicyIngress));
    }
}

/// A connection that policy ended stays ended: at once, after it has timed out, and after a restart, although its
/// server continues to send.
#[test]
fn connections_ended_by_policy_stay_ended() {
    for talk in TALKS {
        let mut switch = Switch::new(&isolating(&[]));
        talk.open(&mut switch, CLIENT);
        switch.control.apply(&isolating(&[SERVER])).unwrap();
        let both_denied = |switch: &mut Switch| {
            let data = talk.send(switch, SERVER, (901, 101, ACK, 10));
            assert_eq!(data, Err(PolicyIngress));
            let data = talk.send(switch, CLIENT, (101, 901, ACK, 10));
            assert_eq!(data, Err(PolicyIngress));
        };
        both_denied(&mut switch);
        switch.pass_slowly(7600);
        assert_eq!(switch.control.connections().len(), 0);
        both_denied(&mut switch);
        assert_eq!(switch.control.connections().len(), 0);
        both_denied(&mut Switch::new(&isolating(&[SERVER])));
    }
}

/// After a restart, the client stays the client, no matter who sends first.
#[test]
fn picked_up_in_mid_stream_the_client_stays_the_client() {
    for talk in TALKS {
        for first in [CLIENT, SERVER] {
            let mut switch = Switch::new(&isolating(&[]));
            talk.send(&mut switch, first, (101, 901, ACK, 10)).unwrap();
            assert_eq!(talk.client(&switch), (CLIENT, Opened::MidStream));
            talk.send(&mut switch, 1 - first, (901, 111, ACK, 10)).unwrap();
            let hits = switch.count(|c| c.hits.get());
            talk.send(&mut switch, first, (111, 911, ACK, 10)).unwrap();
            talk.send(&mut switch, 1 - first, (911, 121, ACK, 10)).unwrap();
            assert_eq!(switch.count(|c| c.hits.get()), hits + 2);
            // Policy for its real direction applies, policy for the other direction does not.
            switch.control.apply(&isolating(&[CLIENT])).unwrap();
            talk.send(&mut switch, SERVER, (1000, 200, ACK, 10)).unwrap();
            switch.control.apply(&isolating(&[SERVER])).unwrap();
            let data = talk.send(&mut switch, SERVER, (1010, 200, ACK, 10));
            assert_eq!(data, Err(PolicyIngress));
            switch.assert_adds_up();
        }
    }
}

/// A client that accepts connections from nobody is probed before it is sent anything: connections that it has
/// continue, others are reset.
#[test]
fn an_isolated_client_is_probed() {
    for talk in TALKS {
        let mut switch = Switch::new(&isolating(&[CLIENT]));
        switch.send(SERVER, &talk.frame(SERVER, (901, 101, ACK, 700)));
        assert_eq!(switch.dropped(), [(SERVER as u16, TcpInvalidState)]);
        let asked = switch.recv(CLIENT);
        assert_eq!(asked.len(), 1);
        let key = parsed(&asked[0]).key;
        let probe = parsed(&talk.frame(SERVER, (901, 101, ACK, 0)));
        assert_eq!(key, probe.key);
        assert_eq!(asked[0].len(), usize::from(probe.payload), "no data");
        assert!(podswitch_wire::checksum::verify_l4(&asked[0], &parsed(&asked[0])));
        assert_eq!(tcp_fields(&asked[0]), (901u32.wrapping_sub(1 << 30), 101, ACK));
        assert_eq!(switch.control.connections().len(), 0);
        // The client has the connection: the next retransmission arrives.
        talk.send(&mut switch, CLIENT, (101, 901, ACK, 0)).unwrap();
        assert_eq!(talk.client(&switch), (CLIENT, Opened::MidStream));
        talk.send(&mut switch, SERVER, (901, 101, ACK, 700)).unwrap();

        // The other client does not have it, and its server gets a reset.
        let mut switch = Switch::new(&isolating(&[CLIENT]));
        switch.send(SERVER, &talk.frame(SERVER, (901, 101, ACK, 700)));
        assert_eq!((switch.recv(CLIENT).len(), switch.dropped().len()), (1, 1));
        talk.send(&mut switch, CLIENT, (101, 0, RST, 0)).unwrap();
        assert_eq!(switch.control.connections().len(), 0);

        // Nobody can flood it with probes.
        let mut asked = 0;
        for n in 0..5000 {
            let port = 33_000 + n;
            let talk = Talk { ports: [port, 80], ..talk };
            switch.send(SERVER, &talk.frame(SERVER, (901, 101, ACK, 700)));
            asked += switch.recv(CLIENT).len();
        }
        assert_eq!(asked, 999, "the rest of a second's thousand");
        switch.assert_adds_up();
    }
}

/// If nothing shows who the client is, both directions must be allowed, then and later; if one is not, the sender gets
/// an error.
#[test]
fn where_the_direction_is_not_known_both_must_be_allowed() {
    for family in [0, 1] {
        for ports in [[1000, 80], [50_000, 40_000]] {
            let talk = Talk { family, ports };
            for first in [CLIENT, SERVER] {
                let mut switch = Switch::new(&isolating(&[]));
                talk.send(&mut switch, first, (101, 901, ACK, 10)).unwrap();
                assert_eq!(talk.client(&switch), (first, Opened::Undirected));
                talk.send(&mut switch, 1 - first, (901, 111, ACK, 10)).unwrap();
                for isolated in [CLIENT, SERVER] {
                    switch.control.apply(&isolating(&[isolated])).unwrap();
                    for from in [CLIENT, SERVER] {
                        let data = talk.send(&mut switch, from, (111, 911, ACK, 10));
                        assert_eq!(data, Err(PolicyIngress));
                    }
                    let mut fresh = Switch::new(&isolating(&[isolated]));
                    fresh.send(first, &talk.frame(first, (101, 901, ACK, 10)));
                    if isolated == first {
                        assert_eq!(fresh.dropped(), [(first as u16, TcpInvalidState)]);
                        let told = fresh.recv(first);
                        assert_eq!(told.len(), 1);
                        assert_eq!(tcp_fields(&told[0]), (901, 0, RST));
                    } else {
                        assert_eq!(fresh.dropped(), [(first as u16, PolicyIngress)]);
                    }
                    assert!(fresh.recv(1 - first).is_empty());
                }
            }
        }
    }
}

/// The ports that a pod declares decide before the number of a port does.
#[test]
fn a_declared_port_is_a_servers_port() {
    let talk = Talk { family: 0, ports: [22, 40_000] };
    let mut config = isolating(&[SERVER]);
    Arc::make_mut(&mut config.endpoints[SERVER]).workload.ports =
        vec![NamedPort { name: "p".into(), protocol: Protocol::Tcp, port: 40_000 }];
    let mut switch = Switch::new(&config);
    let data = talk.send(&mut switch, SERVER, (901, 101, ACK, 10));
    assert_eq!(data, Err(PolicyIngress), "it does not open a connection that its client is denied");
    config.policies.clear();
    let mut switch = Switch::new(&config);
    talk.send(&mut switch, SERVER, (901, 101, ACK, 10)).unwrap();
    assert_eq!(talk.client(&switch), (CLIENT, Opened::MidStream));
}

/// The first packet of an opening decides the direction, even if the connection was picked up before.
#[test]
fn an_opening_decides_the_direction() {
    for talk in TALKS {
        // A SYN-ACK is from a server, even if the SYN was not seen.
        let mut switch = Switch::new(&isolating(&[]));
        talk.send(&mut switch, SERVER, (900, 101, SYN | ACK, 0)).unwrap();
        assert_eq!(talk.client(&switch), (CLIENT, Opened::MidStream));
        // A SYN is from a client, for any ports.
        talk.send(&mut switch, SERVER, (5000, 0, SYN, 0)).unwrap();
        assert_eq!(talk.client(&switch), (SERVER, Opened::First));
        // A restarted end to which its former server connects: the SYN-ACK decides.
        let mut switch = Switch::new(&isolating(&[]));
        talk.open(&mut switch, CLIENT);
        talk.send(&mut switch, SERVER, (5000, 0, SYN, 0)).unwrap();
        assert_eq!(talk.client(&switch), (CLIENT, Opened::First));
        talk.send(&mut switch, CLIENT, (7000, 5001, SYN | ACK, 0)).unwrap();
        assert_eq!(talk.client(&switch), (SERVER, Opened::MidStream));
    }
}

const DATA: u8 = 0;
const INIT: u8 = 1;
const INIT_ACK: u8 = 2;
const COOKIE_ECHO: u8 = 10;
const COOKIE_ACK: u8 = 11;

/// An SCTP packet whose only chunk is of this type.
fn sctp(src: IpAddr, dst: IpAddr, ports: (u16, u16), chunk: u8) -> Vec<u8> {
    let mut message = services::sctp(ports);
    message[12] = chunk;
    message[8..12].fill(0);
    let sum = podswitch_wire::checksum::sctp_checksum(&message).unwrap();
    message[8..12].copy_from_slice(&sum);
    frames::ip(src, dst, proto::SCTP, 64, None, &message)
}

fn sctp_frame(from: usize, family: usize, chunk: u8) -> Vec<u8> {
    let (src, dst) = (addresses(from)[family], addresses(1 - from)[family]);
    framed(from, &sctp(src, dst, (PORTS[from], PORTS[1 - from]), chunk))
}

/// SCTP's INIT corresponds to TCP's SYN.
#[test]
fn an_init_is_evaluated_in_its_own_direction() {
    for family in [0, 1] {
        for chunk in [INIT, COOKIE_ECHO] {
            let mut switch = Switch::new(&isolating(&[SERVER]));
            switch.send(SERVER, &sctp_frame(SERVER, family, DATA));
            assert_eq!(switch.recv(CLIENT).len(), 1);
            switch.send(CLIENT, &sctp_frame(CLIENT, family, chunk));
            assert_eq!(switch.dropped(), [(CLIENT as u16, PolicyIngress)]);
        }
        // Its own association continues.
        let mut switch = Switch::new(&isolating(&[SERVER]));
        for (from, chunk) in [(SERVER, INIT), (CLIENT, INIT_ACK), (SERVER, DATA), (CLIENT, DATA)] {
            switch.send(from, &sctp_frame(from, family, chunk));
            assert_eq!(switch.recv(1 - from).len(), 1);
        }
        switch.assert_adds_up();
    }
}

/// Both ends' packets take the fast path when one of them restarts the association (RFC 9260 §5.2.4).
#[test]
fn a_restart_of_an_association_is_evaluated_in_its_own_direction() {
    let handshake = [
        (CLIENT, INIT),
        (SERVER, INIT_ACK),
        (CLIENT, COOKIE_ECHO),
        (SERVER, COOKIE_ACK),
        (CLIENT, DATA),
        (SERVER, DATA),
        (CLIENT, DATA),
        (SERVER, DATA),
    ];
    for family in [0, 1] {
        for (isolated, is_allowed) in [(&[][..], true), (&[CLIENT][..], false)] {
            let mut switch = Switch::new(&isolating(isolated));
            for (from, chunk) in handshake {
                switch.send(from, &sctp_frame(from, family, chunk));
                assert_eq!(switch.recv(1 - from).len(), 1, "{chunk} from {from}");
            }
            assert_eq!(switch.count(|c| c.hits.get()), 5, "COOKIE ACK and data");
            for chunk in [INIT, COOKIE_ECHO] {
                switch.send(SERVER, &sctp_frame(SERVER, family, chunk));
                let dropped = match is_allowed {
                    true => Vec::new(),
                    false => vec![(SERVER as u16, PolicyIngress)],
                };
                assert_eq!(switch.dropped(), dropped, "{chunk}");
                assert_eq!(switch.recv(CLIENT).len(), usize::from(is_allowed));
                switch.send(CLIENT, &sctp_frame(CLIENT, family, chunk));
                assert_eq!(switch.recv(SERVER).len(), 1, "the client's own restart");
            }
            for from in [SERVER, CLIENT] {
                switch.send(from, &sctp_frame(from, family, DATA));
                assert_eq!(switch.recv(1 - from).len(), 1, "the association continues");
            }
            assert_eq!(switch.control.connections().len(), 1);
            switch.assert_adds_up();
        }
    }
}

/// A backend's INIT is not a reply of the Service's connection.
#[test]
fn a_backend_restarts_no_association_that_policy_denies_it() {
    for family in services::FAMILIES {
        let mut config = services::config_with(vec![service("web", vip)], &[SERVER]);
        let isolated = isolating(&[CLIENT]);
        (config.endpoints, config.policies) = (isolated.endpoints, isolated.policies);
        let mut switch = Switch::new(&config);
        let (client, server) = (addresses(CLIENT)[family], addresses(SERVER)[family]);
        let request = |chunk| framed(CLIENT, &sctp(client, vip(family), (5000, 80), chunk));
        let reply = |chunk| framed(SERVER, &sctp(server, client, (8080, 5000), chunk));
        for chunk in [INIT, COOKIE_ECHO, DATA, DATA] {
            switch.send(CLIENT, &request(chunk));
            assert_eq!(switch.recv(SERVER).len(), 1);
        }
        for chunk in [INIT_ACK, COOKIE_ACK, DATA, DATA] {
            switch.send(SERVER, &reply(chunk));
            assert_eq!(switch.recv(CLIENT).len(), 1);
        }
        for chunk in [INIT, COOKIE_ECHO] {
            switch.send(SERVER, &reply(chunk));
            assert_eq!(switch.dropped(), [(SERVER as u16, PolicyIngress)]);
        }
        switch.send(SERVER, &reply(DATA));
        assert_eq!(switch.recv(CLIENT).len(), 1);
        switch.assert_adds_up();
    }
}

/// Retries of unanswered packets are evaluated again when the address has become a Service's; answered connections keep
/// their destination (S10).
#[test]
fn a_syn_may_be_sent_before_the_service_is_known() {
    let without = services::config_with(Vec::new(), &[]);
    let mut without = Config { service_cidrs: Vec::new(), ..without };
    let mut with = services::config_with(vec![service("web", vip)], &[SERVER]);
    with.service_cidrs.clear();
    without.service_cidrs.clear();
    for family in services::FAMILIES {
        let client = addresses(CLIENT)[family];
        for protocol in [proto::TCP, proto::SCTP, proto::UDP] {
            let mut switch = Switch::new(&without);
            let first = services::packet(protocol, (client, 5000), (vip(family), 80));
            for _ in 0..2 {
                switch.send(CLIENT, &framed(CLIENT, &first));
                assert_eq!(switch.recv(HOST).len(), 1, "to the node's routes");
            }
            switch.control.apply(&with).unwrap();
            for _ in 0..2 {
                switch.send(CLIENT, &framed(CLIENT, &first));
                let (_, got) = services::one(&mut switch, SERVER);
                assert_eq!(
                    (got.key.dst_addr(), got.key.dst_port),
                    (addresses(SERVER)[family], 8080)
                );
            }
            assert_eq!(switch.recv(HOST).len(), 0);
            assert_eq!(switch.control.connections().len(), 1);
        }
        let mut switch = Switch::new(&without);
        let (from, to) = (at(client, 5000), at(vip(family), 80));
        switch.send(CLIENT, &framed(CLIENT, &services::segment(from, to, (100, 0, SYN))));
        switch.send(HOST, &framed(HOST, &services::segment(to, from, (900, 101, SYN | ACK))));
        assert_eq!((switch.recv(HOST).len(), switch.recv(CLIENT).len()), (1, 1));
        switch.control.apply(&with).unwrap();
        switch.send(CLIENT, &framed(CLIENT, &services::segment(from, to, (101, 901, ACK))));
        switch.send(CLIENT, &framed(CLIENT, &services::segment(from, to, (100, 0, SYN))));
        assert_eq!((switch.recv(HOST).len(), switch.recv(SERVER).len()), (2, 0));
    }
}
