//! Any bytes as what a tunnel's UDP socket receives, with any segment size, and as what a pod sends
//! through a peer that passes GSO packets whole.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| podswitch_linux::port::fuzz::receive(data));
