//! `examples/embed.rs` as a running program.

use std::process::Command;

#[test]
fn a_megabyte_passes() {
    let output = Command::new(env!("CARGO_BIN_EXE_embed")).output().expect("it starts");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.starts_with("1048576 bytes through the switch"), "{said}");
}
