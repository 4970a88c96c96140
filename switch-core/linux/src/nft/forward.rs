//! Forwards the frames that one interface receives to another, bypassing the stack.

use podswitch_wire::parse::ethertype;

use super::message::{Connection, Family, Kind, Transaction};
use super::rule::{Base, Meta, Rule};
use super::{HostError, Installed, NetNs, remove};

/// Forwards everything that the interface `from` receives to the interface with index `to`,
/// unchanged: no routing, no neighbours, no filters of the stack. Replaces the rules of an earlier
/// run in the same `table`. Removed with `from`, except for the table's name.
///
/// # Errors
/// Missing privilege; a kernel without nf_tables' netdev family or its forwarding.
pub(crate) fn forward(
    ns: &NetNs,
    table: &str,
    from: &str,
    to: u32,
) -> Result<Installed, HostError> {
    commit(ns, table, from, |transaction, chain| {
        transaction.add_rule(table, chain, |rule| {
            rule.load_immediate(&to.to_ne_bytes()).forward();
        });
    })
}

/// Offset of the next hop's IPv4 address in the Ethernet header of a frame for [`forward_by_note`].
/// Over IPv6 the next hop is the destination.
pub(crate) const NOTE_NEXT_HOP: usize = 0;
/// Offset of the outgoing interface's index, 4 bytes in native order.
pub(crate) const NOTE_LINK: usize = 4;

/// Forwards every IP packet that the interface `from` receives as its sender wrote in place of the
/// MAC addresses: [`NOTE_LINK`], [`NOTE_NEXT_HOP`]. There is no routing and no filter of the stack;
/// the kernel resolves the neighbour as usual and decrements the TTL. Everything else is dropped.
/// Otherwise as [`forward`].
///
/// # Errors
/// As [`forward`].
pub(crate) fn forward_by_note(ns: &NetNs, table: &str, from: &str) -> Result<Installed, HostError> {
    commit(ns, table, from, |transaction, chain| {
        let ways = [
            (ethertype::IPV4, (Base::Link, NOTE_NEXT_HOP as u32), 4),
            (ethertype::IPV6, (Base::Network, 24), 16),
        ];
        for (kind, address, len) in ways {
            transaction.add_rule(table, chain, |rule: &mut Rule<'_, '_>| {
                rule.load_meta(Meta::EtherType).equal(&kind.to_be_bytes());
                rule.forward_to(NOTE_LINK as u32, address, len);
            });
        }
        transaction.add_rule(table, chain, |rule| {
            rule.drop();
        });
    })
}

/// A table with an ingress chain for `from` and the rules that `fill` adds.
pub(super) fn commit(
    ns: &NetNs,
    table: &str,
    from: &str,
    fill: impl FnOnce(&mut Transaction, &str),
) -> Result<Installed, HostError> {
    const CHAIN: &str = "forward";
    const ACCEPT: u32 = 1;
    let mut transaction = Transaction::new(Family::Netdev);
    // Created if absent, so that removing it cannot fail.
    for kind in [Kind::NewTable, Kind::DeleteTable, Kind::NewTable] {
        transaction.add(kind, |a| {
            a.text(1, table);
        });
    }
    transaction.add(Kind::NewChain, |a| {
        a.text(1, table).text(3, CHAIN).text(7, "filter").number(5, ACCEPT).nest(4, |hook| {
            hook.number(1, 0).number(2, 0).text(3, from);
        });
    });
    fill(&mut transaction, CHAIN);
    let what = || format!("forward what {from} receives, by nftables table {table}");
    let mut connection = Connection::open(ns)?;
    connection.commit(transaction, what)?;
    Installed::read(connection, Family::Netdev, table)
}

/// Removes the forwarding; a no-op if there is none.
///
/// # Errors
/// Missing privilege.
pub(crate) fn remove_forward(ns: &NetNs, table: &str) -> Result<(), HostError> {
    remove(&mut Connection::open(ns)?, Family::Netdev, table)
}
