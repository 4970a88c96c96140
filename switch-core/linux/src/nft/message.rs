//! nf_tables messages: attributes are written, transactions are sent, lists are read. The
//! formats are those of linux/netfilter/nf_tables.h; numbers in them are big-endian.

use std::io;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_REQUEST, NetlinkBuffer, NlaBuffer, NlasIterator,
};
use netlink_sys::{Socket, protocols};

use crate::netlink::{extended_ack, open_socket};
use crate::{Context, HostError, NetNs};

/// The messages used here (`NFT_MSG_*`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u16)]
pub(super) enum Kind {
    NewTable = 0,
    DeleteTable = 2,
    NewChain = 3,
    NewRule = 6,
    NewSet = 9,
    NewElements = 12,
    DeleteElements = 14,
    GetTable = 1,
    GetChain = 4,
    GetRule = 7,
    GetSet = 10,
    GetElements = 13,
    GetGeneration = 16,
}

/// Address family of a table (`NFPROTO_*`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(super) enum Family {
    Ipv4 = 2,
    Ipv6 = 10,
    /// IPv4 and IPv6 together.
    Inet = 1,
    /// One interface, before everything else.
    Netdev = 5,
}

pub(super) const NFTA_LIST_ELEM: u16 = 1;
pub(super) const NFTA_DATA_VALUE: u16 = 1;

const SUBSYSTEM: u16 = 10;
const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;
const NESTED: u16 = 0x8000;

/// Length of `struct nlmsghdr`.
const HEADER: usize = 16;
/// Length of `struct nfgenmsg` behind it.
const FAMILY_HEADER: usize = 4;

/// A sequence of attributes.
pub(super) struct Attributes<'a>(&'a mut Vec<u8>);

impl Attributes<'_> {
    pub(super) fn bytes(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        self.write(kind, |out| out.extend_from_slice(value))
    }

    pub(super) fn text(&mut self, kind: u16, value: &str) -> &mut Self {
        self.write(kind, |out| {
            out.extend_from_slice(value.as_bytes());
            out.push(0);
        })
    }

    pub(super) fn number(&mut self, kind: u16, value: u32) -> &mut Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    pub(super) fn nest(
        &mut self,
        kind: u16,
        inside: impl FnOnce(&mut Attributes<'_>),
    ) -> &mut Self {
        self.write(kind | NESTED, |out| inside(&mut Attributes(out)))
    }

    fn write(&mut self, kind: u16, value: impl FnOnce(&mut Vec<u8>)) -> &mut Self {
        let start = self.0.len();
        self.0.extend_from_slice(&[0; 4]);
        value(self.0);
        let len = self.0.len() - start;
        debug_assert!(len <= usize::from(u16::MAX), "attribute too long");
        self.0[start..start + 2].copy_from_slice(&(len as u16).to_ne_bytes());
        self.0[start + 2..start + 4].copy_from_slice(&kind.to_ne_bytes());
        self.0.resize(start + len.next_multiple_of(4), 0);
        self
    }
}

/// Changes that take effect together or not at all.
pub(super) struct Transaction {
    family: Family,
    buffer: Vec<u8>,
    messages: u32,
}

impl Transaction {
    pub(super) fn new(family: Family) -> Self {
        let mut transaction = Self { family, buffer: Vec::new(), messages: 0 };
        transaction.control(BATCH_BEGIN);
        transaction
    }

    pub(super) fn add(&mut self, kind: Kind, fill: impl FnOnce(&mut Attributes<'_>)) {
        let flags = match kind {
            Kind::DeleteTable | Kind::DeleteElements => NLM_F_REQUEST | NLM_F_ACK,
            // Rules are stored in the order in which they were added.
            Kind::NewRule => NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_APPEND,
            _ => NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE,
        };
        let kind = SUBSYSTEM << 8 | kind as u16;
        message(&mut self.buffer, kind, flags, self.messages, self.family as u8, 0, fill);
        self.messages += 1;
    }

    /// A number for a set, by which other messages of the transaction refer to it.
    pub(super) fn next_set_id(&self) -> u32 {
        self.messages
    }

    fn control(&mut self, kind: u16) {
        // The second half of the family header names the subsystem of the transaction.
        message(&mut self.buffer, kind, NLM_F_REQUEST, self.messages, 0, SUBSYSTEM, |_| {});
        self.messages += 1;
    }
}

const NLM_F_APPEND: u16 = 0x800;

fn message(
    out: &mut Vec<u8>,
    kind: u16,
    flags: u16,
    sequence: u32,
    family: u8,
    resource: u16,
    fill: impl FnOnce(&mut Attributes<'_>),
) {
    let start = out.len();
    out.extend_from_slice(&[0; HEADER]);
    out.extend_from_slice(&[family, 0]);
    out.extend_from_slice(&resource.to_be_bytes());
    fill(&mut Attributes(out));
    let len = (out.len() - start) as u32;
    out[start..start + 4].copy_from_slice(&len.to_ne_bytes());
    out[start + 4..start + 6].copy_from_slice(&kind.to_ne_bytes());
    out[start + 6..start + 8].copy_from_slice(&flags.to_ne_bytes());
    out[start + 8..start + 12].copy_from_slice(&sequence.to_ne_bytes());
}

/// Name of a set, and the attributes of each element.
pub(super) type Set = (String, Vec<Vec<u8>>);

/// A connection to nf_tables in one network namespace. Tables that it owns are removed when it is closed.
#[derive(Debug)]
pub(super) struct Connection {
    socket: Socket,
    /// Sequence number of the next transaction's first message.
    sequence: u32,
}

impl Connection {
    pub(super) fn open(ns: &NetNs) -> Result<Self, HostError> {
        let what = || format!("open a NETLINK_NETFILTER socket in {ns}");
        let socket = ns.enter(|| open_socket(protocols::NETLINK_NETFILTER))?.context(what)?;
        // A transaction is one datagram, possibly with thousands of address ranges.
        let _ = crate::sys::packet::set_send_buffer(std::os::fd::AsFd::as_fd(&socket), 16 << 20);
        Ok(Self { socket, sequence: 1 })
    }

    /// Sends a transaction and waits for its result.
    pub(super) fn commit(
        &mut self,
        mut transaction: Transaction,
        operation: impl Fn() -> String,
    ) -> Result<(), HostError> {
        transaction.control(BATCH_END);
        let first = self.sequence;
        // The first and the last message delimit the transaction.
        let last = first + transaction.messages - 2;
        renumber(&mut transaction.buffer, first);
        self.sequence += transaction.messages;
        self.socket.send(&transaction.buffer, 0).context(&operation)?;
        loop {
            let (datagram, _) = self.socket.recv_from_full().context(&operation)?;
            for message in messages(&datagram) {
                let number = message.sequence_number();
                if message.message_type() != libc::NLMSG_ERROR as u16 || number < first {
                    continue;
                }
                check(&message, &operation)?;
                if number == last {
                    return Ok(());
                }
            }
        }
    }

    /// Whether there is a table of that name.
    pub(super) fn has_table(&mut self, family: Family, name: &str) -> Result<bool, HostError> {
        let tables = self.list(Kind::GetTable, family, |_| {}, || "list nftables tables".into())?;
        // The family header does not identify an object, the attributes do: NFTA_TABLE_NAME is 1.
        let is_name = |nla: &NlaBuffer<&[u8]>| {
            nla.kind() == 1 && nla.value().strip_suffix(&[0]) == Some(name.as_bytes())
        };
        Ok(tables.iter().any(|t| NlasIterator::new(&t[..]).flatten().any(|nla| is_name(&nla))))
    }

    /// The handles of a table's rules; empty if there is no such table. Each rule gets a unique handle when it is
    /// created.
    pub(super) fn rules(&mut self, family: Family, table: &str) -> Result<Vec<u64>, HostError> {
        /// NFTA_RULE_TABLE, NFTA_RULE_HANDLE.
        const TABLE: u16 = 1;
        const HANDLE: u16 = 3;
        let fill = |a: &mut Attributes<'_>| {
            a.text(TABLE, table);
        };
        let what = || format!("list the rules of nftables table {table}");
        let rules = match self.list(Kind::GetRule, family, fill, what) {
            Err(error) if error.is_not_found() => return Ok(Vec::new()),
            result => result?,
        };
        // Kernels before 4.20 list the rules of all tables.
        let is_of_table = |rule: &&Vec<u8>| {
            let name = NlasIterator::new(&rule[..]).flatten().find(|nla| nla.kind() == TABLE);
            name.is_some_and(|nla| nla.value().strip_suffix(&[0]) == Some(table.as_bytes()))
        };
        let handle = |rule: &Vec<u8>| {
            let nla = NlasIterator::new(&rule[..]).flatten().find(|nla| nla.kind() == HANDLE)?;
            nla.value().first_chunk().copied().map(u64::from_be_bytes)
        };
        Ok(rules.iter().filter(is_of_table).filter_map(handle).collect())
    }

    /// The sets of a table by name, with the attributes of each element; empty if there is no such table.
    pub(super) fn sets(&mut self, family: Family, table: &str) -> Result<Vec<Set>, HostError> {
        /// NFTA_SET_TABLE and NFTA_SET_ELEM_LIST_TABLE; NFTA_SET_NAME and NFTA_SET_ELEM_LIST_SET; and the latter's
        /// NFTA_SET_ELEM_LIST_ELEMENTS.
        const TABLE: u16 = 1;
        const NAME: u16 = 2;
        const ELEMENTS: u16 = 3;
        let what = || format!("list the sets of nftables table {table}");
        let none_if_gone = |result: Result<Vec<Vec<u8>>, HostError>| match result {
            Err(error) if error.is_not_found() => Ok(Vec::new()),
            result => result,
        };
        let fill = |a: &mut Attributes<'_>| {
            a.text(TABLE, table);
        };
        let found = none_if_gone(self.list(Kind::GetSet, family, fill, what))?;
        let mut sets = Vec::new();
        for set in found {
            if text(&set, TABLE).as_deref() != Some(table) {
                continue;
            }
            let Some(name) = text(&set, NAME) else { continue };
            let fill = |a: &mut Attributes<'_>| {
                a.text(TABLE, table).text(NAME, &name);
            };
            let parts = none_if_gone(self.list(Kind::GetElements, family, fill, what))?;
            let mut elements = Vec::new();
            for part in &parts {
                let lists = NlasIterator::new(&part[..]).flatten();
                for list in lists.filter(|nla| nla.kind() == ELEMENTS) {
                    let each = NlasIterator::new(list.value()).flatten();
                    elements.extend(each.map(|element| element.value().to_vec()));
                }
            }
            sets.push((name, elements));
        }
        Ok(sets)
    }

    /// A number that changes with every change of any table of the namespace.
    pub(super) fn generation(&mut self) -> Result<u32, HostError> {
        /// NFTA_GEN_ID.
        const ID: u16 = 1;
        let what = || "read the generation of nftables".to_owned();
        let mut buffer = Vec::new();
        let kind = SUBSYSTEM << 8 | Kind::GetGeneration as u16;
        message(&mut buffer, kind, NLM_F_REQUEST, self.sequence, 0, 0, |_| {});
        let sequence = self.sequence;
        self.sequence += 1;
        self.socket.send(&buffer, 0).context(what)?;
        loop {
            let (datagram, _) = self.socket.recv_from_full().context(what)?;
            for message in messages(&datagram).filter(|m| m.sequence_number() == sequence) {
                if i32::from(message.message_type()) == libc::NLMSG_ERROR {
                    check(&message, &what)?;
                }
                let attributes = message.payload().get(FAMILY_HEADER..).unwrap_or_default();
                let id = NlasIterator::new(attributes).flatten().find(|nla| nla.kind() == ID);
                let id = id.and_then(|nla| nla.value().first_chunk().copied());
                if let Some(id) = id {
                    return Ok(u32::from_be_bytes(id));
                }
            }
        }
    }

    /// The payloads, behind their family headers, of all objects of a kind.
    pub(super) fn list(
        &mut self,
        kind: Kind,
        family: Family,
        fill: impl FnOnce(&mut Attributes<'_>),
        operation: impl Fn() -> String,
    ) -> Result<Vec<Vec<u8>>, HostError> {
        self.dump(SUBSYSTEM << 8 | kind as u16, family as u8, fill, operation)
    }

    /// As [`list`](Self::list), for any subsystem of the packet filter.
    pub(super) fn dump(
        &mut self,
        number: u16,
        family: u8,
        fill: impl FnOnce(&mut Attributes<'_>),
        operation: impl Fn() -> String,
    ) -> Result<Vec<Vec<u8>>, HostError> {
        let mut buffer = Vec::new();
        let flags = NLM_F_REQUEST | netlink_packet_core::NLM_F_DUMP;
        message(&mut buffer, number, flags, self.sequence, family, 0, fill);
        let sequence = self.sequence;
        self.sequence += 1;
        self.socket.send(&buffer, 0).context(&operation)?;
        let mut list = Vec::new();
        loop {
            let (datagram, _) = self.socket.recv_from_full().context(&operation)?;
            for message in messages(&datagram) {
                if message.sequence_number() != sequence {
                    continue;
                }
                match i32::from(message.message_type()) {
                    libc::NLMSG_DONE => return Ok(list),
                    libc::NLMSG_ERROR => check(&message, &operation)?,
                    _ => list.extend(message.payload().get(FAMILY_HEADER..).map(<[u8]>::to_vec)),
                }
            }
        }
    }
}

/// The attribute of a kind, if it is text.
pub(super) fn text(attributes: &[u8], kind: u16) -> Option<String> {
    let mut found = NlasIterator::new(attributes).flatten().filter(|nla| nla.kind() == kind);
    let value = found.next()?;
    let bytes = value.value().strip_suffix(&[0])?;
    String::from_utf8(bytes.to_vec()).ok()
}

fn renumber(buffer: &mut [u8], first: u32) {
    let mut at = 0;
    while at + HEADER <= buffer.len() {
        let field = |at: usize| u32::from_ne_bytes(buffer[at..at + 4].try_into().expect("4 bytes"));
        let (len, sequence) = (field(at) as usize, field(at + 8));
        buffer[at + 8..at + 12].copy_from_slice(&(first + sequence).to_ne_bytes());
        at += len.next_multiple_of(4).max(HEADER);
    }
}

fn messages(datagram: &[u8]) -> impl Iterator<Item = NetlinkBuffer<&[u8]>> {
    let mut rest = datagram;
    std::iter::from_fn(move || {
        let message = NetlinkBuffer::new_checked(rest).ok()?;
        let len = (message.length() as usize).next_multiple_of(4).min(rest.len());
        rest = &rest[len..];
        Some(message)
    })
}

/// The error number of an NLMSG_ERROR message; zero is an acknowledgment.
fn check(message: &NetlinkBuffer<&[u8]>, operation: &impl Fn() -> String) -> Result<(), HostError> {
    let payload = message.payload();
    let code = payload.first_chunk().map_or(-libc::EBADMSG, |c| i32::from_ne_bytes(*c));
    if code == 0 {
        return Ok(());
    }
    let detail = extended_ack(message.flags(), payload.get(4..).unwrap_or_default());
    let error = io::Error::from_raw_os_error(code.saturating_neg());
    Err(HostError::new(operation(), error).with_detail(detail))
}
