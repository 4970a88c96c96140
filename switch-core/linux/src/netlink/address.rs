//! Addresses of interfaces.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::str::FromStr;
use std::time::Duration;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressScope,
};
use podswitch_wire::cidr::{Cidr, CidrParseError};

use super::{HostError, Netlink, family_of};

/// An address together with the prefix of its network, as an interface has it. Unlike a [`Cidr`] it
/// keeps its host bits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct InterfaceAddress {
    address: IpAddr,
    prefix: u8,
}

impl InterfaceAddress {
    /// An address with a prefix of this many bits. `None` if the address has fewer.
    pub fn new(address: IpAddr, prefix: u8) -> Option<Self> {
        Cidr::new(address, prefix).map(|_| Self { address, prefix })
    }

    /// An address with the full prefix: /32 or /128.
    pub fn host(address: IpAddr) -> Self {
        Self { address, prefix: if address.is_ipv4() { 32 } else { 128 } }
    }

    /// The address.
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// Length of the prefix in bits.
    pub fn prefix(&self) -> u8 {
        self.prefix
    }
}

impl From<IpAddr> for InterfaceAddress {
    fn from(address: IpAddr) -> Self {
        Self::host(address)
    }
}

impl FromStr for InterfaceAddress {
    type Err = CidrParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let prefix = text.parse::<Cidr>()?.prefix();
        let address = text.split_once('/').ok_or(CidrParseError::NoPrefix)?.0.parse()?;
        Ok(Self { address, prefix })
    }
}

impl fmt::Display for InterfaceAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

/// An address that an interface has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Address {
    /// The interface's index.
    pub link: u32,
    /// The address.
    pub address: InterfaceAddress,
    /// Whether duplicate address detection is still running; nothing can be sent from the address
    /// yet.
    pub is_tentative: bool,
}

impl Netlink {
    /// Adds an address to an interface, usable at once (without duplicate address detection). A
    /// no-op if the interface already has it.
    ///
    /// # Errors
    /// There is no such interface; IPv6 is disabled on it; missing privilege.
    pub fn add_address(&mut self, link: u32, address: InterfaceAddress) -> Result<(), HostError> {
        let mut message = message(link, address);
        if address.address.is_ipv6() {
            message.header.flags = AddressHeaderFlags::Nodad;
            message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
        } else if address.prefix < 31
            && let IpAddr::V4(v4) = address.address
        {
            let broadcast = u32::from(v4) | u32::MAX >> address.prefix;
            message.attributes.push(AddressAttribute::Broadcast(Ipv4Addr::from(broadcast)));
        }
        let message = RouteNetlinkMessage::NewAddress(message);
        self.request(message, NLM_F_CREATE | NLM_F_REPLACE, || {
            format!("give interface {link} the address {address}")
        })
    }

    /// Waits until the kernel accepts packets to `address`: for IPv6 this takes some time after the
    /// address was added. The interface must be up.
    ///
    /// # Errors
    /// Timeout after two seconds (`ErrorKind::TimedOut`).
    pub fn wait_until_local(&mut self, address: IpAddr) -> Result<(), HostError> {
        const PAUSE: Duration = Duration::from_millis(2);
        for _ in 0..1000 {
            if self.is_local(address) {
                return Ok(());
            }
            std::thread::sleep(PAUSE);
        }
        let operation = format!("wait for address {address}");
        Err(HostError::new(operation, io::ErrorKind::TimedOut.into()))
    }

    /// Removes an address from an interface.
    ///
    /// # Errors
    /// It has no such address (`is_not_found`).
    pub fn delete_address(
        &mut self,
        link: u32,
        address: InterfaceAddress,
    ) -> Result<(), HostError> {
        self.request(RouteNetlinkMessage::DelAddress(message(link, address)), 0, || {
            format!("take the address {address} from interface {link}")
        })
    }

    /// Every address of the namespace's interfaces.
    ///
    /// # Errors
    /// The kernel refused the query.
    pub fn addresses(&mut self) -> Result<Vec<Address>, HostError> {
        let request = RouteNetlinkMessage::GetAddress(AddressMessage::default());
        let list = self.dump(request, || "list addresses".into())?;
        Ok(list.into_iter().filter_map(read).collect())
    }
}

fn message(link: u32, address: InterfaceAddress) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = family_of(address.address);
    message.header.prefix_len = address.prefix;
    message.header.index = link;
    message.header.scope = match address.address {
        IpAddr::V4(a) if a.is_link_local() => AddressScope::Link,
        _ => AddressScope::Universe,
    };
    message.attributes.push(AddressAttribute::Local(address.address));
    message.attributes.push(AddressAttribute::Address(address.address));
    message
}

fn read(message: RouteNetlinkMessage) -> Option<Address> {
    let RouteNetlinkMessage::NewAddress(message) = message else { return None };
    let (mut local, mut address, mut tentative) = (None, None, false);
    for attribute in message.attributes {
        match attribute {
            AddressAttribute::Local(a) => local = Some(a),
            AddressAttribute::Address(a) => address = Some(a),
            AddressAttribute::Flags(flags) => tentative = flags.contains(AddressFlags::Tentative),
            _ => {}
        }
    }
    Some(Address {
        link: message.header.index,
        address: InterfaceAddress::new(local.or(address)?, message.header.prefix_len)?,
        is_tentative: tentative,
    })
}
