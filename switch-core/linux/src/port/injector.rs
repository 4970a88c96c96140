//! Sends tunnelled GSO packets unsegmented.
//!
//! Neither a packet socket nor a UDP socket can request segmentation by a header inside a UDP
//! tunnel; a TAP can (Linux 6.17). So a TAP is created next to the uplink, and nf_tables forwards
//! what is written to it directly to the uplink. The kernel segments what the uplink cannot.
//! Nothing is received from the TAP.
//!
//! It is made by control threads; all ports of the uplink share it.

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

/// What a device must offload. Otherwise the kernel would segment tunnel packets one by one, which
/// costs more than segmenting UDP (decision record 0006).
pub(super) const FEATURE: &str = "tx-udp_tnl-segmentation";

/// Where frames of the TAP go.
#[derive(Clone, Copy, Debug)]
enum Way {
    /// Out of this interface.
    Interface(u32),
    /// Where their notes say ([`forward_by_note`]).
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
    /// Puts the forwarding back if somebody changed it. Returns what was put back, as words for a note.
    pub(super) fn put_back(&mut self) -> Vec<String> {
        // What cannot be found out or put back now is tried again. Without the TAP there is nothing to put back.
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
    /// Beside the interface `uplink` of `ns`; `None` where that gains nothing. With what keeps it up.
    ///
    /// # Errors
    /// This kernel cannot, or privilege is missing.
    pub(super) fn open(
        ns: &NetNs,
        uplink: &Link,
        inherited: &Inherited,
    ) -> Result<Option<(Self, Upkeep)>, HostError> {
        // Says which interface it is for, and is as long as a name may be at most.
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

    /// For the tunnel of a UDP port in the node's own stack: frames go where their notes say
    /// ([`forward_by_note`]).
    ///
    /// # Errors
    /// This kernel cannot, or privilege is missing.
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
        let queue = match inherited.take(&key(ns, name)?).into_iter().next() {
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
        // Before it is switched on: nothing is ever to get from it into the stack.
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
        // At worst an empty table is left; there is no caller to report to.
        let _ = remove_forward(&self.ns, &self.table);
    }
}
