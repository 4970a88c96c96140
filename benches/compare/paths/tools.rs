//! Programs of the system that a path needs.

use std::ffi::OsStr;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::{env, fs, thread};

use super::Missing;
use crate::Outcome;

/// The path of a program. Without the program, the data path is unavailable.
pub(crate) fn find(program: &str) -> Result<PathBuf, Missing> {
    let path = env::var_os("PATH").unwrap_or_default();
    // A user's PATH may have fewer folders than root's.
    let places = env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    places
        .map(|folder| folder.join(program))
        .find(|file| file.is_file())
        .ok_or_else(|| Missing::Unavailable(format!("no {program}")))
}

/// The reason if this is a user namespace, in which `what` does not work.
pub(super) fn need_root(what: &str) -> Result<(), Missing> {
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    // The initial user namespace maps all users (user_namespaces(7)).
    match map.split_whitespace().eq(["0", "0", "4294967295"]) {
        true => Ok(()),
        false => Err(Missing::Unavailable(format!("{what} needs root"))),
    }
}

/// Runs a command with text as its input; returns its output.
pub(crate) fn run(command: &mut Command, input: &str) -> Outcome<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let fail = |e: &dyn std::fmt::Display| format!("{name}: {e}");
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| fail(&e))?;
    let mut stdin = child.stdin.take().ok_or_else(|| fail(&"no standard input"))?;
    // Written on another thread, because the command may print much before it has read everything.
    let output = thread::scope(|scope| {
        scope.spawn(move || {
            // If it does not read its input, its exit status shows the reason.
            let _ = stdin.write_all(input.as_bytes());
        });
        child.wait_with_output()
    });
    let output = output.map_err(|e| fail(&e))?;
    if !output.status.success() {
        let error = String::from_utf8_lossy(&output.stderr);
        let end = error.trim().lines().next_back().unwrap_or_default();
        return Err(fail(&format!("{}: {end}", output.status)));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A program's version in one line; empty if it prints none.
pub(crate) fn version(program: impl AsRef<OsStr>) -> String {
    run(Command::new(program).arg("--version"), "").unwrap_or_default().trim().replace('\n', ", ")
}
