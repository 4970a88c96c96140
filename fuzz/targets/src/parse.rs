//! Any bytes as a frame: no panic, and offsets that can be relied on.

use podswitch_wire::checksum::{fill_l4, finish_partial, is_partial, verify_l4};
use podswitch_wire::flow_key::HashKey;
use podswitch_wire::parse::{Fragment, Icmp, Network, parse, parse_quoted};

const KEY: HashKey = HashKey::new(1);

/// See the module's description.
pub(crate) fn run(frame: &[u8]) {
    // The bytes are also used as the packet that an ICMP error quotes.
    for network in [Network::Ipv4, Network::Ipv6] {
        if let Some(quoted) = parse_quoted(frame, network, &KEY) {
            assert_eq!(quoted.hash, quoted.key.hash(&KEY));
        }
    }
    let Ok(p) = parse(frame, &KEY) else {
        return;
    };
    assert!(p.end as usize <= frame.len());
    assert!(p.l3 <= p.l4 && p.l4 <= p.payload && u32::from(p.payload) <= p.end);
    let end = p.end as usize;
    if matches!(p.network, Network::Ipv4 | Network::Ipv6) {
        assert_eq!(p.hash, p.key.hash(&KEY));
        // Without its padding the frame is the same packet.
        assert_eq!(parse(&frame[..end], &KEY), Ok(p));
    }
    if p.icmp == Icmp::Error && p.fragment == Fragment::Whole {
        let _ = parse_quoted(&frame[usize::from(p.payload)..end], p.network, &KEY);
    }
    let _ = (verify_l4(frame, &p), is_partial(frame, &p));
    let mut copy = frame.to_vec();
    fill_l4(&mut copy, &p);
    assert!(verify_l4(&copy, &p));
    let (start, offset) = (usize::from(p.l4), usize::from(p.ttl));
    let _ = finish_partial(&mut copy, start, offset);
}
