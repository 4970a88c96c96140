//! Routing rules: they decide which packets use which table.

use std::fmt;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use podswitch_wire::cidr::Cidr;

use super::{HostError, Netlink};

/// A rule that sends packets to a routing table. A condition that is `None` matches all packets.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Rule {
    /// Whether it is for IPv6; otherwise it is for IPv4.
    pub is_ipv6: bool,
    /// Priority; the lowest comes first. The kernel's own are 0 (local), 32766 and 32767.
    pub priority: u32,
    /// The table to look in.
    pub table: u32,
    /// Packets whose mark equals this mark in the bits of the mask: (mark, mask).
    pub mark: Option<(u32, u32)>,
    /// Packets from this range.
    pub from: Option<Cidr>,
    /// Packets to this range.
    pub to: Option<Cidr>,
    /// Packets that were received by this interface.
    pub input: Option<String>,
}

impl Rule {
    fn message(&self) -> RuleMessage {
        let mut message = RuleMessage::default();
        message.header.family =
            if self.is_ipv6 { AddressFamily::Inet6 } else { AddressFamily::Inet };
        message.header.action = RuleAction::ToTable;
        let attributes = &mut message.attributes;
        attributes.push(RuleAttribute::Priority(self.priority));
        attributes.push(RuleAttribute::Table(self.table));
        if let Some((mark, mask)) = self.mark {
            attributes.push(RuleAttribute::FwMark(mark));
            attributes.push(RuleAttribute::FwMask(mask));
        }
        if let Some(from) = self.from {
            message.header.src_len = from.prefix();
            attributes.push(RuleAttribute::Source(from.address()));
        }
        if let Some(to) = self.to {
            message.header.dst_len = to.prefix();
            attributes.push(RuleAttribute::Destination(to.address()));
        }
        attributes.extend(self.input.clone().map(RuleAttribute::Iifname));
        message
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let family = if self.is_ipv6 { "IPv6" } else { "IPv4" };
        write!(f, "{family} rule {} to table {}", self.priority, self.table)
    }
}

impl Netlink {
    /// Adds a rule; a no-op if it exists.
    ///
    /// # Errors
    /// Conditions of the wrong family; missing privilege.
    pub fn add_rule(&mut self, rule: &Rule) -> Result<(), HostError> {
        let message = RouteNetlinkMessage::NewRule(rule.message());
        match self.request(message, NLM_F_CREATE | NLM_F_EXCL, || format!("add {rule}")) {
            Err(error) if error.is_already_there() => Ok(()),
            result => result,
        }
    }

    /// The rules that send packets to a table, both families, in order of evaluation; those with
    /// conditions that a [`Rule`] cannot express are left out.
    ///
    /// # Errors
    /// The kernel refused the query.
    pub fn rules(&mut self) -> Result<Vec<Rule>, HostError> {
        let mut rules = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut message = RuleMessage::default();
            message.header.family = family;
            let request = RouteNetlinkMessage::GetRule(message);
            let list = self.dump(request, || "list routing rules".into())?;
            rules.extend(list.into_iter().filter_map(read));
        }
        Ok(rules)
    }

    /// Removes a rule.
    ///
    /// # Errors
    /// There is no such rule (`is_not_found`).
    pub fn delete_rule(&mut self, rule: &Rule) -> Result<(), HostError> {
        let message = RouteNetlinkMessage::DelRule(rule.message());
        self.request(message, 0, || format!("remove {rule}"))
    }
}

fn read(message: RouteNetlinkMessage) -> Option<Rule> {
    let RouteNetlinkMessage::NewRule(message) = message else { return None };
    if message.header.action != RuleAction::ToTable || message.header.tos != 0 {
        return None;
    }
    let is_ipv6 = message.header.family == AddressFamily::Inet6;
    let table = message.header.table.into();
    let mut rule = Rule { is_ipv6, table, ..Rule::default() };
    let (mut mark, mut mask) = (None, u32::MAX);
    for attribute in message.attributes {
        match attribute {
            RuleAttribute::Priority(priority) => rule.priority = priority,
            RuleAttribute::Table(table) => rule.table = table,
            RuleAttribute::FwMark(value) => mark = Some(value),
            RuleAttribute::FwMask(value) => mask = value,
            RuleAttribute::Source(address) => {
                rule.from = Some(Cidr::new(address, message.header.src_len)?);
            }
            RuleAttribute::Destination(address) => {
                rule.to = Some(Cidr::new(address, message.header.dst_len)?);
            }
            RuleAttribute::Iifname(name) => rule.input = Some(name),
            // No conditions.
            RuleAttribute::Protocol(_)
            | RuleAttribute::SuppressPrefixLen(u32::MAX)
            | RuleAttribute::SuppressIfGroup(u32::MAX) => {}
            _ => return None,
        }
    }
    rule.mark = mark.map(|mark| (mark, mask));
    Some(rule)
}
