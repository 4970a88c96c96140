//! Packet sockets (packet(7)): opened, bound, and their options.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use super::{check, set};

/// Options that `libc` does not define.
const PACKET_IGNORE_OUTGOING: libc::c_int = 23;
const PACKET_FANOUT_FLAG_UNIQUEID: u32 = 0x2000;

/// A packet socket that receives nothing until it is bound.
pub(crate) fn open() -> io::Result<OwnedFd> {
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: no memory is involved.
    let fd = check(unsafe { libc::socket(libc::AF_PACKET, kind, 0) })?;
    // SAFETY: the descriptor was just made and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Receives from the interface with this index from now on.
pub(crate) fn bind(socket: BorrowedFd<'_>, index: u32) -> io::Result<()> {
    let address = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: (libc::ETH_P_ALL as u16).to_be(),
        sll_ifindex: index as i32,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    // SAFETY: the address is a `sockaddr_ll` that outlives the call, and its length is right.
    check(unsafe {
        libc::bind(
            socket.as_raw_fd(),
            (&raw const address).cast(),
            size_of_val(&address) as libc::socklen_t,
        )
    })
    .map(drop)
}

/// Whether the interface that the socket was bound to no longer exists.
pub(crate) fn is_gone(socket: BorrowedFd<'_>) -> bool {
    // SAFETY: all zero is a valid `sockaddr_ll`, a struct of integers.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    let mut len = size_of_val(&address) as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes to `address`, and `len`.
    let result =
        unsafe { libc::getsockname(socket.as_raw_fd(), (&raw mut address).cast(), &raw mut len) };
    // The kernel reports -1 once the interface is unregistered.
    result < 0 || address.sll_ifindex <= 0
}

/// Takes and clears the error that the socket holds, such as `ENETDOWN`.
pub(crate) fn take_error(socket: BorrowedFd<'_>) -> io::Result<()> {
    rustix::net::sockopt::socket_error(socket)??;
    Ok(())
}

/// Puts the 10-byte virtio-net header in front of each frame.
pub(crate) fn set_vnet_header(socket: BorrowedFd<'_>) -> io::Result<()> {
    set(socket, libc::SOL_PACKET, libc::PACKET_VNET_HDR, &1i32)
}

/// Does not receive frames that this host sends, including the switch's own (Linux 4.20).
pub(crate) fn set_ignore_outgoing(socket: BorrowedFd<'_>) -> io::Result<()> {
    set(socket, libc::SOL_PACKET, PACKET_IGNORE_OUTGOING, &1i32)
}

/// Adds auxiliary data to each received frame: the VLAN tag that the driver removed.
pub(crate) fn set_auxdata(socket: BorrowedFd<'_>) -> io::Result<()> {
    set(socket, libc::SOL_PACKET, libc::PACKET_AUXDATA, &1i32)
}

/// Bypasses the queueing discipline. GSO packets that the device cannot segment are dropped then.
pub(crate) fn set_qdisc_bypass(socket: BorrowedFd<'_>, on: bool) -> io::Result<()> {
    set(socket, libc::SOL_PACKET, libc::PACKET_QDISC_BYPASS, &i32::from(on))
}

/// Queues frames that are too long for a slot of the receive ring completely on the socket as well.
pub(crate) fn set_copy_threshold(socket: BorrowedFd<'_>) -> io::Result<()> {
    set(socket, libc::SOL_PACKET, libc::PACKET_COPY_THRESH, &1i32)
}

/// The layout of receive ring slots.
pub(crate) fn set_ring_version(socket: BorrowedFd<'_>) -> io::Result<()> {
    const TPACKET_V2: i32 = 1;
    set(socket, libc::SOL_PACKET, libc::PACKET_VERSION, &TPACKET_V2)
}

/// Makes the receive ring.
pub(crate) fn set_ring(socket: BorrowedFd<'_>, request: &libc::tpacket_req) -> io::Result<()> {
    set(socket, libc::SOL_PACKET, libc::PACKET_RX_RING, request)
}

/// Receives frames to other hosts' addresses too.
pub(crate) fn set_promiscuous(socket: BorrowedFd<'_>, index: u32) -> io::Result<()> {
    let membership = libc::packet_mreq {
        mr_ifindex: index as i32,
        mr_type: libc::PACKET_MR_PROMISC as u16,
        mr_alen: 0,
        mr_address: [0; 8],
    };
    set(socket, libc::SOL_PACKET, libc::PACKET_ADD_MEMBERSHIP, &membership)
}

/// Sets the receive buffer's size, above the system's limit where that is allowed.
pub(crate) fn set_receive_buffer(socket: BorrowedFd<'_>, bytes: i32) -> io::Result<()> {
    set(socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, &bytes)
        .or_else(|_| set(socket, libc::SOL_SOCKET, libc::SO_RCVBUF, &bytes))
}

/// Sets the send buffer's size, above the system's limit where that is allowed.
pub(crate) fn set_send_buffer(socket: BorrowedFd<'_>, bytes: i32) -> io::Result<()> {
    set(socket, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, &bytes)
        .or_else(|_| set(socket, libc::SOL_SOCKET, libc::SO_SNDBUF, &bytes))
}

/// Joins the fanout group `id`, whose members share the frames by flow; an unused one if `id` is
/// `None`. Returns the group.
pub(crate) fn join_fanout(socket: BorrowedFd<'_>, id: Option<u16>) -> io::Result<u16> {
    // By the hash of the flow, the same for both directions. Not reassembled first
    // (PACKET_FANOUT_FLAG_DEFRAG): the switch needs the original fragments, and all fragments of a
    // datagram reach one member anyway, since their hash covers only the addresses.
    let mut value = libc::PACKET_FANOUT_HASH << 16;
    match id {
        Some(id) => value |= u32::from(id),
        None => value |= PACKET_FANOUT_FLAG_UNIQUEID << 16,
    }
    set(socket, libc::SOL_PACKET, libc::PACKET_FANOUT, &value)?;
    fanout(socket)
}

/// The fanout group that the socket is in.
pub(crate) fn fanout(socket: BorrowedFd<'_>) -> io::Result<u16> {
    let mut joined = 0u32;
    let mut len = size_of_val(&joined) as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes to `joined`, and `len`.
    check(unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_FANOUT,
            (&raw mut joined).cast(),
            &raw mut len,
        )
    })?;
    Ok(joined as u16)
}

/// Lets the socket receive nothing (`true`) or everything.
pub(crate) fn set_deaf(socket: BorrowedFd<'_>, deaf: bool) -> io::Result<()> {
    if !deaf {
        return set(socket, libc::SOL_SOCKET, libc::SO_DETACH_FILTER, &0i32);
    }
    // BPF_RET | BPF_K: keep none of the frame's bytes.
    let mut nothing = libc::sock_filter { code: 0x06, jt: 0, jf: 0, k: 0 };
    let program = libc::sock_fprog { len: 1, filter: &raw mut nothing };
    // The kernel copies the program during the call, while `nothing` lives.
    set(socket, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &program)
}

/// Lets the socket receive everything but UDP datagrams to `port`; replaces any filter. Datagrams
/// with IPv6 extension headers and non-first fragments are received.
pub(crate) fn leave_out_udp(socket: BorrowedFd<'_>, port: u16) -> io::Result<()> {
    // Classes, sizes and modes of classic BPF (linux/filter.h).
    const LOAD_HALF: u16 = 0x28; // BPF_LD | BPF_H | BPF_ABS
    const LOAD_BYTE: u16 = 0x30; // BPF_LD | BPF_B | BPF_ABS
    const LOAD_HALF_BEHIND: u16 = 0x48; // BPF_LD | BPF_H | BPF_IND
    const LOAD_HEADER_LEN: u16 = 0xb1; // BPF_LDX | BPF_B | BPF_MSH
    const ALWAYS: u16 = 0x05; // BPF_JMP | BPF_JA
    const IF_EQUAL: u16 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
    const IF_ANY: u16 = 0x45; // BPF_JMP | BPF_JSET | BPF_K
    const RETURN: u16 = 0x06; // BPF_RET | BPF_K
    let step = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    let mut steps = [
        step(LOAD_HALF, 0, 0, 12),
        step(IF_EQUAL, 0, 7, 0x0800),
        step(LOAD_BYTE, 0, 0, 23),
        step(IF_EQUAL, 0, 10, 17),
        step(LOAD_HALF, 0, 0, 20),
        step(IF_ANY, 8, 0, 0x1fff),
        step(LOAD_HEADER_LEN, 0, 0, 14),
        step(LOAD_HALF_BEHIND, 0, 0, 16),
        step(ALWAYS, 0, 0, 4),
        step(IF_EQUAL, 0, 4, 0x86dd),
        step(LOAD_BYTE, 0, 0, 20),
        step(IF_EQUAL, 0, 2, 17),
        step(LOAD_HALF, 0, 0, 56),
        step(IF_EQUAL, 1, 0, port.into()),
        step(RETURN, 0, 0, u32::MAX),
        step(RETURN, 0, 0, 0),
    ];
    let program = libc::sock_fprog { len: steps.len() as u16, filter: steps.as_mut_ptr() };
    // The kernel copies the program during the call, while `steps` live.
    set(socket, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &program)
}
