//! What a name would be answered and why, for people: steps by rule and object, and the records of the real answer.

use std::net::{Ipv4Addr, Ipv6Addr};

use crate::answer::{MAX_TCP, Outcome, Rcode, Transport, answer};
use crate::lookup::{Records, look_up};
use crate::name::{Labelled, Name, display};
use crate::query::HEADER;
use crate::record_type::{self as rt, type_name};
use crate::rule::Rule;
use crate::zone::Zone;

/// One name on the way to the answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// The name.
    pub name: String,
    /// Why it is answered as it is. `None`: it is another zone's, or not all objects are known yet.
    pub rule: Option<Rule>,
    /// The object that decided, such as `Service/shop/api`.
    pub object: Option<String>,
}

/// A record of an answer, as text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// `answer`, `authority` or `additional`.
    pub section: &'static str,
    /// Owner.
    pub name: String,
    /// Time to live in seconds.
    pub ttl: u32,
    /// Type, such as `A`.
    pub kind: String,
    /// Data as in a zone file.
    pub data: String,
}

/// The answer to a question, explained.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explained {
    /// The name that was asked for, and those that aliases lead to.
    pub steps: Vec<Step>,
    /// Response code. `None`: the question is another server's.
    pub rcode: Option<Rcode>,
    /// Records, if nothing bounds the answer.
    pub records: Vec<Record>,
    /// The last alias leads to another zone.
    pub is_partial: bool,
    /// Length of the answer in bytes.
    pub len: usize,
}

/// The datagram of a query: one question of class IN, with RD, and with EDNS if the client can receive more than 512
/// bytes.
pub fn query(id: u16, name: &Name, qtype: u16, size: Option<u16>) -> Vec<u8> {
    let mut query = Vec::with_capacity(HEADER + name.wire().len() + 15);
    query.extend_from_slice(&id.to_be_bytes());
    query.extend_from_slice(&[1, 0, 0, 1, 0, 0, 0, 0, 0, u8::from(size.is_some())]);
    query.extend_from_slice(name.wire());
    query.extend_from_slice(&qtype.to_be_bytes());
    query.extend_from_slice(&[0, 1]);
    if let Some(size) = size {
        query.extend_from_slice(&[0, 0, rt::OPT as u8]);
        query.extend_from_slice(&size.to_be_bytes());
        query.extend_from_slice(&[0; 6]);
    }
    query
}

/// Answers a question as [`answer()`](crate::answer()) does, and says why.
pub fn explain(zone: &Zone, name: &Name, qtype: u16) -> Explained {
    let mut out = vec![0; MAX_TCP];
    let query = query(0, name, qtype, None);
    let steps = steps(zone, name, qtype);
    match answer(zone, &query, Transport::Tcp, 0, &mut out) {
        Outcome::Answered(it) => Explained {
            steps,
            rcode: Some(it.rcode),
            records: records(&out[..it.len]).unwrap_or_default(),
            is_partial: it.is_partial,
            len: it.len,
        },
        _ => Explained { steps, rcode: None, records: Vec::new(), is_partial: false, len: 0 },
    }
}

fn steps(zone: &Zone, name: &Name, qtype: u16) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    let mut next = Some(name);
    while let Some(name) = next.take() {
        let text = name.to_string();
        if steps.len() > 8 || steps.iter().any(|step| step.name == text) {
            break;
        }
        let labelled = Labelled::read(name.wire());
        let labelled = labelled.filter(|_| zone.is_synced());
        let found = labelled.and_then(|labelled| look_up(zone, &labelled, qtype));
        let object = found.as_ref().and_then(|found| found.service).map(|it| it.object.to_string());
        steps.push(Step { name: text, rule: found.as_ref().map(|found| found.rule), object });
        if let Some(Records::Alias(target)) = found.map(|found| found.records)
            && qtype != rt::CNAME
        {
            next = Some(target);
        }
    }
    steps
}

/// The records of a message of ours.
fn records(message: &[u8]) -> Option<Vec<Record>> {
    let count = |at: usize| u16_at(message, at);
    let (_, mut at) = name_at(message, HEADER)?;
    at += 4;
    let mut found = Vec::new();
    for (section, count) in
        [("answer", count(6)?), ("authority", count(8)?), ("additional", count(10)?)]
    {
        for _ in 0..count {
            let (name, fixed) = name_at(message, at)?;
            let kind = u16_at(message, fixed)?;
            let ttl = u32_at(message, fixed + 4)?;
            let data = fixed + 10;
            at = data + usize::from(u16_at(message, fixed + 8)?);
            let data = data_text(message, kind, data, at)?;
            found.push(Record { section, name, ttl, kind: type_name(kind), data });
        }
    }
    Some(found)
}

fn u16_at(message: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(*message.get(at..)?.first_chunk()?))
}

fn u32_at(message: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(*message.get(at..)?.first_chunk()?))
}

/// The name at `at`, and where it ends.
fn name_at(message: &[u8], at: usize) -> Option<(String, usize)> {
    let (mut wire, mut place, mut end) = (Vec::new(), at, None);
    // Pointers only go back.
    let mut bound = message.len();
    loop {
        let len = *message.get(place)?;
        if len & 0xc0 == 0xc0 {
            end = end.or(Some(place + 2));
            let to = usize::from(u16_at(message, place)? & 0x3fff);
            if to >= bound {
                return None;
            }
            (place, bound) = (to, to);
            continue;
        }
        let next = place + 1 + usize::from(len);
        wire.extend_from_slice(message.get(place..next)?);
        place = next;
        if len == 0 {
            break;
        }
    }
    let mut text = String::new();
    display(&wire, &mut text).ok()?;
    Some((text, end.unwrap_or(place)))
}

fn data_text(message: &[u8], kind: u16, at: usize, end: usize) -> Option<String> {
    let data = message.get(at..end)?;
    Some(match kind {
        rt::A => Ipv4Addr::from(*data.first_chunk::<4>()?).to_string(),
        rt::AAAA => Ipv6Addr::from(*data.first_chunk::<16>()?).to_string(),
        rt::CNAME | rt::PTR | rt::NS => name_at(message, at)?.0,
        rt::SRV => {
            let number = |offset| u16_at(message, at + offset);
            let target = name_at(message, at + 6)?.0;
            format!("{} {} {} {target}", number(0)?, number(2)?, number(4)?)
        }
        rt::TXT => {
            let (len, text) = data.split_first()?;
            format!("\"{}\"", text.get(..usize::from(*len))?.escape_ascii())
        }
        rt::SOA => {
            let (server, at) = name_at(message, at)?;
            let (mailbox, at) = name_at(message, at)?;
            let numbers: Option<Vec<_>> = (0..5).map(|n| u32_at(message, at + 4 * n)).collect();
            let numbers: Vec<_> = numbers?.iter().map(u32::to_string).collect();
            format!("{server} {mailbox} {}", numbers.join(" "))
        }
        _ => data.escape_ascii().to_string(),
    })
}
