//! From the datagram of a query to the datagram of its answer.
//!
//! Nothing here allocates, waits or asks for the time. Called for each query, by the thread that received it.

mod writer;

use crate::lookup::{Found, Records, SrvSet, is_in_zone, look_up};
use crate::name::Labelled;
use crate::query::{self, HEADER, OPT_LEN, Query};
pub use crate::query::{Ignored, NotOurs};
use crate::record_type;
use crate::rule::Rule;
use crate::zone::{Service, Zone};
use writer::{Full, Section, Writer};

/// Longest datagram for a client that does not say what it can receive (RFC 1035 section 4.2.1).
pub const MIN_SIZE: usize = 512;
/// Longest datagram: none is fragmented on any path of IPv6.
pub const MAX_SIZE: usize = 1232;
/// Longest message over TCP.
pub const MAX_TCP: usize = 65_535;
/// The schema's version (specification 2.2).
pub const SCHEMA_VERSION: &str = "1.1.0";
/// Its time to live in seconds, as the specification's examples and CoreDNS have it.
const SCHEMA_TTL: u32 = 28_800;
/// Most aliases of one answer. CoreDNS follows 10.
const MAX_ALIASES: usize = 8;
const CLASS_IN: u16 = 1;

/// How a query came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// By UDP: bounded by what the client says.
    Udp,
    /// By TCP, without the two bytes of length.
    Tcp,
}

/// Response codes (RFC 1035 section 4.1.1, RFC 6891 section 9).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Rcode {
    /// Answered; without records: the name has none of that type.
    NoError = 0,
    /// The query is malformed.
    FormErr = 1,
    /// The zone is not complete yet.
    ServFail = 2,
    /// The name does not exist.
    NxDomain = 3,
    /// Another class, or a zone transfer.
    Refused = 5,
    /// An unknown version of EDNS.
    BadVers = 16,
}

impl Rcode {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 6] = [
        Self::NoError,
        Self::FormErr,
        Self::ServFail,
        Self::NxDomain,
        Self::Refused,
        Self::BadVers,
    ];

    /// As CoreDNS, dig and RFCs write it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::NoError => "NOERROR",
            Self::FormErr => "FORMERR",
            Self::ServFail => "SERVFAIL",
            Self::NxDomain => "NXDOMAIN",
            Self::Refused => "REFUSED",
            Self::BadVers => "BADVERS",
        }
    }
}

/// The question of a query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Question {
    /// Length of its name in wire form, which begins behind the header ([`Question::name`]).
    pub name_len: u8,
    /// Type of the records asked for.
    pub qtype: u16,
}

impl Question {
    /// The question's name in wire form, in the query that it was read from or the answer to it.
    pub fn name<'m>(&self, message: &'m [u8]) -> &'m [u8] {
        message.get(HEADER..HEADER + usize::from(self.name_len)).unwrap_or_default()
    }
}

/// An answer in the buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Its length in bytes.
    pub len: usize,
    /// Response code.
    pub rcode: Rcode,
    /// The question, if the query could be read.
    pub question: Option<Question>,
    /// The rule that the question's own name was answered by, if it was looked up.
    pub rule: Option<Rule>,
    /// Not all records fit (the TC flag): the client may ask again by TCP.
    pub is_truncated: bool,
    /// The last alias points to a name of another zone: who forwards queries should add its records.
    pub is_partial: bool,
}

/// What becomes of a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is answered.
    Answered(Answer),
    /// It is for the slower way: a forwarder, or a server that knows all of DNS.
    NotOurs(NotOurs),
    /// It gets no answer.
    Ignored(Ignored),
}

/// Answers `query` into `out`, which should have [`MAX_SIZE`] bytes, or [`MAX_TCP`]. `rotation`: a number that differs from
/// query to query; it turns the order of records, so that clients that take the first share the load, and those that
/// see a truncated answer without TCP get all records in time.
pub fn answer(
    zone: &Zone,
    query: &[u8],
    transport: Transport,
    rotation: u32,
    out: &mut [u8],
) -> Outcome {
    match query::read(query) {
        Ok(read) => reply(zone, query, &read, transport, rotation, out),
        Err(query::Other::Ignored(reason)) => Outcome::Ignored(reason),
        Err(query::Other::NotOurs(reason)) => Outcome::NotOurs(reason),
        Err(query::Other::Malformed) => {
            let header = header(query, Rcode::FormErr, false, zone);
            match Writer::new(out, MIN_SIZE, header, &[], 0) {
                Some(writer) => answered(&writer, Rcode::FormErr, None),
                None => Outcome::Ignored(Ignored::Buffer),
            }
        }
    }
}

fn answered(writer: &Writer<'_>, rcode: Rcode, rule: Option<Rule>) -> Outcome {
    let len = writer.len;
    let (is_truncated, is_partial) = (false, false);
    Outcome::Answered(Answer { len, rcode, question: None, rule, is_truncated, is_partial })
}

/// Id and flags of an answer: RD and CD as they came (RFC 1035 section 4.1.1, RFC 4035 section 3.2.2).
fn header(query: &[u8], rcode: Rcode, is_authoritative: bool, zone: &Zone) -> [u8; 4] {
    let (rd, cd) = (query[2] & 0x01, query[3] & 0x10);
    let aa = if is_authoritative { 0x04 } else { 0 };
    let ra = if zone.settings().is_recursive { 0x80 } else { 0 };
    [query[0], query[1], 0x80 | aa | rd, ra | cd | (rcode as u8 & 0x0f)]
}

/// Answers a query whose form is good.
fn reply(
    zone: &Zone,
    datagram: &[u8],
    query: &Query<'_>,
    transport: Transport,
    rotation: u32,
    out: &mut [u8],
) -> Outcome {
    let found = if zone.is_synced() {
        match look_up(zone, &query.name, query.qtype) {
            Some(found) => Some(found),
            None => return Outcome::NotOurs(NotOurs::OtherZone),
        }
    } else if is_in_zone(zone, &query.name) {
        None
    } else {
        return Outcome::NotOurs(NotOurs::OtherZone);
    };
    let limit = match (transport, query.edns) {
        (Transport::Tcp, _) => MAX_TCP,
        (Transport::Udp, None) => MIN_SIZE,
        (Transport::Udp, Some(edns)) => usize::from(edns.size).clamp(MIN_SIZE, MAX_SIZE),
    };
    let refusal = match query.edns {
        Some(edns) if edns.version != 0 => Some(Rcode::BadVers),
        _ if query.class != CLASS_IN => Some(Rcode::Refused),
        _ if matches!(query.qtype, record_type::AXFR | record_type::IXFR) => Some(Rcode::Refused),
        _ if found.is_none() => Some(Rcode::ServFail),
        _ => None,
    };
    let header = header(datagram, refusal.unwrap_or(Rcode::NoError), refusal.is_none(), zone);
    let for_options = if query.edns.is_some() { OPT_LEN } else { 0 };
    let limit = limit.min(out.len());
    let records = limit.saturating_sub(for_options);
    let ttl = zone.settings().ttl;
    let Some(writer) = Writer::new(out, records, header, query.question, ttl) else {
        return Outcome::Ignored(Ignored::Buffer);
    };
    let mut reply = Reply { zone, query, rotation, writer, is_truncated: false, is_partial: false };
    let rule = found.as_ref().filter(|_| refusal.is_none()).map(|found| found.rule);
    let rcode = match (refusal, found) {
        (None, Some(found)) => reply.write(found),
        (refusal, _) => refusal.unwrap_or(Rcode::ServFail),
    };
    let Reply { mut writer, is_truncated, is_partial, .. } = reply;
    if is_truncated {
        writer.flags()[0] |= 0x02;
    }
    writer.flags()[1] |= rcode as u8 & 0x0f;
    if let Some(edns) = query.edns {
        writer.set_limit(limit);
        writer.options(MAX_SIZE as u16, rcode as u8 >> 4, edns.wants_dnssec);
    }
    let question = Question { name_len: query.name.len() as u8, qtype: query.qtype };
    let (len, question) = (writer.len, Some(question));
    Outcome::Answered(Answer { len, rcode, question, rule, is_truncated, is_partial })
}

/// An answer that is being written.
struct Reply<'z, 'q, 'o> {
    zone: &'z Zone,
    query: &'q Query<'q>,
    rotation: u32,
    writer: Writer<'o>,
    is_truncated: bool,
    is_partial: bool,
}

/// Where the name that records are about is in the message, and its zone.
#[derive(Clone, Copy)]
struct Owner {
    at: usize,
    zone: usize,
    zone_len: usize,
}

impl<'z> Reply<'z, '_, '_> {
    /// Writes the records of a name; follows its aliases.
    fn write(&mut self, mut found: Found<'z>) -> Rcode {
        let mut owner = owner_of(HEADER, &self.query.name, &found);
        let mut followed: [Option<&Service>; MAX_ALIASES] = [None; MAX_ALIASES];
        for at in 0.. {
            let Records::Alias(target) = found.records else { break };
            // Another name of the same alias would be the first of a circle.
            let is_known = followed.iter().flatten().any(|it| same(Some(it), found.service));
            if at == MAX_ALIASES || is_known {
                return Rcode::NoError;
            }
            followed[at] = found.service;
            let Ok(place) = self.writer.alias(owner.at, target.wire()) else {
                self.is_truncated = true;
                return Rcode::NoError;
            };
            if matches!(self.query.qtype, record_type::CNAME | record_type::ANY) {
                return Rcode::NoError;
            }
            // It has been read before; what cannot be is elsewhere.
            let name = Labelled::read(target.wire());
            let next = name.as_ref().and_then(|name| {
                let found = look_up(self.zone, name, self.query.qtype)?;
                Some((owner_of(place, name, &found), found))
            });
            let Some(next) = next else {
                self.is_partial = true;
                return Rcode::NoError;
            };
            (owner, found) = next;
        }
        self.records(&found, owner)
    }

    /// Writes the records of a name that is no alias.
    fn records(&mut self, found: &Found<'z>, owner: Owner) -> Rcode {
        let done = match &found.records {
            Records::NoData | Records::Absent => {
                // Without it the answer is not kept (RFC 2308 section 5), which is better than TC.
                let _ = self.writer.authority(Section::Authority, owner.zone, self.zone.serial());
                let is_absent = matches!(found.records, Records::Absent);
                return if is_absent { Rcode::NxDomain } else { Rcode::NoError };
            }
            Records::Addresses { of, v4: true } => {
                self.each(&of.v4, |writer, address| writer.v4(Section::Answer, owner.at, *address))
            }
            Records::Addresses { of, v4: false } => {
                self.each(&of.v6, |writer, address| writer.v6(Section::Answer, owner.at, *address))
            }
            Records::Address(address) => self.writer.address(Section::Answer, owner.at, *address),
            Records::Srv(set) => self.srv(*set, owner),
            Records::Pointers(pointers) => {
                let domain = self.zone.settings().domain.wire();
                self.each(pointers.names(), |writer, name| {
                    writer.pointer(owner.at, [name, SVC, domain])
                })
            }
            Records::Version => self.writer.text(owner.at, SCHEMA_VERSION, SCHEMA_TTL),
            Records::Authority => {
                self.writer.authority(Section::Answer, owner.zone, self.zone.serial())
            }
            Records::NameServers => self.name_servers(owner),
            // Followed already.
            Records::Alias(_) => Ok(()),
        };
        self.is_truncated |= done.is_err();
        Rcode::NoError
    }

    /// Writes a record for each item, from some place on and around.
    fn each<T>(
        &mut self,
        items: &[T],
        write: impl Fn(&mut Writer<'_>, &T) -> Result<(), Full>,
    ) -> Result<(), Full> {
        let start = (self.rotation as usize).checked_rem(items.len()).unwrap_or(0);
        let (first, last) = items.split_at(start);
        last.iter().chain(first).try_for_each(|item| write(&mut self.writer, item))
    }

    /// SRV records, and the addresses of their targets as far as there is room.
    fn srv(&mut self, set: SrvSet<'z>, owner: Owner) -> Result<(), Full> {
        let (service, weight) = (set.service, set.weight());
        let first = self.writer.len;
        let mut written = 0;
        for srv in set.iter(self.rotation) {
            let labels = [service.labels_of(srv.host), &service.key, SVC];
            let zone = (owner.zone, owner.zone_len);
            self.writer.srv(owner.at, (weight, srv.port), labels, zone)?;
            written += 1;
        }
        let (mut at, mut hosts) = (first, [None; 2]);
        for srv in set.iter(self.rotation).take(written) {
            // Owner, fixed part, priority, weight and port.
            let target = at + 12 + 6;
            let labels = service.labels_of(srv.host).len() + service.key.len() + SVC.len();
            at = target + labels + owner.zone_len;
            // Records of one host are beside each other, save those that the turn has parted.
            if hosts.contains(&Some(srv.host)) {
                continue;
            }
            hosts = [hosts[0].or(Some(srv.host)), Some(srv.host)];
            for address in service.addresses_of(srv.host).iter() {
                if self.writer.address(Section::Additional, target, address).is_err() {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// The zone's name server, and its addresses as far as there is room.
    fn name_servers(&mut self, owner: Owner) -> Result<(), Full> {
        let target = self.writer.name_server(owner.zone)?;
        let addresses = self.zone.name_server().into_iter().flat_map(|it| it.addresses.iter());
        for address in addresses {
            if self.writer.address(Section::Additional, target, address).is_err() {
                break;
            }
        }
        Ok(())
    }
}

const SVC: &[u8] = b"\x03svc";

fn same(a: Option<&Service>, b: Option<&Service>) -> bool {
    matches!((a, b), (Some(a), Some(b)) if std::ptr::eq(a, b))
}

fn owner_of(at: usize, name: &Labelled, found: &Found<'_>) -> Owner {
    let start = name.start(found.front);
    Owner { at, zone: at + start, zone_len: name.len() - start }
}
