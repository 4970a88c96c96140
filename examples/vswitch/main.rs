//! The bundled switch.
fn main() {}
