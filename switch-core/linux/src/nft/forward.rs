//! Frames that one interface receives leave by another, past the stack.

use podswitch_wire::parse::ethertype;

use super::message::{Connection, Family, Kind, Transaction};
use super::rule::{Base, Meta, Rule};
use super::{HostError, Installed, NetNs, remove};

/// Has everything that the interface `from` receives leave by the interface with index `to`, as it
/// is: no routing, no neighbours, nothing that the stack's filters see. In place of what an earlier
/// run put into the same `table`; goes when `from` does, but for the table's name.
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

/// Where in the Ethernet header of a frame for [`forward_by_note`] the next hop's IPv4 address stands.
/// Over IPv6 the next hop is the destination.
pub(crate) const NOTE_NEXT_HOP: usize = 0;
/// Where the outgoing interface's index stands, 4 bytes in the machine's order.
pub(crate) const NOTE_LINK: usize = 4;

/// Has every IP packet that the interface `from` receives leave as its sender noted in place of MAC
/// addresses: [`NOTE_LINK`], [`NOTE_NEXT_HOP`]. No routing, nothing that the stack's filters
/// see, but the kernel's own neighbours, which it asks for as usual; the TTL is lowered by one. All else
/// is dropped. Otherwise as [`forward`].
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

/// A table with a chain of what `from` receives, with the rules that `fill` adds.
fn commit(
    ns: &NetNs,
    table: &str,
    from: &str,
    fill: impl FnOnce(&mut Transaction, &str),
) -> Result<Installed, HostError> {
    const CHAIN: &str = "forward";
    const ACCEPT: u32 = 1;
    let mut transaction = Transaction::new(Family::Netdev);
    // Made if it is not there, so that it can be removed for sure.
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

/// Takes the forwarding away; that there is none is no error.
///
/// # Errors
/// Missing privilege.
pub(crate) fn remove_forward(ns: &NetNs, table: &str) -> Result<(), HostError> {
    remove(&mut Connection::open(ns)?, Family::Netdev, table)
}
