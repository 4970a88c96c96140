//! Community ID v1: a hash of a connection's ends, the same in tools of different vendors
//! (<https://github.com/corelight/community-id-spec>).

use std::fmt;
use std::net::IpAddr;

use podswitch_wire::flow_key::proto;

/// The Community ID v1 of a connection, the same for both directions. It uses seed 0, the default.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CommunityId([u8; 20]);

impl CommunityId {
    /// The ID of the connection between two ends. For ICMP the ports are type and code. `None`: the addresses are of
    /// different families.
    pub fn new(protocol: u8, src: (IpAddr, u16), dst: (IpAddr, u16)) -> Option<Self> {
        if src.0.is_ipv4() != dst.0.is_ipv4() {
            return None;
        }
        let (mut ends, mut has_ports, mut one_way) = ([src, dst], true, false);
        match protocol {
            proto::TCP | proto::UDP | proto::SCTP => {}
            proto::ICMP | proto::ICMPV6 => {
                let [(_, kind), (_, code)] = ends;
                match answer_of(protocol, kind) {
                    Some(answer) => ends[1].1 = answer,
                    None => (one_way, ends[1].1) = (true, code),
                }
            }
            _ => has_ports = false,
        }
        let [(a, a_port), (b, b_port)] = ends;
        let is_ordered = a < b || a == b && (!has_ports || a_port <= b_port);
        if !is_ordered && !one_way {
            ends.swap(0, 1);
        }
        let mut text: Vec<u8> = vec![0, 0];
        for (address, _) in ends {
            match address {
                IpAddr::V4(address) => text.extend(address.octets()),
                IpAddr::V6(address) => text.extend(address.octets()),
            }
        }
        text.extend([protocol, 0]);
        if has_ports {
            for (_, port) in ends {
                text.extend(port.to_be_bytes());
            }
        }
        Some(Self(sha1(&text)))
    }
}

impl fmt::Display for CommunityId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "1:{}", base64(&self.0))
    }
}

/// The type of the reply messages to messages of type `kind`, for types that come in pairs.
fn answer_of(protocol: u8, kind: u16) -> Option<u16> {
    let pairs: &[(u16, u16)] = match protocol {
        proto::ICMP => &[(0, 8), (9, 10), (13, 14), (15, 16), (17, 18)],
        _ => &[(128, 129), (130, 131), (133, 134), (135, 136), (139, 140), (144, 145)],
    };
    pairs.iter().find_map(|&(a, b)| match kind {
        kind if kind == a => Some(b),
        kind if kind == b => Some(a),
        _ => None,
    })
}

/// Base64 with padding (RFC 4648 §4).
pub(super) fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let [a, b, c] = [0, 1, 2].map(|at| u32::from(chunk.get(at).copied().unwrap_or(0)));
        let bits = a << 16 | b << 8 | c;
        for at in 0..4 {
            let letter = LETTERS[(bits >> (18 - 6 * at) & 63) as usize];
            text.push(if at <= chunk.len() { char::from(letter) } else { '=' });
        }
    }
    text
}

/// SHA-1 (FIPS 180-4 §6.1). It is not used for security.
fn sha1(message: &[u8]) -> [u8; 20] {
    let mut state = [0x6745_2301u32, 0xefcd_ab89, 0x98ba_dcfe, 0x1032_5476, 0xc3d2_e1f0];
    let mut padded = message.to_vec();
    padded.push(0x80);
    while padded.len() % 64 != 56 {
        padded.push(0);
    }
    padded.extend((message.len() as u64 * 8).to_be_bytes());
    for block in padded.chunks_exact(64) {
        let mut words = [0u32; 80];
        for (word, bytes) in words.iter_mut().zip(block.chunks_exact(4)) {
            *word = bytes.iter().fold(0, |word, byte| word << 8 | u32::from(*byte));
        }
        for t in 16..80 {
            let word = words[t - 3] ^ words[t - 8] ^ words[t - 14] ^ words[t - 16];
            words[t] = word.rotate_left(1);
        }
        let [mut a, mut b, mut c, mut d, mut e] = state;
        for (t, word) in words.iter().enumerate() {
            let (f, k) = match t {
                0..20 => (b & c | !b & d, 0x5a82_7999),
                20..40 => (b ^ c ^ d, 0x6ed9_eba1),
                40..60 => (b & c | b & d | c & d, 0x8f1b_bcdc),
                _ => (b ^ c ^ d, 0xca62_c1d6u32),
            };
            let sum = a.rotate_left(5).wrapping_add(f).wrapping_add(e).wrapping_add(k);
            (e, d, c, b, a) = (d, c, b.rotate_left(30), a, sum.wrapping_add(*word));
        }
        for (sum, value) in state.iter_mut().zip([a, b, c, d, e]) {
            *sum = sum.wrapping_add(value);
        }
    }
    let mut digest = [0; 20];
    for (bytes, word) in digest.chunks_exact_mut(4).zip(state) {
        bytes.copy_from_slice(&word.to_be_bytes());
    }
    digest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(protocol: u8, src: &str, dst: &str, ports: (u16, u16)) -> String {
        let [src, dst] = [src, dst].map(|text| text.parse().unwrap());
        CommunityId::new(protocol, (src, ports.0), (dst, ports.1)).unwrap().to_string()
    }

    #[test]
    fn sha1_has_the_digests_of_fips_180() {
        let hex = |text: &str| -> String {
            sha1(text.as_bytes()).iter().map(|b| format!("{b:02x}")).collect()
        };
        assert_eq!(hex("abc"), "a9993e364706816aba3e25717850c26c9cd0d89d");
        assert_eq!(hex(""), "da39a3ee5e6b4b0d3255bfef95601890afd80709");
        let two_blocks = "abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq";
        assert_eq!(hex(two_blocks), "84983e441c3bd26ebaae4aa1f95129e5e54670f1");
    }

    /// Values of the specification's reference implementation and of its published examples.
    #[test]
    fn ids_are_those_of_the_reference() {
        let (a, b) = ("1.2.3.4", "5.6.7.8");
        assert_eq!(id(6, a, b, (1122, 3344)), "1:wCb3OG7yAFWelaUydu0D+125CLM=");
        assert_eq!(id(6, b, a, (3344, 1122)), "1:wCb3OG7yAFWelaUydu0D+125CLM=");
        assert_eq!(id(17, a, b, (1122, 3344)), "1:0Mu9InQx6z4ZiCZM/7HXi2WMhOg=");
        let published = id(6, "128.232.110.120", "66.35.250.204", (34855, 80));
        assert_eq!(published, "1:LQU9qZlK+B5F3KDmev6m5PMibrg=");
        let published = id(17, "192.168.1.52", "8.8.8.8", (54585, 53));
        assert_eq!(published, "1:d/FP5EW3wiY1vCndhwleRRKHowQ=");
        let sctp = id(132, "192.168.170.8", "192.168.170.56", (7, 80));
        assert_eq!(sctp, "1:jQgCxbku+pNGw8WPbEc/TS/uTpQ=");
        let v6 = ("2001:470:e5bf:dead:4957:2174:e82c:4887", "2607:f8b0:400c:c03::1a");
        assert_eq!(id(6, v6.0, v6.1, (63943, 25)), "1:/qFaeAR+gFe1KYjMzVDsMv+wgU4=");
        assert_eq!(id(6, "10.0.0.1", "10.0.0.1", (5, 4)), "1:gLmjZuaRsMk4vbmk5HxV9Jb1iQg=");
        for (src, dst) in [("10.0.0.1", "10.0.0.2"), ("10.0.0.2", "10.0.0.1")] {
            assert_eq!(id(47, src, dst, (0, 0)), "1:+KlEHDT0vJgzs/eNmzHq0aSpRYw=");
        }
    }

    #[test]
    fn icmp_messages_and_their_replies_have_one_id() {
        let (a, b) = ("192.168.0.89", "192.168.0.1");
        assert_eq!(id(1, a, b, (8, 0)), "1:X0snYXpgwiv9TZtqg64sgzUn6Dk=");
        assert_eq!(id(1, b, a, (0, 0)), "1:X0snYXpgwiv9TZtqg64sgzUn6Dk=");
        assert_eq!(id(1, a, b, (3, 1)), "1:LXCfhMUFbYXe+CEMrQuZCbiLY3o=");
        let (a, b) = ("fe80::200:86ff:fe05:80da", "fe80::260:97ff:fe07:69ea");
        assert_eq!(id(58, a, b, (135, 0)), "1:dGHyGvjMfljg6Bppwm3bg0LO8TY=");
        let (a, b) = ("3ffe:507:0:1:260:97ff:fe07:69ea", "3ffe:507:0:1:200:86ff:fe05:80da");
        assert_eq!(id(58, a, b, (3, 0)), "1:NdobDX8PQNJbAyfkWxhtL2Pqp5w=");
        let (a, b) = ("3ffe:507:0:1:200:86ff:fe05:80da", "3ffe:501:0:1001::2");
        assert_eq!(id(58, a, b, (128, 0)), "1:+TW+HtLHvV1xnGhV1lv7XoJrqQg=");
    }

    #[test]
    fn base64_is_padded() {
        for (bytes, text) in
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg==")]
        {
            assert_eq!(base64(bytes.as_bytes()), text);
        }
    }
}
