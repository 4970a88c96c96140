//! The fuzz targets without a fuzzer: every seed, and seeds changed at random, the same on every
//! run. It finds less than the fuzzer, which knows the code that an input reached, but it needs
//! only stable Rust. `PODSWITCH_FUZZ_INPUTS=N` makes each target run N times as many inputs.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use podswitch_fuzz_targets::{TARGETS, Target};
use podswitch_testkit::rig::random::Rng;

/// Values that often select a branch.
const BYTES: [u8; 12] = [0, 1, 4, 6, 8, 17, 0x45, 0x60, 0x7f, 0x80, 0xfe, 0xff];

fn seeds(target: &Target) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../seeds").join(target.name);
    let entries = fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let mut paths: Vec<_> = entries.map(|entry| entry.expect("an entry").path()).collect();
    paths.sort();
    let seeds: Vec<_> = paths.iter().map(|path| fs::read(path).expect("a seed")).collect();
    assert!(seeds.len() >= 3, "{} has no seeds", folder.display());
    let longest = seeds.iter().map(Vec::len).max();
    assert!(longest <= Some(target.max_len), "{}: {longest:?}", target.name);
    seeds
}

/// Runs one input; stores it if it fails.
fn try_one(target: &Target, number: usize, input: &[u8]) {
    if catch_unwind(AssertUnwindSafe(|| (target.run)(input))).is_err() {
        let path = std::env::temp_dir().join(format!("podswitch-{}-{number}", target.name));
        let kept = fs::write(&path, input);
        panic!("{}, input {number}, kept in {}: {kept:?}", target.name, path.display());
    }
}

fn mutate(rng: &mut Rng, input: &mut Vec<u8>, seeds: &[Vec<u8>]) {
    let at = rng.below(input.len() + 1);
    let end = (at + rng.below(9)).min(input.len());
    match rng.below(8) {
        0 if at < input.len() => input[at] ^= 1 << rng.below(8),
        1 if at < input.len() => input[at] = *rng.pick(&BYTES),
        2 if at < input.len() => input[at] = rng.next() as u8,
        3 => input.truncate(at),
        4 => drop(input.drain(at..end)),
        5 => {
            let again = input[at..end].to_vec();
            drop(input.splice(at..at, again));
        }
        6 => {
            let other = rng.pick(seeds);
            let from = rng.below(other.len() + 1);
            input.truncate(at);
            input.extend_from_slice(&other[from..]);
        }
        _ => {
            let mut new = [0; 4];
            rng.fill(&mut new);
            drop(input.splice(at..at, new));
        }
    }
}

fn run(name: &str, inputs: usize) {
    let target = TARGETS.iter().find(|target| target.name == name).expect("a target");
    let times = std::env::var("PODSWITCH_FUZZ_INPUTS").map_or(1, |n| n.parse().expect("a number"));
    let seeds = seeds(target);
    for (number, seed) in seeds.iter().enumerate() {
        try_one(target, number, seed);
    }
    let mut rng = Rng::new(0x5eed);
    for number in seeds.len()..inputs * times {
        let mut input = rng.pick(&seeds).clone();
        for _ in 0..=rng.below(8) {
            mutate(&mut rng, &mut input, &seeds);
        }
        input.truncate(target.max_len);
        try_one(target, number, &input);
    }
}

macro_rules! targets {
    ($($name:ident: $inputs:literal),*) => {
        $(#[test]
        fn $name() {
            run(stringify!($name), $inputs);
        })*

        #[test]
        fn every_target_runs_here() {
            let mut names = vec![$(stringify!($name)),*];
            let mut known: Vec<_> = TARGETS.iter().map(|target| target.name).collect();
            names.sort_unstable();
            known.sort_unstable();
            assert_eq!(names, known);
        }
    };
}

targets! {
    parse: 100_000,
    headers: 100_000,
    vxlan: 50_000,
    tunnel_socket: 20_000,
    engine: 10_000,
    gro: 5_000,
    fragments: 20_000,
    capture: 20_000,
    manifests: 5_000,
    cni: 20_000,
    dns: 50_000,
    ingress: 5_000,
    ingress_head: 20_000
}

/// Each target has a program for the fuzzer, and `fuzz/Cargo.toml` names it.
#[test]
fn every_target_has_a_fuzz_program() {
    let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let manifest = fs::read_to_string(fuzz.join("Cargo.toml")).expect("fuzz/Cargo.toml");
    for Target { name, .. } in TARGETS {
        assert!(manifest.contains(&format!("name = \"{name}\"")), "{name} is not in Cargo.toml");
        let program = fs::read_to_string(fuzz.join(format!("fuzz_targets/{name}.rs")));
        assert!(
            program.is_ok_and(|text| text.contains(&format!("run(\"{name}\", input)"))),
            "{name}"
        );
    }
}
