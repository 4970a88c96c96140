//! States that change while connections live (N13, N14, T-L5).

use crate::connections::{NO_CALLS, Pod, SERVE, Script, X, Y, state};
use crate::replayed::{ACK, SYN, SYN_ACK};

const ASK: (u16, u16) = (40_000, 80);
const ANSWER: (u16, u16) = (80, 40_000);

/// A connection from X to Y, opened at second 1.
fn open(script: &mut Script, v6: bool) {
    script
        .at(1.0)
        .frame(X, X.tcp(Y, v6, ASK, (1000, 0, SYN)), "sent")
        .frame(Y, Y.tcp(X, v6, ANSWER, (7000, 1001, SYN_ACK)), "sent")
        .frame(X, X.tcp(Y, v6, ASK, (1001, 7001, ACK)), "sent")
        .frame(Y, Y.tcp(X, v6, ANSWER, (7001, 1005, ACK)), "sent");
}

/// The connection's packets go on at that second, both ways, with that fate.
fn go_on(script: &mut Script, v6: bool, time: f64, fate: &'static str) {
    script.at(time).frame(X, X.tcp(Y, v6, ASK, (1005, 7005, ACK)), fate).frame(
        Y,
        Y.tcp(X, v6, ANSWER, (7005, 1005, ACK)),
        fate,
    );
}

#[test]
fn a_policy_that_comes_and_goes() {
    let shut = "{podSelector: {matchLabels: {app: server}}}";
    let no_egress = "{podSelector: {matchLabels: {app: client}}, policyTypes: [Egress]}";
    for v6 in [false, true] {
        let mut script = Script::default();
        open(&mut script, v6);
        // Judged again at the next packet, of either direction; a policy that allows changes nothing.
        go_on(&mut script, v6, 3.5, "policy_ingress");
        go_on(&mut script, v6, 5.5, "sent");
        go_on(&mut script, v6, 7.5, "policy_egress");
        go_on(&mut script, v6, 9.5, "sent");
        script.run(
            &state(&[X, Y], &[]),
            &[
                (2.0, &state(&[X, Y], &[shut])),
                (4.0, &state(&[X, Y], &[shut, SERVE, NO_CALLS])),
                (6.0, &state(&[X, Y], &[no_egress])),
                (8.0, &state(&[X, Y], &[])),
            ],
        );
    }
}

#[test]
fn labels_that_change() {
    for v6 in [false, true] {
        let mut script = Script::default();
        open(&mut script, v6);
        // The peer is no client any more; then the server is no server.
        go_on(&mut script, v6, 3.5, "policy_ingress");
        go_on(&mut script, v6, 5.5, "sent");
        let stranger = Pod { app: "stranger", ..X };
        let retired = Pod { app: "retired", ..Y };
        script.run(
            &state(&[X, Y], &[SERVE]),
            &[
                (2.0, &state(&[stranger, Y], &[SERVE])),
                (4.0, &state(&[stranger, retired], &[SERVE])),
            ],
        );
    }
}

#[test]
fn an_address_used_again_has_no_old_rights() {
    for v6 in [false, true] {
        // W has X's address and another label.
        let w = Pod { name: "w", app: "stranger", ..X };
        let mut script = Script::default();
        open(&mut script, v6);
        script
            .at(4.0)
            // The very packets of the connection, and a new one.
            .frame(w, w.tcp(Y, v6, ASK, (1005, 7005, ACK)), "policy_ingress")
            .frame(w, w.tcp(Y, v6, (40_001, 80), (1, 0, SYN)), "policy_ingress")
            .frame(w, w.udp(Y, v6, (5000, 53)), "policy_ingress")
            .frame(X, X.tcp(Y, v6, ASK, (1005, 7005, ACK)), "endpoint_not_ready")
            .frame(Y, Y.tcp(w, v6, ANSWER, (7005, 1005, ACK)), "policy_ingress")
            .at(6.0)
            .frame(X, X.tcp(Y, v6, (40_002, 80), (1, 0, SYN)), "sent")
            .frame(w, w.tcp(Y, v6, (40_003, 80), (1, 0, SYN)), "endpoint_not_ready");
        script.run(
            &state(&[X, Y], &[SERVE, NO_CALLS]),
            &[
                (1.5, &state(&[Y], &[SERVE, NO_CALLS])),
                (2.0, &state(&[w, Y], &[SERVE, NO_CALLS])),
                (4.5, &state(&[X, Y], &[SERVE, NO_CALLS])),
            ],
        );
    }
}

#[test]
fn a_server_that_took_over_an_address_is_judged_by_its_own_policies() {
    for v6 in [false, true] {
        let z = Pod { name: "z", app: "vault", ..Y };
        let vault = "{podSelector: {matchLabels: {app: vault}}}";
        let mut script = Script::default();
        open(&mut script, v6);
        script.at(4.0).frame(X, X.tcp(z, v6, ASK, (1005, 7005, ACK)), "policy_ingress").frame(
            z,
            z.tcp(X, v6, ANSWER, (7005, 1005, ACK)),
            "policy_ingress",
        );
        script.run(&state(&[X, Y], &[SERVE, vault]), &[(2.0, &state(&[X, z], &[SERVE, vault]))]);
    }
}

#[test]
fn a_pod_is_attached_closed() {
    for v6 in [false, true] {
        let shut = "{podSelector: {matchLabels: {app: server}}, policyTypes: [Ingress, Egress]}";
        let mut script = Script::default();
        let [call, back] = [X.udp(Y, v6, (5000, 53)), Y.udp(X, v6, (53, 5000))];
        script
            .at(1.0)
            // Nobody knows the pod: neither what it sends nor what is sent to it passes.
            .frame(Y, back.clone(), "endpoint_not_ready")
            .frame(X, call.clone(), "unknown_pod")
            .at(3.0)
            // From the first state that knows it its policies are in force.
            .frame(Y, back.clone(), "policy_egress")
            .frame(X, call.clone(), "policy_ingress")
            .at(5.0)
            .frame(X, call.clone(), "sent")
            .frame(Y, back.clone(), "sent")
            .at(7.0)
            .frame(Y, back, "endpoint_not_ready")
            .frame(X, call, "unknown_pod");
        script.run(
            &state(&[X], &[shut]),
            &[
                (1.5, &state(&[X, Y], &[shut])),
                (4.0, &state(&[X, Y], &[])),
                (6.0, &state(&[X], &[])),
            ],
        );
    }
}
