//! The records of a pcap file (draft-ietf-opsawg-pcap).

use std::io::Read;

use super::MAX_RECORD;
use super::input::{CaptureError, Got, Input, Order, Record, Step};

/// The header of a pcap file.
#[derive(Clone, Copy, Debug)]
pub(super) struct Classic {
    order: Order,
    /// Nanoseconds per unit of the fraction of a timestamp.
    unit: u64,
    link_type: u32,
    minor: u16,
    /// Bytes of a record header: 16, or 24 in Kuznetzov's variant.
    header: usize,
}

impl Classic {
    pub(super) fn open<R: Read>(
        input: &mut Input<R>,
        magic: [u8; 4],
    ) -> Result<Self, CaptureError> {
        let (order, unit, header) = match u32::from_be_bytes(magic) {
            0xa1b2_c3d4 => (Order::Big, 1000, 16),
            0xd4c3_b2a1 => (Order::Little, 1000, 16),
            0xa1b2_3c4d => (Order::Big, 1, 16),
            0x4d3c_b2a1 => (Order::Little, 1, 16),
            0xa1b2_cd34 => (Order::Big, 1000, 24),
            0x34cd_b2a1 => (Order::Little, 1000, 24),
            value if value >> 16 == 0x1f8b || value == 0x28b5_2ffd || value >> 8 == 0x42_5a68 => {
                return Err(CaptureError::Compressed);
            }
            _ => return Err(CaptureError::NotACapture(magic.to_vec())),
        };
        let mut rest = [0; 20];
        if input.fill(&mut rest)? != Got::All {
            return Err(input.malformed("the file header is cut off"));
        }
        let (major, minor) = (order.u16(&rest), order.u16(&rest[2..]));
        if major != 2 || minor > 4 {
            return Err(CaptureError::Version { major, minor });
        }
        // The upper bits indicate whether frames have an FCS.
        let link_type = order.u32(&rest[16..]) & 0x03ff_ffff;
        Ok(Self { order, unit, link_type, minor, header })
    }

    pub(super) fn next<R: Read>(&self, input: &mut Input<R>) -> Result<Step, CaptureError> {
        let start = input.offset;
        let mut header = [0; 24];
        match input.fill(&mut header[..self.header])? {
            Got::All => {}
            Got::Part => return Ok(Step::CutOff(start)),
            Got::Nothing => return Ok(Step::End),
        }
        let field = |n: usize| self.order.u32(&header[4 * n..]);
        let (mut captured, mut original_len) = (field(2), field(3));
        // The two fields were swapped in version 2.3. Some files of that version have the old order.
        if self.minor < 3 || (self.minor == 3 && captured > original_len) {
            (captured, original_len) = (original_len, captured);
        }
        if captured > MAX_RECORD {
            let what = "a record longer than any frame";
            return Err(CaptureError::Malformed { offset: start, what });
        }
        let mut frame = Vec::new();
        if input.take(captured as usize, &mut frame)? != Got::All {
            return Ok(Step::CutOff(start));
        }
        let time_ns = u64::from(field(0)) * 1_000_000_000 + u64::from(field(1)) * self.unit;
        Ok(Step::Record(Record { time_ns, link_type: self.link_type, frame, original_len }))
    }
}
