//! Interfaces: created, changed, removed, listed.

use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoData, InfoKind, InfoVeth, InfoVxlan,
    LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use podswitch_wire::addr::Mac;

use super::{HostError, NetNs, Netlink};

/// An interface as the kernel reports it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its index in its namespace.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its MAC address, if it is an Ethernet interface.
    pub mac: Option<Mac>,
    /// Its MTU, in bytes.
    pub mtu: u32,
    /// Whether it is up (administratively).
    pub is_up: bool,
    /// Whether it has a carrier (its other end is up).
    pub is_running: bool,
    /// Its kind: `veth`, `tun`, `bridge`, `vxlan`, … `None` for hardware.
    pub kind: Option<String>,
    /// The bridge that it is a port of.
    pub master: Option<u32>,
    /// Index of the other end of a veth pair, or of the lower interface of a VLAN or tunnel, in
    /// that interface's namespace.
    pub peer: Option<u32>,
}

/// Settings of a new interface.
#[derive(Clone, Debug, Default)]
pub struct LinkSpec {
    name: String,
    mac: Option<Mac>,
    mtu: Option<u32>,
    up: bool,
}

impl LinkSpec {
    /// An interface with that name and the kernel's defaults, down.
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), ..Self::default() }
    }

    /// Sets the MAC address.
    #[must_use]
    pub fn mac(mut self, mac: Mac) -> Self {
        self.mac = Some(mac);
        self
    }

    /// Sets the MTU, in bytes.
    #[must_use]
    pub fn mtu(mut self, mtu: u32) -> Self {
        self.mtu = Some(mtu);
        self
    }

    /// Brings it up.
    #[must_use]
    pub fn up(mut self) -> Self {
        self.up = true;
        self
    }

    fn down(mut self) -> Self {
        self.up = false;
        self
    }

    fn message(&self) -> LinkMessage {
        let mut message = LinkMessage::default();
        if self.up {
            message.header.flags |= LinkFlags::Up;
            message.header.change_mask |= LinkFlags::Up;
        }
        message.attributes.push(LinkAttribute::IfName(self.name.clone()));
        if let Some(mac) = self.mac {
            message.attributes.push(LinkAttribute::Address(mac.0.to_vec()));
        }
        if let Some(mtu) = self.mtu {
            message.attributes.push(LinkAttribute::Mtu(mtu));
        }
        message
    }
}

/// Settings of a kernel VXLAN interface.
#[derive(Clone, Debug)]
pub struct Vxlan {
    /// VXLAN network identifier.
    pub vni: u32,
    /// The local VTEP.
    pub local: Option<IpAddr>,
    /// Destination of frames to unknown addresses: a VTEP or a multicast group.
    pub remote: Option<IpAddr>,
    /// UDP destination port.
    pub port: u16,
    /// Whether it learns VTEPs from received packets.
    pub learning: bool,
    /// The interface that it runs over.
    pub link: Option<u32>,
}

impl Netlink {
    /// Creates a pair of interfaces, one in this namespace and the other in `peer_ns`. Returns the
    /// index of the first one.
    ///
    /// # Errors
    /// A name is taken; missing privilege in either namespace.
    pub fn add_veth(
        &mut self,
        here: &LinkSpec,
        peer: &LinkSpec,
        peer_ns: &NetNs,
    ) -> Result<u32, HostError> {
        // Neither end can be brought up before both exist, which is only after the request.
        let (here_off, peer_off) = (here.clone().down(), peer.clone().down());
        let mut peer_message = peer_off.message();
        peer_message.attributes.push(LinkAttribute::NetNsFd(peer_ns.as_fd().as_raw_fd()));
        let data = InfoData::Veth(InfoVeth::Peer(peer_message));
        let what = || format!("create veth pair {} and {} in {peer_ns}", here.name, peer.name);
        let index = self.add(&here_off, InfoKind::Veth, Some(data), what)?;
        if here.up {
            self.set_up(index)?;
        }
        if peer.up {
            let mut netlink = Self::open(peer_ns)?;
            let peer_index = netlink.link(&peer.name)?.index;
            netlink.set_up(peer_index)?;
        }
        Ok(index)
    }

    /// Creates a bridge. Returns its index.
    ///
    /// # Errors
    /// The name is taken; missing privilege.
    pub fn add_bridge(&mut self, spec: &LinkSpec) -> Result<u32, HostError> {
        self.add(spec, InfoKind::Bridge, None, || format!("create bridge {}", spec.name))
    }

    /// Creates a dummy interface, which drops all packets. Returns its index.
    ///
    /// # Errors
    /// The name is taken; missing privilege; a kernel without support.
    pub fn add_dummy(&mut self, spec: &LinkSpec) -> Result<u32, HostError> {
        self.add(spec, InfoKind::Dummy, None, || format!("create dummy interface {}", spec.name))
    }

    /// Creates a kernel VXLAN interface. Returns its index.
    ///
    /// # Errors
    /// The name or its VNI and port are taken; missing privilege; a kernel without support.
    pub fn add_vxlan(&mut self, spec: &LinkSpec, vxlan: &Vxlan) -> Result<u32, HostError> {
        let mut data = vec![
            InfoVxlan::Id(vxlan.vni),
            InfoVxlan::Port(vxlan.port),
            InfoVxlan::Learning(vxlan.learning),
        ];
        data.extend(vxlan.local.map(|address| match address {
            IpAddr::V4(a) => InfoVxlan::Local(a),
            IpAddr::V6(a) => InfoVxlan::Local6(a),
        }));
        data.extend(vxlan.remote.map(|address| match address {
            IpAddr::V4(a) => InfoVxlan::Group(a),
            IpAddr::V6(a) => InfoVxlan::Group6(a),
        }));
        data.extend(vxlan.link.map(InfoVxlan::Link));
        let what = || format!("create VXLAN interface {} with VNI {}", spec.name, vxlan.vni);
        self.add(spec, InfoKind::Vxlan, Some(InfoData::Vxlan(data)), what)
    }

    fn add(
        &mut self,
        spec: &LinkSpec,
        kind: InfoKind,
        data: Option<InfoData>,
        what: impl Fn() -> String,
    ) -> Result<u32, HostError> {
        let mut message = spec.message();
        let mut info = vec![LinkInfo::Kind(kind)];
        info.extend(data.map(LinkInfo::Data));
        message.attributes.push(LinkAttribute::LinkInfo(info));
        let message = RouteNetlinkMessage::NewLink(message);
        self.request(message, NLM_F_CREATE | NLM_F_EXCL, what)?;
        Ok(self.link(&spec.name)?.index)
    }

    /// The interface of that name.
    ///
    /// # Errors
    /// There is none (`is_not_found`).
    pub fn link(&mut self, name: &str) -> Result<Link, HostError> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        let operation = || format!("look up interface {name}");
        let not_there =
            || HostError::new(operation(), std::io::Error::from_raw_os_error(libc::ENODEV));
        match self.get(RouteNetlinkMessage::GetLink(message), operation)? {
            Some(RouteNetlinkMessage::NewLink(message)) => Ok(read(message)),
            _ => Err(not_there()),
        }
    }

    /// Number of frames that the kernel dropped on transmission by an interface since the interface
    /// was created: for a TAP interface, those for which its queue had no room.
    ///
    /// # Errors
    /// The interface no longer exists.
    pub fn tx_dropped(&mut self, index: u32) -> Result<u64, HostError> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        let operation = || format!("read counters of interface {index}");
        let answer = self.get(RouteNetlinkMessage::GetLink(message), operation)?;
        let Some(RouteNetlinkMessage::NewLink(message)) = answer else { return Ok(0) };
        let dropped = message.attributes.iter().find_map(|attribute| match attribute {
            LinkAttribute::Stats64(stats) => Some(stats.tx_dropped),
            _ => None,
        });
        Ok(dropped.unwrap_or(0))
    }

    /// The interface of that name, or `None`.
    ///
    /// # Errors
    /// The kernel refused the query.
    pub fn find_link(&mut self, name: &str) -> Result<Option<Link>, HostError> {
        match self.link(name) {
            Ok(link) => Ok(Some(link)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The interface with that index, or `None`.
    ///
    /// # Errors
    /// The kernel refused the query.
    pub fn find_link_at(&mut self, index: u32) -> Result<Option<Link>, HostError> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        let operation = || format!("look up interface {index}");
        match self.get(RouteNetlinkMessage::GetLink(message), operation) {
            Ok(Some(RouteNetlinkMessage::NewLink(message))) => Ok(Some(read(message))),
            Ok(_) => Ok(None),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Every interface of the namespace.
    ///
    /// # Errors
    /// The kernel refused the query.
    pub fn links(&mut self) -> Result<Vec<Link>, HostError> {
        let list = self.dump(RouteNetlinkMessage::GetLink(LinkMessage::default()), || {
            "list interfaces".into()
        })?;
        Ok(list
            .into_iter()
            .filter_map(|message| match message {
                RouteNetlinkMessage::NewLink(message) => Some(read(message)),
                _ => None,
            })
            .collect())
    }

    /// Removes an interface, and its other end if it is a veth.
    ///
    /// # Errors
    /// There is none, or it cannot be removed.
    pub fn delete_link(&mut self, index: u32) -> Result<(), HostError> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        self.request(RouteNetlinkMessage::DelLink(message), 0, || {
            format!("remove interface {index}")
        })
    }

    /// Brings an interface up.
    ///
    /// # Errors
    /// There is none; missing privilege.
    pub fn set_up(&mut self, index: u32) -> Result<(), HostError> {
        self.set_flag(index, LinkFlags::Up)
    }

    /// Brings an interface down.
    ///
    /// # Errors
    /// There is none; missing privilege.
    pub fn set_down(&mut self, index: u32) -> Result<(), HostError> {
        self.set_flag(index, LinkFlags::empty())
    }

    fn set_flag(&mut self, index: u32, up: LinkFlags) -> Result<(), HostError> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.header.flags = up;
        message.header.change_mask = LinkFlags::Up;
        let word = if up.is_empty() { "off" } else { "on" };
        self.request(RouteNetlinkMessage::SetLink(message), 0, || {
            format!("switch {word} interface {index}")
        })
    }

    /// Sets the MTU, in bytes.
    ///
    /// # Errors
    /// The interface does not accept this MTU.
    pub fn set_mtu(&mut self, index: u32, mtu: u32) -> Result<(), HostError> {
        self.set(index, LinkAttribute::Mtu(mtu), || format!("set MTU {mtu} of interface {index}"))
    }

    /// Sets the MAC address.
    ///
    /// # Errors
    /// The interface does not accept this address.
    pub fn set_mac(&mut self, index: u32, mac: Mac) -> Result<(), HostError> {
        self.set(index, LinkAttribute::Address(mac.0.to_vec()), || {
            format!("set address {mac} of interface {index}")
        })
    }

    /// Renames an interface, which must be down on kernels before 6.3.
    ///
    /// # Errors
    /// The name is taken, or too long.
    pub fn rename(&mut self, index: u32, name: &str) -> Result<(), HostError> {
        self.set(index, LinkAttribute::IfName(name.to_owned()), || {
            format!("rename interface {index} to {name}")
        })
    }

    /// Makes an interface a port of the bridge `master`; `None`: of no bridge.
    ///
    /// # Errors
    /// The interface cannot be a bridge port.
    pub fn set_master(&mut self, index: u32, master: Option<u32>) -> Result<(), HostError> {
        self.set(index, LinkAttribute::Controller(master.unwrap_or(0)), || match master {
            Some(master) => format!("make interface {index} a port of bridge {master}"),
            None => format!("take interface {index} from its bridge"),
        })
    }

    /// Moves an interface to another namespace. It loses its addresses and goes down; its index may
    /// change.
    ///
    /// # Errors
    /// Its name is used there, or it cannot leave its namespace.
    pub fn set_netns(&mut self, index: u32, ns: &NetNs) -> Result<(), HostError> {
        self.set(index, LinkAttribute::NetNsFd(ns.as_fd().as_raw_fd()), || {
            format!("move interface {index} to {ns}")
        })
    }

    /// Prevents IPv6 from adding an fe80::/64 address to the interface automatically.
    ///
    /// # Errors
    /// IPv6 is disabled on the interface.
    pub fn set_no_link_local(&mut self, index: u32) -> Result<(), HostError> {
        self.set(index, no_link_local(), || {
            format!("switch off the link-local address of interface {index}")
        })
    }

    fn set(
        &mut self,
        index: u32,
        attribute: LinkAttribute,
        operation: impl Fn() -> String,
    ) -> Result<(), HostError> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.attributes.push(attribute);
        self.request(RouteNetlinkMessage::SetLink(message), 0, operation)
    }
}

fn no_link_local() -> LinkAttribute {
    let mode = AfSpecInet6::AddrGenMode(In6AddrGenMode::None);
    LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![mode])])
}

fn read(message: LinkMessage) -> Link {
    let flags = message.header.flags;
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        mac: None,
        mtu: 0,
        is_up: flags.contains(LinkFlags::Up),
        is_running: flags.contains(LinkFlags::Running),
        kind: None,
        master: None,
        peer: None,
    };
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name,
            LinkAttribute::Address(bytes) => link.mac = bytes.try_into().ok().map(Mac),
            LinkAttribute::Mtu(mtu) => link.mtu = mtu,
            LinkAttribute::Controller(index) => link.master = Some(index),
            LinkAttribute::Link(index) => link.peer = Some(index),
            LinkAttribute::LinkInfo(info) => {
                link.kind = info.into_iter().find_map(|info| match info {
                    LinkInfo::Kind(kind) => Some(kind.to_string()),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    link
}
