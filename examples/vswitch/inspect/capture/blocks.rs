//! The blocks of a pcapng stream (draft-ietf-opsawg-pcapng), little-endian as the switch writes it.

use std::io;

/// Interface statistics. The switch writes them at the end; the first has a comment with a summary.
const STATISTICS: u32 = 5;
/// Interface number and time of statistics, before their options.
const STATISTICS_HEAD: usize = 12;
const OPTION_COMMENT: u16 = 1;
/// Length of the shortest block.
const MIN_BLOCK: usize = 12;
/// Longer blocks do not occur in a capture.
const MAX_BLOCK: usize = 1 << 20;

/// Passes on complete blocks, and reads the summary at the end.
#[derive(Debug, Default)]
pub(super) struct Blocks {
    /// The beginning of an incomplete block.
    pending: Vec<u8>,
    summary: Option<String>,
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

impl Blocks {
    /// Processes a piece of the stream, and passes the blocks that it completes to `write`.
    ///
    /// # Errors
    /// An error of `write`, or the stream is not a capture.
    pub(super) fn push(
        &mut self,
        piece: &[u8],
        write: impl FnOnce(&[u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        self.pending.extend_from_slice(piece);
        let mut whole = 0;
        while let Some(len) = u32_at(&self.pending, whole + 4) {
            let len = len as usize;
            if !(MIN_BLOCK..=MAX_BLOCK).contains(&len) || !len.is_multiple_of(4) {
                let reason = format!("the switch sent a block of {len} bytes");
                return Err(io::Error::new(io::ErrorKind::InvalidData, reason));
            }
            let Some(block) = self.pending.get(whole..whole + len) else { break };
            if u32_at(block, 0) == Some(STATISTICS) && self.summary.is_none() {
                self.summary = comment(&block[8..len - 4]);
            }
            whole += len;
        }
        if whole > 0 {
            write(&self.pending[..whole])?;
            self.pending.drain(..whole);
        }
        Ok(())
    }

    /// The numbers of captured and lost frames, if the capture was completed.
    pub(super) fn summary(self) -> Option<String> {
        self.summary
    }
}

/// The comment of a statistics block's body.
fn comment(body: &[u8]) -> Option<String> {
    let mut options = body.get(STATISTICS_HEAD..)?;
    loop {
        let (code, len) = (u16_at(options, 0)?, usize::from(u16_at(options, 2)?));
        let value = options.get(4..4 + len)?;
        match code {
            0 => return None,
            OPTION_COMMENT => return Some(String::from_utf8_lossy(value).into_owned()),
            _ => options = options.get(4 + len.next_multiple_of(4)..)?,
        }
    }
}

#[cfg(test)]
mod tests {
    use podswitch_core::port::pcap::{Direction, Packet, PcapNgWriter};

    use super::*;

    fn capture() -> Vec<u8> {
        let mut writer = PcapNgWriter::new(Vec::new(), "test").unwrap();
        let interface = writer.interface("shop/web", "port 1", 96).unwrap();
        let (direction, frame) = (Direction::Inbound, &[7; 61][..]);
        let packet = Packet { time_ns: 1, frame, original_len: 61, direction, comment: "dropped" };
        writer.packet(interface, &packet).unwrap();
        writer.statistics(interface, 2, [Some(1), None], "1 frames captured").unwrap();
        writer.into_inner()
    }

    #[test]
    fn pieces_become_complete_blocks_and_a_summary() {
        let all = capture();
        for size in [1, 3, 8, 50, all.len()] {
            let (mut blocks, mut written) = (Blocks::default(), Vec::new());
            for piece in all.chunks(size) {
                blocks
                    .push(piece, |blocks| {
                        written.extend_from_slice(blocks);
                        Ok(())
                    })
                    .unwrap();
            }
            assert_eq!(written, all, "{size}");
            assert_eq!(blocks.summary().as_deref(), Some("1 frames captured"));
        }
    }

    #[test]
    fn a_truncated_stream_has_no_summary() {
        let all = capture();
        let (mut blocks, mut written) = (Blocks::default(), 0);
        let write = |blocks: &[u8]| {
            written = blocks.len();
            Ok(())
        };
        blocks.push(&all[..all.len() - 1], write).unwrap();
        assert!(written < all.len() - 1, "no part of the last block");
        assert_eq!(blocks.summary(), None);
    }

    #[test]
    fn other_data_than_a_capture_is_refused() {
        let error = Blocks::default().push(b"HTTP/1.1 200 OK", |_| Ok(())).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }
}
