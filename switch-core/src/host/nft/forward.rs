//! Frames that one interface receives leave by another, past the stack.

use super::message::{Connection, Family, Kind, Transaction};
use super::rule::REGISTER;
use super::{HostError, NetNs, remove};

/// Has everything that the interface `from` receives leave by the interface with index `to`, as it
/// is: no routing, no neighbours, nothing that the stack's filters see. In place of what an earlier
/// run put into the same `table`; goes when `from` does, but for the table's name.
///
/// # Errors
/// Missing privilege; a kernel without nf_tables' netdev family or its forwarding.
pub(crate) fn forward(ns: &NetNs, table: &str, from: &str, to: u32) -> Result<(), HostError> {
    const CHAIN: &str = "forward";
    const ACCEPT: u32 = 1;
    const FORWARD_DEVICE: u16 = 1;
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
    transaction.add_rule(table, CHAIN, |rule| {
        rule.load_immediate(&to.to_ne_bytes()).expression("fwd", |d| {
            d.number(FORWARD_DEVICE, REGISTER);
        });
    });
    let what = || format!("forward what {from} receives, by nftables table {table}");
    Connection::open(ns)?.commit(transaction, what)
}

/// Takes the forwarding away; that there is none is no error.
///
/// # Errors
/// Missing privilege.
pub(crate) fn remove_forward(ns: &NetNs, table: &str) -> Result<(), HostError> {
    remove(&mut Connection::open(ns)?, Family::Netdev, table)
}
