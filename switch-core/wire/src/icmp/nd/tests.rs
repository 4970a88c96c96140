//! Messages as hosts and routers send them.

use super::*;
use std::vec::Vec;

const SOLICITATION: [u8; 32] = [
    135, 0, 0x12, 0x34, 0, 0, 0, 0, 0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1,
    0x0a, 0x58, 0x0a, 0xf4, 1, 5,
];

#[test]
fn neighbour_solicitation() {
    let message = NeighbourSolicitation::new_checked(&SOLICITATION[..]).unwrap();
    assert_eq!(message.target(), "fe80::1".parse::<Ipv6Addr>().unwrap());
    let mac = Mac([0x0a, 0x58, 0x0a, 0xf4, 1, 5]);
    assert_eq!(message.options().collect::<Vec<_>>(), [NdOption::SourceMac(mac)]);
    let mut built = NeighbourSolicitation::new_unchecked([0xff; 32]);
    built.set_header();
    built.set_target(message.target());
    built.set_source_mac(mac);
    let built = built.into_inner();
    assert_eq!((&built[4..], &built[..4]), (&SOLICITATION[4..], &[135, 0, 0, 0][..]));
}

#[test]
fn neighbour_advertisement() {
    let mut built = NeighbourAdvertisement::new_unchecked([0xff; 32]);
    built.set_header();
    built.set_flags(SOLICITED | OVERRIDE);
    built.set_target("fe80::1".parse().unwrap());
    built.set_target_mac(Mac([0xee; 6]));
    let message = NeighbourAdvertisement::new_checked(built.into_inner()).unwrap();
    assert_eq!(message.flags(), SOLICITED | OVERRIDE);
    assert_eq!(message.target(), "fe80::1".parse::<Ipv6Addr>().unwrap());
    assert_eq!(message.options().next(), Some(NdOption::TargetMac(Mac([0xee; 6]))));
    assert_eq!(NeighbourSolicitation::new_checked(message.into_inner()), Err(Malformed::Kind));
}

#[test]
fn router_advertisement() {
    let mut bytes =
        [134, 0, 0, 0, 64, 0xc0, 0x07, 0x08, 0, 0, 0x75, 0x30, 0, 0, 0x03, 0xe8].to_vec();
    bytes.extend_from_slice(&[3, 4, 64, 0xc0, 0, 0, 0x0e, 0x10, 0, 0, 0x07, 0x08, 0, 0, 0, 0]);
    bytes.extend_from_slice(&[0xfd, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    bytes.extend_from_slice(&[5, 1, 0, 0, 0, 0, 0x05, 0xdc, 25, 1, 1, 2, 3, 4, 5, 6]);
    let message = RouterAdvertisement::new_checked(&bytes[..]).unwrap();
    assert_eq!((message.hop_limit(), message.flags(), message.lifetime()), (64, 0xc0, 1800));
    assert_eq!((message.reachable_time(), message.retransmit_time()), (30_000, 1000));
    let prefix = NdOption::Prefix {
        prefix: "fd01::".parse().unwrap(),
        prefix_len: 64,
        flags: 0xc0,
        valid: 3600,
        preferred: 1800,
    };
    let other = NdOption::Other { kind: 25, data: &[1, 2, 3, 4, 5, 6] };
    let options: Vec<_> = message.options().collect();
    assert_eq!(options, [prefix, NdOption::Mtu(1500), other]);
}

#[test]
fn router_solicitation_and_redirect() {
    let solicitation = [133, 0, 0, 0, 0, 0, 0, 0, 1, 1, 2, 0, 0, 0, 0, 1];
    let message = RouterSolicitation::new_checked(&solicitation[..]).unwrap();
    assert_eq!(message.options().next(), Some(NdOption::SourceMac(Mac([2, 0, 0, 0, 0, 1]))));
    let mut redirect = [0; 40];
    redirect[0] = 137;
    redirect[23] = 1;
    redirect[39] = 2;
    let message = Redirect::new_checked(redirect).unwrap();
    assert_eq!(message.target(), "::1".parse::<Ipv6Addr>().unwrap());
    assert_eq!(message.destination(), "::2".parse::<Ipv6Addr>().unwrap());
    assert_eq!(message.options().next(), None);
}

#[test]
fn malformed_options_are_refused() {
    let check = |bytes: &[u8]| NeighbourSolicitation::new_checked(bytes).map(|_| ());
    for len in 0..32 {
        let expected = if len == 24 { Ok(()) } else { Err(Malformed::Truncated) };
        assert_eq!(check(&SOLICITATION[..len]), expected, "{len}");
    }
    let mut zero = SOLICITATION;
    zero[25] = 0;
    assert_eq!(check(&zero), Err(Malformed::Length));
    zero[25] = 2;
    assert_eq!(check(&zero), Err(Malformed::Truncated));
}
