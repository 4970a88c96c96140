//! The bundled switch, see the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    podswitch_vswitch::main()
}
