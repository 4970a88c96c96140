//! What belongs to a connection that was allowed, and what only looks so: replies, ICMP errors,
//! fragments (N5, N10, T-F4).

use std::net::IpAddr;

use podswitch_wire::addr::Mac;
use podswitch_wire::flow_key::proto;

use crate::replayed::{ACK, Input, SYN, SYN_ACK, frame};
use podswitch_testkit::rig::frames as bytes;
use podswitch_vswitch_testkit::mac;

/// A pod of node n1, namespace `a`, with its addresses by number.
#[derive(Clone, Copy)]
pub(crate) struct Pod {
    pub(crate) name: &'static str,
    pub(crate) number: u8,
    pub(crate) app: &'static str,
}

impl Pod {
    pub(crate) fn address(self, v6: bool) -> IpAddr {
        match v6 {
            true => [0xfd00, 1, 0, 0, 0, 0, 0, u16::from(self.number)].into(),
            false => [10, 1, 0, self.number].into(),
        }
    }

    pub(crate) fn port(self) -> String {
        format!("a/{}", self.name)
    }

    fn mac(self) -> Mac {
        Mac(mac([10, 1, 0, self.number].into()))
    }

    fn manifest(self) -> String {
        let Self { name, number, app } = self;
        format!(
            "---\napiVersion: v1\nkind: Pod\n\
             metadata: {{name: {name}, namespace: a, labels: {{app: {app}}}}}\n\
             spec: {{nodeName: n1}}\nstatus: {{phase: Running, \
             podIPs: [{{ip: 10.1.0.{number}}}, {{ip: 'fd00:1::{number}'}}]}}\n"
        )
    }

    pub(crate) fn tcp(
        self,
        to: Self,
        v6: bool,
        ports: (u16, u16),
        head: (u32, u32, u8),
    ) -> Vec<u8> {
        let (from, to) = (self.address(v6), to.address(v6));
        let payload: &[u8] = if head.2 == ACK { b"data" } else { b"" };
        let message = bytes::tcp(from, to, ports, head, payload);
        frame(self.mac(), from, to, proto::TCP, &message)
    }

    pub(crate) fn udp(self, to: Self, v6: bool, ports: (u16, u16)) -> Vec<u8> {
        let (from, to) = (self.address(v6), to.address(v6));
        frame(self.mac(), from, to, proto::UDP, &bytes::udp(from, to, ports, b"datagram"))
    }

    fn icmp(self, to: Self, v6: bool, head: [u8; 2], rest: [u8; 4], body: &[u8]) -> Vec<u8> {
        let (from, to) = (self.address(v6), to.address(v6));
        let message = bytes::icmp(from, to, head, rest, body);
        frame(self.mac(), from, to, bytes::icmp_protocol(from), &message)
    }
}

pub(crate) const X: Pod = Pod { name: "x", number: 2, app: "client" };
pub(crate) const Y: Pod = Pod { name: "y", number: 3, app: "server" };

/// Namespace a, its node, these pods, these NetworkPolicies (each a `spec`).
pub(crate) fn state(pods: &[Pod], policies: &[&str]) -> String {
    let mut text = "apiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n---\n\
         apiVersion: v1\nkind: Node\nmetadata: {name: n1}\n\
         spec: {podCIDRs: [10.1.0.0/24, 'fd00:1::/64']}\n\
         status: {addresses: [{type: InternalIP, address: 192.0.2.1}, \
         {type: InternalIP, address: 'fd01::1'}]}\n"
        .to_owned();
    text.extend(pods.iter().map(|pod| pod.manifest()));
    for (number, spec) in policies.iter().enumerate() {
        text += &format!(
            "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n\
             metadata: {{name: p{number}, namespace: a}}\nspec: {spec}\n"
        );
    }
    text
}

/// The server lets clients in on two ports; nobody may call a client.
pub(crate) const SERVE: &str = "{podSelector: {matchLabels: {app: server}}, \
    ingress: [{from: [{podSelector: {matchLabels: {app: client}}}], \
    ports: [{port: 80}, {port: 53, protocol: UDP}]}]}";
pub(crate) const NO_CALLS: &str = "{podSelector: {matchLabels: {app: client}}}";

/// Frames of X and Y, and what is expected of each.
#[derive(Default)]
pub(crate) struct Script {
    input: Input,
    expected: Vec<(String, usize, &'static str)>,
    time: f64,
}

impl Script {
    /// What comes next comes at that second, each frame a millisecond after the one before:
    /// captures are merged by time.
    pub(crate) fn at(&mut self, time: f64) -> &mut Self {
        self.time = time;
        self
    }

    /// A frame, and its fate: `sent` or a drop reason.
    pub(crate) fn frame(&mut self, pod: Pod, frame: Vec<u8>, fate: &'static str) -> &mut Self {
        let number = self.input.add(&pod.port(), self.time, frame);
        self.expected.push((pod.port(), number, fate));
        self.time += 0.001;
        self
    }

    #[track_caller]
    pub(crate) fn run(&self, state: &str, later: &[(f64, &str)]) {
        let replayed = self.input.replay(state, later);
        for (at, (port, number, fate)) in self.expected.iter().enumerate() {
            let got = replayed.fate(port, *number);
            assert_eq!(got, *fate, "step {at}: frame {number} of {port}");
        }
    }
}

#[test]
fn replies_pass_and_calls_back_do_not() {
    for v6 in [false, true] {
        let (ask, answer) = ((40_000, 80), (80, 40_000));
        let mut script = Script::default();
        script
            .at(1.0)
            // What only looks like a reply, before there was a question.
            .frame(Y, Y.udp(X, v6, (53, 5000)), "policy_ingress")
            .frame(X, X.tcp(Y, v6, ask, (1000, 0, SYN)), "sent")
            .frame(Y, Y.tcp(X, v6, answer, (7000, 1001, SYN_ACK)), "sent")
            .frame(X, X.tcp(Y, v6, ask, (1001, 7001, ACK)), "sent")
            .frame(Y, Y.tcp(X, v6, answer, (7001, 1005, ACK)), "sent")
            .frame(X, X.udp(Y, v6, (5000, 53)), "sent")
            .frame(Y, Y.udp(X, v6, (53, 5000)), "sent")
            // Other ports are other connections.
            .frame(Y, Y.udp(X, v6, (53, 5001)), "policy_ingress")
            .frame(Y, Y.tcp(X, v6, (80, 40_001), (1, 0, SYN)), "policy_ingress")
            .frame(X, X.udp(Y, v6, (5000, 54)), "policy_ingress")
            .frame(X, X.tcp(Y, v6, (40_000, 53), (1, 0, SYN)), "policy_ingress");
        script.run(&state(&[X, Y], &[SERVE, NO_CALLS]), &[]);
    }
}

#[test]
fn echo_and_its_reply() {
    for (v6, ask, reply) in [(false, 8, 0), (true, 128, 129)] {
        let mut script = Script::default();
        let any = "{podSelector: {matchLabels: {app: server}}, ingress: [{}]}";
        script
            .at(1.0)
            .frame(Y, Y.icmp(X, v6, [reply, 0], [0, 7, 0, 1], b"echo"), "policy_ingress")
            .frame(X, X.icmp(Y, v6, [ask, 0], [0, 7, 0, 1], b"echo"), "sent")
            .frame(Y, Y.icmp(X, v6, [reply, 0], [0, 7, 0, 1], b"echo"), "sent")
            .frame(Y, Y.icmp(X, v6, [ask, 0], [0, 7, 0, 1], b"echo"), "policy_ingress");
        script.run(&state(&[X, Y], &[any, NO_CALLS]), &[]);
        // A rule with ports is none for echo (N10).
        let mut script = Script::default();
        let echo = X.icmp(Y, v6, [ask, 0], [0, 7, 0, 1], b"echo");
        script.at(1.0).frame(X, echo, "policy_ingress");
        script.run(&state(&[X, Y], &[SERVE]), &[]);
    }
}

#[test]
fn errors_about_allowed_flows_pass() {
    for (v6, unreachable) in [(false, [3, 3]), (true, [1, 4])] {
        // What the error quotes: the packet that X sent, as Y received it.
        let quoted = |ports| {
            let (from, to) = (X.address(v6), Y.address(v6));
            bytes::ip(from, to, proto::UDP, 63, None, &bytes::udp(from, to, ports, b"datagram"))
        };
        let mut script = Script::default();
        script
            .at(1.0)
            .frame(X, X.udp(Y, v6, (5000, 53)), "sent")
            .frame(Y, Y.icmp(X, v6, unreachable, [0; 4], &quoted((5000, 53))), "sent")
            // About what nobody sent.
            .frame(Y, Y.icmp(X, v6, unreachable, [0; 4], &quoted((5001, 53))), "icmp_unrelated");
        script.run(&state(&[X, Y], &[SERVE, NO_CALLS]), &[]);
    }
}

/// Fragments of a UDP datagram of 2,000 bytes from X to Y.
fn fragments(v6: bool, port: u16, id: u32) -> Vec<Vec<u8>> {
    let (from, to) = (X.address(v6), Y.address(v6));
    let message = bytes::udp(from, to, (5000, port), &[7; 2000]);
    let pieces = bytes::fragments((from, to), proto::UDP, id, &message, &[800, 800]);
    let frame = |packet: Vec<u8>| {
        bytes::ethernet(crate::replayed::GATEWAY, X.mac(), bytes::ethertype(from), &packet)
    };
    pieces.into_iter().map(frame).collect()
}

#[test]
fn fragments_are_judged_by_the_port_of_their_first() {
    for v6 in [false, true] {
        for order in [[0, 1, 2], [2, 1, 0], [1, 0, 2]] {
            let mut script = Script::default();
            script.at(1.0);
            for (port, id, fate) in [(53, 1, "sent"), (54, 2, "policy_ingress")] {
                let pieces = fragments(v6, port, id);
                for at in order {
                    script.frame(X, pieces[at].clone(), fate);
                }
            }
            // Behind a datagram that passed, one of another port passes no more than before.
            let pieces = fragments(v6, 54, 3);
            for at in order {
                script.frame(X, pieces[at].clone(), "policy_ingress");
            }
            script.run(&state(&[X, Y], &[SERVE]), &[]);
        }
    }
}

#[test]
fn fragments_without_a_first_never_pass() {
    for v6 in [false, true] {
        let mut script = Script::default();
        let [allowed, denied] = [fragments(v6, 53, 1), fragments(v6, 54, 1)];
        script
            .at(1.0)
            .frame(X, X.udp(Y, v6, (5000, 53)), "sent")
            // A connection that is allowed does not let them ride.
            .frame(X, denied[1].clone(), "fragment_timeout")
            .frame(X, denied[2].clone(), "fragment_timeout")
            .at(200.0)
            .frame(X, allowed[0].clone(), "fragment_timeout")
            .at(400.0)
            .frame(X, X.udp(Y, v6, (5000, 53)), "sent");
        script.run(&state(&[X, Y], &[SERVE]), &[]);
    }
}
