//! The README must stay short.

use std::fs;
use std::path::Path;

#[test]
fn the_readme_is_short_and_narrow() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../README.md");
    let text = fs::read_to_string(file).expect("the README");
    assert!(text.lines().count() < 200, "{} lines", text.lines().count());
    for (line, number) in text.lines().zip(1..) {
        let width = line.chars().count();
        assert!(width <= 120, "line {number} has {width} characters");
    }
}
