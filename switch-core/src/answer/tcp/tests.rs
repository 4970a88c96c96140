use etherparse::{NetHeaders, PacketBuilder, PacketHeaders, TransportHeader};
use podswitch_wire::flow_key::HashKey;

use super::super::testing::*;
use super::*;
use crate::limit::Rate;

fn limiter() -> ErrorLimiter {
    ErrorLimiter::new(HashKey::new(3))
}

/// A segment from the pod to another: (flags to set, sequence, acknowledgment).
fn segment(v6: bool, flags: u8, seq: u32, ack: u32, payload: &[u8]) -> Vec<u8> {
    let mut tcp = etherparse::TcpHeader::new(40_000, 80, seq, 1000);
    tcp.syn = flags & tcp_flags::SYN != 0;
    tcp.fin = flags & tcp_flags::FIN != 0;
    tcp.rst = flags & tcp_flags::RST != 0;
    tcp.ack = flags & tcp_flags::ACK != 0;
    tcp.acknowledgment_number = ack;
    let eth = PacketBuilder::ethernet2(POD_MAC.0, gateway().mac.0);
    let mut frame = Vec::new();
    let step = match v6 {
        true => eth.ipv6(POD6.octets(), OTHER6.octets(), 64),
        false => eth.ipv4(POD4.octets(), OTHER4.octets(), 64),
    };
    step.tcp_header(tcp).write(&mut frame, payload).unwrap();
    frame
}

fn answer(frame: &[u8]) -> Result<Packet, NoAnswer> {
    let (packet, parsed) = packet(frame);
    reset(&packet, &parsed, Instant::ZERO, &mut limiter(), &mut dirty_pool())
}

/// A reset as an independent parser reads it: (sequence, acknowledgment if flagged). All other
/// fields are checked here.
fn dissect(reset: &Packet, v6: bool) -> (u32, Option<u32>) {
    let headers = PacketHeaders::from_ethernet_slice(reset.bytes()).unwrap();
    let Some(TransportHeader::Tcp(tcp)) = headers.transport else { panic!("no TCP") };
    let net = headers.net.unwrap();
    let checksum = match &net {
        NetHeaders::Ipv4(ip, _) => {
            assert_eq!((ip.source, ip.destination), (OTHER4.octets(), POD4.octets()));
            assert_eq!(ip.header_checksum, ip.calc_header_checksum());
            tcp.calc_checksum_ipv4(ip, &[]).unwrap()
        }
        NetHeaders::Ipv6(ip, _) => {
            assert_eq!((ip.source, ip.destination), (OTHER6.octets(), POD6.octets()));
            tcp.calc_checksum_ipv6(ip, &[]).unwrap()
        }
        NetHeaders::Arp(_) => panic!("ARP"),
    };
    assert_eq!(matches!(net, NetHeaders::Ipv6(..)), v6);
    assert_eq!(tcp.checksum, checksum);
    assert_eq!((tcp.source_port, tcp.destination_port), (80, 40_000));
    assert!(tcp.rst && !tcp.syn && !tcp.fin && !tcp.psh && !tcp.urg);
    assert_eq!(tcp.window_size, 0);
    assert_eq!(headers.payload.slice().len(), 0);
    (tcp.sequence_number, tcp.ack.then_some(tcp.acknowledgment_number))
}

#[test]
fn a_segment_without_ack_is_acknowledged() {
    for v6 in [false, true] {
        let syn = answer(&segment(v6, tcp_flags::SYN, 1000, 0, &[])).unwrap();
        assert_eq!(dissect(&syn, v6), (0, Some(1001)));
        let all = tcp_flags::SYN | tcp_flags::FIN;
        let with_data = answer(&segment(v6, all, u32::MAX, 0, &[1, 2, 3])).unwrap();
        assert_eq!(dissect(&with_data, v6), (0, Some(4)));
        let bare = answer(&segment(v6, 0, 7, 0, &[0; 100])).unwrap();
        assert_eq!(dissect(&bare, v6), (0, Some(107)));
    }
}

#[test]
fn a_segment_with_ack_gets_its_sequence_from_there() {
    for v6 in [false, true] {
        for flags in [tcp_flags::ACK, tcp_flags::ACK | tcp_flags::SYN] {
            let reset = answer(&segment(v6, flags, 1000, 0xfedc_ba98, &[1])).unwrap();
            assert_eq!(dissect(&reset, v6), (0xfedc_ba98, None));
        }
    }
}

#[test]
fn reset_is_sent_to_the_sender() {
    let reset = answer(&segment(false, tcp_flags::SYN, 1, 0, &[])).unwrap();
    assert_eq!(reset.bytes()[..6], POD_MAC.0);
    assert_eq!(reset.bytes()[6..12], gateway().mac.0);
    assert_eq!(reset.len(), 14 + 20 + 20);
}

#[test]
fn never_about_a_reset_a_fragment_or_a_corrupted_segment() {
    let rst = segment(false, tcp_flags::RST, 1, 0, &[]);
    assert_eq!(answer(&rst).unwrap_err(), NoAnswer::Forbidden);
    let mut corrupted = segment(true, tcp_flags::SYN, 1, 0, &[1, 2]);
    *corrupted.last_mut().unwrap() ^= 1;
    assert_eq!(answer(&corrupted).unwrap_err(), NoAnswer::BadChecksum);
    // A checksum that the sender's kernel left to the hardware is not a wrong checksum.
    let (mut unfinished, parsed) = packet(&corrupted);
    unfinished.offload.csum_partial = true;
    let answer = reset(&unfinished, &parsed, Instant::ZERO, &mut limiter(), &mut pool());
    assert!(answer.is_ok());
    let (whole, mut parsed) = packet(&segment(false, tcp_flags::SYN, 1, 0, &[]));
    parsed.fragment = Fragment::First;
    let answer = reset(&whole, &parsed, Instant::ZERO, &mut limiter(), &mut pool());
    assert_eq!(answer.unwrap_err(), NoAnswer::Forbidden);
}

#[test]
fn limited() {
    let rate = Rate::new(1, 2);
    let mut limiter = ErrorLimiter::with_rates(HashKey::new(1), rate, rate, 8);
    let (syn, parsed) = packet(&segment(false, tcp_flags::SYN, 1, 0, &[]));
    let mut pool = pool();
    let mut once = |now| reset(&syn, &parsed, now, &mut limiter, &mut pool).map(|_| ());
    assert_eq!(once(Instant::ZERO), Ok(()));
    assert_eq!(once(Instant::ZERO), Ok(()));
    assert_eq!(once(Instant::ZERO), Err(NoAnswer::RateLimited));
    assert_eq!(once(Instant::from_secs(1)), Ok(()));
}
