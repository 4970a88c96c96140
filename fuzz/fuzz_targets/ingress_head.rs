#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| podswitch_fuzz_targets::run("ingress_head", input));
