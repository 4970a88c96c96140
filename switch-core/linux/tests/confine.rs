//! A confined process: operations that it may no longer perform, and those that it still may. Confinement is permanent
//! and applies to the whole process, so each test starts its own program again and confines that process.

use std::io;
use std::net::UdpSocket;
use std::process::Command;

use podswitch_linux::NetNs;
use podswitch_linux::confine::{self, CapabilitySet};
use podswitch_testkit::test_name;
use rustix::net::{AddressFamily, SocketType, socket};
use rustix::thread::capabilities;

/// Set in the program that confines itself.
const INSIDE: &str = "PODSWITCH_TEST_CONFINED";

/// Runs the test with this name again in a process of its own; the result is the test's result. Returns false in that
/// process.
fn runs_elsewhere(test: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return false;
    }
    let program = std::env::current_exe().expect("a test has a path");
    let status = Command::new(program)
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(INSIDE, "1")
        .status()
        .expect("it starts");
    assert!(status.success(), "{status}");
    true
}

#[track_caller]
fn refused<T>(result: io::Result<T>) {
    let error = result.err().expect("it is refused");
    assert_eq!(error.raw_os_error(), Some(libc::EPERM), "{error}");
}

fn call(number: libc::c_long, arguments: [libc::c_long; 3]) -> io::Result<libc::c_long> {
    let [a, b, c] = arguments;
    // SAFETY: the calls that are tried take numbers, or null pointers, which they refuse.
    match unsafe { libc::syscall(number, a, b, c) } {
        -1 => Err(io::Error::last_os_error()),
        result => Ok(result),
    }
}

#[test]
fn system_calls_that_a_switch_never_makes_are_refused() {
    if runs_elsewhere(&test_name!()) {
        return;
    }
    confine::process(confine::CONTROL).expect("confined");
    refused(Command::new("true").spawn());
    refused(call(libc::SYS_ptrace, [0, 0, 0]));
    refused(call(libc::SYS_bpf, [0, 0, 0]));
    refused(call(libc::SYS_perf_event_open, [0, 0, 0]));
    refused(call(libc::SYS_init_module, [0, 0, 0]));
    refused(call(libc::SYS_kexec_load, [0, 0, 0]));
    refused(call(libc::SYS_keyctl, [0, 0, 0]));
    refused(call(libc::SYS_unshare, [libc::CLONE_NEWUSER.into(), 0, 0]));
    refused(call(libc::SYS_setns, [0, libc::CLONE_NEWNS.into(), 0]));
    refused(call(libc::SYS_clone, [libc::CLONE_NEWUSER.into(), 0, 0]));
    for family in [libc::AF_ALG, libc::AF_VSOCK, libc::AF_KEY] {
        let family = AddressFamily::from_raw(family as u16);
        refused(socket(family, SocketType::RAW, None).map_err(io::Error::from));
    }

    // Threads, sockets and files work as before.
    let sent = std::thread::spawn(|| {
        let socket = UdpSocket::bind("127.0.0.1:0")?;
        socket.send_to(b"x", socket.local_addr()?)
    });
    assert_eq!(sent.join().expect("a thread").expect("a socket"), 1);
    assert!(std::fs::read_to_string("/proc/self/status").expect("a file").contains("Seccomp:\t2"));
    assert!(rustix::thread::no_new_privs().expect("a result"));
}

#[test]
fn each_thread_has_its_own_capabilities() {
    podswitch_testkit::require_privilege!();
    if runs_elsewhere(&test_name!()) {
        return;
    }
    let other = NetNs::anonymous().expect("a namespace");
    confine::process(confine::CONTROL).expect("confined");
    let held = || capabilities(None).expect("a result");
    assert_eq!((held().effective, held().permitted), (confine::CONTROL, confine::CONTROL));
    let worker = std::thread::spawn(move || {
        confine::worker_thread();
        (held(), NetNs::anonymous().is_err())
    });
    let (workers, refused) = worker.join().expect("a thread");
    assert_eq!(workers.permitted, CapabilitySet::empty());
    assert!(refused, "a worker may not create a namespace");
    // The thread that keeps them may.
    assert!(other.enter(|| UdpSocket::bind("127.0.0.1:0")).expect("entered").is_ok());
    confine::keep_capabilities(CapabilitySet::NET_ADMIN).expect("given up");
    assert_eq!(held().permitted, CapabilitySet::NET_ADMIN);
    assert!(other.enter(|| ()).is_err());
}
