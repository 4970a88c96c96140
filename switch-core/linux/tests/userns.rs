//! An unprivileged user gets privilege in a user namespace, and can use it there.
//!
//! Without the test harness, which would start threads first: a process with threads may not enter
//! a user namespace. The program starts itself a second time as an unprivileged user.

use podswitch_testkit::net;

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use net::{Peer, ip, pod};
use podswitch_core::port::Device;
use podswitch_linux::attach::{TapOptions, attach_tap, attach_veth, switch_namespace};
use podswitch_linux::port::af_packet::PacketConfig;
use podswitch_linux::port::tap;
use podswitch_linux::userns::{Privilege, ensure_privilege, has_privilege};
use podswitch_linux::{NetNs, Netlink};

/// Set for the second start.
const ROLE: &str = "PODSWITCH_TEST_ORDINARY_USER";
/// Exit status for "cannot be tested here".
const SKIPPED: u8 = 77;
/// An unprivileged user id.
const NOBODY: u32 = 65534;

fn main() -> ExitCode {
    // Test runners pass this argument.
    if std::env::args().any(|argument| argument == "--list") {
        println!("rootless: test");
        return ExitCode::SUCCESS;
    }
    if std::env::var_os(ROLE).is_some() {
        return ordinary_user();
    }
    let status = start_as_ordinary_user();
    let required = std::env::var_os("PODSWITCH_REQUIRE_PRIVILEGE").is_some_and(|v| v == "1");
    match status.code() {
        Some(0) => println!("test rootless ... ok"),
        Some(code) if code == i32::from(SKIPPED) && !required => {
            podswitch_testkit::privilege::skip(
                "rootless",
                "no user namespaces for ordinary users here",
            );
        }
        _ => {
            println!("test rootless ... FAILED ({status})");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

fn start_as_ordinary_user() -> std::process::ExitStatus {
    let program = std::env::current_exe().unwrap();
    if !rustix::process::geteuid().is_root() {
        return Command::new(program).env(ROLE, "1").status().unwrap();
    }
    // The build folder may be closed to that user.
    let copy = std::env::temp_dir().join(format!("podswitch-test-{}", std::process::id()));
    std::fs::copy(program, &copy).unwrap();
    std::fs::set_permissions(&copy, std::fs::Permissions::from_mode(0o755)).unwrap();
    let mut command = Command::new(&copy);
    command.env(ROLE, "1").env_remove("XDG_RUNTIME_DIR").current_dir("/");
    let status = command.uid(NOBODY).gid(NOBODY).status();
    std::fs::remove_file(copy).unwrap();
    status.unwrap()
}

fn ordinary_user() -> ExitCode {
    let before = (rustix::process::geteuid(), rustix::process::getpid());
    match ensure_privilege() {
        Ok(privilege) => assert_eq!(privilege, Privilege::UserNamespace, "{before:?}"),
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::from(SKIPPED);
        }
    }
    assert!(has_privilege() && rustix::process::geteuid().is_root());
    let lo = Netlink::open_here().unwrap().link("lo").unwrap();
    assert!(lo.is_up);
    named_namespaces_work();
    veth_pods_work();
    taps_work_or_report_the_reason();
    ExitCode::SUCCESS
}

fn named_namespaces_work() {
    let ns = NetNs::create("rootless").unwrap();
    assert!(NetNs::find("rootless").unwrap().unwrap().is_same(&ns));
    assert!(NetNs::open(ns.path()).unwrap().is_same(&ns));
    drop(ns);
    assert!(NetNs::find("rootless").unwrap().is_none());
}

fn veth_pods_work() {
    let switch = switch_namespace("rootless").unwrap();
    switch.remove_on_drop();
    let ns = NetNs::anonymous().unwrap();
    let config = PacketConfig::default();
    let mut device = attach_veth(&ns, &pod(&["10.7.0.2"]), &switch, "ps0", config).unwrap();
    exchange(&ns, Peer::new(device.open(0, 1).unwrap()));
}

fn taps_work_or_report_the_reason() {
    let ns = NetNs::anonymous().unwrap();
    match tap::is_available() {
        Ok(()) => {
            let options = TapOptions::default();
            let mut device = attach_tap(&ns, &pod(&["10.7.0.2"]), options).unwrap();
            exchange(&ns, Peer::new(device.open(0, 1).unwrap()));
        }
        Err(error) => {
            assert!(error.is_permission() || error.is_not_found(), "{error}");
            assert!(error.to_string().contains("/dev/net/tun"), "{error}");
            eprintln!("no TAP for ordinary users here: {error}");
        }
    }
}

fn exchange(ns: &NetNs, mut peer: Peer) {
    let socket = ns.enter(|| std::net::UdpSocket::bind((ip("10.7.0.2"), 0))).unwrap().unwrap();
    socket.send_to(b"rootless", (ip("10.8.0.9"), 9)).unwrap();
    assert!(peer.run_until(|frame| frame.ends_with(b"rootless")));
    assert_eq!(socket.recv(&mut [0; 16]).unwrap(), 8);
}
