//! Network namespaces for root and ordinary users.
//!
//! A test that needs privilege begins with [`require_privilege!`](crate::require_privilege). As
//! root it continues. For an unprivileged user, the test program is started again for this one
//! test, as root of its own user, network and mount namespaces; the result of that run is the
//! result of the test. If the system does not allow such namespaces, the test is skipped and
//! recorded. It fails instead if `PODSWITCH_REQUIRE_PRIVILEGE=1` promises privilege.

use std::fs;
use std::io::Write as _;
use std::process::{Command, Output};

use podswitch_linux::port::tap;
use podswitch_linux::{NetNs, Netlink, userns};

use crate::record::{self, Outcome};

/// Set for the test program that was started again, to the name of the test.
const INSIDE: &str = "PODSWITCH_TEST_INSIDE";

/// The exit status of a test program that has no privilege in its user namespace.
const NO_PRIVILEGE: i32 = 77;

/// Returns from the test, after it ran in a user namespace or was skipped, unless this process has
/// privilege. Must be the first statement of a test function, or of a function that a test only calls.
#[macro_export]
macro_rules! require_privilege {
    () => {
        if !$crate::privilege::obtain(&$crate::test_name!()) {
            return;
        }
    };
}

/// As [`require_privilege!`](crate::require_privilege) for tests of TAP interfaces, which need
/// `/dev/net/tun` as well.
#[macro_export]
macro_rules! require_tap {
    () => {
        $crate::require_privilege!();
        if !$crate::privilege::has_tap(&$crate::test_name!()) {
            return;
        }
    };
}

/// As [`require_privilege!`](crate::require_privilege), for tests that need more than a user
/// namespace; with the reason.
#[macro_export]
macro_rules! require_root {
    ($reason:expr) => {
        if !$crate::privilege::is_root(&$crate::test_name!(), $reason) {
            return;
        }
    };
}

/// The name of this test in the test harness. Also in a function that a test calls.
#[macro_export]
macro_rules! test_name {
    () => {{
        fn here() {}
        $crate::privilege::name_of(here)
    }};
}

/// The name of the test that calls this. The harness names the thread of each test after it. If it runs tests in its main
/// thread, one after the other: the path of the function in which `here` is defined, without the crate.
pub fn name_of<T>(_here: T) -> String {
    if let Ok(name) = std::env::var(INSIDE) {
        return name;
    }
    match std::thread::current().name() {
        Some(name) if name != MAIN_THREAD && !name.is_empty() => name.to_owned(),
        _ => path_of::<T>().to_owned(),
    }
}

/// The name of a program's first thread.
const MAIN_THREAD: &str = "main";

fn path_of<T>() -> &'static str {
    let path = std::any::type_name::<T>();
    let path = path.strip_suffix("::here").unwrap_or(path);
    let path = path.trim_end_matches("::{{closure}}");
    path.split_once("::").map_or(path, |(_, name)| name)
}

/// Whether the test may continue in this process. Otherwise it has run in another process, or was
/// skipped.
///
/// # Panics
/// If the test failed in its user namespace, or privilege was promised and is missing.
#[track_caller]
pub fn obtain(test: &str) -> bool {
    let inside = std::env::var_os(INSIDE).is_some();
    if userns::has_privilege() && NetNs::anonymous().is_ok() {
        if inside {
            let mut netlink = Netlink::open_here().expect("netlink");
            let lo = netlink.link("lo").expect("every namespace has one").index;
            netlink.set_up(lo).expect("set up");
        }
        return true;
    }
    if inside {
        std::process::exit(NO_PRIVILEGE);
    }
    let program = fs::read_link("/proc/self/exe").expect("a test has a path");
    let mut command = Command::new(program);
    command.args([test, "--exact", "--nocapture", "--include-ignored", "--test-threads=1"]);
    command.env(INSIDE, test);
    if let Some(path) = record::path() {
        command.env(record::FILE, path);
    }
    userns::in_new_user_namespace(&mut command);
    match command.output() {
        Err(error) => missing(test, &format!("no user namespaces here: {error}")),
        Ok(output) if output.status.code() == Some(NO_PRIVILEGE) => {
            missing(test, "user namespaces give no privilege here");
        }
        Ok(output) => report(test, &output),
    }
    false
}

#[track_caller]
fn report(test: &str, output: &Output) {
    let said = String::from_utf8_lossy(&output.stdout);
    print!("{said}");
    let errors = String::from_utf8_lossy(&output.stderr);
    eprint!("{errors}");
    // Written to the terminal directly, so that the test harness does not capture it.
    for line in errors.lines().filter(|line| line.starts_with("SKIPPED: ")) {
        let _ = writeln!(std::io::stderr(), "{line}");
    }
    assert!(output.status.success(), "{test}, in a user namespace: {}", output.status);
    assert!(said.contains(" 1 passed;"), "{test} was not found in its own test program");
    if !String::from_utf8_lossy(&output.stderr).contains(&format!("SKIPPED: {test}: ")) {
        record::add(Outcome::UserNamespace, test, "in a user namespace of its own");
    }
}

/// Whether TAP interfaces can be created; otherwise the test is skipped.
#[track_caller]
pub fn has_tap(test: &str) -> bool {
    match tap::is_available() {
        Ok(()) => true,
        Err(error) => {
            missing(test, &format!("no TAP interfaces: {error}"));
            false
        }
    }
}

/// Whether this process is root of the machine; otherwise the test is skipped.
#[track_caller]
pub fn is_root(test: &str, reason: &str) -> bool {
    let inside = fs::read_to_string("/proc/self/uid_map").is_ok_and(|map| {
        let mut fields = map.split_whitespace().skip(2);
        fields.next() != Some("4294967295")
    });
    let there = userns::has_privilege() && !inside;
    if !there {
        missing(test, reason);
    }
    there
}

#[track_caller]
fn missing(test: &str, reason: &str) {
    let required = std::env::var_os("PODSWITCH_REQUIRE_PRIVILEGE").is_some_and(|v| v == "1");
    assert!(!required, "{test}: {reason}, and PODSWITCH_REQUIRE_PRIVILEGE=1");
    skip(test, reason);
}

/// Prints and records that a test, or a part of it, is skipped.
pub fn skip(test: &str, reason: &str) {
    // Written to the terminal directly, so that the test harness does not capture it.
    let _ = writeln!(std::io::stderr(), "SKIPPED: {test}: {reason}");
    record::add(Outcome::Skipped, test, reason);
}

/// [`skip`]s the test unless a condition holds.
pub fn is_there(test: &str, needed: &str, there: bool) -> bool {
    if !there {
        skip(test, &format!("{needed} is missing"));
    }
    there
}
