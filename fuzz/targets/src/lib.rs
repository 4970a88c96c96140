//! The code that the fuzzer runs: functions of arbitrary bytes that panic if something is wrong.
//!
//! `fuzz/fuzz_targets` passes them to libFuzzer; `tests/stable.rs` runs them with mutated seeds on
//! stable Rust.
#![forbid(unsafe_code)]

mod capture;
mod cni;
mod dns;
mod engine;
mod fragments;
mod gro;
mod headers;
mod ingress;
mod manifests;
mod parse;
mod pieces;
mod vxlan;

/// A function of arbitrary bytes.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// The name of the fuzz target and of its folder of seeds.
    pub name: &'static str,
    /// The longest input that is worth trying, in bytes.
    pub max_len: usize,
    /// Panics if something is wrong.
    pub run: fn(&[u8]),
}

/// All targets.
pub const TARGETS: [Target; 13] = [
    Target { name: "parse", max_len: 2048, run: parse::run },
    Target { name: "headers", max_len: 512, run: headers::run },
    Target { name: "vxlan", max_len: 512, run: vxlan::run },
    Target { name: "tunnel_socket", max_len: 4096, run: podswitch_linux::port::fuzz::receive },
    Target { name: "engine", max_len: 4096, run: engine::run },
    Target { name: "gro", max_len: 1024, run: gro::run },
    Target { name: "fragments", max_len: 4096, run: fragments::run },
    Target { name: "capture", max_len: 4096, run: capture::run },
    Target { name: "manifests", max_len: 8192, run: manifests::run },
    Target { name: "cni", max_len: 4096, run: cni::run },
    Target { name: "dns", max_len: 1024, run: dns::run },
    Target { name: "ingress", max_len: 8192, run: ingress::run },
    Target { name: "ingress_head", max_len: 2048, run: podswitch_ingress::proxy::fuzz::head },
];

/// Runs the target with that name.
///
/// # Panics
/// If there is no such target, or it found an error.
pub fn run(name: &str, input: &[u8]) {
    let target = TARGETS.iter().find(|target| target.name == name);
    (target.unwrap_or_else(|| panic!("no target {name}")).run)(input);
}
