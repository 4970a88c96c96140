//! Drops the packets in the host's stack that the switch receives from an interface by a packet
//! socket.

use podswitch_wire::cidr::Cidr;
use podswitch_wire::flow_key::proto;
use podswitch_wire::parse::ethertype;

use super::intervals::intervals;
use super::message::{Connection, Family, Kind, Transaction};
use super::rule::{Base, Meta};
use super::steer::{self, L4Address};
use super::{HostError, Installed, NetNs, Netlink, remove};

const CHAIN: &str = "ingress";

/// The packets that an [`IngressDrop`] drops. A packet costs one look-up in each list, for any
/// length of the lists.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ingress {
    /// UDP datagrams to these ports, both families: tunnels that the switch terminates itself.
    pub udp_to: Vec<u16>,
    /// Packets to these addresses.
    pub to: Vec<Cidr>,
    /// Packets from these addresses.
    pub from: Vec<Cidr>,
    /// Packets between these addresses.
    pub between: Between,
    /// Packets of TCP, UDP and SCTP between these addresses, to ports from
    /// [`first_port`](Self::first_port) up: replies to packets that the switch sent from an address
    /// of the host.
    pub answers: Between,
    /// See [`answers`](Self::answers).
    pub first_port: u16,
    /// Packets to these addresses, protocols and ports.
    pub service_addresses: Vec<L4Address>,
}

/// Packets from any address of `from` to any address of `to`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Between {
    /// Source addresses.
    pub from: Vec<Cidr>,
    /// Destination addresses.
    pub to: Vec<Cidr>,
}

/// Drops frames that an interface receives before the host's stack, which would answer or forward
/// them. Packet sockets still receive them, since this hook comes after theirs.
#[derive(Debug)]
pub struct IngressDrop(Installed);

impl IngressDrop {
    /// Installs the drops on `interface`, in place of those of an earlier run in the same `table`.
    /// They stay when the process ends, because the stack must not handle the traffic of a switch
    /// that was killed. [`remove`](Self::remove) removes them.
    ///
    /// # Errors
    /// There is no such interface; missing privilege; a kernel without nf_tables' netdev family.
    pub fn install(
        ns: &NetNs,
        table: &str,
        interface: &str,
        drops: &Ingress,
    ) -> Result<Self, HostError> {
        /// A priority before those that users normally choose.
        const PRIORITY: i32 = -500;
        // Since Linux 6.16 a hook waits for an absent interface, but a mistyped name must be an
        // error on every kernel.
        Netlink::open(ns)?.link(interface)?;
        let mut connection = Connection::open(ns)?;
        let mut transaction = Transaction::new(Family::Netdev);
        // Created if absent, so that removing it cannot fail.
        for kind in [Kind::NewTable, Kind::DeleteTable, Kind::NewTable] {
            transaction.add(kind, |a| {
                a.text(1, table);
            });
        }
        transaction.add(Kind::NewChain, |a| {
            a.text(1, table).text(3, CHAIN).text(7, "filter").nest(4, |hook| {
                hook.number(1, 0).number(2, PRIORITY as u32).text(3, interface);
            });
        });
        for port in &drops.udp_to {
            transaction.add_rule(table, CHAIN, |rule| {
                rule.load_meta(Meta::L4Protocol).equal(&[proto::UDP]);
                rule.load(Base::Transport, 2, 2).equal(&port.to_be_bytes());
                rule.count().drop();
            });
        }
        for is_ipv4 in [true, false] {
            of_family(&mut transaction, table, drops, is_ipv4);
        }
        steer::drop_service_addresses(&mut transaction, table, CHAIN, &drops.service_addresses);
        let what = || format!("drop in nftables table {table} what {interface} receives");
        connection.commit(transaction, what)?;
        Ok(Self(Installed::read(connection, Family::Netdev, table)?))
    }

    /// Whether they are still in force as they were installed, because anybody may change the
    /// table.
    ///
    /// # Errors
    /// The kernel refused the query.
    pub fn is_intact(&mut self) -> Result<bool, HostError> {
        self.0.is_intact()
    }

    /// Removes the drops; a no-op if there are none.
    ///
    /// # Errors
    /// Missing privilege.
    pub fn remove(ns: &NetNs, table: &str) -> Result<(), HostError> {
        remove(&mut Connection::open(ns)?, Family::Netdev, table)
    }
}

/// Conditions on addresses; an end without addresses matches everything.
struct Ends<'a> {
    name: &'static str,
    from: Option<&'a [Cidr]>,
    to: Option<&'a [Cidr]>,
    /// Ports from this one up, for each protocol that has ports.
    first_port: Option<u16>,
}

/// The rules for the conditions on addresses, for one family.
fn of_family(transaction: &mut Transaction, table: &str, drops: &Ingress, is_ipv4: bool) {
    let Ingress { from, to, between, answers, first_port, .. } = drops;
    let ends = |name, from, to, first_port| Ends { name, from, to, first_port };
    for ends in [
        ends("from", Some(&from[..]), None, None),
        ends("to", None, Some(&to[..]), None),
        ends("between", Some(&between.from), Some(&between.to), None),
        ends("answers", Some(&answers.from), Some(&answers.to), Some(*first_port)),
    ] {
        ends.rules(transaction, table, is_ipv4);
    }
}

impl Ends<'_> {
    fn rules(&self, transaction: &mut Transaction, table: &str, is_ipv4: bool) {
        let (family, kind, source, destination, len) = match is_ipv4 {
            true => (4, ethertype::IPV4, 12, 16, 4),
            false => (6, ethertype::IPV6, 8, 24, 16),
        };
        let sets: Vec<(&[Cidr], String, u32)> =
            [(self.from, "from", source), (self.to, "to", destination)]
                .into_iter()
                .filter_map(|(ranges, end, offset)| {
                    Some((ranges?, format!("{}_{end}{family}", self.name), offset))
                })
                .collect();
        // If either end has no address of the family, no packet matches.
        let has_any = |ranges: &[Cidr]| ranges.iter().any(|r| r.address().is_ipv4() == is_ipv4);
        if !sets.iter().all(|(ranges, ..)| has_any(ranges)) {
            return;
        }
        for (ranges, set, _) in &sets {
            transaction.add_set(table, set, intervals(ranges, is_ipv4), is_ipv4);
        }
        let protocols: &[_] = match self.first_port {
            Some(port) => &[proto::TCP, proto::UDP, proto::SCTP].map(|p| Some((p, port))),
            None => &[None],
        };
        for ports in protocols {
            transaction.add_rule(table, CHAIN, |rule| {
                rule.load_meta(Meta::EtherType).equal(&kind.to_be_bytes());
                for (_, set, offset) in &sets {
                    rule.load(Base::Network, *offset, len).lookup(set, false);
                }
                if let Some((protocol, first)) = ports {
                    rule.load_meta(Meta::L4Protocol).equal(&[*protocol]);
                    rule.load(Base::Transport, 2, 2).at_least(&first.to_be_bytes());
                }
                rule.count().drop();
            });
        }
    }
}
