//! Masquerading of pods' off-cluster traffic.

use podswitch_wire::cidr::Cidr;

use super::contents::Contents;
use super::elements::SetChange;
use super::intervals::{IntervalChange, Intervals};
use super::message::{Connection, Family, Kind, Transaction};
use super::rule::{Base, Meta};
use super::{NFPROTO_IPV4, NFPROTO_IPV6, NFT_TABLE_F_OWNER, interface_name, remove, replace};
use crate::{HostError, NetNs};

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

/// A change of a list of ranges.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RangeChange {
    /// Ranges that are removed. Those that are not in the list are ignored.
    pub removed: Vec<Cidr>,
    /// Ranges that are added. Those that are in the list already are ignored.
    pub added: Vec<Cidr>,
}

/// The masquerading of pods' off-cluster traffic by the node's kernel, in force while this value
/// lives. The kernel itself removes the table when the process ends for any reason
/// (NFT_TABLE_F_OWNER, Linux 5.12); with older kernels the next run replaces it.
#[derive(Debug)]
pub struct Masquerade {
    connection: Connection,
    rules: Rules,
    contents: Contents,
    /// The kernel removes the table with its owner, and prevents others from changing it.
    owned: bool,
    /// It outlives this value.
    stays: bool,
    /// The last change failed, so that the kernel has earlier rules.
    is_outdated: bool,
}

/// The table.
#[derive(Debug)]
struct Rules {
    table: String,
    host_interface: String,
    /// IPv4 and IPv6.
    families: [Ranges; 2],
}

/// The ranges of one family.
#[derive(Debug)]
struct Ranges {
    is_ipv4: bool,
    pods: Intervals,
    cluster: Intervals,
}

impl Masquerade {
    /// Installs masquerading in `ns`, replacing the rules that an earlier run left.
    ///
    /// # Errors
    /// Missing privilege; another running process owns the table; a kernel without nf_tables.
    pub fn install(ns: &NetNs, config: &MasqueradeConfig) -> Result<Self, HostError> {
        Self::install_as(ns, config, true)
    }

    /// Without an owner, as on an old kernel.
    #[cfg(test)]
    pub(super) fn install_without_owner(
        ns: &NetNs,
        config: &MasqueradeConfig,
    ) -> Result<Self, HostError> {
        Self::install_as(ns, config, false)
    }

    /// Whether nobody else can change the table.
    #[cfg(test)]
    pub(super) fn is_owned(&self) -> bool {
        self.owned
    }

    fn install_as(ns: &NetNs, config: &MasqueradeConfig, owned: bool) -> Result<Self, HostError> {
        let mut connection = Connection::open(ns)?;
        let rules = Rules::of(config);
        let is_there = connection.has_table(Family::Inet, &config.table)?;
        let owned = match rules.install(&mut connection, owned, is_there) {
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {
                rules.install(&mut connection, false, is_there)?;
                false
            }
            result => result.map(|()| owned)?,
        };
        let contents = Contents::read(&mut connection, Family::Inet, &config.table)?;
        Ok(Self { connection, rules, contents, owned, stays: false, is_outdated: false })
    }

    /// Replaces all ranges and the interface atomically; existing connections keep their translation.
    /// The table's name cannot change.
    ///
    /// # Errors
    /// As [`install`](Self::install); the rules in force stay until [`repair`](Self::repair).
    pub fn update(&mut self, config: &MasqueradeConfig) -> Result<(), HostError> {
        let table = self.rules.table.clone();
        let rules = Rules { table, ..Rules::of(config) };
        let before = std::mem::replace(&mut self.rules, rules);
        let changes = before.changes_to(&self.rules);
        self.commit(changes)
    }

    /// Changes single ranges, atomically; the cost does not depend on the number of the others. Existing connections
    /// keep their translation.
    ///
    /// # Errors
    /// As [`update`](Self::update).
    pub fn change(&mut self, pods: &RangeChange, cluster: &RangeChange) -> Result<(), HostError> {
        let mut changes = Some(Vec::new());
        for ranges in &mut self.rules.families {
            let had_pods = !ranges.pods.is_empty();
            let pods = pods.apply(&mut ranges.pods, ranges.is_ipv4);
            let cluster = cluster.apply(&mut ranges.cluster, ranges.is_ipv4);
            if had_pods == ranges.pods.is_empty() {
                changes = None;
            }
            if let Some(changes) = changes.as_mut().filter(|_| had_pods) {
                changes.extend(ranges.changes(pods, cluster));
            }
        }
        self.commit(changes)
    }

    /// Puts `rules` in force: by changes of the sets in force, or as a whole.
    fn commit(&mut self, changes: Option<Vec<SetChange>>) -> Result<(), HostError> {
        if let Some(changes) = changes
            && !self.is_outdated
            && self.contents.change(&mut self.connection, changes).is_ok()
        {
            return Ok(());
        }
        self.replace()
    }

    /// Replaces the table.
    fn replace(&mut self) -> Result<(), HostError> {
        self.is_outdated = true;
        self.put_in_force(self.owned)?;
        self.contents = Contents::read(&mut self.connection, Family::Inet, &self.rules.table)?;
        self.is_outdated = false;
        Ok(())
    }

    fn put_in_force(&mut self, owned: bool) -> Result<(), HostError> {
        let mut transaction = Transaction::new(Family::Inet);
        let table = &self.rules.table;
        // Created if absent, so that removing it cannot fail.
        replace(&mut transaction, table, if self.owned { NFT_TABLE_F_OWNER } else { 0 });
        self.rules.create(&mut transaction, owned);
        self.connection.commit(transaction, || format!("replace nftables table {table}"))
    }

    /// Leaves masquerading in force when this value is dropped: another process, which goes on, replaces it.
    ///
    /// # Errors
    /// As [`install`](Self::install).
    pub fn leave_in_force(&mut self) -> Result<(), HostError> {
        // An owner cannot give a table away, but replace it by one without an owner.
        self.put_in_force(false)?;
        (self.owned, self.stays) = (false, true);
        Ok(())
    }

    /// Replaces the table if it was removed, if its rules or sets were changed, or if an update failed. Returns whether
    /// it was.
    ///
    /// # Errors
    /// As [`install`](Self::install).
    pub fn repair(&mut self) -> Result<bool, HostError> {
        if !self.is_outdated && self.contents.is_intact(&mut self.connection)? {
            return Ok(false);
        }
        self.replace().map(|()| true)
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
        &self.rules.table
    }
}

impl Drop for Masquerade {
    fn drop(&mut self) {
        if self.stays {
            return;
        }
        // For kernels that do not do it themselves; there is no caller to report to.
        let _ = remove(&mut self.connection, Family::Inet, &self.rules.table);
    }
}

impl RangeChange {
    fn apply(&self, intervals: &mut Intervals, is_ipv4: bool) -> IntervalChange {
        let mut change = IntervalChange::default();
        let is_of_family = |range: &&Cidr| range.address().is_ipv4() == is_ipv4;
        for range in self.removed.iter().filter(is_of_family) {
            intervals.remove(range, &mut change);
        }
        for range in self.added.iter().filter(is_of_family) {
            intervals.add(range, &mut change);
        }
        change
    }
}

impl Ranges {
    fn of(config: &MasqueradeConfig, is_ipv4: bool) -> Self {
        let intervals = |ranges| Intervals::of(ranges, is_ipv4);
        Self { is_ipv4, pods: intervals(&config.pods), cluster: intervals(&config.cluster) }
    }

    /// Names of the sets of pods and of the cluster.
    fn sets(&self) -> [String; 2] {
        let suffix = if self.is_ipv4 { "4" } else { "6" };
        ["pods", "cluster"].map(|set| format!("{set}{suffix}"))
    }

    fn changes(&self, pods: IntervalChange, cluster: IntervalChange) -> [SetChange; 2] {
        let [of_pods, of_cluster] = self.sets();
        [(of_pods, pods), (of_cluster, cluster)]
            .map(|(set, change)| SetChange::of_intervals(set, change, self.is_ipv4))
    }
}

impl Rules {
    fn of(config: &MasqueradeConfig) -> Self {
        Self {
            table: config.table.clone(),
            host_interface: config.host_interface.clone(),
            families: [true, false].map(|is_ipv4| Ranges::of(config, is_ipv4)),
        }
    }

    /// The changes of sets that lead to `other`. `None`: the rules differ as well.
    fn changes_to(&self, other: &Self) -> Option<Vec<SetChange>> {
        if self.host_interface != other.host_interface {
            return None;
        }
        let mut changes = Vec::new();
        for (before, now) in self.families.iter().zip(&other.families) {
            if before.pods.is_empty() != now.pods.is_empty() {
                return None;
            }
            if !now.pods.is_empty() {
                let pods = before.pods.change_to(&now.pods);
                let cluster = before.cluster.change_to(&now.cluster);
                changes.extend(now.changes(pods, cluster));
            }
        }
        Some(changes)
    }

    fn install(
        &self,
        connection: &mut Connection,
        owned: bool,
        is_there: bool,
    ) -> Result<(), HostError> {
        let mut transaction = Transaction::new(Family::Inet);
        if is_there {
            // In one transaction: there is no moment without masquerading.
            transaction.add(Kind::DeleteTable, |a| {
                a.text(1, &self.table);
            });
        }
        self.create(&mut transaction, owned);
        connection.commit(transaction, || format!("create nftables table {}", self.table))
    }

    fn create(&self, transaction: &mut Transaction, owned: bool) {
        const CHAIN: &str = "postrouting";
        const NF_INET_POST_ROUTING: u32 = 4;
        /// NF_IP_PRI_NAT_SRC.
        const PRIORITY: u32 = 100;
        let table = &self.table;
        transaction.add(Kind::NewTable, |a| {
            a.text(1, table).number(2, if owned { NFT_TABLE_F_OWNER } else { 0 });
        });
        transaction.add(Kind::NewChain, |a| {
            a.text(1, table).text(3, CHAIN).text(7, "nat").nest(4, |hook| {
                hook.number(1, NF_INET_POST_ROUTING).number(2, PRIORITY);
            });
        });
        for ranges in self.families.iter().filter(|ranges| !ranges.pods.is_empty()) {
            let ([pods, cluster], is_ipv4) = (ranges.sets(), ranges.is_ipv4);
            transaction.add_set(table, &pods, ranges.pods.merged(), is_ipv4);
            transaction.add_set(table, &cluster, ranges.cluster.merged(), is_ipv4);
            let (family, source, destination, len) =
                if is_ipv4 { (NFPROTO_IPV4, 12, 16, 4) } else { (NFPROTO_IPV6, 8, 24, 16) };
            transaction.add_rule(table, CHAIN, |rule| {
                rule.load_meta(Meta::Family).equal(&[family]);
                rule.load_meta(Meta::OutputName).differ(&interface_name(&self.host_interface));
                rule.load(Base::Network, source, len).lookup(&pods, false);
                rule.load(Base::Network, destination, len).lookup(&cluster, true);
                rule.masquerade();
            });
        }
    }
}
