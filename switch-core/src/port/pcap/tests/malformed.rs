//! Files that are truncated, contradict themselves or are not captures.

use super::*;

fn error(bytes: &[u8]) -> String {
    read(bytes).unwrap_err().to_string()
}

#[test]
fn files_that_are_not_captures() {
    assert!(error(b"").contains("not a capture"));
    assert!(error(b"\x7fELF and more").contains("not a capture: begins with [7f, 45, 4c, 46]"));
    for compressed in [&b"\x1f\x8b\x08\x00"[..], b"\x28\xb5\x2f\xfd", b"BZh9"] {
        assert!(error(compressed).contains("compressed"));
    }
    let mut file = classic(false, 0xa1b2_c3d4, 4, 0, &[]);
    file[4] = 3;
    assert!(error(&file).contains("version 3.4"));
    let mut file = section(false);
    file[14] = 9;
    assert!(error(&file).contains("version 1.9"));
    let missing = read_capture(std::path::Path::new("/nonexistent/file"));
    assert!(missing.unwrap_err().to_string().starts_with("cannot be read"));
}

#[test]
fn a_record_longer_than_any_frame() {
    let mut file = classic(false, 0xa1b2_c3d4, 4, 0, &[]);
    let good = file.len();
    file.extend([[0; 4], [0; 4], (MAX_RECORD + 1).to_le_bytes(), [0; 4]].concat());
    file.extend(vec![0; MAX_RECORD as usize + 1]);
    let mut reader = Reader::new(&file[..]).unwrap();
    assert!(reader.next().unwrap().is_ok());
    let error = reader.next().unwrap().unwrap_err().to_string();
    assert_eq!(error, format!("malformed at byte {good}: a record longer than any frame"));
    assert!(reader.next().is_none(), "nothing after an error");
}

#[test]
fn blocks_that_contradict_themselves() {
    let start = [section(false), interface(false, 1, 0, &[])].concat();
    let with = |more: &[u8]| error(&[&start[..], more].concat());
    let word = |n: u32| n.to_le_bytes();
    assert!(with(&enhanced(false, 1, 0, b"", 0)).contains("not described"));
    let mut long = enhanced(false, 0, 0, b"abcd", 4);
    long[20..24].copy_from_slice(&word(5));
    assert!(with(&long).contains("longer than its block"));
    long[20..24].copy_from_slice(&word(u32::MAX));
    assert!(with(&long).contains("longer than any frame"));
    assert!(with(&block(false, 6, &[0; 16])).contains("cut off"));
    assert!(with(&block(false, 3, &[])).contains("cut off"));
    assert!(with(&block(false, 1, &[0; 4])).contains("cut off"));
    for total in [0, 8, 13, 0xffff_fffc] {
        assert!(with(&[word(5), word(total), word(0), word(0)].concat()).contains("impossible"));
    }
    let mut ends = block(false, 5, &[0; 8]);
    ends[16] = 24;
    assert!(with(&ends).contains("differ"));
    assert!(with(&interface(false, 1, 0, &[(9, &[20])])).contains("resolution"));
    assert!(with(&interface(false, 1, 0, &[(9, &[0x80 | 64])])).contains("resolution"));
    assert!(with(&interface(false, 1, 0, &[(9, &[6, 6])])).contains("wrong length"));
    assert!(with(&interface(false, 1, 0, &[(14, &[6; 7])])).contains("wrong length"));
    let mut option = interface(false, 1, 0, &[(2, b"eth0")]);
    option[18] = 5;
    assert!(with(&option).contains("option that is cut off"));
    assert!(error(&[section(false), block(false, 3, &[0; 8])].concat()).contains("not described"));
    let mut magic = section(false);
    magic[8] = 0;
    assert!(error(&magic).contains("byte-order magic"));
}

fn sample(format: Format) -> Vec<u8> {
    let frames: Vec<_> = (1..6).map(|n| record(n, &vec![n as u8; 10 * n as usize], 100)).collect();
    written(format, &frames)
}

/// A file truncated at every byte yields the frames that are complete, and reports the offset of
/// the truncated one.
#[test]
fn a_file_cut_anywhere() {
    for format in [Format::Pcap, Format::PcapNg] {
        let file = sample(format);
        let whole = read(&file).unwrap();
        let first = if format == Format::Pcap { 24 } else { 28 };
        for len in first..file.len() {
            let mut reader = Reader::new(&file[..len]).unwrap();
            let got: Vec<_> = reader.by_ref().map(|r| r.unwrap()).collect();
            assert_eq!(got, whole[..got.len()]);
            assert!(got.len() < whole.len());
            if let Some(at) = reader.truncated_at() {
                assert!((first as u64..len as u64).contains(&at));
                assert_eq!(read(&file[..at as usize]).unwrap(), got, "cut cleanly there");
            } else {
                assert!(len == file.len() || Reader::new(&file[..len]).is_ok());
            }
        }
        for len in 0..first {
            assert!(Reader::new(&file[..len]).is_err(), "{format:?} {len}");
        }
    }
}

/// A reader that gives a byte at a time and is interrupted again and again.
struct Trickle<'a>(&'a [u8], bool);

impl std::io::Read for Trickle<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.1 = !self.1;
        if self.1 {
            return Err(std::io::ErrorKind::Interrupted.into());
        }
        let len = buffer.len().min(1);
        std::io::Read::read(&mut self.0, &mut buffer[..len])
    }
}

#[test]
fn short_reads_make_no_difference() {
    for format in [Format::Pcap, Format::PcapNg] {
        let file = sample(format);
        let slowly: Result<Vec<_>, _> = Reader::new(Trickle(&file, false)).unwrap().collect();
        assert_eq!(slowly.unwrap(), read(&file).unwrap());
    }
}

proptest! {
    /// For bytes changed anywhere: frames or an error, never a panic, and no more memory than the
    /// size of the file.
    #[test]
    fn bytes_changed_anywhere(
        next in any::<bool>(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let mut file = sample(if next { Format::PcapNg } else { Format::Pcap });
        for (place, byte) in changes {
            let at = place.index(file.len());
            file[at] = byte;
        }
        if let Ok(reader) = Reader::new(&file[..]) {
            let bytes: usize = reader.map_while(Result::ok).map(|r| r.frame.len()).sum();
            prop_assert!(bytes <= file.len());
        }
    }

    #[test]
    fn any_bytes(kind in 0usize..4, rest in prop::collection::vec(any::<u8>(), 0..200)) {
        let start = [
            vec![],
            section(false),
            [section(true), interface(true, 1, 0, &[])].concat(),
            classic(true, 0xa1b2_c3d4, 4, 0, &[]),
        ];
        let _ = read(&[&start[kind][..], &rest].concat());
    }
}
