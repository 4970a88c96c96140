//! Privilege for an unprivileged user: the program re-executes itself as root of a new user
//! namespace, in which it may create network namespaces and interfaces that nobody else sees.

use std::fs;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::thread::CapabilitySet;

use super::{Context, HostError, Netlink};
use crate::sys;

/// Set in the environment of the re-executed program.
const GUARD: &str = "PODSWITCH_USER_NAMESPACE";

/// The source of the privilege.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Privilege {
    /// The program was started with it and sees the machine's own network.
    Given,
    /// The program is root of its own user, network and mount namespaces and sees nothing of the
    /// machine's network.
    UserNamespace,
}

/// Whether this process may create network namespaces and interfaces (CAP_NET_ADMIN and
/// CAP_SYS_ADMIN).
pub fn has_privilege() -> bool {
    let needed = CapabilitySet::NET_ADMIN | CapabilitySet::SYS_ADMIN;
    rustix::thread::capabilities(None).is_ok_and(|c| c.effective.contains(needed))
}

/// Makes sure that this process may create network namespaces and interfaces. Without privilege it
/// re-executes the program with the same arguments in a new user, network and mount namespace, and
/// does not return; in the new one it returns [`Privilege::UserNamespace`].
///
/// Call it first in `main`, before any thread is started.
///
/// # Errors
/// User namespaces are disabled, or the process has several threads. The error says how to fix it.
pub fn ensure_privilege() -> Result<Privilege, HostError> {
    let inside = std::env::var_os(GUARD).is_some();
    if has_privilege() {
        if !inside {
            return Ok(Privilege::Given);
        }
        let mut netlink = Netlink::open_here()?;
        let lo = netlink.link("lo")?;
        netlink.set_up(lo.index)?;
        return Ok(Privilege::UserNamespace);
    }
    if inside {
        // Do not loop.
        return Err(HostError::invalid(
            "get privilege in a user namespace",
            "the user namespace was made, but gives no privilege (is a security module in the way?)",
        ));
    }
    let threads = fs::read_dir("/proc/self/task").map_or(1, Iterator::count);
    if threads > 1 {
        return Err(HostError::invalid(
            "enter a user namespace",
            format!("the process has {threads} threads already"),
        ));
    }
    Err(start_again())
}

fn start_again() -> HostError {
    let program = match std::env::current_exe().context(|| "find this program".into()) {
        Ok(program) => program,
        Err(error) => return error,
    };
    let mut arguments = std::env::args_os();
    let mut command = Command::new(program);
    command.env(GUARD, "1");
    if let Some(name) = arguments.next() {
        command.arg0(name);
    }
    command.args(arguments);
    in_new_user_namespace(&mut command);
    let error = command.exec();
    let hint = hint(&error);
    HostError::new("start again as root of a new user namespace", error).with_detail(hint)
}

/// Makes `command` start its program as root of new user, network and mount namespaces.
pub fn in_new_user_namespace(command: &mut Command) {
    let uid = rustix::process::geteuid().as_raw();
    let gid = rustix::process::getegid().as_raw();
    sys::ns::new_user_namespace_before_exec(command, uid, gid);
}

/// The setting that prevents user namespaces, as far as the system reports it.
fn hint(error: &io::Error) -> Option<String> {
    let read = |key: &str| fs::read_to_string(format!("/proc/sys/{key}")).ok();
    let is = |key: &str, value: &str| read(key).is_some_and(|v| v.trim() == value);
    let switch = [
        ("user/max_user_namespaces", "0", "is 0: user namespaces are disabled"),
        ("user/max_net_namespaces", "0", "is 0: network namespaces are disabled"),
        ("kernel/unprivileged_userns_clone", "0", "is 0: only root may make user namespaces"),
        (
            "kernel/apparmor_restrict_unprivileged_userns",
            "1",
            "is 1: AppArmor takes privilege away in user namespaces",
        ),
    ];
    let found = switch.iter().find(|(key, value, _)| is(key, value));
    match found {
        Some((key, _, meaning)) => Some(format!("sysctl {key} {meaning}; run as root")),
        None => match error.raw_os_error() {
            Some(libc::EPERM) => {
                Some("ordinary users may not make user namespaces here; run as root".into())
            }
            Some(libc::ENOSPC) => Some("too many user namespaces; run as root".into()),
            Some(libc::ENOSYS) => Some("this kernel has no user namespaces; run as root".into()),
            _ => None,
        },
    }
}
