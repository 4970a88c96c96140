//! `run` with least privilege: only one thread may enter namespaces.

use std::thread;

use podswitch_linux::confine::{self, CapabilitySet};

use super::flags::UnderlayFlags;
use crate::failure::Failure;
use crate::{Done, output};

/// Runs `serve` on a separate thread, which keeps the privileges needed to attach pods. The calling
/// thread keeps CAP_NET_ADMIN, and CAP_NET_RAW if the underlay needs packet sockets. Workers keep
/// nothing.
///
/// If the kernel cannot confine the process, this is logged, and the switch runs nevertheless.
pub(super) fn run(underlay: &UnderlayFlags, serve: impl FnOnce() -> Done + Send) -> Done {
    if let Err(error) = confine::process(confine::CONTROL) {
        tracing::warn!(target: "run", %error, "the process cannot be fully confined");
    }
    // Threads inherit the reduced privileges.
    let failed = |e| Failure::Setup(format!("cannot start a thread: {e}"));
    output::start().map_err(failed)?;
    thread::scope(|scope| {
        let control = thread::Builder::new().name("control".to_owned()).spawn_scoped(scope, serve);
        let control = control.map_err(failed)?;
        let mut keep = CapabilitySet::NET_ADMIN;
        if underlay.uses_packet_sockets() {
            keep |= CapabilitySet::NET_RAW;
        }
        if let Err(error) = confine::keep_capabilities(keep) {
            tracing::warn!(target: "run", %error, "the process cannot be fully confined");
        }
        control.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}
