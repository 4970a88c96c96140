//! Equality, reversal, and how evenly the hash is distributed.

use super::*;
use std::vec;
use std::vec::Vec;

const SEEDS: [u128; 4] = [0, 1, 0x0123_4567_89ab_cdef, u128::MAX / 3];

fn v4(src: u32, dst: u32, src_port: u16, dst_port: u16) -> FlowKey {
    let (src, dst) = (IpAddr::V4(src.into()), IpAddr::V4(dst.into()));
    FlowKey::new(src, dst, proto::TCP, src_port, dst_port).unwrap()
}

fn v6(src: u128, dst: u128, src_port: u16, dst_port: u16) -> FlowKey {
    let (src, dst) = (IpAddr::V6(src.into()), IpAddr::V6(dst.into()));
    FlowKey::new(src, dst, proto::TCP, src_port, dst_port).unwrap()
}

const POD: u128 = 0xfd00_0010_0244_0000_0000_0000_0000_0000;

/// 65,536 keys with several address and port patterns of a cluster.
fn patterns() -> Vec<(&'static str, Vec<FlowKey>)> {
    let keys = |key: fn(u32) -> FlowKey| (0..65_536).map(key).collect::<Vec<_>>();
    vec![
        ("v4 source ports", keys(|i| v4(0x0af4_0105, 0x0a60_0001, i as u16, 443))),
        ("v4 destination ports", keys(|i| v4(0x0af4_0105, 0x0a60_0001, 40_000, i as u16))),
        ("v4 sources", keys(|i| v4(0x0af4_0000 + i, 0x0a60_0001, 40_000, 443))),
        ("v4 destinations", keys(|i| v4(0x0af4_0105, 0x0a60_0000 + i, 40_000, 443))),
        ("v4 far sources", keys(|i| v4(i << 16, 0x0a60_0001, 40_000, 443))),
        ("v4 pairs", keys(|i| v4(0x0af4_0000 + (i & 255), 0x0af4_0100 + (i >> 8), 53, 53))),
        (
            "v4 pods and ports",
            keys(|i| v4(0x0af4_0000 + (i >> 8), 0x0a60_0001, i as u16 & 255, 80)),
        ),
        ("v6 source ports", keys(|i| v6(POD | 5, POD | 6, i as u16, 443))),
        ("v6 destination ports", keys(|i| v6(POD | 5, POD | 6, 40_000, i as u16))),
        ("v6 sources", keys(|i| v6(POD | u128::from(i), POD | 6, 40_000, 443))),
        ("v6 destinations", keys(|i| v6(POD | 5, POD | u128::from(i), 40_000, 443))),
        ("v6 prefixes", keys(|i| v6(POD | u128::from(i) << 64, POD | 6, 40_000, 443))),
        ("v6 pairs", keys(|i| v6(POD | u128::from(i & 255), POD | u128::from(i >> 8), 53, 53))),
    ]
}

#[test]
fn one_direction_is_canonical_and_words_round_trip() {
    let own = v4(7, 7, 80, 80);
    for key in patterns().into_iter().flat_map(|(_, keys)| keys).chain([own]) {
        assert_eq!(FlowKey::from_words(key.words()), key);
        let both = [key.is_leading(), key.reversed().is_leading()];
        assert!(
            if key == key.reversed() { both == [true; 2] } else { both[0] != both[1] },
            "{key}"
        );
    }
}

/// Chi-square over 4,096 buckets of `bucket`'s 12 bits, per degree of freedom. A uniform
/// distribution gives 1 with a standard deviation of 0.022, so chance does not reach 1.15.
fn unevenness(keys: &[FlowKey], key: &HashKey, bucket: impl Fn(u64) -> u64) -> f64 {
    let mut counts = vec![0_u32; 4096];
    for k in keys {
        counts[(bucket(k.hash(key)) & 4095) as usize] += 1;
    }
    let expected = keys.len() as f64 / 4096.0;
    let square: f64 = counts.iter().map(|n| (f64::from(*n) - expected).powi(2) / expected).sum();
    square / 4095.0
}

#[test]
fn all_hash_bits_are_evenly_distributed() {
    for seed in SEEDS {
        let key = HashKey::new(seed);
        for (name, keys) in patterns() {
            for shift in [0, 4, 16, 32, 48, 52] {
                let unevenness = unevenness(&keys, &key, |hash| hash >> shift);
                assert!(unevenness < 1.15, "{name}, seed {seed:x}, bits {shift}+: {unevenness}");
            }
        }
    }
}

#[test]
fn hash_does_not_collide_on_typical_keys() {
    for seed in SEEDS {
        let key = HashKey::new(seed);
        let mut hashes: Vec<u64> =
            patterns().iter().flat_map(|(_, keys)| keys).map(|k| k.hash(&key)).collect();
        let mut keys: Vec<_> = patterns().into_iter().flat_map(|(_, keys)| keys).collect();
        keys.sort_unstable_by_key(FlowKey::words);
        keys.dedup();
        hashes.sort_unstable();
        hashes.dedup();
        assert_eq!(hashes.len(), keys.len());
    }
}

#[test]
fn every_seed_gives_another_hash() {
    let (a, b) = (v4(1, 2, 3, 4), v6(1, 2, 3, 4));
    for k in [a, b] {
        let seeds = (0..128).map(|bit| 1 << bit).chain([0, u128::MAX]);
        let mut hashes: Vec<u64> = seeds.map(|seed| k.hash(&HashKey::new(seed))).collect();
        hashes.sort_unstable();
        hashes.dedup();
        assert_eq!(hashes.len(), 130);
        // Both halves of the seed affect every word that a family uses.
        assert_ne!(k.hash(&HashKey::new(1)), k.hash(&HashKey::new(1 << 64)));
    }
}

#[test]
fn one_bit_changes_half_of_the_hash() {
    let key = HashKey::new(SEEDS[2]);
    for (k, is_v6) in [
        (v4(0x0af4_0105, 0x0a60_0001, 40_000, 443), false),
        (v6(POD | 5, POD | 6, 40_000, 443), true),
    ] {
        let before = k.hash(&key);
        let bytes = if is_v6 { 16 } else { 4 };
        for bit in 0..bytes * 8 {
            let (mut src, mut dst) = (k, k);
            src.src[bit / 8] ^= 1 << (bit % 8);
            dst.dst[bit / 8] ^= 1 << (bit % 8);
            for changed in [src, dst] {
                let flipped = (before ^ changed.hash(&key)).count_ones();
                assert!((12..=52).contains(&flipped), "{changed}: {flipped}");
            }
        }
    }
}

#[test]
fn equality_compares_every_field() {
    let key = v6(POD | 5, POD | 6, 1, 2);
    let changes: [fn(&mut FlowKey); 7] = [
        |k| k.src[15] ^= 1,
        |k| k.dst[0] ^= 1,
        |k| k.src_port ^= 1,
        |k| k.dst_port ^= 0x8000,
        |k| k.proto ^= 1,
        |k| k.family = Family::V4,
        |k| k.zone ^= 0x8000,
    ];
    for change in changes {
        let mut other = key;
        change(&mut other);
        assert_ne!(other, key);
        assert_ne!(other.words(), key.words());
    }
    assert_eq!(key.reversed().reversed(), key);
    assert_ne!(key.reversed(), key);
}

#[test]
fn families_never_meet() {
    let plain: IpAddr = "10.0.0.1".parse().unwrap();
    let mapped: IpAddr = "::ffff:10.0.0.1".parse().unwrap();
    assert_eq!(FlowKey::new(plain, mapped, proto::TCP, 1, 2), None);
    let (a, b) = (FlowKey::new(plain, plain, 6, 1, 2), FlowKey::new(mapped, mapped, 6, 1, 2));
    assert_ne!(a, b);
}
