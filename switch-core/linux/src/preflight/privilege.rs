//! The privileges of this process: capabilities, namespaces, the tun device, descriptors.

use std::fs;
use std::io;

use rustix::process::{Resource, getrlimit};
use rustix::thread::CapabilitySet;

use super::check::{Check, Options};
use crate::port::tap;
use crate::{HostError, NetNs};

/// Number of descriptors in addition to those of pods: sockets, files, namespaces.
const OTHER_DESCRIPTORS: u64 = 256;

pub(super) fn checks(options: &Options) -> Vec<Check> {
    vec![
        capabilities(),
        namespaces(),
        user_namespaces(),
        tun(tap::is_available().err().as_ref()),
        descriptors(getrlimit(Resource::Nofile).maximum, options),
    ]
}

/// The purpose of each capability.
const NEEDED: [(CapabilitySet, &str, &str); 3] = [
    (CapabilitySet::NET_ADMIN, "NET_ADMIN", "interfaces, routes, nftables"),
    (CapabilitySet::NET_RAW, "NET_RAW", "packet sockets"),
    (
        CapabilitySet::SYS_ADMIN,
        "SYS_ADMIN",
        "setns(2): pods' interfaces are made in their namespaces",
    ),
];

fn capabilities() -> Check {
    let effective = rustix::thread::capabilities(None).map(|c| c.effective);
    missing_capabilities(effective.unwrap_or(CapabilitySet::empty()))
}

fn missing_capabilities(effective: CapabilitySet) -> Check {
    let missing = NEEDED.iter().filter(|(capability, ..)| !effective.contains(*capability));
    let missing: Vec<String> = missing.map(|(_, name, what)| format!("{name} ({what})")).collect();
    if missing.is_empty() {
        return Check::ok("capabilities", "NET_ADMIN, NET_RAW and SYS_ADMIN are there");
    }
    let found = format!("missing: {}", missing.join(", "));
    let mend = "run as root, or add them to the container's securityContext.capabilities.add";
    Check::fail("capabilities", found, mend)
}

fn namespaces() -> Check {
    const NAME: &str = "namespaces";
    match NetNs::anonymous().and_then(|ns| ns.enter(|| ())) {
        Ok(()) => Check::ok(NAME, "network namespaces can be made and entered"),
        Err(error) => {
            let mend = "run as root with CAP_SYS_ADMIN; a security module or a seccomp profile may forbid setns(2) and \
                        unshare(2)";
            Check::fail(NAME, error.to_string(), mend)
        }
    }
}

/// Only unprivileged users need them: `demo` and tests.
fn user_namespaces() -> Check {
    const NAME: &str = "user namespaces";
    let read = |key: &str| fs::read_to_string(format!("/proc/sys/{key}"));
    let is = |key: &str, value: &str| read(key).is_ok_and(|text| text.trim() == value);
    let found = if is("user/max_user_namespaces", "0") {
        "disabled (user.max_user_namespaces is 0)"
    } else if is("kernel/unprivileged_userns_clone", "0") {
        "only root may make them (kernel.unprivileged_userns_clone is 0)"
    } else if is("kernel/apparmor_restrict_unprivileged_userns", "1") {
        "AppArmor takes privilege away in them (kernel.apparmor_restrict_unprivileged_userns is 1)"
    } else {
        return Check::ok(NAME, "there are");
    };
    Check::ok(NAME, format!("{found}: `run` needs none, `demo` as an ordinary user does"))
}

fn tun(error: Option<&HostError>) -> Check {
    const NAME: &str = "tun";
    let Some(error) = error else { return Check::ok(NAME, "/dev/net/tun can be opened") };
    let mend = match (error.kind(), error.raw_os_error()) {
        (io::ErrorKind::NotFound, _) => {
            "load the module (`modprobe tun`, and in /etc/modules-load.d), and in a container mount /dev/net/tun".to_owned()
        }
        // The device cgroup returns EPERM, a file's mode EACCES.
        (_, Some(libc::EPERM)) => "the device cgroup denies it: runc 1.2.0 to 1.2.3 deny /dev/net/tun to containers that are \
                                   not privileged (1.2.4 mends that): upgrade runc, or run the container privileged; with \
                                   other runtimes allow the character device 10:200 rwm"
            .to_owned(),
        (_, Some(libc::ENODEV | libc::ENXIO)) => {
            "the kernel has no tun driver: load or build it (CONFIG_TUN)".to_owned()
        }
        _ => "run as root, or `chmod 0666 /dev/net/tun`".to_owned(),
    };
    let found = format!("{error}: pods can only be attached by veth pairs, which are slower");
    Check::fail(NAME, found, mend)
}

/// Every pod's port needs a descriptor for each worker; the switch raises its own limit to the hard limit.
fn descriptors(hard: Option<u64>, options: &Options) -> Check {
    const NAME: &str = "descriptors";
    let needed = (options.pods * options.workers) as u64 + OTHER_DESCRIPTORS;
    match hard {
        Some(hard) if hard < needed => {
            let (pods, workers) = (options.pods, options.workers);
            let found =
                format!("{hard} at most, and {pods} pods with {workers} workers need {needed}");
            Check::warn(
                NAME,
                found,
                "raise the hard limit: LimitNOFILE= of the container runtime's unit",
            )
        }
        Some(hard) => Check::ok(NAME, format!("up to {hard}, {needed} are needed")),
        None => Check::ok(NAME, "unlimited"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::check::Level;
    use super::*;

    #[test]
    fn missing_capabilities_are_named() {
        let check = missing_capabilities(CapabilitySet::NET_ADMIN | CapabilitySet::CHOWN);
        assert_eq!(check.level, Level::Fail);
        assert!(check.found.contains("NET_RAW") && check.found.contains("SYS_ADMIN"), "{check:?}");
        assert!(!check.found.contains("NET_ADMIN"), "{check:?}");
        assert_eq!(missing_capabilities(CapabilitySet::all()).level, Level::Ok);
    }

    #[test]
    fn the_cause_of_an_unusable_tun_device_is_named() {
        let with = |errno| {
            let error = HostError::new("open /dev/net/tun", io::Error::from_raw_os_error(errno));
            tun(Some(&error))
        };
        assert!(with(libc::ENOENT).mend.contains("modprobe tun"));
        assert!(with(libc::EPERM).mend.contains("runc 1.2.0 to 1.2.3"));
        assert!(with(libc::EACCES).mend.contains("chmod"));
        assert!([libc::ENOENT, libc::EPERM].map(with).iter().all(|c| c.level == Level::Fail));
        assert_eq!(tun(None).level, Level::Ok);
    }

    #[test]
    fn descriptors_are_counted_for_each_worker() {
        let mut options = Options::new(NetNs::current().unwrap());
        assert_eq!(descriptors(Some(1024), &options).level, Level::Ok);
        options.workers = 4;
        assert_eq!(descriptors(Some(1024), &options).level, Level::Warn);
        assert_eq!(descriptors(None, &options).level, Level::Ok);
    }
}
