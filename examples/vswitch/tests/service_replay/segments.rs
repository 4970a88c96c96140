//! TCP through Services: what is out of window or of no known connection, terminating and
//! removed backends (S11, S15, T-N2, T-N3).

use std::net::SocketAddr;

use crate::play::{ACK, FIN, Outcome, Play, RST, SYN, SYN_ACK, Seen, tcp, tcp_with};
use crate::world::{
    End, FAMILIES, Host, PORTS, X, Y, Z, cluster_without, service, slices, vip, web,
};

/// A connection of X to the Service, backend Y: opened, one byte acknowledged each way.
struct Talk {
    client: SocketAddr,
    vip: SocketAddr,
    backend: SocketAddr,
}

impl Talk {
    fn open(play: &mut Play, v6: bool, port: u16) -> Self {
        let talk = Self { client: X.at(v6, port), vip: vip(10, v6, 80), backend: Y.at(v6, 8080) };
        talk.up(play, (1000, 0, SYN));
        talk.down(play, (5000, 1001, SYN_ACK));
        talk.up(play, (1001, 5001, ACK));
        talk
    }

    /// A segment of the client, which must reach the backend.
    #[track_caller]
    fn up(&self, play: &mut Play, fields: (u32, u32, u8)) {
        let seen = play.send(X, &tcp(self.client, self.vip, fields)).by("a_y");
        assert_eq!((seen.from(), seen.to()), (self.client, self.backend));
    }

    /// A segment of the backend, which must reach the client.
    #[track_caller]
    fn down(&self, play: &mut Play, fields: (u32, u32, u8)) {
        let seen = play.send(Y, &tcp(self.backend, self.client, fields)).by("a_x");
        assert_eq!((seen.from(), seen.to()), (self.vip, self.client));
    }
}

/// What upstream's test of issue 74839 does: a backend sends garbage within the connection.
#[test]
fn should_resolve_connection_reset_issue_74839() {
    for v6 in FAMILIES {
        let mut play = Play::new(&web(PORTS, &[End::pod(Y)]));
        let talk = Talk::open(&mut play, v6, 4000);
        for (at, seq) in
            [5001u32.wrapping_sub(100_000), 5001 + 2_000_000, 900_000_000].iter().enumerate()
        {
            for flags in [ACK, RST, RST | ACK, FIN | ACK, SYN_ACK, SYN] {
                let sent = tcp_with(talk.backend, talk.client, (*seq, 1001, flags), b"garbage");
                let outcome = play.send(Y, &sent);
                let leaks = outcome.left.iter().filter(|left| left.from() != talk.vip).count();
                assert_eq!(leaks, 0, "segment {at}, flags {flags:#x}: {outcome:?}");
                if flags & RST != 0 {
                    outcome.silent("tcp_out_of_window");
                }
            }
        }
        // And the connection is none the worse.
        talk.up(&mut play, (1001, 5001, ACK));
        talk.down(&mut play, (5001, 1001, ACK));
    }
}

/// Frames that a client gets from a backend's own address. Probes that ask the client about a
/// connection have the Service's.
fn leaks(outcome: &Outcome, backend: std::net::IpAddr) -> usize {
    let is_leak = |left: &&Seen| left.port == "a_x" && left.parsed.key.src_addr() == backend;
    outcome.left.iter().filter(is_leak).count()
}

/// S15: of no connection that is known, from a backend: never to the client as the backend's own.
#[test]
fn should_not_leak_segments_of_unknown_connections_to_clients() {
    for v6 in FAMILIES {
        let mut play = Play::new(&web(PORTS, &[End::pod(Y)]));
        for (at, flags) in [SYN_ACK, ACK, FIN | ACK, RST, RST | ACK].into_iter().enumerate() {
            let sent =
                tcp_with(Y.at(v6, 8080), X.at(v6, 4000 + at as u16), (5000, 1001, flags), b"");
            let outcome = play.send(Y, &sent);
            let leaks = leaks(&outcome, Y.at(v6, 8080).ip());
            assert_eq!(leaks, 0, "flags {flags:#x}: {outcome:?}");
        }
        // After its connection was reset and forgotten as well.
        let talk = Talk::open(&mut play, v6, 5000);
        talk.up(&mut play, (1001, 0, RST));
        play.pass(60.0);
        let late = tcp_with(talk.backend, talk.client, (5001, 1001, ACK), b"late");
        let outcome = play.send(Y, &late);
        assert_eq!(leaks(&outcome, talk.backend.ip()), 0, "{outcome:?}");
        // Its own connections are its own: a backend is a client like any other.
        let own = tcp(Y.at(v6, 40_000), X.at(v6, 80), (1, 0, SYN));
        play.send(Y, &own).by("a_x");
        let own = tcp(Y.at(v6, 8080), X.at(v6, 80), (1, 0, SYN));
        play.send(Y, &own).by("a_x");
    }
}

/// The client's side: only a SYN gets a backend; other segments are reset.
#[test]
fn should_reset_segments_of_unknown_connections_from_clients() {
    for v6 in FAMILIES {
        let mut play = Play::new(&web(PORTS, &[End::pod(Y)]));
        for (at, flags) in [ACK, FIN | ACK, SYN_ACK].into_iter().enumerate() {
            let sent = tcp(X.at(v6, 4000 + at as u16), vip(10, v6, 80), (100, 7, flags));
            play.send(X, &sent).refused("tcp_invalid_state", &sent);
        }
        for flags in [RST, RST | ACK] {
            let sent = tcp(X.at(v6, 4100), vip(10, v6, 80), (100, 7, flags));
            play.send(X, &sent).silent("tcp_invalid_state");
        }
    }
}

/// S11: graceful termination.
#[test]
fn should_keep_tcp_connections_to_terminating_endpoints() {
    let two = |y: End| web(PORTS, &[y, End::pod(Z)]);
    for v6 in FAMILIES {
        for y in [
            End::pod(Y).state(false, true, true),
            End::pod(Y).state(false, false, true),
            End::pod(Y).state(false, false, false),
        ] {
            let mut play = Play::new(&web(PORTS, &[End::pod(Y)]));
            let talk = Talk::open(&mut play, v6, 4000);
            play.change(&two(y));
            talk.up(&mut play, (1001, 5001, ACK));
            talk.down(&mut play, (5001, 1001, ACK));
            let fresh = tcp(X.at(v6, 4001), vip(10, v6, 80), (1, 0, SYN));
            play.send(X, &fresh).by("a_z");
            talk.up(&mut play, (1001, 5001, FIN | ACK));
            talk.down(&mut play, (5001, 1002, FIN | ACK));
            talk.up(&mut play, (1002, 5002, ACK));
        }
    }
}

/// S11: an immediate reset that the client accepts, not minutes of silence.
#[test]
fn should_reset_tcp_connections_of_backends_that_are_gone() {
    let without = |ends: &[End]| {
        [cluster_without("y"), service("web", 10, PORTS), slices("web", ends)].concat()
    };
    for v6 in FAMILIES {
        for ends in [&[End::pod(Z)][..], &[]] {
            let mut play = Play::new(&web(PORTS, &[End::pod(Y)]));
            let talk = Talk::open(&mut play, v6, 4000);
            // First out of the Service, the pod still there; then the pod too.
            play.change(&web(PORTS, ends));
            talk.up(&mut play, (1001, 5001, ACK));
            play.change(&without(ends));
            let sent = tcp(talk.client, talk.vip, (1001, 5001, ACK));
            let outcome = play.send(X, &sent);
            outcome.refused("tcp_invalid_state", &sent);
            let seq = &outcome.left[0].message()[4..8];
            assert_eq!(seq, 5001u32.to_be_bytes(), "in the client's window");
            // The same port again is a new connection.
            let again = tcp(talk.client, talk.vip, (9000, 0, SYN));
            let outcome = play.send(X, &again);
            match ends {
                [] => outcome.refused("service_no_endpoints", &again),
                _ => assert_eq!(outcome.sent().port, "a_z"),
            }
        }
    }
}

/// So are those of a backend on another node, whose address says that it was a pod.
#[test]
fn should_reset_tcp_connections_of_remote_backends_that_are_gone() {
    let state = |nodes: String, ends: &[End]| {
        [nodes, service("web", 10, PORTS), slices("web", ends)].concat()
    };
    let all = crate::world::cluster();
    for v6 in FAMILIES {
        let mut play = Play::new(&state(all.clone(), &[End::remote(5)]));
        let (client, vip) = (X.at(v6, 4000), vip(10, v6, 80));
        play.send(X, &tcp(client, vip, (1000, 0, SYN))).sent();
        play.change(&state(cluster_without("r"), &[End::pod(Y)]));
        let sent = tcp(client, vip, (1001, 5001, ACK));
        play.send(X, &sent).refused("tcp_invalid_state", &sent);
    }
}

/// A connection whose Service is deleted runs on, as long as its pod does.
#[test]
fn should_keep_tcp_connections_when_their_service_is_deleted() {
    for v6 in FAMILIES {
        let mut play = Play::new(&web(PORTS, &[End::pod(Y)]));
        let talk = Talk::open(&mut play, v6, 4000);
        play.change(&crate::world::cluster());
        talk.up(&mut play, (1001, 5001, ACK));
        talk.down(&mut play, (5001, 1001, ACK));
        let fresh = tcp(X.at(v6, 4001), vip(10, v6, 80), (1, 0, SYN));
        play.send(X, &fresh).silent("service_unallocated");
    }
}

/// What no backend ever answered is no connection yet: the next SYN goes where something serves.
#[test]
fn should_move_syns_that_were_never_answered() {
    for v6 in FAMILIES {
        for ends in [vec![End::pod(Z)], vec![End::pod(Y).state(false, false, false), End::pod(Z)]] {
            let mut play = Play::new(&web(PORTS, &[End::pod(Y)]));
            let syn = tcp(X.at(v6, 4000), vip(10, v6, 80), (1000, 0, SYN));
            play.send(X, &syn).by("a_y");
            play.send(X, &syn).by("a_y");
            play.change(&web(PORTS, &ends));
            play.send(X, &syn).by("a_z");
        }
    }
}

/// A port used again right after its connection was closed or reset.
#[test]
fn should_open_a_new_connection_where_one_is_over() {
    for v6 in FAMILIES {
        let mut play = Play::new(&web(PORTS, &[End::pod(Y)]));
        let talk = Talk::open(&mut play, v6, 4000);
        talk.up(&mut play, (1001, 5001, FIN | ACK));
        talk.down(&mut play, (5001, 1002, FIN | ACK));
        talk.up(&mut play, (1002, 5002, ACK));
        let again = Talk::open(&mut play, v6, 4000);
        again.down(&mut play, (5001, 1001, RST | ACK));
        Talk::open(&mut play, v6, 4000);
    }
}

/// Out-of-window resets of third parties end nothing (T-N2).
#[test]
fn should_ignore_resets_from_elsewhere() {
    for v6 in FAMILIES {
        let mut play = Play::new(&web(PORTS, &[End::pod(Y)]));
        let talk = Talk::open(&mut play, v6, 4000);
        let forged = tcp(talk.backend, talk.client, (5001, 1001, RST));
        let z: Host = Z;
        play.send(z, &forged).silent("spoofed_ip");
        let forged = tcp(talk.vip, talk.client, (5001, 1001, RST));
        play.send(z, &forged).silent("spoofed_ip");
        talk.up(&mut play, (1001, 5001, ACK));
    }
}
