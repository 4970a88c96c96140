//! Which pod is attached, and where its interface is.

use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use podswitch_kubernetes::LocalPod;
use podswitch_linux::port::{tap, underlay_mac};
use podswitch_linux::{HostError, NetNs};
use podswitch_policy::rule::{Labels, NamedPort};
use podswitch_policy::service::model::HostPort;
use podswitch_wire::addr::Mac;

use crate::error::PodError;
use crate::pod_name::PodName;

/// Longest name of an interface, in bytes (IFNAMSIZ less the final zero).
const MAX_INTERFACE_NAME: usize = 15;
/// Where a pod's network namespace is.
#[derive(Clone, Debug)]
pub enum PodNetns {
    /// A path such as `/run/netns/web` or `/proc/1234/ns/net`. If another namespace is there later,
    /// because the pod was restarted, the pod is attached again.
    Path(PathBuf),
    /// A path, as long as it leads to the namespace of this device and inode ([`NetNs::id`]): paths are used again.
    Pinned(PathBuf, (u64, u64)),
    /// An open namespace, from a descriptor too ([`NetNs::try_from`]).
    Open(NetNs),
}

impl PodNetns {
    /// The namespace as it is now.
    pub(crate) fn open(&self) -> Result<NetNs, HostError> {
        match self {
            Self::Path(path) => NetNs::open(path),
            Self::Pinned(path, id) => {
                let namespace = NetNs::open(path)?;
                match namespace.id() {
                    Ok(found) if found == *id => Ok(namespace),
                    _ => {
                        let other =
                            io::Error::new(io::ErrorKind::NotFound, "it is another one now");
                        Err(HostError::new(format!("use {namespace}"), other))
                    }
                }
            }
            Self::Open(namespace) => Ok(namespace.clone()),
        }
    }

    fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Path(a), Self::Path(b)) => a == b,
            (Self::Pinned(_, a), Self::Pinned(_, b)) => a == b,
            (Self::Open(a), Self::Open(b)) => a.is_same(b),
            _ => false,
        }
    }
}

impl From<NetNs> for PodNetns {
    fn from(namespace: NetNs) -> Self {
        Self::Open(namespace)
    }
}

impl From<PathBuf> for PodNetns {
    fn from(path: PathBuf) -> Self {
        Self::Path(path)
    }
}

impl From<&Path> for PodNetns {
    fn from(path: &Path) -> Self {
        Self::Path(path.to_owned())
    }
}

impl From<&str> for PodNetns {
    fn from(path: &str) -> Self {
        Self::Path(path.into())
    }
}

/// The device that a pod is attached by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum InterfaceKind {
    /// A TAP made in the pod's namespace.
    Tap,
    /// A veth pair, the switch's end under AF_PACKET.
    Veth,
}

impl InterfaceKind {
    /// TAP where this process may create one, otherwise veth.
    pub fn available() -> Self {
        if tap::is_available().is_ok() { Self::Tap } else { Self::Veth }
    }
}

/// A pod to attach: which one, and where and how.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct PodAttachment {
    /// The pod.
    pub pod: PodName,
    /// Its network namespace.
    pub netns: PodNetns,
    /// Name of the interface as the pod sees it.
    pub interface: String,
    /// Kind of device.
    pub kind: InterfaceKind,
    /// MAC address of the interface.
    pub mac: Mac,
    /// The pod's addresses, at most one of each family.
    pub addresses: Vec<IpAddr>,
    /// `None`: the state describes the pod, and nothing passes before it does (N13). `Some`: while
    /// the state does not describe the pod, the node publishes it itself, with these labels.
    pub labels: Option<Labels>,
    /// Named container ports, published with the labels.
    pub ports: Vec<NamedPort>,
    /// Ports of the node that lead to the pod, while the state has none for it.
    pub host_ports: Arc<[HostPort]>,
    /// What becomes of an interface of that name which is there already.
    pub existing: ExistingInterface,
}

/// What attaching a pod makes of an interface that is there already.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum ExistingInterface {
    /// One of the right kind is used: an earlier run left it.
    #[default]
    Use,
    /// The same, if it has the pod's MAC address; another one is an error.
    UseOwn,
    /// It is an error.
    Refuse,
}

impl PodAttachment {
    /// A pod with these addresses by `eth0`: a TAP where this process may create one, otherwise veth. The MAC
    /// address is derived from the first address.
    pub fn new(
        pod: PodName,
        netns: impl Into<PodNetns>,
        addresses: impl IntoIterator<Item = IpAddr>,
    ) -> Self {
        let addresses: Vec<IpAddr> = addresses.into_iter().collect();
        Self {
            pod,
            netns: netns.into(),
            interface: "eth0".to_owned(),
            kind: InterfaceKind::available(),
            mac: addresses.first().map_or(Mac::ZERO, |address| underlay_mac(*address)),
            addresses,
            labels: None,
            ports: Vec::new(),
            host_ports: Arc::default(),
            existing: ExistingInterface::default(),
        }
    }

    /// Sets the interface's name.
    #[must_use]
    pub fn interface(mut self, name: impl Into<String>) -> Self {
        self.interface = name.into();
        self
    }

    /// Sets the kind of device.
    #[must_use]
    pub fn kind(mut self, kind: InterfaceKind) -> Self {
        self.kind = kind;
        self
    }

    /// Sets the MAC address.
    #[must_use]
    pub fn mac(mut self, mac: Mac) -> Self {
        self.mac = mac;
        self
    }

    /// Makes the node publish the pod with these labels while the state does not describe it.
    #[must_use]
    pub fn labels(mut self, labels: Labels) -> Self {
        self.labels = Some(labels);
        self
    }

    /// Has the node publish these named ports with the labels.
    #[must_use]
    pub fn ports(mut self, ports: Vec<NamedPort>) -> Self {
        self.ports = ports;
        self
    }

    /// Opens ports of the node that lead to the pod, while the state has none for it.
    #[must_use]
    pub fn host_ports(mut self, ports: impl Into<Arc<[HostPort]>>) -> Self {
        self.host_ports = ports.into();
        self
    }

    /// Sets what becomes of an interface of that name which is there already.
    #[must_use]
    pub fn existing(mut self, existing: ExistingInterface) -> Self {
        self.existing = existing;
        self
    }

    /// From the annotations of a pod, if they name an interface.
    pub(crate) fn annotated(pod: &LocalPod) -> Option<Self> {
        let place = pod.interface.as_ref()?;
        Some(Self {
            pod: PodName::unchecked(&pod.name),
            netns: PodNetns::Path(place.netns.clone()),
            interface: place.name.clone(),
            kind: match place.kind {
                podswitch_kubernetes::InterfaceKind::Tap => InterfaceKind::Tap,
                podswitch_kubernetes::InterfaceKind::Veth => InterfaceKind::Veth,
            },
            mac: pod.mac,
            addresses: pod.addresses.clone(),
            labels: None,
            ports: Vec::new(),
            host_ports: Arc::default(),
            existing: ExistingInterface::default(),
        })
    }

    /// Checks the values.
    pub(crate) fn check(&self) -> Result<(), PodError> {
        let refuse = |field, reason: String| Err(PodError::Invalid { field, reason });
        let is_printable = |b: u8| b.is_ascii_graphic() && b != b'/';
        let name = self.interface.as_str();
        let is_dots = name == "." || name == "..";
        if name.is_empty()
            || name.len() > MAX_INTERFACE_NAME
            || is_dots
            || !name.bytes().all(is_printable)
        {
            return refuse("interface", format!("{name:?} is not an interface name"));
        }
        if !self.mac.is_unicast() {
            return refuse("mac", format!("{} is not a unicast address", self.mac));
        }
        if self.addresses.is_empty() {
            return refuse("addresses", "is empty".to_owned());
        }
        for is_ipv6 in [false, true] {
            if self.addresses.iter().filter(|a| a.is_ipv6() == is_ipv6).count() > 1 {
                let family = if is_ipv6 { "IPv6" } else { "IPv4" };
                return refuse("addresses", format!("more than one of {family}"));
            }
        }
        for address in &self.addresses {
            if address.is_unspecified() || address.is_multicast() || address.is_loopback() {
                return refuse("addresses", format!("{address} is not the address of a pod"));
            }
        }
        Ok(())
    }

    /// Whether both describe the same interface.
    pub(crate) fn is_same_interface(&self, other: &Self) -> bool {
        self.netns.is_same(&other.netns)
            && (&self.interface, self.kind) == (&other.interface, other.kind)
            && (self.mac, &self.addresses) == (other.mac, &other.addresses)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attachments_are_checked() {
        let name = PodName::new("default", "web").unwrap();
        let addresses: [IpAddr; 2] = [[10, 1, 0, 2].into(), "fd00::2".parse().unwrap()];
        let good = PodAttachment::new(name, "/run/netns/web", addresses);
        assert_eq!(good.mac, Mac([0x0a, 0x58, 10, 1, 0, 2]));
        good.check().unwrap();
        let refused = |attachment: PodAttachment| match attachment.check() {
            Err(PodError::Invalid { field, .. }) => field,
            other => panic!("{other:?}"),
        };
        for name in ["", "a-name-too-long-", "a b", "a/b", ".."] {
            assert_eq!(refused(good.clone().interface(name)), "interface", "{name:?}");
        }
        for mac in [Mac::ZERO, Mac::BROADCAST, Mac([1, 0, 0, 0, 0, 1])] {
            assert_eq!(refused(good.clone().mac(mac)), "mac");
        }
        let with = |addresses: &[&str]| {
            let addresses = addresses.iter().map(|a| a.parse().unwrap()).collect();
            PodAttachment { addresses, ..good.clone() }
        };
        for wrong in [&[][..], &["10.1.0.2", "10.1.0.3"], &["127.0.0.1"], &["ff02::1"], &["::"]] {
            assert_eq!(refused(with(wrong)), "addresses", "{wrong:?}");
        }
    }
}
