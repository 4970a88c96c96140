//! The packet filter of the host, nf_tables, as far as the switch needs it: masquerading of pods'
//! off-cluster traffic, and keeping packets that the switch handles out of the host's stack.
//! Configured directly over netlink; no `nft` program is needed.
//!
//! Each purpose has a table of its own, replaced in one transaction, so that an interrupted or
//! killed run leaves nothing that disturbs the next. Later changes of addresses change elements of its sets in place.

pub mod conntrack;
mod contents;
mod elements;
pub(crate) mod forward;
mod ingress;
mod intervals;
pub(crate) mod loopback;
mod masquerade;
mod message;
mod rule;
mod steer;
#[cfg(test)]
mod tests;

pub(crate) use contents::Installed;
pub use ingress::{Between, Ingress, IngressDrop};
pub use masquerade::{Masquerade, MasqueradeConfig, RangeChange};
pub(crate) use steer::forget as forget_marks;
pub use steer::{L4Address, Marking, MarkingConfig};

use self::message::{Connection, Family, Kind, Transaction, text};
use super::{HostError, NetNs, Netlink};

const NFPROTO_IPV4: u8 = 2;
const NFPROTO_IPV6: u8 = 10;

/// Tables of IPv4 and IPv6 in `ns`, each with the name of one of its chains, or with an empty name.
///
/// # Errors
/// Missing privilege; a kernel without nf_tables.
pub(crate) fn find_tables_and_chains(ns: &NetNs) -> Result<Vec<(String, String)>, HostError> {
    let mut connection = Connection::open(ns)?;
    let mut found = Vec::new();
    for family in [Family::Ipv4, Family::Ipv6] {
        let what = || "list nftables tables and chains".to_owned();
        for table in connection.list(Kind::GetTable, family, |_| {}, what)? {
            found.extend(text(&table, 1).map(|name| (name, String::new())));
        }
        for chain in connection.list(Kind::GetChain, family, |_| {}, what)? {
            found.extend(text(&chain, 1).zip(text(&chain, 3)));
        }
    }
    Ok(found)
}

fn remove(connection: &mut Connection, family: Family, table: &str) -> Result<(), HostError> {
    let mut transaction = Transaction::new(family);
    transaction.add(Kind::DeleteTable, |a| {
        a.text(1, table);
    });
    match connection.commit(transaction, || format!("remove nftables table {table}")) {
        Err(error) if error.is_not_found() => Ok(()),
        result => result,
    }
}

/// Adds the removal of a table, whether or not it exists.
fn replace(transaction: &mut Transaction, table: &str, flags: u32) {
    transaction.add(Kind::NewTable, |a| {
        a.text(1, table).number(2, flags);
    });
    transaction.add(Kind::DeleteTable, |a| {
        a.text(1, table);
    });
}

/// Only its owner can change the table, and it is removed with its owner.
const NFT_TABLE_F_OWNER: u32 = 2;

/// A name as the kernel loads it: 16 bytes, padded with zeroes.
fn interface_name(name: &str) -> [u8; 16] {
    let mut bytes = [0; 16];
    let len = name.len().min(15);
    bytes[..len].copy_from_slice(&name.as_bytes()[..len]);
    bytes
}
