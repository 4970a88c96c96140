use proptest::prelude::*;

use super::*;

/// A header as the kernel lays it out.
fn raw(flags: u8, gso: u8, fields: [u16; 4]) -> [u8; 12] {
    let mut header = [0; 12];
    header[0] = flags;
    header[1] = gso;
    for (i, field) in fields.into_iter().enumerate() {
        header[2 + 2 * i..4 + 2 * i].copy_from_slice(&field.to_ne_bytes());
    }
    header
}

/// A frame whose byte at 34 + 12 says that a TCP header there has `words` words.
fn tcp_frame(len: usize, words: u8) -> Vec<u8> {
    let mut frame = vec![0; len];
    if let Some(byte) = frame.get_mut(46) {
        *byte = words << 4;
    }
    frame
}

#[test]
fn an_ordinary_frame() {
    assert_eq!(decode(&raw(0, 0, [0; 4]), &[]), Ok(Offload::default()));
    let valid = Offload { csum_valid: true, ..Offload::default() };
    assert_eq!(decode(&raw(2, 0, [9, 9, 9, 9]), &[]), Ok(valid));
    assert_eq!(decode(&[0; 9], &[0; 60]), Err(HeaderError::Truncated));
}

#[test]
fn a_partial_checksum_lies_in_the_frame() {
    let frame = [0; 60];
    let ok = decode(&raw(1, 0, [0, 0, 34, 16]), &frame).unwrap();
    assert!(ok.csum_partial && !ok.is_gso() && !ok.csum_valid);
    assert_eq!((ok.csum_start, ok.csum_offset), (34, 16));
    assert!(decode(&raw(1, 0, [0, 0, 34, 24]), &frame).is_ok());
    for (start, offset) in [(34, 25), (59, 0), (60, 0), (13, 16), (0, 0), (65_535, 65_535)] {
        let got = decode(&raw(1, 0, [0, 0, start, offset]), &frame);
        assert_eq!(got, Err(HeaderError::ChecksumOffset), "{start}+{offset}");
    }
}

#[test]
fn gso_packets() {
    let frame = tcp_frame(4096, 8);
    let got = decode(&raw(1, 0x81, [0, 1448, 34, 16]), &frame).unwrap();
    assert_eq!(got.gso_type, GsoType::TcpV4);
    assert!(got.ecn);
    assert_eq!((got.gso_size, got.hdr_len), (1448, 66), "hdr_len is computed from the frame");
    let got = decode(&raw(1, 4, [4096, 1448, 34, 16]), &frame).unwrap();
    assert_eq!(got.gso_type, GsoType::TcpV6);
    let got = decode(&raw(1, 5, [0, 1000, 34, 6]), &frame).unwrap();
    assert_eq!((got.gso_type, got.hdr_len), (GsoType::UdpL4, 42));
}

#[test]
fn contradictory_gso_packets() {
    use HeaderError::*;
    let frame = tcp_frame(4096, 5);
    let cases: &[(u8, u8, [u16; 4], HeaderError)] = &[
        (0, 1, [54, 1448, 34, 16], GsoChecksum),
        (2, 5, [42, 1448, 34, 6], GsoChecksum),
        (1, 1, [54, 1448, 34, 6], GsoChecksum),
        (1, 5, [42, 1448, 34, 16], GsoChecksum),
        (1, 1, [54, 0, 34, 16], GsoSize),
        (1, 1, [54, 1, 34, 16], GsoSize),
        (1, 5, [42, 0, 34, 6], GsoSize),
        (1, 3, [42, 1448, 34, 6], GsoType(3)),
        (1, 2, [42, 1448, 34, 6], GsoType(2)),
        (1, 0x80, [42, 1448, 34, 16], GsoType(0x80)),
        (1, 0x85, [42, 1448, 34, 6], GsoType(0x85)),
        (1, 0x21, [54, 1448, 34, 16], GsoType(0x21)),
        (1, 0x41, [54, 1448, 34, 16], GsoType(0x41)),
        (1, 1, [54, 1448, 4090, 16], ChecksumOffset),
        (1, 1, [54, 1448, 4078, 16], GsoHeader),
    ];
    for &(flags, gso, fields, error) in cases {
        assert_eq!(decode(&raw(flags, gso, fields), &frame), Err(error), "{gso:#x} {fields:?}");
    }
    let short = decode(&raw(1, 1, [0, 1448, 34, 16]), &tcp_frame(4096, 4));
    assert_eq!(short, Err(GsoHeader), "data offset below 5");
    let long = decode(&raw(1, 1, [0, 1448, 34, 16]), &tcp_frame(80, 15));
    assert_eq!(long, Err(GsoHeader), "data offset beyond the frame");
    assert_eq!(DropReason::from(GsoHeader), DropReason::OffloadInvalid);
}

#[test]
fn encoding_fills_every_byte() {
    for form in [HeaderForm::Legacy, HeaderForm::V1, HeaderForm::Tunnel] {
        let mut out = [0xaa; 32];
        let offload = Offload { csum_valid: true, ..Offload::default() };
        encode(&offload, form, &mut out);
        assert!(out[..form.len()].iter().all(|&o| o == 0), "DATA_VALID is for receivers");
        assert!(out[form.len()..].iter().all(|&o| o == 0xaa));
    }
    let mut out = [0xaa; 12];
    let offload = Offload {
        gso_type: GsoType::TcpV6,
        ecn: true,
        csum_partial: true,
        csum_valid: false,
        gso_size: 1428,
        hdr_len: 74,
        csum_start: 54,
        csum_offset: 16,
    };
    encode(&offload, HeaderForm::V1, &mut out);
    assert_eq!(out, raw(1, 0x84, [74, 1428, 54, 16]));
}

proptest! {
    /// A decoded header is encoded to bytes that decode to the same values; nothing panics.
    #[test]
    fn decoding_and_encoding_agree(
        header in any::<[u8; 24]>(),
        flags in 0u8..4,
        gso in prop::sample::select(vec![0u8, 1, 4, 5, 0x81, 0x84, 3]),
        start in prop::sample::select(vec![14u16, 34, 54, 58]),
        offset in prop::sample::select(vec![6u16, 16, 8]),
        plausible in prop::bool::weighted(0.8),
        frame in prop::collection::vec(any::<u8>(), 0..300),
    ) {
        let mut header = header;
        if plausible {
            header[0] = flags;
            header[1] = gso;
            header[6..8].copy_from_slice(&start.to_ne_bytes());
            header[8..10].copy_from_slice(&offset.to_ne_bytes());
        }
        if let Ok(offload) = decode(&header, &frame) {
            if offload.csum_partial {
                let field = usize::from(offload.csum_start) + usize::from(offload.csum_offset);
                prop_assert!(field + 2 <= frame.len());
            }
            if offload.is_gso() {
                prop_assert!(offload.csum_partial && offload.gso_size > 0);
                prop_assert!(usize::from(offload.hdr_len) <= frame.len());
            }
            for form in [HeaderForm::Legacy, HeaderForm::V1, HeaderForm::Tunnel] {
                let mut out = [0; HeaderForm::MAX_LEN];
                encode(&offload, form, &mut out);
                let expected = Offload { csum_valid: false, ..offload };
                prop_assert_eq!(decode(&out[..form.len()], &frame), Ok(expected));
            }
        }
    }
}

#[test]
fn headers_inside_a_tunnel_are_marked() {
    let offload = Offload {
        gso_type: GsoType::TcpV4,
        csum_partial: true,
        gso_size: 1_398,
        hdr_len: 104,
        csum_start: 84,
        csum_offset: 16,
        ..Offload::default()
    };
    let mut header = [0xaa; 24];
    encode(&offload, HeaderForm::Tunnel, &mut header);
    assert_eq!((header[1], &header[12..]), (1, &[0; 12][..]), "none of a tunnel");
    let places = TunnelOffsets { v4: true, udp: 34, is_summed: false, inner: 64, is_exact: true };
    encode_tunnel(&places, &mut header);
    assert_eq!((header[0], header[1]), (1, 0x21));
    assert_eq!(header[20..], [34, 0, 64, 0]);
    encode(&offload, HeaderForm::Tunnel, &mut header);
    encode_tunnel(
        &TunnelOffsets { v4: false, udp: 54, is_summed: true, inner: 84, is_exact: true },
        &mut header,
    );
    assert_eq!((header[0], header[1]), (9, 0x41));
    assert_eq!(header[20..], [54, 0, 84, 0]);
}
