use podswitch_core::packet::PoolConfig;

use super::*;

mod bursts;

const MTUS: Mtus = Mtus { underlay: 1500, inner: usize::MAX };

/// Headers of tunnel packets over IPv4 or IPv6.
fn outer(v4: bool) -> Outer {
    let ends = if v4 { ["192.0.2.2", "192.0.2.1"] } else { ["fd00:a::2", "fd00:a::1"] };
    let [from, to] = ends.map(|end| end.parse::<IpAddr>().unwrap());
    Outer::new(SocketAddr::new(from, 50_000), SocketAddr::new(to, 4789), 0x03)
}

/// Each datagram becomes a frame of its own, or is counted as lost.
#[test]
fn datagrams_without_a_buffer_are_counted() {
    let outer = outer(true);
    for (len, datagrams) in [(401, 5), (450, 5), (500, 5), (101, 2)] {
        for buffers in 0..6 {
            let mut pool = Pool::new(PoolConfig { small: buffers, large: 0 });
            let mut joined = Packet::with_capacity(Pool::LARGE);
            // No TCP inside, so nothing is merged.
            joined.fill(&vec![0x55; len]);
            let mut frames = Vec::new();
            let lost = outer.receive(joined, 100, MTUS, &mut pool, &mut |p| frames.push(p));
            let whole = datagrams.min(1 + buffers);
            assert_eq!(frames.len(), whole, "{len} bytes, {buffers} buffers");
            assert_eq!(lost as usize, datagrams - whole, "{len} bytes, {buffers} buffers");
        }
    }
}

/// The maximum number that the kernel can merge.
#[test]
fn datagrams_up_to_the_kernels_bound() {
    for (datagrams, lost) in [(64, 0), (128, 0), (130, 2)] {
        let mut pool = Pool::new(PoolConfig::default());
        let joined = Packet::from_frame(&vec![0x55; datagrams * 20]);
        let mut count = 0;
        let got = outer(false).receive(joined, 20, MTUS, &mut pool, &mut |_| count += 1);
        assert_eq!((count, got), (datagrams - lost, lost as u64));
    }
}

/// A tunnel datagram whose inner IP header has the length `said`, behind `tags` VLAN tags.
fn datagram(v4: bool, tags: usize, said: usize, len: usize) -> Vec<u8> {
    let mut bytes = vec![8, 0, 0, 0, 0, 0, 1, 0];
    bytes.extend([2; 12]);
    for tag in [[0x88, 0xa8], [0x91, 0x00], [0x81, 0x00]].into_iter().take(tags) {
        bytes.extend(tag);
        bytes.extend([0, 1]);
    }
    let said = said as u16;
    match v4 {
        true => {
            bytes.extend([8, 0, 0x45, 0]);
            bytes.extend(said.to_be_bytes());
        }
        false => {
            bytes.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
            bytes.extend((said - 40).to_be_bytes());
        }
    }
    assert!(len >= bytes.len() + 36);
    bytes.resize(len, 0);
    bytes
}

#[test]
fn the_inner_length_decides() {
    use Received::{Datagram, Gso, Inconsistent, Joined};
    for v4 in [true, false] {
        for tags in 0..3 {
            let ip = 8 + 14 + 4 * tags;
            let of = |said: usize, len: usize, segment: usize| {
                Received::of(&datagram(v4, tags, said, len), segment)
            };
            // A small or a large buffer: the length makes no difference.
            for len in [200, 1000, Pool::SMALL, Pool::SMALL + 1, 3000, 60_000] {
                let all = len - ip;
                for segment in [0, len, len + 1, 65_535] {
                    assert_eq!(of(all, len, segment), Datagram);
                    assert_eq!(of(all.min(100), len, segment), Datagram, "padding");
                }
                for segment in [1, 40, 99, len / 2, len - 1] {
                    assert_eq!(of(all, len, segment), Gso(segment), "{len} {segment}");
                }
                for segment in [ip + 60, len / 2, len - 1].into_iter().filter(|s| *s >= ip + 60) {
                    for said in [60, segment - ip] {
                        assert_eq!(of(said, len, segment), Joined(segment), "{len} {said}");
                    }
                    for said in [segment - ip + 1, all - 1, all + 1] {
                        if said + ip > segment && said != all {
                            assert_eq!(of(said, len, segment), Inconsistent, "{len} {said}");
                        }
                    }
                }
            }
        }
    }
    // Not an IP packet, or not recognisable as one: no GSO packet.
    let mut bytes = datagram(true, 0, 978, 1000);
    bytes[20..22].copy_from_slice(&[8, 6]);
    assert_eq!(Received::of(&bytes, 100), Joined(100));
    for len in 2..42 {
        assert_eq!(Received::of(&datagram(true, 0, 978, 1000)[..len], 1), Joined(1), "{len}");
    }
    assert_eq!(Received::of(&[], 0), Datagram);
}

/// The worker drops it, with a reason and the outer addresses.
#[test]
fn a_contradictory_segment_size_is_refused() {
    for v4 in [true, false] {
        let mut pool = Pool::new(PoolConfig::default());
        let bytes = datagram(v4, 0, 600, 1000);
        let mut got = Vec::new();
        let packet = Packet::from_frame(&bytes);
        let lost = outer(v4).receive(packet, 500, MTUS, &mut pool, &mut |p| got.push(p));
        assert!(lost == 0 && got.len() == 1);
        let parsed = parse(got[0].bytes(), &HashKey::new(1)).unwrap();
        assert_eq!(parsed.key.dst_port, 4789);
        let reason = podswitch_core::action::DropReason::OffloadInvalid;
        assert_eq!(got[0].offload.check(&parsed), Err(reason));
    }
}
