//! Links the plugin statically on GNU/Linux too: runtimes copy it to hosts and start it in whatever root file system.
//!
//! Of musl targets programs are static as they are. For GNU targets there is no way to ask for it for one package
//! alone: `-C target-feature=+crt-static` would have to hold for everything that is built. So the linker is told to
//! link statically, and finds archives by the names under which the standard library asks for shared objects.

use std::path::Path;
use std::process::Command;
use std::{env, fs};

/// What the standard library asks for, and what is linked instead.
const LIBRARIES: [(&str, &str); 7] = [
    ("gcc_s", "gcc_eh"),
    ("util", "util"),
    ("rt", "rt"),
    ("pthread", "pthread"),
    ("m", "m"),
    ("dl", "dl"),
    ("c", "c"),
];

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let variable = |name: &str| env::var(name).unwrap_or_default();
    if variable("PROFILE") == "release" {
        println!("cargo::rustc-link-arg-bins=-Wl,-s");
    }
    let is_gnu =
        variable("CARGO_CFG_TARGET_OS") == "linux" && variable("CARGO_CFG_TARGET_ENV") == "gnu";
    let features = variable("CARGO_CFG_TARGET_FEATURE");
    if !is_gnu || features.split(',').any(|feature| feature == "crt-static") {
        return;
    }
    let folder = variable("OUT_DIR");
    let linker = env::var("RUSTC_LINKER").unwrap_or_else(|_| "cc".to_owned());
    for (asked, linked) in LIBRARIES {
        let Some(archive) = archive(&linker, linked) else {
            println!("cargo::warning=no lib{linked}.a: podswitch-cni is linked dynamically");
            return;
        };
        // A linker script. The folder comes before the system's.
        let script = Path::new(&folder).join(format!("lib{asked}.a"));
        fs::write(&script, format!("INPUT ( {archive} )\n")).expect("OUT_DIR can be written");
    }
    // Not by `rustc-link-search`: Cargo passes that to the doctests of all packages of the same command, too, which would
    // be linked half statically and end with SIGSEGV.
    for argument in ["-static", "-no-pie", &format!("-L{folder}")] {
        println!("cargo::rustc-link-arg-bins={argument}");
    }
}

/// Path of a static library, if the linker has it.
fn archive(linker: &str, name: &str) -> Option<String> {
    let name = format!("lib{name}.a");
    let output = Command::new(linker).arg(format!("-print-file-name={name}")).output().ok()?;
    let path = String::from_utf8(output.stdout).ok()?.trim().to_owned();
    (path != name && Path::new(&path).exists()).then_some(path)
}
