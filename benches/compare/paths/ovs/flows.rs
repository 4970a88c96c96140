//! Flow tables in Open vSwitch's syntax.

use std::fmt::Write;

use super::super::services::{Port, Services};
use super::super::{Family, Pod};

/// Bridging of tracked connections: packets of unknown connections that open none are dropped.
pub(super) const CONNTRACK: &str = "\
table=0,priority=100,ct_state=-trk,tcp,actions=ct(table=1)
table=0,priority=100,ct_state=-trk,udp,actions=ct(table=1)
table=0,priority=100,ct_state=-trk,tcp6,actions=ct(table=1)
table=0,priority=100,ct_state=-trk,udp6,actions=ct(table=1)
table=0,priority=0,actions=NORMAL
table=1,priority=100,ct_state=+trk+new-inv,tcp,actions=ct(commit),NORMAL
table=1,priority=100,ct_state=+trk+new-inv,udp,actions=ct(commit),NORMAL
table=1,priority=100,ct_state=+trk+new-inv,tcp6,actions=ct(commit),NORMAL
table=1,priority=100,ct_state=+trk+new-inv,udp6,actions=ct(commit),NORMAL
table=1,priority=100,ct_state=+trk+est-inv,actions=NORMAL
table=1,priority=0,actions=drop
";

/// Groups and flows: packets of established connections are translated by connection tracking, new ones by their
/// Service's group with one bucket for each endpoint, as OVN configures load balancers.
pub(super) fn services(services: Services, server: &Pod) -> (String, String) {
    let mut flows = String::new();
    let mut groups = String::new();
    for protocol in ["tcp", "udp", "tcp6", "udp6"] {
        let _ = writeln!(flows, "table=0,priority=100,{protocol},actions=ct(table=1,nat)");
    }
    flows.push_str(
        "table=0,priority=0,actions=NORMAL\n\
         table=1,priority=200,ct_state=+trk+est-inv,actions=NORMAL\n\
         table=1,priority=200,ct_state=+trk+rel-inv,actions=NORMAL\n\
         table=1,priority=200,ct_state=+trk+dnat-inv,actions=NORMAL\n\
         table=1,priority=0,actions=drop\n",
    );
    let ports = Family::BOTH.into_iter().flat_map(|family| services.ports(server, family));
    for (number, port) in ports.enumerate() {
        of_port(&mut groups, &mut flows, number + 1, &port);
    }
    (groups, flows)
}

fn of_port(groups: &mut String, flows: &mut String, group: usize, port: &Port) {
    let _ = write!(groups, "group_id={group},type=select,selection_method=dp_hash");
    for endpoint in &port.endpoints {
        let _ = write!(groups, ",bucket=weight:1,actions=ct(commit,table=2,nat(dst={endpoint}))");
    }
    groups.push('\n');
    let (six, destination) = match port.at.is_ipv4() {
        true => ("", "nw_dst"),
        false => ("6", "ipv6_dst"),
    };
    let _ = writeln!(
        flows,
        "table=1,priority=100,ct_state=+trk+new-inv,{}{six},{destination}={},tp_dst={},\
         actions=group:{group}",
        port.protocol.name(),
        port.at.ip(),
        port.at.port(),
    );
    if group == 1 {
        flows.push_str("table=2,priority=0,actions=NORMAL\n");
    }
}
