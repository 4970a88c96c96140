//! Bursts on packet sockets: `recvmmsg` and `sendmmsg` over packets in their buffers.

use std::io;
use std::os::fd::BorrowedFd;

use arrayvec::ArrayVec;
use podswitch_core::packet::{BATCH, Packet, Pool};

/// Length of the virtio-net header of packet sockets.
pub(crate) const VNET_HEADER: usize = 10;

/// Control data of one message: a `cmsghdr` and a `tpacket_auxdata`.
const CONTROL: usize = 40;

/// Buffers for one received message.
pub(crate) struct Slot {
    /// The virtio-net header.
    pub(crate) header: [u8; VNET_HEADER],
    /// The first [`Pool::SMALL`] bytes of the frame.
    pub(crate) small: Packet,
    /// The bytes after those, at the same offset as in the packet.
    pub(crate) large: Packet,
    /// Length of the frame; bytes that exceed both buffers are truncated.
    pub(crate) len: usize,
    /// The VLAN tag that the kernel removed from the frame: TPID and TCI.
    pub(crate) vlan: Option<(u16, u16)>,
    control: Control,
}

#[repr(C, align(8))]
#[derive(Clone, Copy)]
struct Control([u8; CONTROL]);

impl Slot {
    /// An empty slot. `small` and `large` are a small and a large packet of a pool.
    pub(crate) fn new(small: Packet, large: Packet) -> Self {
        debug_assert!(small.capacity() >= Pool::SMALL && large.capacity() > Pool::SMALL);
        let control = Control([0; CONTROL]);
        Self { header: [0; VNET_HEADER], small, large, len: 0, vlan: None, control }
    }
}

/// Receives up to `slots.len()` frames without waiting. Returns how many.
pub(crate) fn receive(socket: BorrowedFd<'_>, slots: &mut [Slot]) -> io::Result<usize> {
    let mut parts: ArrayVec<[libc::iovec; 3], BATCH> = ArrayVec::new();
    let mut messages: ArrayVec<libc::mmsghdr, BATCH> = ArrayVec::new();
    for slot in slots.iter_mut().take(BATCH) {
        parts.push([
            iovec(&mut slot.header),
            iovec(&mut slot.small.spare_mut()[..Pool::SMALL]),
            iovec(&mut slot.large.spare_mut()[Pool::SMALL..]),
        ]);
    }
    for (part, slot) in parts.iter_mut().zip(slots.iter_mut()) {
        let mut message = message(part);
        message.msg_hdr.msg_control = slot.control.0.as_mut_ptr().cast();
        message.msg_hdr.msg_controllen = CONTROL as _;
        messages.push(message);
    }
    // SAFETY: every pointer in `messages` is to memory that `parts` and `slots` hold with the
    // length given beside it, exclusively borrowed until after the call.
    let count = unsafe { super::receive_messages(socket, &mut messages)? };
    for (slot, message) in slots.iter_mut().zip(&messages).take(count) {
        slot.len = (message.msg_len as usize).saturating_sub(VNET_HEADER);
        let control = super::control_len(&message.msg_hdr).min(CONTROL);
        slot.vlan = vlan(&slot.control.0[..control]);
    }
    Ok(count)
}

/// Sends each frame behind its header, without waiting. Returns how many were sent: fewer than all
/// if one is refused; the next call then returns its error.
pub(crate) fn send(
    socket: BorrowedFd<'_>,
    headers: &[[u8; VNET_HEADER]],
    packets: &[Packet],
) -> io::Result<usize> {
    let mut parts: ArrayVec<[libc::iovec; 2], BATCH> = ArrayVec::new();
    let mut messages: ArrayVec<libc::mmsghdr, BATCH> = ArrayVec::new();
    for (header, packet) in headers.iter().zip(packets).take(BATCH) {
        parts.push([iovec_to_read(header), iovec_to_read(packet.bytes())]);
    }
    for part in &mut parts {
        messages.push(message(part));
    }
    // SAFETY: every pointer in `messages` is to memory that `parts`, `headers` and `packets` hold
    // with the length given beside it; the kernel only reads it.
    unsafe { super::send_messages(socket, &mut messages) }
}

fn iovec(bytes: &mut [u8]) -> libc::iovec {
    libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() }
}

/// For `sendmmsg`, which does not write through the pointer although its type allows it.
fn iovec_to_read(bytes: &[u8]) -> libc::iovec {
    libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() }
}

fn message(parts: &mut [libc::iovec]) -> libc::mmsghdr {
    libc::mmsghdr { msg_hdr: super::message_header(parts.as_mut_ptr(), parts.len()), msg_len: 0 }
}

/// The VLAN tag in PACKET_AUXDATA, if there is one. The control data is that of a single message,
/// `struct cmsghdr` (16 bytes) and `struct tpacket_auxdata`.
fn vlan(control: &[u8]) -> Option<(u16, u16)> {
    let word = |at: usize| Some(u32::from_ne_bytes(control.get(at..at + 4)?.try_into().ok()?));
    let half = |at: usize| Some(u16::from_ne_bytes(control.get(at..at + 2)?.try_into().ok()?));
    if word(8)? != libc::SOL_PACKET as u32 || word(12)? != libc::PACKET_AUXDATA as u32 {
        return None;
    }
    vlan_tag(word(16)?, half(32)?, half(34)?)
}

/// The VLAN tag from the status word, tag control information and tag protocol of a frame.
pub(crate) fn vlan_tag(status: u32, tci: u16, tpid: u16) -> Option<(u16, u16)> {
    const TP_STATUS_VLAN_VALID: u32 = 1 << 4;
    const TP_STATUS_VLAN_TPID_VALID: u32 = 1 << 6;
    if status & TP_STATUS_VLAN_VALID == 0 {
        return None;
    }
    let known = status & TP_STATUS_VLAN_TPID_VALID != 0;
    Some((if known { tpid } else { podswitch_wire::parse::ethertype::VLAN }, tci))
}
