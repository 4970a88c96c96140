//! The packet filter of the host, nf_tables, as far as the switch needs it: masquerading of pods'
//! off-cluster traffic, and keeping packets that the switch handles out of the host's stack.
//! Configured directly over netlink; no `nft` program is needed.
//!
//! Each purpose has a table of its own, replaced in one transaction, so that an interrupted or
//! killed run leaves nothing that disturbs the next.

pub mod conntrack;
pub(crate) mod forward;
mod ingress;
pub(crate) mod loopback;
mod message;
mod rule;
mod steer;
#[cfg(test)]
mod tests;

pub use ingress::{Between, Ingress, IngressDrop};
pub(crate) use steer::forget as forget_marks;
pub use steer::{Front, Marking, MarkingConfig};

use podswitch_wire::cidr::Cidr;

use self::message::{Connection, Family, Kind, Set, Transaction, text};
use self::rule::{Base, Meta};
use super::{HostError, NetNs, Netlink};

/// The contents of a table when it was installed.
#[derive(Debug)]
struct Contents {
    family: Family,
    table: String,
    /// Generation of nf_tables when this was last read or compared.
    generation: u32,
    exists: bool,
    /// Handles.
    rules: Vec<u64>,
    /// By name, with their elements.
    sets: Vec<Set>,
}

impl Contents {
    /// Reads the current contents of a table.
    fn read(connection: &mut Connection, family: Family, table: &str) -> Result<Self, HostError> {
        Ok(Self {
            family,
            table: table.to_owned(),
            // Read first, so that changes in the meantime have a later generation.
            generation: connection.generation()?,
            exists: connection.has_table(family, table)?,
            rules: connection.rules(family, table)?,
            sets: connection.sets(family, table)?,
        })
    }

    /// Whether the table still has exactly the same rules and set elements. One query to the kernel
    /// unless something changed in any table.
    fn is_intact(&mut self, connection: &mut Connection) -> Result<bool, HostError> {
        if connection.generation()? == self.generation {
            return Ok(true);
        }
        let now = Self::read(connection, self.family, &self.table)?;
        let is_same = (now.exists, &now.rules, &now.sets) == (self.exists, &self.rules, &self.sets);
        if is_same {
            self.generation = now.generation;
        }
        Ok(is_same)
    }
}

/// The contents of a table that belongs to no process, so that anybody may change it.
#[derive(Debug)]
pub(crate) struct Installed {
    connection: Connection,
    contents: Contents,
}

impl Installed {
    /// Reads the current contents of a table.
    fn read(mut connection: Connection, family: Family, table: &str) -> Result<Self, HostError> {
        let contents = Contents::read(&mut connection, family, table)?;
        Ok(Self { connection, contents })
    }

    /// Whether the table is unchanged.
    pub(crate) fn is_intact(&mut self) -> Result<bool, HostError> {
        self.contents.is_intact(&mut self.connection)
    }
}

const NFPROTO_IPV4: u8 = 2;
const NFPROTO_IPV6: u8 = 10;

/// Which packets are masqueraded, and which are not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MasqueradeConfig {
    /// Name of the table.
    pub table: String,
    /// The node's interface to the switch: packets to pods are never masqueraded.
    pub host_interface: String,
    /// Ranges of this node's pods: only packets that they send are masqueraded.
    pub pods: Vec<Cidr>,
    /// Destinations that must see pods' own addresses: the cluster.
    pub cluster: Vec<Cidr>,
}

impl Default for MasqueradeConfig {
    fn default() -> Self {
        Self {
            table: "podswitch".into(),
            host_interface: "podswitch0".into(),
            pods: Vec::new(),
            cluster: Vec::new(),
        }
    }
}

/// The masquerading of pods' off-cluster traffic by the node's kernel, in force while this value
/// lives. The kernel itself removes the table when the process ends for any reason
/// (NFT_TABLE_F_OWNER, Linux 5.12); with older kernels the next run replaces it.
#[derive(Debug)]
pub struct Masquerade {
    connection: Connection,
    table: String,
    contents: Contents,
    /// The kernel removes the table with its owner, and prevents others from changing it.
    owned: bool,
    /// It outlives this value.
    stays: bool,
}

impl Masquerade {
    /// Installs masquerading in `ns`, replacing the rules that an earlier run left.
    ///
    /// # Errors
    /// Missing privilege; another running process owns the table; a kernel without nf_tables.
    pub fn install(ns: &NetNs, config: &MasqueradeConfig) -> Result<Self, HostError> {
        let mut connection = Connection::open(ns)?;
        let is_there = connection.has_table(Family::Inet, &config.table)?;
        let owned = match put_masquerade(&mut connection, config, true, is_there) {
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {
                put_masquerade(&mut connection, config, false, is_there)?;
                false
            }
            result => result.map(|()| true)?,
        };
        let contents = Contents::read(&mut connection, Family::Inet, &config.table)?;
        Ok(Self { connection, table: config.table.clone(), contents, owned, stays: false })
    }

    /// Replaces the rules atomically; existing connections keep their translation. The table's name
    /// cannot change.
    ///
    /// # Errors
    /// As [`install`](Self::install); the rules in force stay.
    pub fn update(&mut self, config: &MasqueradeConfig) -> Result<(), HostError> {
        let config = MasqueradeConfig { table: self.table.clone(), ..config.clone() };
        let mut transaction = Transaction::new(Family::Inet);
        // Created if absent, so that removing it cannot fail.
        replace(&mut transaction, &config.table, if self.owned { NFT_TABLE_F_OWNER } else { 0 });
        masquerade(&mut transaction, &config, self.owned);
        let what = || format!("replace nftables table {}", config.table);
        self.connection.commit(transaction, what)?;
        self.contents = Contents::read(&mut self.connection, Family::Inet, &self.table)?;
        Ok(())
    }

    /// Leaves masquerading in force when this value is dropped: another process, which goes on, replaces it.
    ///
    /// # Errors
    /// As [`install`](Self::install).
    pub fn leave_in_force(&mut self, config: &MasqueradeConfig) -> Result<(), HostError> {
        let config = MasqueradeConfig { table: self.table.clone(), ..config.clone() };
        let mut transaction = Transaction::new(Family::Inet);
        // An owner cannot give a table away, but replace it by one without an owner.
        replace(&mut transaction, &config.table, if self.owned { NFT_TABLE_F_OWNER } else { 0 });
        masquerade(&mut transaction, &config, false);
        let what = || format!("replace nftables table {}", config.table);
        self.connection.commit(transaction, what)?;
        (self.owned, self.stays) = (false, true);
        Ok(())
    }

    /// Replaces the table if it was removed, or if its rules or sets were changed. Returns whether it was.
    ///
    /// # Errors
    /// As [`install`](Self::install).
    pub fn put_back(&mut self, config: &MasqueradeConfig) -> Result<bool, HostError> {
        if self.contents.is_intact(&mut self.connection)? {
            return Ok(false);
        }
        self.update(config).map(|()| true)
    }

    /// Removes the table that a killed run left; a no-op if there is none.
    ///
    /// # Errors
    /// Missing privilege; a running process owns the table.
    pub fn remove(ns: &NetNs, table: &str) -> Result<(), HostError> {
        remove(&mut Connection::open(ns)?, Family::Inet, table)
    }

    /// Name of the table.
    pub fn table(&self) -> &str {
        &self.table
    }
}

impl Drop for Masquerade {
    fn drop(&mut self) {
        if self.stays {
            return;
        }
        // For kernels that do not do it themselves; there is no caller to report to.
        let _ = remove(&mut self.connection, Family::Inet, &self.table);
    }
}

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

fn put_masquerade(
    connection: &mut Connection,
    config: &MasqueradeConfig,
    owned: bool,
    is_there: bool,
) -> Result<(), HostError> {
    let mut transaction = Transaction::new(Family::Inet);
    if is_there {
        // In one transaction: there is no moment without masquerading.
        transaction.add(Kind::DeleteTable, |a| {
            a.text(1, &config.table);
        });
    }
    masquerade(&mut transaction, config, owned);
    connection.commit(transaction, || format!("create nftables table {}", config.table))
}

fn masquerade(transaction: &mut Transaction, config: &MasqueradeConfig, owned: bool) {
    const CHAIN: &str = "postrouting";
    const NF_INET_POST_ROUTING: u32 = 4;
    /// NF_IP_PRI_NAT_SRC.
    const PRIORITY: u32 = 100;
    let table = &config.table;
    transaction.add(Kind::NewTable, |a| {
        a.text(1, table).number(2, if owned { NFT_TABLE_F_OWNER } else { 0 });
    });
    transaction.add(Kind::NewChain, |a| {
        a.text(1, table).text(3, CHAIN).text(7, "nat").nest(4, |hook| {
            hook.number(1, NF_INET_POST_ROUTING).number(2, PRIORITY);
        });
    });
    for (is_ipv4, suffix) in [(true, "4"), (false, "6")] {
        if !config.pods.iter().any(|range| range.address().is_ipv4() == is_ipv4) {
            continue;
        }
        let (pods, cluster) = (format!("pods{suffix}"), format!("cluster{suffix}"));
        transaction.add_set(table, &pods, &config.pods, is_ipv4);
        transaction.add_set(table, &cluster, &config.cluster, is_ipv4);
        let (family, source, destination, len) =
            if is_ipv4 { (NFPROTO_IPV4, 12, 16, 4) } else { (NFPROTO_IPV6, 8, 24, 16) };
        transaction.add_rule(table, CHAIN, |rule| {
            rule.load_meta(Meta::Family).equal(&[family]);
            rule.load_meta(Meta::OutputName).differ(&interface_name(&config.host_interface));
            rule.load(Base::Network, source, len).lookup(&pods, false);
            rule.load(Base::Network, destination, len).lookup(&cluster, true);
            rule.masquerade();
        });
    }
}

/// A name as the kernel loads it: 16 bytes, padded with zeroes.
fn interface_name(name: &str) -> [u8; 16] {
    let mut bytes = [0; 16];
    let len = name.len().min(15);
    bytes[..len].copy_from_slice(&name.as_bytes()[..len]);
    bytes
}
