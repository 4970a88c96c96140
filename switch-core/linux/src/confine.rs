//! Least privilege for a running switch: capabilities for each thread, no new privileges, no core
//! dumps, and an allow list of system calls (seccomp).
//!
//! A program calls [`process`] first, then starts the thread that owns the switch, then drops the
//! capabilities that only that thread needs in every other thread ([`keep_capabilities`]). Threads
//! inherit the capabilities of their parent.
//!
//! Capabilities belong to a thread, see capabilities(7). System calls that are not on the list fail
//! with EPERM; the process continues, so a missing call causes an error message and not an outage.

mod calls;

use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use rustix::thread::{
    CapabilitySets, capabilities, capability_is_in_bounding_set,
    remove_capability_from_bounding_set, set_capabilities, set_no_new_privs,
};
use seccompiler::apply_filter_all_threads;

pub use rustix::thread::CapabilitySet;

use super::{Context, HostError};

/// The capabilities of the thread that sets up interfaces and enters namespaces: CAP_NET_ADMIN and
/// CAP_NET_RAW for devices and packet sockets, CAP_SYS_ADMIN for setns(2), CAP_SYS_PTRACE for
/// `/proc/PID/ns/net` of processes that have more capabilities.
pub const CONTROL: CapabilitySet = CapabilitySet::NET_ADMIN
    .union(CapabilitySet::NET_RAW)
    .union(CapabilitySet::SYS_ADMIN)
    .union(CapabilitySet::SYS_PTRACE);

/// A worker keeps no capability: its devices are already open.
pub const WORKER: CapabilitySet = CapabilitySet::empty();

/// Drops for the whole process everything that a switch never needs: privileges of programs that it
/// could execute, core dumps and ptrace(2) by others, every capability except `keep`, and system
/// calls that are not on the list. The calling thread keeps the capabilities in `keep` that it had.
///
/// # Errors
/// The kernel refuses one of the steps, such as a filter if it was built without seccomp. The steps
/// before it remain in force.
pub fn process(keep: CapabilitySet) -> Result<(), HostError> {
    set_no_new_privs(true).context(|| "give up new privileges".into())?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable).context(|| "give up core dumps".into())?;
    bound_capabilities(keep)?;
    keep_capabilities(keep)?;
    filter_system_calls()
}

/// As [`process`], without any capability, for a process that only keeps descriptors. Its system calls are restricted later
/// ([`holder_calls`]).
///
/// # Errors
/// As [`process`].
pub fn holder() -> Result<(), HostError> {
    set_no_new_privs(true).context(|| "give up new privileges".into())?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable).context(|| "give up core dumps".into())?;
    bound_capabilities(CapabilitySet::empty())?;
    keep_capabilities(CapabilitySet::empty())
}

/// Restricts the process to the system calls of one that listens on a socket that is open already, and keeps descriptors.
///
/// # Errors
/// As [`process`].
pub fn holder_calls() -> Result<(), HostError> {
    apply_filter_all_threads(&calls::holder().map_err(filter_error)?).map_err(filter_error)
}

/// Removes all capabilities except `keep` from the calling thread, permanently. It gains none.
///
/// # Errors
/// The kernel refuses it, which is not expected.
pub fn keep_capabilities(keep: CapabilitySet) -> Result<(), HostError> {
    let now = capabilities(None).context(|| "read capabilities".into())?;
    let sets = CapabilitySets {
        effective: now.effective & keep,
        permitted: now.permitted & keep,
        inheritable: CapabilitySet::empty(),
    };
    set_capabilities(None, sets).context(|| "give up capabilities".into())
}

/// A worker's thread calls this first.
pub fn worker_thread() {
    // It fails only if the kernel has no capabilities; then there is nothing to drop.
    let _ = keep_capabilities(WORKER);
}

/// Removes all capabilities except `keep` from the bounding set, which limits the capabilities that
/// execve(2) could restore.
fn bound_capabilities(keep: CapabilitySet) -> Result<(), HostError> {
    let now = capabilities(None).context(|| "read capabilities".into())?;
    if !now.effective.contains(CapabilitySet::SETPCAP) {
        // Not allowed here, and not needed: execve(2) cannot add privileges any more.
        return Ok(());
    }
    for capability in CapabilitySet::all().iter() {
        // Kernels that do not know the capability return EINVAL.
        if !keep.contains(capability) && capability_is_in_bounding_set(capability).unwrap_or(false)
        {
            remove_capability_from_bounding_set(capability)
                .context(|| format!("remove {capability:?} from the bounding set"))?;
        }
    }
    Ok(())
}

/// Restricts all threads of the process, now and later, to the system calls of the list.
fn filter_system_calls() -> Result<(), HostError> {
    for filter in calls::filters().map_err(filter_error)? {
        apply_filter_all_threads(&filter).map_err(filter_error)?;
    }
    Ok(())
}

fn filter_error(error: impl std::fmt::Display) -> HostError {
    HostError::new("filter system calls", std::io::Error::other(error.to_string()))
}
