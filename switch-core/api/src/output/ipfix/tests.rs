//! Messages as collectors read them: a decoder written for this test, and nfcapd.

use std::collections::HashMap;
use std::net::UdpSocket;
use std::process::{Child, Command, Stdio};
use std::thread;

use podswitch_node::{CloseReason, FlowChange};
use podswitch_testkit::privilege::is_there;

use super::super::samples;
use super::*;

/// A field's enterprise (0: IANA) and element.
type Field = (u32, u16);

/// A collector that implements only RFC 7011.
#[derive(Default)]
struct Decoder {
    templates: HashMap<u16, Vec<(Field, usize)>>,
    records: Vec<HashMap<Field, Vec<u8>>>,
    sequence: u32,
}

fn number(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

impl Decoder {
    fn message(&mut self, bytes: &[u8]) {
        assert!(bytes.len() <= 1400, "{} bytes", bytes.len());
        assert_eq!((number(&bytes[..2]), number(&bytes[2..4])), (10, bytes.len() as u64));
        assert_eq!(number(&bytes[8..12]), u64::from(self.sequence), "records before it");
        let mut rest = &bytes[16..];
        while !rest.is_empty() {
            let (set, length) = (number(&rest[..2]) as u16, number(&rest[2..4]) as usize);
            let content = &rest[4..length];
            match set {
                2 => self.read_templates(content),
                set => self.read_data(set, content),
            }
            rest = &rest[length..];
        }
    }

    fn read_templates(&mut self, mut rest: &[u8]) {
        while !rest.is_empty() {
            let (id, count) = (number(&rest[..2]) as u16, number(&rest[2..4]));
            rest = &rest[4..];
            let mut fields = Vec::new();
            for _ in 0..count {
                let (element, length) = (number(&rest[..2]) as u16, number(&rest[2..4]) as usize);
                rest = &rest[4..];
                let mut enterprise = 0;
                if element & 0x8000 != 0 {
                    enterprise = number(&rest[..4]) as u32;
                    rest = &rest[4..];
                }
                fields.push(((enterprise, element & 0x7fff), length));
            }
            self.templates.insert(id, fields);
        }
    }

    fn read_data(&mut self, set: u16, mut rest: &[u8]) {
        let template = &self.templates[&set];
        while !rest.is_empty() {
            let mut record = HashMap::new();
            for (field, length) in template {
                record.insert(*field, rest[..*length].to_vec());
                rest = &rest[*length..];
            }
            self.records.push(record);
            self.sequence += 1;
        }
    }
}

fn closed(is_v6: bool) -> Arc<Record> {
    let flow = samples::flow(FlowChange::Closed(CloseReason::Fin), is_v6);
    Arc::new(Record::Flow(Box::new(flow)))
}

#[test]
fn a_collector_reads_connections_and_drops() {
    let collector = UdpSocket::bind("127.0.0.1:0").unwrap();
    collector.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let address = collector.local_addr().unwrap().to_string();
    let output = Ipfix::start(&address, "n1", || (), |text| panic!("{text}")).unwrap();
    output.write(&Arc::new(Record::Flow(Box::new(samples::flow(FlowChange::Opened, false)))));
    (0..40).for_each(|_| output.write(&closed(false)));
    output.write(&closed(true));
    output.write(&Arc::new(Record::Drop(Box::new(samples::denied()))));
    output.write(&Arc::new(Record::Drop(Box::new(samples::not_ip()))));
    let counts = output.finish();
    assert_eq!((counts.made, counts.sent, counts.without_export), (44, 43, 1));
    let (mut decoder, mut buffer) = (Decoder::default(), [0; 2048]);
    while decoder.records.len() < 43 {
        let length = collector.recv(&mut buffer).expect("all messages");
        decoder.message(&buffer[..length]);
    }
    let has = |wanted: &[(Field, u64)]| {
        let is = |record: &&HashMap<Field, Vec<u8>>| {
            wanted.iter().all(|(field, value)| record.get(field).map(|v| number(v)) == Some(*value))
        };
        decoder.records.iter().filter(is).count()
    };
    let start = 1_700_000_000_000;
    let flow = [
        ((0, 8), 0x0a01_0002),
        ((0, 12), 0x0a01_0063),
        ((0, 7), 40_000),
        ((0, 11), 443),
        ((0, 4), 6),
        ((0, 1), 500),
        ((0, 2), 5),
        ((29305, 1), 4_000),
        ((29305, 2), 4),
        ((0, 148), 7),
        ((0, 152), start),
        ((0, 153), start + 2_500),
        ((0, 136), 3),
        ((0, 239), 1),
        ((0, 225), 0x0a01_0002),
        ((0, 226), 0x0a01_0003),
        ((0, 227), 40_000),
        ((0, 228), 8443),
        ((0, 89), 64),
        ((0, 233), 2),
    ];
    assert_eq!(has(&flow), 40);
    assert_eq!(has(&[((0, 7), 40_000), ((0, 2), 5), ((0, 228), 8443)]), 41, "and that of IPv6");
    let v6 = decoder.records.iter().find(|record| record.contains_key(&(0, 27))).unwrap();
    assert_eq!((v6[&(0, 28)].len(), v6[&(0, 28)][15], v6[&(0, 282)][15]), (16, 99, 3));
    let drop = [((0, 8), 0x0a01_0002), ((0, 11), 80), ((0, 2), 3), ((0, 89), 129), ((0, 233), 3)];
    assert_eq!(has(&drop), 1);
    assert_eq!(has(&[((0, 1), 60), ((0, 89), 128)]), 1);
}

/// Ends nfcapd and removes its files.
struct Nfcapd(Child, std::path::PathBuf);

impl Drop for Nfcapd {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
        let _ = std::fs::remove_dir_all(&self.1);
    }
}

#[test]
fn nfcapd_reads_connections() {
    let has = |program: &str| {
        let run =
            Command::new(program).arg("-V").stdout(Stdio::null()).stderr(Stdio::null()).status();
        run.is_ok()
    };
    let both = has("nfcapd") && has("nfdump");
    if !is_there("nfcapd reads connections", "nfcapd (Debian: nfdump)", both) {
        return;
    }
    let folder = std::env::temp_dir().join(format!("podswitch-nfcapd-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let free = UdpSocket::bind("127.0.0.1:0").unwrap();
    let port = free.local_addr().unwrap().port();
    drop(free);
    let mut command = Command::new("nfcapd");
    command.args(["-b", "127.0.0.1", "-p", &port.to_string(), "-t", "2"]);
    command.args(["-w", folder.to_str().unwrap()]).stdout(Stdio::null()).stderr(Stdio::null());
    let mut nfcapd = Nfcapd(command.spawn().unwrap(), folder.clone());
    // nfcapd is ready when the port is in use.
    while UdpSocket::bind(("127.0.0.1", port)).is_ok() {
        assert!(nfcapd.0.try_wait().unwrap().is_none(), "nfcapd ended");
        thread::sleep(Duration::from_millis(20));
    }
    let output = Ipfix::start(&format!("127.0.0.1:{port}"), "n1", || (), |_| ()).unwrap();
    output.write(&closed(false));
    output.write(&closed(true));
    output.write(&Arc::new(Record::Drop(Box::new(samples::denied()))));
    assert_eq!(output.finish().sent, 3);
    let read = || {
        let mut command = Command::new("nfdump");
        let format = "fmt:%sa,%da,%sp,%dp,%pr,%pkt,%byt,%opkt,%obyt";
        command.args(["-q", "-N", "-R", folder.to_str().unwrap(), "-o", format]);
        let text = String::from_utf8(command.output().unwrap().stdout).unwrap();
        let lines = text.lines().filter(|line| line.contains(','));
        lines.map(|line| line.split_whitespace().collect::<String>()).collect::<Vec<String>>()
    };
    let mut lines = Vec::new();
    for _ in 0..200 {
        lines = read();
        if lines.len() >= 3 {
            break;
        }
        thread::sleep(Duration::from_millis(100));
    }
    lines.sort();
    assert_eq!(
        lines,
        [
            "10.1.0.2,10.1.0.3,0,80,6,3,180,0,0",
            "10.1.0.2,10.1.0.99,40000,443,6,5,500,4,4000",
            "fd00::2,fd00::63,40000,443,6,5,500,4,4000",
        ]
    );
}
