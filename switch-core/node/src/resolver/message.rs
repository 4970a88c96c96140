//! Messages of the resolver: what a query asks, the query to another server, and the answer made of its reply.
//!
//! The engine answers most names of the cluster; here the whole of DNS is read (`domain`), compressed questions and
//! records beside the question among it.

use domain::base::iana::{Class, Opcode, Rcode, Rtype};
use domain::base::message_builder::{MessageBuilder, PushError};
use domain::base::name::{FlattenInto, Name, ToName};
use domain::base::record::{ParsedRecord, Ttl};
use domain::base::{Message, StaticCompressor};
use domain::rdata::AllRecordData;

/// Largest datagram to and from other servers, and to clients: none is fragmented on any path of IPv6.
pub(super) const MAX_UDP: usize = 1232;
/// Largest datagram to clients without EDNS (RFC 1035 section 4.2.1).
const MIN_UDP: usize = 512;

/// A name that owns its bytes.
pub(super) type OwnName = Name<Vec<u8>>;

/// What a query asks for, and how it is to be answered.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    pub(super) id: u16,
    /// The name as the client wrote it.
    pub(super) name: OwnName,
    pub(super) qtype: Rtype,
    pub(super) class: Class,
    recursion: bool,
    checking_disabled: bool,
    /// Bytes that the client receives by UDP and whether it wants DNSSEC records, if it has EDNS.
    edns: Option<(usize, bool)>,
}

/// What other servers are asked: the question, and what its answer depends on.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    /// In lower case.
    name: Vec<u8>,
    qtype: u16,
    class: u16,
    dnssec: bool,
    checking_disabled: bool,
}

/// What a message is.
#[derive(Debug)]
pub(super) enum Read {
    Query(Asked),
    /// It gets this answer.
    Refused(Vec<u8>),
    /// It gets none.
    Ignored,
}

/// Reads a message of a client.
pub(super) fn read(bytes: &[u8]) -> Read {
    let Ok(message) = Message::from_octets(bytes) else { return Read::Ignored };
    let header = message.header();
    if header.qr() {
        return Read::Ignored;
    }
    if header.opcode() != Opcode::QUERY {
        return Read::Refused(error(bytes, Rcode::NOTIMP));
    }
    let Ok(question) = message.sole_question() else {
        return Read::Refused(error(bytes, Rcode::FORMERR));
    };
    let (qtype, class) = (question.qtype(), question.qclass());
    let edns = message.opt().map(|opt| (usize::from(opt.udp_payload_size()), opt.dnssec_ok()));
    if matches!(qtype, Rtype::AXFR | Rtype::IXFR) || class != Class::IN {
        return Read::Refused(error(bytes, Rcode::REFUSED));
    }
    Read::Query(Asked {
        id: header.id(),
        name: question.qname().to_name(),
        qtype,
        class,
        recursion: header.rd(),
        checking_disabled: header.cd(),
        edns,
    })
}

/// A header alone, with the flags of an answer to `query`.
fn error(query: &[u8], rcode: Rcode) -> Vec<u8> {
    let mut bytes = query[..12].to_vec();
    bytes[2] = 0x80 | bytes[2] & 0x79;
    bytes[3] = rcode.to_int() & 0x0f;
    bytes[4..].fill(0);
    bytes
}

impl Asked {
    /// The same question for another name: the target of an alias.
    pub(super) fn about(&self, name: OwnName) -> Self {
        Self { name, ..self.clone() }
    }

    /// What the answer depends on.
    pub(super) fn key(&self) -> Key {
        Key {
            name: self.name.as_slice().to_ascii_lowercase(),
            qtype: self.qtype.to_int(),
            class: self.class.to_int(),
            dnssec: self.edns.is_some_and(|(_, dnssec)| dnssec),
            checking_disabled: self.checking_disabled,
        }
    }

    /// The name in wire form and lower case.
    pub(super) fn lower(&self) -> Vec<u8> {
        self.name.as_slice().to_ascii_lowercase()
    }

    /// The most bytes of an answer by UDP.
    pub(super) fn udp_limit(&self) -> usize {
        self.edns.map_or(MIN_UDP, |(size, _)| size.clamp(MIN_UDP, MAX_UDP))
    }

    /// The plain query: without compression and without anything but the question and EDNS.
    pub(super) fn plain(&self, id: u16) -> Vec<u8> {
        let (size, dnssec) = self.edns.unwrap_or((MAX_UDP, false));
        self.query(id, self.recursion, self.edns.map(|_| (size, dnssec)))
    }

    /// The query to another server.
    pub(super) fn forwarded(&self, id: u16) -> Vec<u8> {
        let dnssec = self.edns.is_some_and(|(_, dnssec)| dnssec);
        self.query(id, true, Some((MAX_UDP, dnssec)))
    }

    fn query(&self, id: u16, recursion: bool, edns: Option<(usize, bool)>) -> Vec<u8> {
        let mut builder = MessageBuilder::new_vec();
        let header = builder.header_mut();
        header.set_id(id);
        header.set_rd(recursion);
        header.set_cd(self.checking_disabled);
        let mut builder = builder.question();
        // A name, its type and class fit in any message.
        let _ = builder.push((&self.name, self.qtype, self.class));
        let mut builder = builder.additional();
        if let Some((size, dnssec)) = edns {
            let _ = builder.opt(|opt| {
                opt.set_udp_payload_size(size as u16);
                opt.set_dnssec_ok(dnssec);
                Ok(())
            });
        }
        builder.finish()
    }

    /// Whether `reply` is an answer to the query with this id and question, and if so whether it is truncated and its
    /// response code. What is not is from somebody else, or of another query.
    pub(super) fn is_answered_by(&self, id: u16, reply: &[u8]) -> Option<(bool, Rcode)> {
        let message = Message::from_octets(reply).ok()?;
        let header = message.header();
        let question = message.sole_question().ok()?;
        let is_it = header.qr()
            && header.id() == id
            && header.opcode() == Opcode::QUERY
            && (question.qtype(), question.qclass()) == (self.qtype, self.class)
            && question.qname().name_eq(&self.name);
        is_it.then(|| (header.tc(), header.rcode()))
    }

    /// The answer without records: an error.
    pub(super) fn failed(&self, rcode: Rcode) -> Vec<u8> {
        self.build(rcode, MIN_UDP, |_| Ok(())).unwrap_or_default()
    }

    /// The answer to the client made of a server's reply, `age` seconds old, of at most `limit` bytes. `aliases`: our own
    /// answer, whose aliases lead to the name that the server was asked about.
    pub(super) fn answer(
        &self,
        reply: &[u8],
        age: u32,
        limit: usize,
        aliases: Option<&[u8]>,
    ) -> Vec<u8> {
        let rcode = Message::from_octets(reply).map_or(Rcode::SERVFAIL, |m| m.header().rcode());
        let whole = self.build(rcode, limit, |records| {
            if let Some(aliases) = aliases {
                push_section(records, aliases, Section::Answer, 0)?;
            }
            push_section(records, reply, Section::Answer, age)?;
            if push_section(records, reply, Section::Authority, age).is_err()
                && let Some(authority) = &mut records.authority
            {
                // What does not fit of the others is left out without a flag (RFC 2181 section 9).
                authority.rewind();
            }
            Ok(())
        });
        whole.unwrap_or_else(|| self.failed(Rcode::SERVFAIL))
    }

    /// Builds an answer; `None`: not even the question fits. If the records do not fit, those before are kept and the TC
    /// flag is set.
    fn build(
        &self,
        rcode: Rcode,
        limit: usize,
        records: impl FnOnce(&mut Records) -> Result<(), PushError>,
    ) -> Option<Vec<u8>> {
        const OPT: usize = 11;
        let target = StaticCompressor::new(Vec::new());
        let mut builder = MessageBuilder::from_target(target).ok()?;
        builder.set_push_limit(limit.saturating_sub(if self.edns.is_some() { OPT } else { 0 }));
        let header = builder.header_mut();
        header.set_id(self.id);
        header.set_qr(true);
        header.set_rd(self.recursion);
        header.set_ra(true);
        header.set_cd(self.checking_disabled);
        header.set_rcode(rcode);
        let mut builder = builder.question();
        builder.push((&self.name, self.qtype, self.class)).ok()?;
        let mut list = Records { answer: Some(builder.answer()), authority: None };
        let is_cut = records(&mut list).is_err();
        let mut builder = match (list.authority, list.answer) {
            (Some(authority), _) => authority.additional(),
            (None, Some(answer)) => answer.additional(),
            (None, None) => return None,
        };
        builder.header_mut().set_tc(is_cut);
        builder.set_push_limit(limit);
        if let Some((_, dnssec)) = self.edns {
            let _ = builder.opt(|opt| {
                opt.set_udp_payload_size(MAX_UDP as u16);
                opt.set_dnssec_ok(dnssec);
                Ok(())
            });
        }
        Some(builder.finish().into_target())
    }
}

type Target = StaticCompressor<Vec<u8>>;

/// The sections of an answer that is being built.
struct Records {
    answer: Option<domain::base::message_builder::AnswerBuilder<Target>>,
    authority: Option<domain::base::message_builder::AuthorityBuilder<Target>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Section {
    Answer,
    Authority,
}

/// Adds a section's records, aged. Records that cannot be read are left out.
fn push_section(
    records: &mut Records,
    message: &[u8],
    section: Section,
    age: u32,
) -> Result<(), PushError> {
    let Ok(message) = Message::from_octets(message) else { return Ok(()) };
    let list = match section {
        Section::Answer => message.answer(),
        Section::Authority => {
            records.authority = records.answer.take().map(|answer| answer.authority());
            message.authority()
        }
    };
    for record in list.into_iter().flatten().map_while(Result::ok) {
        let ttl = Ttl::from_secs(record.ttl().as_secs().min(MAX_TTL).saturating_sub(age));
        let Some(data) = data_of(&record) else { continue };
        let whole = (record.owner(), record.class(), ttl, data);
        match (&mut records.answer, &mut records.authority) {
            (Some(answer), _) => answer.push(whole)?,
            (None, Some(authority)) => authority.push(whole)?,
            (None, None) => {}
        }
    }
    Ok(())
}

type Data<'m> = AllRecordData<&'m [u8], domain::base::ParsedName<&'m [u8]>>;

fn data_of<'m>(record: &ParsedRecord<'m, &'m [u8]>) -> Option<Data<'m>> {
    Some(record.to_any_record::<Data<'m>>().ok()?.into_data())
}

/// Greatest time to live of what other servers say, in seconds: it is kept no longer, so that changes are seen soon.
const MAX_TTL: u32 = 30;
/// The same for names that do not exist, and names without records of the type.
const MAX_NEGATIVE_TTL: u32 = 5;

/// For how long a server's reply may be kept, in seconds; 0: not at all. Of negative ones the SOA says it (RFC 2308
/// section 5).
pub(super) fn time_to_live(reply: &[u8]) -> u32 {
    let Ok(message) = Message::from_octets(reply) else { return 0 };
    let rcode = message.header().rcode();
    if rcode != Rcode::NOERROR && rcode != Rcode::NXDOMAIN {
        return 0;
    }
    let answers = message.answer().into_iter().flatten().map_while(Result::ok);
    let least = answers.map(|record| record.ttl().as_secs()).min();
    let has_records = rcode == Rcode::NOERROR && least.is_some();
    if has_records {
        return least.unwrap_or(0).min(MAX_TTL);
    }
    let authority = message.authority().into_iter().flatten().map_while(Result::ok);
    let negative = authority.filter(|record| record.rtype() == Rtype::SOA).find_map(|record| {
        let Data::Soa(soa) = data_of(&record)? else { return None };
        Some(record.ttl().as_secs().min(soa.minimum().as_secs()))
    });
    negative.unwrap_or(0).min(least.unwrap_or(u32::MAX)).min(MAX_NEGATIVE_TTL)
}

/// The last name of the aliases in our own answer.
pub(super) fn last_alias(answer: &[u8]) -> Option<OwnName> {
    let message = Message::from_octets(answer).ok()?;
    let records = message.answer().ok()?.map_while(Result::ok);
    let targets = records.filter_map(|record| match data_of(&record)? {
        Data::Cname(cname) => cname.into_cname().try_flatten_into().ok(),
        _ => None,
    });
    targets.last()
}

/// Names of this resolver's own, to detect loops: random, and within a zone in wire form. `None`: the zone's name is too
/// long for it.
pub(super) fn probe(number: u64, zone: &[u8]) -> Option<Asked> {
    let label = format!("podswitch-loop-{:014x}", number >> 8);
    let mut wire = vec![label.len() as u8];
    wire.extend_from_slice(label.as_bytes());
    wire.extend_from_slice(zone);
    let name = Name::from_octets(wire).ok()?;
    let (qtype, class) = (Rtype::HINFO, Class::IN);
    let (recursion, checking_disabled, edns) = (true, false, None);
    Some(Asked { id: 0, name, qtype, class, recursion, checking_disabled, edns })
}

#[cfg(test)]
#[path = "message_tests.rs"]
mod tests;
