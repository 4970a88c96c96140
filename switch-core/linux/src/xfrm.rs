//! Whether packets are transformed on their way out (xfrm, IPsec): by NETLINK_XFRM.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, sockopt};

const XFRM_MSG_NEWSPDINFO: u16 = 0x24;
const XFRM_MSG_GETSPDINFO: u16 = 0x25;
/// Attribute with `struct xfrmu_spdinfo`: counts of policies, incoming, outgoing and four more.
const XFRMA_SPD_INFO: u16 = 1;
/// Length of `struct nlmsghdr`.
const HEADER: usize = 16;

/// A socket for queries, in the calling thread's namespace; `None` if the kernel has no xfrm.
pub(crate) fn open() -> io::Result<Option<OwnedFd>> {
    let (family, kind) = (AddressFamily::NETLINK, SocketType::RAW);
    match rustix::net::socket_with(family, kind, SocketFlags::CLOEXEC, Some(netlink::XFRM)) {
        Ok(socket) => {
            let patience = Some(Duration::from_millis(100));
            sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, patience)?;
            Ok(Some(socket))
        }
        Err(rustix::io::Errno::PROTONOSUPPORT) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The number of policies for outgoing packets.
pub(crate) fn outgoing_policies(socket: BorrowedFd<'_>) -> io::Result<u32> {
    const LEN: usize = HEADER + 4;
    let mut request = [0u8; LEN];
    request[..4].copy_from_slice(&(LEN as u32).to_ne_bytes());
    request[4..6].copy_from_slice(&XFRM_MSG_GETSPDINFO.to_ne_bytes());
    request[6..8].copy_from_slice(&(libc::NLM_F_REQUEST as u16).to_ne_bytes());
    // Without an address the message goes to the kernel.
    rustix::net::send(socket, &request, SendFlags::empty())?;
    let mut answer = [0u8; 256];
    let (len, _) = rustix::net::recv(socket, &mut answer, RecvFlags::empty())?;
    outgoing(&answer[..len]).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// Reads the answer.
fn outgoing(answer: &[u8]) -> Option<u32> {
    let half = |at: usize| Some(u16::from_ne_bytes(*answer.get(at..)?.first_chunk()?));
    if half(4)? != XFRM_MSG_NEWSPDINFO {
        return None;
    }
    // Flags, then attributes.
    let mut at = HEADER + 4;
    while half(at + 2)? != XFRMA_SPD_INFO {
        at += usize::from(half(at)?).max(4).next_multiple_of(4);
    }
    Some(u32::from_ne_bytes(*answer.get(at + 8..)?.first_chunk()?))
}
