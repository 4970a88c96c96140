//! Marks packets to Services at the node's own addresses, which the node's stack would otherwise
//! accept itself; a routing rule sends marked packets to the switch
//! ([`Steering`](crate::steer::Steering)).
//!
//! The kernel's conntrack keeps the mark of a connection, so that fragments and ICMP errors, which
//! carry no ports, follow their connection. Packets that the switch sends from an address of the
//! node are marked as well, so that their replies go to the switch. So are replies of a server of
//! the node itself to a client that the switch forwarded with the client's own address (S3).

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv6Addr};

use podswitch_wire::cidr::Cidr;
use podswitch_wire::flow_key::proto;
use podswitch_wire::parse::ethertype;

use super::contents::Contents;
use super::elements::{Element, SetChange};
use super::intervals::Intervals;
use super::message::{Connection, Family, Kind, Transaction};
use super::rule::{Base, Meta, REGISTER, Rule};
use super::{NFPROTO_IPV4, NFPROTO_IPV6, NFT_TABLE_F_OWNER, interface_name, remove, replace};
use crate::{HostError, NetNs};

/// An address, protocol and port whose packets go to the switch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct L4Address {
    /// Address.
    pub address: IpAddr,
    /// IP protocol number.
    pub protocol: u8,
    /// Port.
    pub port: u16,
}

/// Which packets are marked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MarkingConfig {
    /// Name of the table.
    pub table: String,
    /// The node's interface to the switch: packets from it are not marked.
    pub host_interface: String,
    /// The mark: one bit; other bits are left alone.
    pub mark: u32,
    /// MTU of the interface to the switch.
    pub mtu: u16,
    /// Addresses from which the switch sends: the node's, and those of its own masquerading.
    pub sources: Vec<IpAddr>,
    /// Addresses and ports of the switch.
    pub service_addresses: Vec<L4Address>,
    /// Servers of the node itself to which the switch forwards clients with the clients' own
    /// addresses; their replies go to the switch.
    pub servers: Vec<L4Address>,
    /// The mark of connections to those, in conntrack only: another bit.
    pub server_mark: u32,
}

impl MarkingConfig {
    /// Whether only the elements of sets differ.
    fn has_same_rules(&self, other: &Self) -> bool {
        let rules = |config: &Self| (config.mark, config.mtu, config.server_mark);
        rules(self) == rules(other) && self.host_interface == other.host_interface
    }
}

/// Marks in force while this value lives. If the process is killed they stay, for the next run:
/// nobody else can change the table in the meantime (NFT_TABLE_F_OWNER, Linux 5.12, with
/// NFT_TABLE_F_PERSIST, 6.9). Before 6.9 the kernel removes the table; before 5.12 others can
/// change it.
#[derive(Debug)]
pub struct Marking {
    connection: Connection,
    config: MarkingConfig,
    contents: Contents,
    /// A change was refused: what is in force is not what is wanted.
    is_outdated: bool,
    how: How,
    stays: bool,
}

/// The table stays when its owner ends.
const NFT_TABLE_F_PERSIST: u32 = 4;

/// The features of the kernel.
#[derive(Clone, Copy, Debug)]
struct How {
    /// Flags of the table.
    flags: u32,
    /// Whether there is connection tracking.
    tracked: bool,
}

impl Marking {
    /// Installs the marks in `ns`, replacing those of an earlier run.
    ///
    /// # Errors
    /// Missing privilege; another running process owns the table; a kernel without nf_tables.
    pub fn install(ns: &NetNs, config: &MarkingConfig) -> Result<Self, HostError> {
        let mut connection = Connection::open(ns)?;
        let is_there = connection.has_table(Family::Inet, &config.table)?;
        let flags = [NFT_TABLE_F_OWNER | NFT_TABLE_F_PERSIST, NFT_TABLE_F_OWNER, 0];
        let ways = [true, false].into_iter().flat_map(|tracked| flags.map(|f| (f, tracked)));
        let mut result = Ok(());
        for (flags, tracked) in ways {
            let how = How { flags, tracked };
            let mut transaction = Transaction::new(Family::Inet);
            if is_there {
                // In one transaction, so that the marks are never missing.
                transaction.add(Kind::DeleteTable, |a| {
                    a.text(1, &config.table);
                });
            }
            marking(&mut transaction, config, how);
            let what = || format!("create nftables table {}", config.table);
            result = connection.commit(transaction, what);
            match &result {
                Ok(()) => {
                    let contents = Contents::read(&mut connection, Family::Inet, &config.table)?;
                    let config = config.clone();
                    return Ok(Self {
                        connection,
                        config,
                        contents,
                        is_outdated: false,
                        how,
                        stays: false,
                    });
                }
                Err(error) if is_missing(error) => {}
                Err(_) => break,
            }
        }
        Err(result.expect_err("every way failed"))
    }

    /// Replaces the marks atomically. The table's name cannot change.
    ///
    /// # Errors
    /// As [`install`](Self::install); the rules in force stay, until [`repair`](Self::repair) replaces them.
    pub fn update(&mut self, config: &MarkingConfig) -> Result<(), HostError> {
        let config = MarkingConfig { table: self.config.table.clone(), ..config.clone() };
        if !self.is_outdated && config.has_same_rules(&self.config) {
            let changes = FAMILIES.iter().flat_map(|family| family.changes(&self.config, &config));
            if self.contents.change(&mut self.connection, changes.collect()).is_ok() {
                self.config = config;
                return Ok(());
            }
        }
        self.replace(config)
    }

    /// Replaces the table.
    fn replace(&mut self, config: MarkingConfig) -> Result<(), HostError> {
        // Until it is in force; the next repair tries again.
        self.config = config;
        self.is_outdated = true;
        let config = &self.config;
        let mut transaction = Transaction::new(Family::Inet);
        // Created if absent, so that removing it cannot fail.
        replace(&mut transaction, &config.table, self.how.flags);
        marking(&mut transaction, config, self.how);
        let what = || format!("replace nftables table {}", config.table);
        self.connection.commit(transaction, what)?;
        self.contents = Contents::read(&mut self.connection, Family::Inet, &config.table)?;
        self.is_outdated = false;
        Ok(())
    }

    /// Replaces the table if a change was refused, if it was removed, or if its rules or sets were changed. Returns whether it was.
    ///
    /// # Errors
    /// As [`install`](Self::install).
    pub fn repair(&mut self) -> Result<bool, HostError> {
        if !self.is_outdated && self.contents.is_intact(&mut self.connection)? {
            return Ok(false);
        }
        self.replace(self.config.clone()).map(|()| true)
    }

    /// Leaves the marks in force when this value is dropped, for the next run. Before Linux 6.9 the
    /// kernel removes a table that belongs to an owner.
    pub fn leave_in_force(&mut self) {
        self.stays = true;
    }
}

/// Removes the marks that an earlier run left.
pub(crate) fn forget(ns: &NetNs, table: &str) -> Result<(), HostError> {
    remove(&mut Connection::open(ns)?, Family::Inet, table)
}

impl Drop for Marking {
    fn drop(&mut self) {
        if self.stays {
            return;
        }
        // For kernels that do not do it themselves; there is no caller to report to.
        let _ = remove(&mut self.connection, Family::Inet, &self.config.table);
    }
}

/// Whether the kernel does not support a requested feature.
fn is_missing(error: &HostError) -> bool {
    matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENOENT))
}

const PREROUTING: &str = "prerouting";
const OUTPUT: &str = "output";
const FORWARD: &str = "forward";

fn marking(transaction: &mut Transaction, config: &MarkingConfig, how: How) {
    const NF_INET_PRE_ROUTING: u32 = 0;
    const NF_INET_FORWARD: u32 = 2;
    const NF_INET_LOCAL_OUT: u32 = 3;
    /// NF_IP_PRI_MANGLE: behind connection tracking, before the routing decision.
    const PRIORITY: i32 = -150;
    let table = &config.table;
    transaction.add(Kind::NewTable, |a| {
        a.text(1, table).number(2, how.flags);
    });
    // A chain of type route repeats the route look-up when the mark changes.
    let chains = [
        (PREROUTING, "filter", NF_INET_PRE_ROUTING),
        (FORWARD, "filter", NF_INET_FORWARD),
        (OUTPUT, "route", NF_INET_LOCAL_OUT),
    ];
    for (chain, kind, hook) in chains {
        transaction.add(Kind::NewChain, |a| {
            a.text(1, table).text(3, chain).text(7, kind).nest(4, |h| {
                h.number(1, hook).number(2, PRIORITY as u32);
            });
        });
    }
    for family in &FAMILIES {
        family.sets(transaction, config);
    }
    let host = interface_name(&config.host_interface);
    // A steered connection may have no pod at either end, so segments may not fit the MTU of the
    // switch. After a "fragmentation needed" the other end, perhaps a node, would apply that MTU to
    // the whole path to this node.
    for (family, headers) in FAMILIES.iter().zip([40, 60]) {
        for interface in [Meta::InputName, Meta::OutputName] {
            transaction.add_rule(table, FORWARD, |rule| {
                rule.load_meta(Meta::Family).equal(&[family.number]);
                rule.load_meta(interface).equal(&host);
                rule.clamp_segment_size(config.mtu.saturating_sub(headers));
            });
        }
    }
    if how.tracked {
        for family in &FAMILIES {
            transaction.add_rule(table, PREROUTING, |rule| {
                rule.load_meta(Meta::Family).equal(&[family.number]);
                rule.load_meta(Meta::InputName).equal(&host);
                rule.load(Base::Network, family.source, family.len).lookup(family.sources, false);
                rule.mark_connection(config.mark);
            });
        }
    }
    if how.tracked {
        for family in &FAMILIES {
            transaction.add_rule(table, PREROUTING, |rule| {
                rule.load_meta(Meta::Family).equal(&[family.number]);
                rule.load_meta(Meta::InputName).equal(&host);
                rule.load_tracked(TRACKED_DIRECTION).equal(&[0]);
                rule.of_socket(family, family.servers).mark_connection(config.server_mark);
            });
        }
    }
    transaction.add_rule(table, PREROUTING, |rule| {
        rule.load_meta(Meta::InputName).equal(&host).accept();
    });
    // The switch's replies from and to ::1 come by the loopback device (`loopback`), but they are for
    // the node's processes all the same.
    for offset in [FAMILIES[1].source, FAMILIES[1].destination] {
        transaction.add_rule(table, PREROUTING, |rule| {
            rule.load_meta(Meta::InputName).equal(&interface_name("lo"));
            rule.load_meta(Meta::Family).equal(&[NFPROTO_IPV6]);
            rule.load(Base::Network, offset, 16).equal(&Ipv6Addr::LOCALHOST.octets()).accept();
        });
    }
    if how.tracked {
        transaction.add_rule(table, OUTPUT, |rule| {
            rule.load_tracked(TRACKED_DIRECTION).equal(&[1]);
            rule.of_marked_connection(config.server_mark).mark_packet(config.mark).accept();
        });
        transaction.add_rule(table, PREROUTING, |rule| {
            rule.of_marked_connection(config.mark).mark_packet(config.mark).accept();
        });
        // Not this node's messages to the other end: they are not for the switch. The same holds
        // for errors about packets that the other end sends to the switch, such as "fragmentation
        // needed".
        transaction.add_rule(table, OUTPUT, |rule| {
            rule.load_tracked(TRACKED_DIRECTION).equal(&[0]);
            rule.load_meta(Meta::L4Protocol).differ(&[proto::ICMP]).differ(&[proto::ICMPV6]);
            rule.of_marked_connection(config.mark).mark_packet(config.mark).accept();
        });
        for family in &FAMILIES {
            transaction.add_rule(table, OUTPUT, |rule| {
                rule.load_meta(Meta::Family).equal(&[family.number]);
                rule.load(Base::Network, family.destination, family.len);
                rule.lookup(family.sources, false);
                rule.load_tracked(TRACKED_DIRECTION).equal(&[0]);
                rule.of_marked_connection(config.mark).mark_packet(config.mark).accept();
            });
        }
    }
    for chain in [PREROUTING, OUTPUT] {
        for family in &FAMILIES {
            transaction.add_rule(table, chain, |rule| {
                rule.load_meta(Meta::Family).equal(&[family.number]);
                rule.of_socket(family, family.service_addresses);
                rule.mark_packet(config.mark);
                if how.tracked {
                    rule.mark_connection(config.mark);
                }
            });
        }
    }
}

/// The differences between the families.
struct PerFamily {
    number: u8,
    is_ipv4: bool,
    /// Offsets of the addresses in the header, and their length.
    source: u32,
    destination: u32,
    len: u32,
    service_addresses: &'static str,
    servers: &'static str,
    sources: &'static str,
    /// What `nft` calls the key of `service_addresses` and `servers`: address . inet_proto . inet_service.
    key_type: u32,
}

const FAMILIES: [PerFamily; 2] = [
    PerFamily {
        number: NFPROTO_IPV4,
        is_ipv4: true,
        source: 12,
        destination: 16,
        len: 4,
        service_addresses: "fronts4",
        servers: "servers4",
        sources: "sources4",
        key_type: 7 << 12 | 12 << 6 | 13,
    },
    PerFamily {
        number: NFPROTO_IPV6,
        is_ipv4: false,
        source: 8,
        destination: 24,
        len: 16,
        service_addresses: "fronts6",
        servers: "servers6",
        sources: "sources6",
        key_type: 8 << 12 | 12 << 6 | 13,
    },
];

impl PerFamily {
    fn sets(&self, transaction: &mut Transaction, config: &MarkingConfig) {
        let sources = self.source_intervals(config);
        transaction.add_set(&config.table, self.sources, sources.merged(), self.is_ipv4);
        self.sockets(
            transaction,
            &config.table,
            (self.service_addresses, &config.service_addresses),
        );
        self.sockets(transaction, &config.table, (self.servers, &config.servers));
    }

    fn source_intervals(&self, config: &MarkingConfig) -> Intervals {
        let sources: Vec<Cidr> = config.sources.iter().map(|a| Cidr::host(*a)).collect();
        Intervals::of(&sources, self.is_ipv4)
    }

    /// The changes of this family's sets.
    fn changes(&self, before: &MarkingConfig, now: &MarkingConfig) -> [SetChange; 3] {
        let sources = self.source_intervals(before).change_to(&self.source_intervals(now));
        let keys = |set: &str, before: &[L4Address], now: &[L4Address]| {
            let (before, now) = (self.keys(before), self.keys(now));
            SetChange {
                set: set.to_owned(),
                removed: before.difference(&now).cloned().collect(),
                added: now.difference(&before).cloned().collect(),
            }
        };
        [
            SetChange::of_intervals(self.sources.to_owned(), sources, self.is_ipv4),
            keys(self.service_addresses, &before.service_addresses, &now.service_addresses),
            keys(self.servers, &before.servers, &now.servers),
        ]
    }

    /// The elements for the addresses of this family.
    fn keys(&self, sockets: &[L4Address]) -> BTreeSet<Element> {
        let of_family = sockets.iter().filter(|f| f.address.is_ipv4() == self.is_ipv4);
        of_family.map(|front| Element::new(key(front))).collect()
    }

    /// Adds a set of the addresses of this family.
    fn sockets(
        &self,
        transaction: &mut Transaction,
        table: &str,
        (set, sockets): (&str, &[L4Address]),
    ) {
        let id = transaction.next_set_id();
        transaction.add(Kind::NewSet, |a| {
            a.text(1, table).text(2, set).number(3, 0).number(4, self.key_type);
            a.number(5, self.len + 8).number(10, id);
        });
        let keys: Vec<Element> = self.keys(sockets).into_iter().collect();
        transaction.fill_set(table, set, id, &keys);
    }
}

/// Adds rules to a chain of one interface that drop packets to `service_addresses`.
pub(super) fn drop_service_addresses(
    transaction: &mut Transaction,
    table: &str,
    chain: &str,
    service_addresses: &[L4Address],
) {
    for family in &FAMILIES {
        if !service_addresses.iter().any(|front| front.address.is_ipv4() == family.is_ipv4) {
            continue;
        }
        family.sockets(transaction, table, (family.service_addresses, service_addresses));
        let kind = if family.is_ipv4 { ethertype::IPV4 } else { ethertype::IPV6 };
        transaction.add_rule(table, chain, |rule| {
            rule.load_meta(Meta::EtherType).equal(&kind.to_be_bytes());
            rule.of_socket(family, family.service_addresses).count().drop();
        });
    }
}

/// The key in the form of the registers: each part in words of four bytes.
fn key(front: &L4Address) -> Vec<u8> {
    let mut key = match front.address {
        IpAddr::V4(a) => a.octets().to_vec(),
        IpAddr::V6(a) => a.octets().to_vec(),
    };
    key.extend([front.protocol, 0, 0, 0]);
    key.extend(front.port.to_be_bytes());
    key.extend([0, 0]);
    key
}

/// Keys of the `ct` expression (`NFT_CT_*`).
const TRACKED_DIRECTION: u32 = 1;
const TRACKED_MARK: u32 = 3;

impl Rule<'_, '_> {
    /// The rule continues only for packets to one of a set of the family's addresses and ports.
    fn of_socket(&mut self, family: &PerFamily, set: &str) -> &mut Self {
        /// The first of the registers of four bytes (NFT_REG32_00).
        const FIRST: u32 = 8;
        let behind = FIRST + family.len / 4;
        self.expression("payload", |d| {
            d.number(1, FIRST).number(2, Base::Network as u32);
            d.number(3, family.destination).number(4, family.len);
        });
        self.expression("meta", |d| {
            d.number(1, behind).number(2, Meta::L4Protocol as u32);
        });
        self.expression("payload", |d| {
            d.number(1, behind + 1).number(2, Base::Transport as u32).number(3, 2).number(4, 2);
        });
        self.expression("lookup", |d| {
            d.text(1, set).number(2, FIRST);
        })
    }

    fn load_tracked(&mut self, key: u32) -> &mut Self {
        self.expression("ct", |d| {
            d.number(1, REGISTER).number(2, key);
        })
    }

    /// Clamps the MSS option of TCP SYN packets to `size`.
    fn clamp_segment_size(&mut self, size: u16) -> &mut Self {
        /// NFT_EXTHDR_OP_TCPOPT.
        const TCP_OPTION: u32 = 1;
        /// RFC 9293 §3.1, §3.7.1.
        const SYN: u8 = 2;
        const MAXIMUM_SEGMENT_SIZE: u8 = 2;
        self.load_meta(Meta::L4Protocol).equal(&[proto::TCP]);
        self.load(Base::Transport, 13, 1).mask(&[SYN]).equal(&[SYN]);
        self.load_immediate(&size.to_be_bytes());
        self.expression("exthdr", |d| {
            d.bytes(2, &[MAXIMUM_SEGMENT_SIZE]).number(3, 2).number(4, 2);
            d.number(6, TCP_OPTION).number(7, REGISTER);
        })
    }

    /// The rule continues only for packets of connections with the mark.
    fn of_marked_connection(&mut self, mark: u32) -> &mut Self {
        let bytes = mark.to_ne_bytes();
        self.load_tracked(TRACKED_MARK).mask(&bytes).equal(&bytes)
    }

    /// Sets the mark's bit in the register.
    fn with_mark(&mut self, mark: u32) -> &mut Self {
        self.bitwise(&(!mark).to_ne_bytes(), &mark.to_ne_bytes())
    }

    fn mark_packet(&mut self, mark: u32) -> &mut Self {
        const SOURCE: u16 = 3;
        self.load_meta(Meta::Mark).with_mark(mark).expression("meta", |d| {
            d.number(2, Meta::Mark as u32).number(SOURCE, REGISTER);
        })
    }

    fn mark_connection(&mut self, mark: u32) -> &mut Self {
        const SOURCE: u16 = 4;
        self.load_tracked(TRACKED_MARK).with_mark(mark).expression("ct", |d| {
            d.number(2, TRACKED_MARK).number(SOURCE, REGISTER);
        })
    }
}
