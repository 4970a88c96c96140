//! Delivers packets of the switch from or to `::1`, replies of host ports at that address, to the
//! node's own processes.
//!
//! The kernel discards a packet with `::1` as source or destination that an interface other than
//! the loopback device receives (RFC 4291 §2.5.3; `ip6_rcv_core`), and IPv6 has no `route_localnet`. So
//! they are passed to the loopback device before that check, which is what a local sender's packet
//! goes through. The switch sends such packets only as replies to the node's own processes (T-S4).

use std::net::Ipv6Addr;

use podswitch_wire::parse::ethertype;

use super::forward::{self, commit};
use super::rule::{Base, Meta};
use super::{HostError, Installed, NetNs};

/// Name of the table.
const TABLE: &str = "podswitch-loopback";
/// Index of the loopback device, the same in every namespace (LOOPBACK_IFINDEX).
const LOOPBACK: u32 = 1;
/// Offsets of source and destination in the IPv6 header.
const ADDRESSES: [u32; 2] = [8, 24];

/// Passes packets from or to `::1` that the interface `from` receives to the loopback device, in
/// place of the rules of an earlier run. They end with the interface, except for the table's name.
///
/// # Errors
/// There is no such interface; missing privilege; a kernel without nf_tables' netdev family or its
/// forwarding.
pub(crate) fn deliver(ns: &NetNs, from: &str) -> Result<Installed, HostError> {
    commit(ns, TABLE, from, |transaction, chain| {
        for offset in ADDRESSES {
            transaction.add_rule(TABLE, chain, |rule| {
                rule.load_meta(Meta::EtherType).equal(&ethertype::IPV6.to_be_bytes());
                let address = Ipv6Addr::LOCALHOST.octets();
                rule.load(Base::Network, offset, 16).equal(&address);
                // The loopback device's own address: others' frames are not for this host.
                rule.load_immediate(&[0; 6]).store(Base::Link, 0, 6);
                rule.count().load_immediate(&LOOPBACK.to_ne_bytes()).forward();
            });
        }
    })
}

/// Removes the rules; a no-op if there are none.
///
/// # Errors
/// Missing privilege.
pub(crate) fn remove(ns: &NetNs) -> Result<(), HostError> {
    forward::remove_forward(ns, TABLE)
}
