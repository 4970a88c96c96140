//! Interfaces, addresses, routes, neighbours and routing rules of a network namespace, through
//! rtnetlink: each request waits for its answer in the calling thread.
//!
//! ```no_run
//! # use podswitch_linux::{NetNs, Netlink, netlink::{LinkSpec, Route}};
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let (left, right) = (NetNs::create("left")?, NetNs::create("right")?);
//! let mut netlink = Netlink::open(&left)?;
//! let index = netlink.add_veth(&LinkSpec::new("eth0").up(), &LinkSpec::new("eth0").up(), &right)?;
//! netlink.add_address(index, "10.0.0.1/24".parse()?)?;
//! netlink.add_route(&Route::to("0.0.0.0/0".parse()?).via("10.0.0.2".parse()?).link(index))?;
//! # Ok(())
//! # }
//! ```

mod address;
mod changes;
mod link;
mod neighbour;
mod route;
mod rule;

pub use address::{Address, InterfaceAddress};
pub use changes::Changes;
pub use link::{Link, LinkSpec, Vxlan};
pub use neighbour::Neighbour;
pub use route::Route;
pub use rule::Rule;

use std::io;
use std::net::IpAddr;
use std::os::fd::AsFd;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_ACK_TLVS, NLM_F_CAPPED, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST,
    NetlinkHeader, NetlinkMessage, NetlinkPayload, NlasIterator,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::{Socket, protocols};
use rustix::net::sockopt;

use super::{Context, HostError, NetNs};

/// A connection to the kernel's rtnetlink in one network namespace.
#[derive(Debug)]
pub struct Netlink {
    socket: Socket,
    sequence: u32,
}

impl Netlink {
    /// Connects to `ns`.
    ///
    /// # Errors
    /// The namespace cannot be entered.
    pub fn open(ns: &NetNs) -> Result<Self, HostError> {
        ns.enter(Self::open_here)?
    }

    /// Connects to the calling thread's namespace.
    ///
    /// # Errors
    /// No netlink socket can be opened.
    pub fn open_here() -> Result<Self, HostError> {
        let socket = open_socket(protocols::NETLINK_ROUTE)
            .context(|| "open a NETLINK_ROUTE socket".into())?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Sends a request that is answered by success or an error.
    fn request(
        &mut self,
        message: RouteNetlinkMessage,
        flags: u16,
        operation: impl Fn() -> String,
    ) -> Result<(), HostError> {
        self.send(message, NLM_F_REQUEST | NLM_F_ACK | flags).context(&operation)?;
        self.answers(&operation, false, |_| {})
    }

    /// Sends a request whose answer is one object.
    fn get(
        &mut self,
        message: RouteNetlinkMessage,
        operation: impl Fn() -> String,
    ) -> Result<Option<RouteNetlinkMessage>, HostError> {
        self.send(message, NLM_F_REQUEST | NLM_F_ACK).context(&operation)?;
        let mut answer = None;
        self.answers(&operation, false, |message| answer = Some(message))?;
        Ok(answer)
    }

    /// Sends a request whose answer is a list; repeats the request if the list changed meanwhile.
    fn dump(
        &mut self,
        message: RouteNetlinkMessage,
        operation: impl Fn() -> String,
    ) -> Result<Vec<RouteNetlinkMessage>, HostError> {
        const ATTEMPTS: usize = 10;
        for _ in 0..ATTEMPTS {
            self.send(message.clone(), NLM_F_REQUEST | NLM_F_DUMP).context(&operation)?;
            let mut list = Vec::new();
            match self.answers(&operation, true, |message| list.push(message)) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => return result.map(|()| list),
            }
        }
        Err(HostError::new(operation(), io::Error::from(io::ErrorKind::Interrupted)))
    }

    fn send(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = flags;
        header.sequence_number = self.sequence;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::from(message));
        message.finalize();
        let mut buffer = vec![0; message.buffer_len()];
        message.serialize(&mut buffer);
        self.socket.send(&buffer, 0).map(drop)
    }

    /// Calls `object` with each object of the answer.
    fn answers(
        &self,
        operation: &impl Fn() -> String,
        is_dump: bool,
        mut object: impl FnMut(RouteNetlinkMessage),
    ) -> Result<(), HostError> {
        let mut interrupted = false;
        loop {
            let (datagram, _) = self.socket.recv_from_full().context(operation)?;
            let mut rest = &datagram[..];
            while !rest.is_empty() {
                let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest)
                    .map_err(|e| HostError::new(operation(), io::Error::other(e)))?;
                let length = (message.header.length as usize).next_multiple_of(4).min(rest.len());
                rest = &rest[length.max(1)..];
                if message.header.sequence_number != self.sequence {
                    continue;
                }
                interrupted |= message.header.flags & NLM_F_DUMP_INTR != 0;
                match message.payload {
                    NetlinkPayload::Error(error) if error.code.is_none() => return Ok(()),
                    NetlinkPayload::Error(error) => {
                        let detail = extended_ack(message.header.flags, &error.header);
                        return Err(HostError::new(operation(), error.to_io()).with_detail(detail));
                    }
                    NetlinkPayload::Done(done) if done.code < 0 => {
                        let error = io::Error::from_raw_os_error(-done.code);
                        return Err(HostError::new(operation(), error));
                    }
                    NetlinkPayload::Done(_) if is_dump && interrupted => {
                        let error = io::Error::from(io::ErrorKind::Interrupted);
                        return Err(HostError::new(operation(), error));
                    }
                    NetlinkPayload::Done(_) => return Ok(()),
                    NetlinkPayload::InnerMessage(message) => object(message),
                    _ => {}
                }
            }
        }
    }
}

/// A netlink socket with extended errors and a timeout: if the kernel does not answer at once, it
/// never will.
pub(super) fn open_socket(protocol: isize) -> io::Result<Socket> {
    let mut socket = Socket::new(protocol)?;
    socket.bind_auto()?;
    // Old kernels support neither; then only the error number is known.
    let _ = socket.set_ext_ack(true);
    let _ = socket.set_cap_ack(true);
    let timeout = std::time::Duration::from_secs(10);
    sockopt::set_socket_timeout(socket.as_fd(), sockopt::Timeout::Recv, Some(timeout))?;
    Ok(socket)
}

/// The kernel's message for an error number (NLMSGERR_ATTR_MSG).
pub(super) fn extended_ack(flags: u16, payload: &[u8]) -> Option<String> {
    const NLMSGERR_ATTR_MSG: u16 = 1;
    if flags & NLM_F_ACK_TLVS == 0 {
        return None;
    }
    // The request's header, and the rest of the request unless the kernel left it out.
    let skip = if flags & NLM_F_CAPPED != 0 {
        16
    } else {
        u32::from_ne_bytes(payload.get(..4)?.try_into().ok()?) as usize
    };
    NlasIterator::new(payload.get(skip.next_multiple_of(4)..)?)
        .filter_map(Result::ok)
        .find(|nla| nla.kind() == NLMSGERR_ATTR_MSG)
        .map(|nla| String::from_utf8_lossy(nla.value()).trim_end_matches('\0').to_owned())
}

fn family_of(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}
