use super::*;

mod malformed;
mod recording;

use std::io::Cursor;

use pcap_file::pcap::PcapReader;
use pcap_file::pcapng::{Block, PcapNgReader};
use proptest::prelude::*;

/// All frames and errors that a capture yields.
fn read(bytes: &[u8]) -> Result<Vec<Record>, CaptureError> {
    Reader::new(bytes)?.collect()
}

fn record(time_ns: u64, frame: &[u8], original_len: u32) -> Record {
    Record { time_ns, link_type: ETHERNET, frame: frame.to_vec(), original_len }
}

fn written(format: Format, records: &[Record]) -> Vec<u8> {
    let mut writer = CaptureWriter::new(Vec::new(), format).unwrap();
    for r in records {
        writer.write(r.time_ns, &r.frame, r.original_len, Direction::Inbound).unwrap();
    }
    writer.finish().unwrap()
}

/// A field in either byte order.
fn field<const N: usize>(big: bool, mut little: [u8; N]) -> [u8; N] {
    if big {
        little.reverse();
    }
    little
}

/// A pcap file with one record of 60 bytes, captured at 7.5 s, whose record header has the
/// extra bytes of `extra`.
fn classic(big: bool, magic: u32, minor: u16, fraction: u32, extra: &[u8]) -> Vec<u8> {
    let word = |n: u32| field(big, n.to_le_bytes());
    let half = |n: u16| field(big, n.to_le_bytes());
    let mut file = word(magic).to_vec();
    file.extend(half(2));
    file.extend(half(minor));
    file.extend([[0; 4], [0; 4], word(u32::MAX), word(0xf400_0001)].concat());
    let (a, b) = if minor < 3 { (90, 60) } else { (60, 90) };
    file.extend([word(7), word(fraction), word(a), word(b)].concat());
    file.extend(extra);
    file.extend([0x5a; 60]);
    file
}

#[test]
fn every_variant_of_pcap() {
    let expected = record(7_500_000_000, &[0x5a; 60], 90);
    for big in [false, true] {
        let variants = [
            (0xa1b2_c3d4, 4, 500_000, &[][..]),
            (0xa1b2_c3d4, 2, 500_000, &[]),
            (0xa1b2_c3d4, 3, 500_000, &[]),
            (0xa1b2_3c4d, 4, 500_000_000, &[]),
            (0xa1b2_cd34, 4, 500_000, &[0; 8]),
        ];
        for (magic, minor, fraction, extra) in variants {
            let file = classic(big, magic, minor, fraction, extra);
            let got = read(&file).unwrap();
            assert_eq!(
                got,
                std::slice::from_ref(&expected),
                "{magic:#x} version 2.{minor}, big: {big}"
            );
        }
    }
}

/// A pcapng block, its total length added and its body padded.
fn block(big: bool, kind: u32, body: &[u8]) -> Vec<u8> {
    let mut body = body.to_vec();
    body.resize(body.len().next_multiple_of(4), 0);
    let total = field(big, (body.len() as u32 + 12).to_le_bytes());
    let kind = field(big, kind.to_le_bytes());
    [&kind[..], &total, &body, &total].concat()
}

fn section(big: bool) -> Vec<u8> {
    let half = |n: u16| field(big, n.to_le_bytes());
    let magic = field(big, 0x1a2b_3c4du32.to_le_bytes());
    block(big, 0x0a0d_0d0a, &[&magic[..], &half(1), &half(0), &[0xff; 8]].concat())
}

fn interface(big: bool, link_type: u16, snap_len: u32, options: &[(u16, &[u8])]) -> Vec<u8> {
    let half = |n: u16| field(big, n.to_le_bytes());
    let mut body = half(link_type).to_vec();
    body.extend([0, 0]);
    body.extend(field(big, snap_len.to_le_bytes()));
    for (code, value) in options {
        body.extend(half(*code));
        body.extend(half(value.len() as u16));
        body.extend(*value);
        body.resize(body.len().next_multiple_of(4), 0);
    }
    block(big, 1, &body)
}

fn enhanced(big: bool, id: u32, ticks: u64, frame: &[u8], original_len: u32) -> Vec<u8> {
    let fields = [id, (ticks >> 32) as u32, ticks as u32, frame.len() as u32, original_len];
    let mut body: Vec<u8> = fields.into_iter().flat_map(|n| field(big, n.to_le_bytes())).collect();
    body.extend(frame);
    block(big, 6, &body)
}

#[test]
fn every_block_of_pcapng() {
    for big in [false, true] {
        let word = |n: u32| field(big, n.to_le_bytes());
        let offset = field(big, 100i64.to_le_bytes());
        let before = field(big, (-10i64).to_le_bytes());
        let mut file = section(big);
        file.extend(interface(big, 1, 0, &[(2, b"eth0"), (9, &[9]), (0, &[])]));
        file.extend(interface(big, 1, 5, &[(14, &offset)]));
        file.extend(interface(big, 113, 0, &[(9, &[0x80 | 10]), (14, &before)]));
        file.extend(block(big, 5, &[1; 20]));
        file.extend(enhanced(big, 0, 7, b"abc", 3));
        file.extend(enhanced(big, 1, 7_000_000, b"abcd", 1500));
        file.extend(enhanced(big, 2, 11 * 1024 + 512, b"", 0));
        // The obsolete packet block: interface 0, 65,535 drops.
        let old =
            [&field(big, [0, 0])[..], &[0xff; 2], &word(0), &word(9), &word(2), &word(2), b"xy"];
        file.extend(block(big, 2, &old.concat()));
        file.extend(block(big, 3, &[&word(5)[..], b"hello"].concat()));
        // Another section, of the other byte order and with interfaces of its own.
        file.extend(section(!big));
        file.extend(interface(!big, 1, 4, &[]));
        file.extend(block(
            !big,
            3,
            &[&field(!big, 9u32.to_le_bytes())[..], b"nine bytes"].concat(),
        ));
        let expected = [
            record(7, b"abc", 3),
            record(107_000_000_000, b"abcd", 1500),
            Record { link_type: 113, ..record(1_500_000_000, b"", 0) },
            record(9, b"xy", 2),
            record(9, b"hello", 5),
            record(9, b"nine", 9),
        ];
        assert_eq!(read(&file).unwrap(), expected, "big: {big}");
    }
}

#[test]
fn a_time_out_of_range_is_the_maximum() {
    let mut file = section(false);
    file.extend(interface(false, 1, 0, &[(9, &[0])]));
    file.extend(interface(false, 1, 0, &[(14, &i64::MIN.to_le_bytes())]));
    file.extend(enhanced(false, 0, u64::MAX, b"", 0));
    file.extend(enhanced(false, 1, 5, b"", 0));
    let times: Vec<_> = read(&file).unwrap().iter().map(|r| r.time_ns).collect();
    assert_eq!(times, [u64::MAX, 0]);
}

#[test]
fn directions_are_in_the_flags_of_pcapng() {
    let mut writer = CaptureWriter::new(Vec::new(), Format::PcapNg).unwrap();
    writer.write(1, b"a", 1, Direction::Inbound).unwrap();
    writer.write(2, b"b", 1, Direction::Outbound).unwrap();
    let file = writer.finish().unwrap();
    let mut reader = PcapNgReader::new(Cursor::new(file)).unwrap();
    let mut flags = Vec::new();
    while let Some(block) = reader.next_block() {
        if let Block::EnhancedPacket(packet) = block.unwrap() {
            flags.push(format!("{:?}", packet.options));
        }
    }
    assert_eq!(flags, ["[Flags(1)]", "[Flags(2)]"]);
}

#[test]
fn a_frame_that_is_too_long_is_not_written() {
    let mut writer = CaptureWriter::new(Vec::new(), Format::Pcap).unwrap();
    let long = vec![0; MAX_RECORD as usize + 1];
    let error = writer.write(0, &long, 0, Direction::Inbound).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::InvalidInput);
    writer.write(0, &long[1..], 0, Direction::Inbound).unwrap();
    assert_eq!(read(&writer.finish().unwrap()).unwrap()[0].frame.len(), MAX_RECORD as usize);
}

proptest! {
    /// The written file is read again, by this crate and by a crate that shares no code with it.
    #[test]
    fn written_is_read(
        frames in prop::collection::vec(
            (0u64..u64::from(u32::MAX) * 1_000_000_000, prop::collection::vec(any::<u8>(), 0..100), 0u32..200),
            0..8,
        ),
    ) {
        let records: Vec<_> = frames
            .iter()
            .map(|(time, frame, more)| record(*time, frame, frame.len() as u32 + more))
            .collect();
        let file = written(Format::Pcap, &records);
        prop_assert_eq!(&read(&file).unwrap(), &records);
        let mut second = PcapReader::new(&file[..]).unwrap();
        for r in &records {
            let packet = second.next_packet().unwrap().unwrap();
            prop_assert_eq!(packet.timestamp.as_nanos() as u64, r.time_ns);
            prop_assert_eq!(packet.orig_len, r.original_len);
            prop_assert_eq!(&packet.data[..], &r.frame[..]);
        }
        prop_assert!(second.next_packet().is_none());

        let file = written(Format::PcapNg, &records);
        prop_assert_eq!(&read(&file).unwrap(), &records);
        let mut second = PcapNgReader::new(Cursor::new(&file)).unwrap();
        let mut packets = Vec::new();
        while let Some(block) = second.next_block() {
            if let Block::EnhancedPacket(packet) = block.unwrap() {
                packets.push((packet.data.to_vec(), packet.original_len));
            }
        }
        let expected: Vec<_> = records.iter().map(|r| (r.frame.clone(), r.original_len)).collect();
        prop_assert_eq!(packets, expected);
    }
}
