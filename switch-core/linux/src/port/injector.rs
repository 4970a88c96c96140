//! Sends tunnelled GSO packets unsegmented.
//!
//! Neither a packet socket nor a UDP socket can request segmentation by a header inside a UDP tunnel; a TAP interface
//! can (Linux 6.17). So a TAP interface is created beside the uplink, and nf_tables forwards frames that are written to
//! it directly to the uplink. The kernel segments them if the uplink cannot. Nothing is received from the TAP
//! interface.
//!
//! Control threads create it; all ports of the uplink share it.

use std::io::IoSlice;
use std::net::UdpSocket;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use podswitch_core::packet::{Packet, tunnel_offsets};
use podswitch_core::port::DeviceFiles;
use rustix::io::Errno;

use super::tap::{key, open_tun_file};
use super::virtio::{self, HeaderForm};
use crate::handover::Inherited;
use crate::netlink::Link;
use crate::nft::Installed;
use crate::nft::forward::{forward, forward_by_note, remove_forward};
use crate::sys::{ethtool, tun};
use crate::{Context, HostError, NetNs, Netlink};

/// Prefix of table names; the TAP's name follows.
const TABLE_PREFIX: &str = "podswitch-";

const HEADER: usize = HeaderForm::Tunnel.len();

/// The offload that a device must have. Otherwise the kernel would segment tunnel packets one by one, which costs more
/// than segmenting UDP (decision record 0006).
pub(super) const FEATURE: &str = "tx-udp_tnl-segmentation";

/// Where frames of the TAP interface go.
#[derive(Clone, Copy, Debug)]
enum Way {
    /// Out of this interface.
    Interface(u32),
    /// To the link and next hop in their headers ([`forward_by_note`]).
    Note,
}

impl Way {
    fn install(self, ns: &NetNs, table: &str, from: &str) -> Result<Installed, HostError> {
        match self {
            Self::Interface(index) => forward(ns, table, from, index),
            Self::Note => forward_by_note(ns, table, from),
        }
    }
}

/// Keeps an injector's forwarding up, on the control thread.
#[derive(Debug)]
pub(super) struct Upkeep {
    ns: NetNs,
    table: String,
    from: String,
    way: Way,
    installed: Installed,
}

impl Upkeep {
    /// Restores the forwarding if somebody changed it. Returns a description of each repair.
    pub(super) fn repair(&mut self) -> Vec<String> {
        // If the query or the repair fails, it is tried again later. Without the TAP interface there is nothing to
        // restore.
        if self.installed.is_intact().unwrap_or(true) {
            return Vec::new();
        }
        match self.way.install(&self.ns, &self.table, &self.from) {
            Ok(installed) => {
                self.installed = installed;
                vec![format!("nftables table {}", self.table)]
            }
            Err(_) => Vec::new(),
        }
    }
}

#[derive(Debug)]
pub(super) struct Injector {
    ns: NetNs,
    table: String,
    queue: Arc<OwnedFd>,
    /// Another process goes on with it.
    stays: AtomicBool,
}

impl Injector {
    /// An injector beside the interface `uplink` of `ns`, and the value that maintains it. `None`: it would gain
    /// nothing for this interface.
    ///
    /// # Errors
    /// This kernel does not support it, or privilege is missing.
    pub(super) fn open(
        ns: &NetNs,
        uplink: &Link,
        inherited: &Inherited,
    ) -> Result<Option<(Self, Upkeep)>, HostError> {
        // The name identifies the interface, and has at most the length of an interface name.
        let name = format!("pst{}", uplink.index);
        let what = || format!("make TAP {name} for uplink {} in {ns}", uplink.name);
        let useful = ns
            .enter(|| {
                let socket = UdpSocket::bind((std::net::Ipv4Addr::UNSPECIFIED, 0))?;
                ethtool::has_feature(socket.as_fd(), &uplink.name, FEATURE)
            })?
            .context(what)?;
        if !useful {
            return Ok(None);
        }
        Self::make(ns, &name, uplink.mtu, Way::Interface(uplink.index), inherited).map(Some)
    }

    /// For the tunnel of a UDP port in the node's own stack: frames go to the link and next hop in their headers
    /// ([`forward_by_note`]).
    ///
    /// # Errors
    /// This kernel does not support it, or privilege is missing.
    pub(super) fn by_note(
        ns: &NetNs,
        port: u16,
        inherited: &Inherited,
    ) -> Result<(Self, Upkeep), HostError> {
        Self::make(ns, &format!("psu{port}"), 1500, Way::Note, inherited)
    }

    fn make(
        ns: &NetNs,
        name: &str,
        mtu: u32,
        way: Way,
        inherited: &Inherited,
    ) -> Result<(Self, Upkeep), HostError> {
        let what = || format!("make TAP {name} in {ns}");
        let flags = tun::IFF_TAP | tun::IFF_NO_PI | tun::IFF_VNET_HDR;
        let queue = inherited.take(&key(ns, name)?).into_iter().next();
        // Its interface may have been deleted since its switch has ended.
        let is_usable = |queue: &OwnedFd| {
            inherited.has_predecessor()
                || tun::interface(queue.as_fd()).is_ok_and(|(of, _)| of == name)
        };
        let queue = match queue.filter(is_usable) {
            Some(queue) => queue,
            None => ns.enter(|| {
                let fd = open_tun_file()?;
                tun::set_interface(fd.as_fd(), name, flags).context(what)?;
                Ok::<_, HostError>(fd)
            })??,
        };
        tun::set_header_len(queue.as_fd(), HEADER as i32).context(what)?;
        let tcp = tun::TUN_F_CSUM | tun::TUN_F_TSO4 | tun::TUN_F_TSO6 | tun::TUN_F_TSO_ECN;
        let udp = tun::TUN_F_USO4 | tun::TUN_F_USO6;
        let tunnel = tun::TUN_F_UDP_TUNNEL_GSO | tun::TUN_F_UDP_TUNNEL_GSO_CSUM;
        tun::set_offloads(queue.as_fd(), tcp | udp | tunnel).context(what)?;
        let mut netlink = Netlink::open(ns)?;
        let link = netlink.link(name)?;
        netlink.set_no_link_local(link.index)?;
        if link.mtu != mtu {
            netlink.set_mtu(link.index, mtu)?;
        }
        let injector = Self {
            ns: ns.clone(),
            table: format!("{TABLE_PREFIX}{name}"),
            queue: Arc::new(queue),
            stays: AtomicBool::new(inherited.has_predecessor()),
        };
        // Installed before the interface is brought up, because nothing may ever enter the stack from it.
        let installed = way.install(ns, &injector.table, name)?;
        netlink.set_up(link.index)?;
        let table = injector.table.clone();
        let upkeep = Upkeep { ns: ns.clone(), table, from: name.to_owned(), way, installed };
        Ok((injector, upkeep))
    }

    /// The file by which another process goes on with it.
    pub(super) fn files(&self) -> Option<DeviceFiles> {
        let key = key(&self.ns, self.name()).ok()?;
        Some(DeviceFiles { key, files: vec![Arc::clone(&self.queue)] })
    }

    /// Says whether the forwarding stays when this is dropped: another process goes on with it.
    pub(super) fn leave_in_force(&self, stays: bool) {
        self.stays.store(stays, Ordering::Relaxed);
    }

    /// The TAP's name.
    pub(super) fn name(&self) -> &str {
        self.table.strip_prefix(TABLE_PREFIX).unwrap_or(&self.table)
    }

    /// Sends one frame.
    ///
    /// # Errors
    /// `EINVAL`: the inner IP packet of a tunnelled GSO packet does not end where the frame ends. A
    /// UDP socket at the other end relies on that (`received::Received`). Otherwise the kernel's
    /// error.
    pub(super) fn send(&self, packet: &Packet) -> Result<(), Errno> {
        let mut header = [0; HEADER];
        virtio::encode(&packet.offload, HeaderForm::Tunnel, &mut header);
        if let Some(places) = tunnel_offsets(packet) {
            if !places.is_exact {
                return Err(Errno::INVAL);
            }
            virtio::encode_tunnel(&places, &mut header);
        }
        let parts = [IoSlice::new(&header), IoSlice::new(packet.bytes())];
        rustix::io::writev(&self.queue, &parts).map(drop)
    }
}

impl Drop for Injector {
    fn drop(&mut self) {
        if self.stays.load(Ordering::Relaxed) {
            return;
        }
        // In the worst case an empty table is left; there is no caller to report to.
        let _ = remove_forward(&self.ns, &self.table);
    }
}
