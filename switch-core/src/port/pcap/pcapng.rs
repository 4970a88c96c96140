//! The blocks of a pcapng file (draft-ietf-opsawg-pcapng): sections, interfaces and the three kinds of
//! packet blocks. Other blocks are skipped.

use std::io::Read;

use super::MAX_RECORD;
use super::input::{CaptureError, Got, Input, Order, Record, Step};

/// Type of a section header block, equal in both byte orders.
pub(super) const SECTION: [u8; 4] = [0x0a, 0x0d, 0x0d, 0x0a];
const INTERFACE: u32 = 1;
const PACKET: u32 = 2;
const SIMPLE: u32 = 3;
const ENHANCED: u32 = 6;

const OPTION_RESOLUTION: u16 = 9;
const OPTION_OFFSET: u16 = 14;

/// Length of the longest block that is read: the longest frame and options, as in libpcap.
const MAX_BLOCK: u32 = 16 << 20;

/// A capture interface.
#[derive(Clone, Copy, Debug)]
struct Interface {
    link_type: u32,
    snap_len: u32,
    /// Ticks per second of its timestamps.
    ticks: u64,
    /// Seconds to add to its timestamps.
    offset: i64,
}

/// The current section.
#[derive(Debug)]
pub(super) struct Section {
    order: Order,
    interfaces: Vec<Interface>,
    body: Vec<u8>,
}

impl Section {
    /// Reads a section header. `total`: its raw total length; type and length were read before.
    pub(super) fn open<R: Read>(
        input: &mut Input<R>,
        total: [u8; 4],
    ) -> Result<Self, CaptureError> {
        let start = input.offset - 8;
        let malformed = |what| CaptureError::Malformed { offset: start, what };
        let cut_off = "the section header is cut off";
        let mut head = [0; 16];
        if input.fill(&mut head)? != Got::All {
            return Err(malformed(cut_off));
        }
        let order = match u32::from_be_bytes([head[0], head[1], head[2], head[3]]) {
            0x1a2b_3c4d => Order::Big,
            0x4d3c_2b1a => Order::Little,
            _ => return Err(malformed("the section has no byte-order magic")),
        };
        let (major, minor) = (order.u16(&head[4..]), order.u16(&head[6..]));
        // Some tools write 1.2 as the version of the 1.0 format.
        if major != 1 || !matches!(minor, 0 | 2) {
            return Err(CaptureError::Version { major, minor });
        }
        let total = order.u32(&total);
        if total < 28 || total % 4 != 0 || total > MAX_BLOCK {
            return Err(malformed("a section header of impossible length"));
        }
        if input.skip(u64::from(total - 28))? != Got::All {
            return Err(malformed(cut_off));
        }
        let mut section = Self { order, interfaces: Vec::new(), body: Vec::new() };
        match section.trailer(input, total, start)? {
            Some(_) => Err(malformed(cut_off)),
            None => Ok(section),
        }
    }

    /// Reads the next packet, skipping other blocks.
    pub(super) fn next<R: Read>(
        &mut self,
        input: &mut Input<R>,
        last_time: u64,
    ) -> Result<Step, CaptureError> {
        loop {
            let start = input.offset;
            let mut head = [0; 8];
            match input.fill(&mut head)? {
                Got::All => {}
                Got::Part => return Ok(Step::CutOff(start)),
                Got::Nothing => return Ok(Step::End),
            }
            if head[..4] == SECTION {
                *self = Self::open(input, [head[4], head[5], head[6], head[7]])?;
                continue;
            }
            let (kind, total) = (self.order.u32(&head), self.order.u32(&head[4..]));
            let malformed = |what| CaptureError::Malformed { offset: start, what };
            if total < 12 || total % 4 != 0 || total > MAX_BLOCK {
                return Err(malformed("a block of impossible length"));
            }
            let wanted = matches!(kind, INTERFACE | PACKET | SIMPLE | ENHANCED);
            let len = total - 12;
            let got = if wanted {
                input.take(len as usize, &mut self.body)?
            } else {
                input.skip(u64::from(len))?
            };
            if got != Got::All {
                return Ok(Step::CutOff(start));
            }
            if let Some(step) = self.trailer(input, total, start)? {
                return Ok(step);
            }
            let record = match kind {
                INTERFACE => {
                    let interface = self.interface().map_err(malformed)?;
                    self.interfaces.push(interface);
                    continue;
                }
                ENHANCED => self.enhanced(),
                PACKET => self.packet(),
                SIMPLE => self.simple(last_time),
                _ => continue,
            };
            return record.map(Step::Record).map_err(malformed);
        }
    }

    /// Reads the total length at the end of every block.
    fn trailer<R: Read>(
        &mut self,
        input: &mut Input<R>,
        total: u32,
        start: u64,
    ) -> Result<Option<Step>, CaptureError> {
        let mut trailer = [0; 4];
        if input.fill(&mut trailer)? != Got::All {
            return Ok(Some(Step::CutOff(start)));
        }
        if self.order.u32(&trailer) != total {
            let what = "a block whose lengths at its ends differ";
            return Err(CaptureError::Malformed { offset: start, what });
        }
        Ok(None)
    }

    fn interface(&self) -> Result<Interface, &'static str> {
        let (order, body) = (self.order, &self.body);
        if body.len() < 8 {
            return Err("an interface description that is cut off");
        }
        let mut interface = Interface {
            link_type: u32::from(order.u16(body)),
            snap_len: order.u32(&body[4..]),
            ticks: 1_000_000,
            offset: 0,
        };
        let mut options = &body[8..];
        while options.len() >= 4 {
            let (code, len) = (order.u16(options), usize::from(order.u16(&options[2..])));
            if code == 0 {
                break;
            }
            let value = options.get(4..4 + len).ok_or("an option that is cut off")?;
            match (code, value) {
                (OPTION_RESOLUTION, &[exponent]) => interface.ticks = ticks(exponent)?,
                (OPTION_OFFSET, value) if len == 8 => interface.offset = order.u64(value) as i64,
                (OPTION_RESOLUTION | OPTION_OFFSET, _) => {
                    return Err("an option of wrong length");
                }
                _ => {}
            }
            options = options.get(4 + len.next_multiple_of(4)..).unwrap_or_default();
        }
        Ok(interface)
    }

    fn enhanced(&mut self) -> Result<Record, &'static str> {
        if self.body.len() < 20 {
            return Err("a packet block that is cut off");
        }
        let id = self.order.u32(&self.body);
        self.timed(id)
    }

    /// The obsolete packet block: a 16-bit interface number and a drop count in place of the 32-bit
    /// interface number.
    fn packet(&mut self) -> Result<Record, &'static str> {
        if self.body.len() < 20 {
            return Err("a packet block that is cut off");
        }
        let id = u32::from(self.order.u16(&self.body));
        self.timed(id)
    }

    fn timed(&mut self, id: u32) -> Result<Record, &'static str> {
        let field = |n: usize| self.order.u32(&self.body[4 * n..]);
        let interface = *self
            .interfaces
            .get(id as usize)
            .ok_or("a packet of an interface that was not described")?;
        let ticks = u64::from(field(1)) << 32 | u64::from(field(2));
        let (captured, original_len) = (field(3), field(4));
        let frame = self.frame(20, captured)?;
        Ok(Record {
            time_ns: interface.time_ns(ticks),
            link_type: interface.link_type,
            frame,
            original_len,
        })
    }

    fn simple(&mut self, last_time: u64) -> Result<Record, &'static str> {
        let interface =
            *self.interfaces.first().ok_or("a packet of an interface that was not described")?;
        if self.body.len() < 4 {
            return Err("a packet block that is cut off");
        }
        let original_len = self.order.u32(&self.body);
        let limit = if interface.snap_len == 0 { MAX_RECORD } else { interface.snap_len };
        let captured = original_len.min(limit).min(self.body.len() as u32 - 4);
        let frame = self.frame(4, captured)?;
        Ok(Record { time_ns: last_time, link_type: interface.link_type, frame, original_len })
    }

    fn frame(&self, at: usize, captured: u32) -> Result<Vec<u8>, &'static str> {
        if captured > MAX_RECORD {
            return Err("a record longer than any frame");
        }
        let frame = self.body.get(at..at + captured as usize);
        frame.map(<[u8]>::to_vec).ok_or("a frame longer than its block")
    }
}

/// Ticks per second from the option's power of ten or, with the top bit set, of two.
fn ticks(exponent: u8) -> Result<u64, &'static str> {
    let power = u32::from(exponent & 0x7f);
    let ticks =
        if exponent & 0x80 == 0 { 10u64.checked_pow(power) } else { 2u64.checked_pow(power) };
    ticks.ok_or("a timestamp resolution finer than can be told")
}

impl Interface {
    fn time_ns(&self, ticks: u64) -> u64 {
        // Neither term can overflow an i128.
        let since = i128::from(ticks) * 1_000_000_000 / i128::from(self.ticks);
        let ns = since + i128::from(self.offset) * 1_000_000_000;
        u64::try_from(ns.max(0)).unwrap_or(u64::MAX)
    }
}
