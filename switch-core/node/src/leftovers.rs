//! What runs leave in the node's kernel for the next, where no other run follows.

use podswitch_linux::nft::{Masquerade, MasqueradeConfig};
use podswitch_linux::{HostError, NetNs, settings, steer};

use crate::underlay;

/// Removes what a killed run, or one stopped with [`PodInterfaces::Keep`](crate::PodInterfaces::Keep), left in the
/// node's kernel: steering of Services, masquerading, drops on the uplink, reserved ports, forwarding. What is not there
/// is no error. While a switch runs in the namespace this takes its steering away.
///
/// # Errors
/// Missing privilege; a kernel without nf_tables.
pub fn remove_leftovers(namespace: &NetNs) -> Result<(), HostError> {
    let steered = steer::forget(namespace);
    // Tables of later kernels have gone with their owner.
    let masqueraded = Masquerade::remove(namespace, &MasqueradeConfig::default().table);
    underlay::forget(namespace);
    settings::forget(namespace);
    steered.and(masqueraded)
}
