//! Any bytes as a capture file (pcap, pcapng): frames, an error or an end. Frames that were read
//! can be written, and are read back.

use podswitch_core::port::pcap::{CaptureWriter, Direction, Format, MAX_RECORD, Reader, Record};

/// See the module's description.
pub(crate) fn run(input: &[u8]) {
    let Ok(mut reader) = Reader::new(input) else { return };
    let records: Vec<Record> = reader.by_ref().map_while(Result::ok).collect();
    assert!(reader.next().is_none(), "nothing follows an end or an error");
    assert!(reader.truncated_at().is_none_or(|at| at <= input.len() as u64));
    let bytes: usize = records.iter().map(|record| record.frame.len()).sum();
    assert!(bytes <= input.len(), "no frame has bytes that are not in the input");
    assert!(records.iter().all(|record| record.frame.len() <= MAX_RECORD as usize));
    for format in [Format::Pcap, Format::PcapNg] {
        again(&records, format);
    }
}

fn again(records: &[Record], format: Format) {
    let mut writer = CaptureWriter::new(Vec::new(), format).expect("a vector takes everything");
    let mut written = Vec::new();
    for record in records {
        let (frame, len) = (&record.frame, record.original_len);
        if writer.write(record.time_ns, frame, len, Direction::Inbound).is_ok() {
            written.push(record);
        }
    }
    let file = writer.finish().expect("a vector takes everything");
    let reader = Reader::new(&file[..]).expect("a written file is a capture");
    let read: Vec<Record> = reader.map(|record| record.expect("and whole")).collect();
    assert_eq!(read.len(), written.len());
    for (read, written) in read.iter().zip(written) {
        assert_eq!(read.frame, written.frame);
    }
}
