//! A message written into a buffer: records whole or not at all.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::query::HEADER;
use crate::record_type;

/// Greatest place in a message that compression can point to (RFC 1035 section 4.1.4).
const MAX_POINTER: usize = 0x3fff;
const CLASS_IN: u16 = 1;

/// Sections of a message, by where the header counts their records.
#[derive(Clone, Copy)]
pub(super) enum Section {
    Answer = 6,
    Authority = 8,
    Additional = 10,
}

/// No record fits any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Full;

/// See the module's description.
pub(super) struct Writer<'o> {
    out: &'o mut [u8],
    pub(super) len: usize,
    /// Where records end at the latest.
    limit: usize,
    pub(super) ttl: u32,
}

impl<'o> Writer<'o> {
    /// A message with header and question. `None`: they do not fit.
    pub(super) fn new(
        out: &'o mut [u8],
        limit: usize,
        header: [u8; 4],
        question: &[u8],
        ttl: u32,
    ) -> Option<Self> {
        let len = HEADER + question.len();
        let limit = limit.min(out.len());
        if len > limit {
            return None;
        }
        out[..4].copy_from_slice(&header);
        out[4..HEADER].copy_from_slice(&[0, u8::from(!question.is_empty()), 0, 0, 0, 0, 0, 0]);
        out[HEADER..len].copy_from_slice(question);
        Some(Self { out, len, limit, ttl })
    }

    /// Gives or takes room at the end.
    pub(super) fn set_limit(&mut self, limit: usize) {
        self.limit = limit.min(self.out.len());
    }

    /// Bytes of the header's flags.
    pub(super) fn flags(&mut self) -> &mut [u8; 2] {
        (&mut self.out[2..4]).try_into().expect("two bytes")
    }

    fn count(&mut self, section: Section) {
        let at = section as usize;
        let count = u16::from_be_bytes([self.out[at], self.out[at + 1]]) + 1;
        self.out[at..at + 2].copy_from_slice(&count.to_be_bytes());
    }

    fn put(&mut self, bytes: &[u8]) {
        self.out[self.len..self.len + bytes.len()].copy_from_slice(bytes);
        self.len += bytes.len();
    }

    /// Starts a record whose owner is the name at `owner` in the message. Its data have `len` bytes, for which there is
    /// room then.
    fn record(
        &mut self,
        section: Section,
        owner: usize,
        kind: u16,
        ttl: u32,
        len: usize,
    ) -> Result<(), Full> {
        if self.len + 12 + len > self.limit || owner > MAX_POINTER {
            return Err(Full);
        }
        let pointer = 0xc000 | owner as u16;
        let mut fixed = [0; 12];
        fixed[..2].copy_from_slice(&pointer.to_be_bytes());
        fixed[2..4].copy_from_slice(&kind.to_be_bytes());
        fixed[4..6].copy_from_slice(&CLASS_IN.to_be_bytes());
        fixed[6..10].copy_from_slice(&ttl.to_be_bytes());
        fixed[10..].copy_from_slice(&(len as u16).to_be_bytes());
        self.put(&fixed);
        self.count(section);
        Ok(())
    }

    pub(super) fn v4(
        &mut self,
        section: Section,
        owner: usize,
        address: Ipv4Addr,
    ) -> Result<(), Full> {
        self.record(section, owner, record_type::A, self.ttl, 4)?;
        self.put(&address.octets());
        Ok(())
    }

    pub(super) fn v6(
        &mut self,
        section: Section,
        owner: usize,
        address: Ipv6Addr,
    ) -> Result<(), Full> {
        self.record(section, owner, record_type::AAAA, self.ttl, 16)?;
        self.put(&address.octets());
        Ok(())
    }

    pub(super) fn address(
        &mut self,
        section: Section,
        owner: usize,
        address: IpAddr,
    ) -> Result<(), Full> {
        match address {
            IpAddr::V4(address) => self.v4(section, owner, address),
            IpAddr::V6(address) => self.v6(section, owner, address),
        }
    }

    /// A CNAME record; returns where in the message its target is.
    pub(super) fn alias(&mut self, owner: usize, target: &[u8]) -> Result<usize, Full> {
        self.record(Section::Answer, owner, record_type::CNAME, self.ttl, target.len())?;
        let at = self.len;
        self.put(target);
        Ok(at)
    }

    /// A PTR record to the name of these parts.
    pub(super) fn pointer(&mut self, owner: usize, name: [&[u8]; 3]) -> Result<(), Full> {
        let len = name.iter().map(|part| part.len()).sum();
        self.record(Section::Answer, owner, record_type::PTR, self.ttl, len)?;
        name.iter().for_each(|part| self.put(part));
        Ok(())
    }

    /// An SRV record to the name of these labels and the name at `zone`, of `zone_len` bytes, in the message, whose case
    /// it has. The target is not compressed (RFC 2782). Returns where in the message it is.
    pub(super) fn srv(
        &mut self,
        owner: usize,
        (weight, port): (u16, u16),
        labels: [&[u8]; 3],
        (zone, zone_len): (usize, usize),
    ) -> Result<usize, Full> {
        let len = 6 + labels.iter().map(|part| part.len()).sum::<usize>() + zone_len;
        self.record(Section::Answer, owner, record_type::SRV, self.ttl, len)?;
        // Priority 0.
        self.put(&[0; 2]);
        self.put(&weight.to_be_bytes());
        self.put(&port.to_be_bytes());
        let at = self.len;
        labels.iter().for_each(|part| self.put(part));
        self.out.copy_within(zone..zone + zone_len, self.len);
        self.len += zone_len;
        Ok(at)
    }

    /// A TXT record of one text.
    pub(super) fn text(&mut self, owner: usize, text: &str, ttl: u32) -> Result<(), Full> {
        self.record(Section::Answer, owner, record_type::TXT, ttl, 1 + text.len())?;
        self.put(&[text.len() as u8]);
        self.put(text.as_bytes());
        Ok(())
    }

    /// The SOA record of the zone whose name is at `zone` in the message.
    pub(super) fn authority(
        &mut self,
        section: Section,
        zone: usize,
        serial: u32,
    ) -> Result<(), Full> {
        const SERVER: &[u8] = b"\x02ns\x03dns";
        const MAILBOX: &[u8] = b"\x0ahostmaster";
        let len = SERVER.len() + 2 + MAILBOX.len() + 2 + 20;
        // Refresh, retry and expire, for secondaries that are not there: as CoreDNS.
        let numbers = [serial, 7200, 1800, 86_400, self.ttl];
        self.record(section, zone, record_type::SOA, self.ttl.min(300), len)?;
        let pointer = (0xc000 | zone as u16).to_be_bytes();
        self.put(SERVER);
        self.put(&pointer);
        self.put(MAILBOX);
        self.put(&pointer);
        numbers.iter().for_each(|number| self.put(&number.to_be_bytes()));
        Ok(())
    }

    /// The NS record of the zone whose name is at `zone`; returns where in the message its target is.
    pub(super) fn name_server(&mut self, zone: usize) -> Result<usize, Full> {
        const SERVER: &[u8] = b"\x02ns\x03dns";
        self.record(Section::Answer, zone, record_type::NS, self.ttl, SERVER.len() + 2)?;
        let at = self.len;
        self.put(SERVER);
        self.put(&(0xc000 | zone as u16).to_be_bytes());
        Ok(at)
    }

    /// An OPT record: the size that is received here, the upper bits of the response code, and the DO flag as it came
    /// (RFC 3225 section 3).
    pub(super) fn options(&mut self, size: u16, rcode: u8, wants_dnssec: bool) {
        let [high, low] = size.to_be_bytes();
        let flags = if wants_dnssec { 0x80 } else { 0 };
        let record = [0, 0, record_type::OPT as u8, high, low, rcode, 0, flags, 0, 0, 0];
        if self.len + record.len() <= self.out.len() {
            self.put(&record);
            self.count(Section::Additional);
        }
    }
}
