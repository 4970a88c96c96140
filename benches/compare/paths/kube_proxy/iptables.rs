//! The rules of kube-proxy's iptables mode, in the form in which it passes them to
//! `iptables-restore`.

use std::fmt::Write;

use super::super::Family;
use super::super::services::Port;
use super::{MASQUERADE, pods};

/// All rules.
pub(super) fn rules(ports: &[Port], family: Family) -> String {
    let mut text = filter();
    text.push_str("*nat\n");
    for chain in ["SERVICES", "NODEPORTS", "MARK-MASQ", "POSTROUTING"] {
        let _ = writeln!(text, ":KUBE-{chain} - [0:0]");
    }
    for port in ports {
        let _ = writeln!(text, ":{} - [0:0]", service(port));
        for number in 0..port.endpoints.len() {
            let _ = writeln!(text, ":{} - [0:0]", endpoint(port, number));
        }
    }
    let mark = format!("{MASQUERADE:#x}");
    let _ = write!(
        text,
        "-A PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES\n\
         -A OUTPUT -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES\n\
         -A POSTROUTING -m comment --comment \"kubernetes postrouting rules\" -j KUBE-POSTROUTING\n\
         -A KUBE-POSTROUTING -m mark ! --mark {mark}/{mark} -j RETURN\n\
         -A KUBE-POSTROUTING -j MARK --xor-mark {mark}\n\
         -A KUBE-POSTROUTING -m comment --comment \"kubernetes service traffic requiring SNAT\" \
         -j MASQUERADE --random-fully\n\
         -A KUBE-MARK-MASQ -j MARK --or-mark {mark}\n"
    );
    for port in ports {
        of_port(&mut text, port, family);
    }
    text.push_str(
        "-A KUBE-SERVICES -m comment --comment \"kubernetes service nodeports; NOTE: this must be \
         the last rule in this chain\" -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS\n\
         COMMIT\n",
    );
    text
}

/// The filter table: the rules that new and known connections pass.
fn filter() -> String {
    let mut text = "*filter\n".to_owned();
    let chains =
        ["NODEPORTS", "SERVICES", "EXTERNAL-SERVICES", "FIREWALL", "FORWARD", "PROXY-FIREWALL"];
    for chain in chains {
        let _ = writeln!(text, ":KUBE-{chain} - [0:0]");
    }
    let new = "-m conntrack --ctstate NEW";
    for (hook, of_new) in [
        ("INPUT", &["PROXY-FIREWALL", "EXTERNAL-SERVICES"][..]),
        ("FORWARD", &["PROXY-FIREWALL"]),
        ("OUTPUT", &["PROXY-FIREWALL", "SERVICES"]),
    ] {
        for chain in of_new {
            let _ = writeln!(text, "-A {hook} {new} -j KUBE-{chain}");
        }
    }
    let _ = write!(
        text,
        "-A INPUT -j KUBE-NODEPORTS\n\
         -A INPUT -j KUBE-FIREWALL\n\
         -A FORWARD -m comment --comment \"kubernetes forwarding rules\" -j KUBE-FORWARD\n\
         -A FORWARD {new} -j KUBE-SERVICES\n\
         -A FORWARD {new} -j KUBE-EXTERNAL-SERVICES\n\
         -A OUTPUT -j KUBE-FIREWALL\n\
         -A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP\n\
         -A KUBE-FORWARD -m mark --mark {MASQUERADE:#x}/{MASQUERADE:#x} -j ACCEPT\n\
         -A KUBE-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n\
         COMMIT\n"
    );
    text
}

fn of_port(text: &mut String, port: &Port, family: Family) {
    let (name, service, pods) = (port.name(), service(port), pods(family));
    let protocol = port.protocol.name();
    let to = format!("-m {protocol} -p {protocol} -d {} --dport {}", port.at.ip(), port.at.port());
    let _ = write!(
        text,
        "-A KUBE-SERVICES -m comment --comment \"{name} cluster IP\" {to} -j {service}\n\
         -A {service} -m comment --comment \"{name} cluster IP\" {to} ! -s {pods} -j KUBE-MARK-MASQ\n"
    );
    let count = port.endpoints.len();
    for (number, address) in port.endpoints.iter().enumerate() {
        let endpoint = endpoint(port, number);
        let left = count - number;
        // Each rule takes its share of the connections that are left; the last takes all of them.
        let share = match left {
            1 => String::new(),
            _ => format!("-m statistic --mode random --probability {:.10} ", 1.0 / left as f64),
        };
        let _ = write!(
            text,
            "-A {service} -m comment --comment \"{name} -> {address}\" {share}-j {endpoint}\n\
             -A {endpoint} -m comment --comment \"{name}\" -s {} -j KUBE-MARK-MASQ\n\
             -A {endpoint} -m comment --comment \"{name}\" -m {protocol} -p {protocol} \
             -j DNAT --to-destination {address}\n",
            address.ip()
        );
    }
}

fn service(port: &Port) -> String {
    format!("KUBE-SVC-{}", hash(port, ""))
}

fn endpoint(port: &Port, number: usize) -> String {
    format!("KUBE-SEP-{}", hash(port, &number.to_string()))
}

/// Sixteen characters that are unique.
fn hash(port: &Port, of: &str) -> String {
    format!("{:X>16}", format!("{}{}X{of}", port.protocol.name().to_uppercase(), port.number))
}
