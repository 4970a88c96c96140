//! NetworkPolicies and ClusterNetworkPolicies. The reader has checked their syntax; these are the
//! conditions that the compiler relies on.

use podswitch_policy::rule::{ClusterNetworkPolicy, Direction, NetworkPolicy, PortRule, Ports};

use crate::publish::fault::Faults;

pub(in crate::publish) fn network_policy(policy: &NetworkPolicy, faults: &mut Faults) {
    for direction in Direction::BOTH {
        for (i, rule) in policy.rules(direction).unwrap_or_default().iter().enumerate() {
            ports(&format!("{direction}[{i}]"), &rule.ports, faults);
        }
    }
}

pub(in crate::publish) fn cluster_policy(policy: &ClusterNetworkPolicy, faults: &mut Faults) {
    if policy.priority > ClusterNetworkPolicy::MAX_PRIORITY {
        let most = ClusterNetworkPolicy::MAX_PRIORITY;
        faults.add("priority", format!("{} is above {most}", policy.priority));
    }
    for direction in Direction::BOTH {
        for (i, rule) in policy.rules(direction).iter().enumerate() {
            ports(&format!("{direction}[{i}]"), &rule.ports, faults);
        }
    }
}

fn ports(rule: &str, ports: &Ports, faults: &mut Faults) {
    let Ports::AnyOf(list) = ports else { return };
    for (i, port) in list.iter().enumerate() {
        if let PortRule::Range { first, last, .. } = port
            && (*first == 0 || first > last)
        {
            let reason = format!("{first} to {last} is not a range of ports");
            faults.add(format!("{rule}.ports[{i}]"), reason);
        }
    }
}
