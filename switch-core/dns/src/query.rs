//! A query's header, question and EDNS (RFC 1035 section 4, RFC 6891).

use crate::name::Labelled;
use crate::record_type;

/// Length of the header.
pub(crate) const HEADER: usize = 12;
/// Length of an OPT record without options.
pub(crate) const OPT_LEN: usize = 11;

/// A query that can be answered or refused.
pub(crate) struct Query<'q> {
    /// Name, type and class as they came.
    pub(crate) question: &'q [u8],
    pub(crate) name: Labelled,
    pub(crate) qtype: u16,
    pub(crate) class: u16,
    pub(crate) edns: Option<Edns>,
}

/// An OPT record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Edns {
    /// Bytes that the client can receive.
    pub(crate) size: u16,
    pub(crate) version: u8,
    /// The DO flag (RFC 3225).
    pub(crate) wants_dnssec: bool,
}

/// Why a datagram gets no answer at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Ignored {
    /// Shorter than a header.
    Short,
    /// A response: to answer it could go on for ever.
    Response,
    /// The buffer for the answer is smaller than the smallest answer.
    Buffer,
}

/// Why a query is for the slower way: a forwarder, or a server that knows all of DNS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum NotOurs {
    /// A name of another zone, or of an address that is not known.
    OtherZone,
    /// Not a standard query (OPCODE).
    Opcode,
    /// QDCOUNT is not 1.
    Questions,
    /// The question's name is compressed.
    Compressed,
    /// It has records of its own: answers, authority, or additional ones other than OPT.
    Records,
}

/// What a datagram is, if not a query to look up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Other {
    Ignored(Ignored),
    NotOurs(NotOurs),
    /// To be answered FORMERR.
    Malformed,
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// Reads a query. What comes after its last record is passed over.
pub(crate) fn read(datagram: &[u8]) -> Result<Query<'_>, Other> {
    let Some(header) = datagram.first_chunk::<HEADER>() else {
        return Err(Other::Ignored(Ignored::Short));
    };
    if header[2] & 0x80 != 0 {
        return Err(Other::Ignored(Ignored::Response));
    }
    if header[2] & 0x78 != 0 {
        return Err(Other::NotOurs(NotOurs::Opcode));
    }
    let count = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
    if count(4) != 1 {
        return Err(Other::NotOurs(NotOurs::Questions));
    }
    let rest = &datagram[HEADER..];
    let name = Labelled::read(rest).ok_or_else(|| no_name(rest))?;
    let end = name.len() + 4;
    let question = rest.get(..end).ok_or(Other::Malformed)?;
    let qtype = u16_at(question, end - 4).ok_or(Other::Malformed)?;
    let class = u16_at(question, end - 2).ok_or(Other::Malformed)?;
    if count(6) != 0 || count(8) != 0 {
        return Err(Other::NotOurs(NotOurs::Records));
    }
    let edns = match count(10) {
        0 => None,
        additional => options(&rest[end..], additional)?,
    };
    Ok(Query { question, name, qtype, class, edns })
}

/// Why there is no name at the start.
fn no_name(mut wire: &[u8]) -> Other {
    loop {
        match wire.split_first() {
            Some((len, _)) if len & 0xc0 == 0xc0 => return Other::NotOurs(NotOurs::Compressed),
            Some((&len @ 1..=63, rest)) => match rest.get(usize::from(len)..) {
                Some(rest) => wire = rest,
                None => return Other::Malformed,
            },
            _ => return Other::Malformed,
        }
    }
}

/// Reads the additional section: one OPT record (RFC 6891 section 6.1.1).
fn options(record: &[u8], count: u16) -> Result<Option<Edns>, Other> {
    let Some(fixed) = record.first_chunk::<OPT_LEN>() else { return Err(Other::Malformed) };
    let kind = u16::from_be_bytes([fixed[1], fixed[2]]);
    if fixed[0] != 0 || kind != record_type::OPT {
        return Err(Other::NotOurs(NotOurs::Records));
    }
    let len = usize::from(u16::from_be_bytes([fixed[9], fixed[10]]));
    let options = record.get(OPT_LEN..OPT_LEN + len).ok_or(Other::Malformed)?;
    if count > 1 {
        // Two OPT records are malformed; a signature (TSIG) is for a server that knows keys.
        let next = &record[OPT_LEN + len..];
        let is_opt = next.first() == Some(&0) && u16_at(next, 1) == Some(record_type::OPT);
        return Err(if is_opt { Other::Malformed } else { Other::NotOurs(NotOurs::Records) });
    }
    check_options(options)?;
    Ok(Some(Edns {
        size: u16::from_be_bytes([fixed[3], fixed[4]]),
        version: fixed[6],
        wants_dnssec: fixed[7] & 0x80 != 0,
    }))
}

/// Options are code, length and content; none has a meaning here.
fn check_options(mut options: &[u8]) -> Result<(), Other> {
    while !options.is_empty() {
        let len = u16_at(options, 2).ok_or(Other::Malformed)?;
        options = options.get(4 + usize::from(len)..).ok_or(Other::Malformed)?;
    }
    Ok(())
}
