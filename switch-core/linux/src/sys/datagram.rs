//! Bursts on UDP sockets: `sendmmsg` with gathering and segmentation by the kernel (UDP_SEGMENT),
//! `recvmmsg` of datagrams that the kernel merged (UDP_GRO).

use std::io::{self, IoSlice};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::BorrowedFd;

use arrayvec::ArrayVec;
use podswitch_core::packet::{BATCH, Packet, Pool};

/// A socket address as the kernel reads and writes it.
#[repr(C, align(8))]
#[derive(Clone, Copy)]
pub(crate) struct Name([u8; Name::LEN]);

impl Name {
    /// Length of `struct sockaddr_in6`, the longer one.
    pub(crate) const LEN: usize = size_of::<libc::sockaddr_in6>();

    pub(crate) const fn empty() -> Self {
        Self([0; Self::LEN])
    }

    fn of(address: SocketAddr) -> (Self, usize) {
        let mut bytes = [0; Self::LEN];
        bytes[2..4].copy_from_slice(&address.port().to_be_bytes());
        let (family, len) = match address {
            SocketAddr::V4(v4) => {
                bytes[4..8].copy_from_slice(&v4.ip().octets());
                (libc::AF_INET, size_of::<libc::sockaddr_in>())
            }
            SocketAddr::V6(v6) => {
                bytes[8..24].copy_from_slice(&v6.ip().octets());
                bytes[24..28].copy_from_slice(&v6.scope_id().to_ne_bytes());
                (libc::AF_INET6, Self::LEN)
            }
        };
        bytes[..2].copy_from_slice(&(family as u16).to_ne_bytes());
        (Self(bytes), len)
    }

    /// Reads `struct sockaddr_in` or `sockaddr_in6`; `None` if it is neither.
    pub(crate) fn read(bytes: &[u8]) -> Option<SocketAddr> {
        let family = i32::from(u16::from_ne_bytes(*bytes.first_chunk()?));
        let port = u16::from_be_bytes(*bytes.get(2..)?.first_chunk()?);
        match family {
            libc::AF_INET => {
                let address: [u8; 4] = *bytes.get(4..)?.first_chunk()?;
                Some((Ipv4Addr::from(address), port).into())
            }
            libc::AF_INET6 => {
                let address: [u8; 16] = *bytes.get(8..)?.first_chunk()?;
                let scope = bytes.get(24..)?.first_chunk().map_or(0, |s| u32::from_ne_bytes(*s));
                Some(SocketAddrV6::new(Ipv6Addr::from(address), port, 0, scope).into())
            }
            _ => None,
        }
    }

    pub(crate) fn get(&self) -> Option<SocketAddr> {
        Self::read(&self.0)
    }

    pub(crate) fn as_mut_ptr(&mut self) -> *mut u8 {
        self.0.as_mut_ptr()
    }
}

/// Buffer for control messages, aligned as `struct cmsghdr` requires.
#[repr(C, align(8))]
#[derive(Clone, Copy)]
pub(crate) struct Control([u8; Control::LEN]);

/// Length of `struct cmsghdr`.
const CMSG: usize = size_of::<libc::cmsghdr>();

impl Control {
    /// Three control messages of an `int`, or one about an error.
    pub(crate) const LEN: usize = 96;

    pub(crate) const fn empty() -> Self {
        Self([0; Self::LEN])
    }

    pub(crate) fn as_mut_ptr(&mut self) -> *mut u8 {
        self.0.as_mut_ptr()
    }

    /// Appends a message at `at`; returns the offset of the next one.
    fn push(&mut self, at: usize, level: libc::c_int, kind: libc::c_int, data: &[u8]) -> usize {
        let len = CMSG + data.len();
        let out = &mut self.0[at..];
        out[..8].copy_from_slice(&len.to_ne_bytes());
        out[8..12].copy_from_slice(&level.to_ne_bytes());
        out[12..16].copy_from_slice(&kind.to_ne_bytes());
        out[CMSG..len].copy_from_slice(data);
        at + len.next_multiple_of(8)
    }

    /// Calls `each` for every message in the first `len` bytes: level, kind, data.
    pub(crate) fn each(&self, len: usize, mut each: impl FnMut(libc::c_int, libc::c_int, &[u8])) {
        let mut rest = &self.0[..len.min(Self::LEN)];
        while let Some((head, _)) = rest.split_first_chunk::<CMSG>() {
            let (len, level_kind) = head.split_at(8);
            let len = usize::from_ne_bytes(len.try_into().unwrap_or_default());
            let Some(data) = rest.get(CMSG..len) else { return };
            let int = |at: usize| {
                level_kind[at..].first_chunk().map_or(0, |bytes| i32::from_ne_bytes(*bytes))
            };
            each(int(0), int(4), data);
            rest = rest.get(len.next_multiple_of(8)..).unwrap_or_default();
        }
    }
}

const _: () = assert!(CMSG == 16 && size_of::<usize>() == 8);

/// Datagrams to one destination, for one call.
pub(crate) struct Outgoing<'a> {
    /// The parts of the payload.
    pub(crate) parts: &'a [IoSlice<'a>],
    /// The destination.
    pub(crate) to: SocketAddr,
    /// Traffic class: DSCP and ECN.
    pub(crate) class: u8,
    /// Bytes of each datagram that the kernel segments it into; zero: it is one datagram.
    pub(crate) segment: u16,
}

/// Sends up to [`BATCH`] of `messages` without waiting. Returns how many were sent: fewer than all
/// if one is refused; the next call then returns its error.
pub(crate) fn send(socket: BorrowedFd<'_>, messages: &[Outgoing<'_>]) -> io::Result<usize> {
    let mut names: ArrayVec<(Name, usize), BATCH> = ArrayVec::new();
    let mut controls: ArrayVec<(Control, usize), BATCH> = ArrayVec::new();
    let mut headers: ArrayVec<libc::mmsghdr, BATCH> = ArrayVec::new();
    for message in messages.iter().take(BATCH) {
        names.push(Name::of(message.to));
        let mut control = Control::empty();
        let class = i32::from(message.class).to_ne_bytes();
        let mut len = match message.to {
            SocketAddr::V4(_) => control.push(0, libc::IPPROTO_IP, libc::IP_TOS, &class),
            SocketAddr::V6(_) => control.push(0, libc::IPPROTO_IPV6, libc::IPV6_TCLASS, &class),
        };
        if message.segment != 0 {
            let size = message.segment.to_ne_bytes();
            len = control.push(len, libc::SOL_UDP, libc::UDP_SEGMENT, &size);
        }
        controls.push((control, len));
    }
    for ((message, name), control) in messages.iter().zip(&mut names).zip(&mut controls) {
        // An IoSlice is an iovec, which `sendmmsg` only reads.
        let parts = message.parts.as_ptr().cast_mut().cast();
        let mut header = super::message_header(parts, message.parts.len());
        header.msg_name = name.0.as_mut_ptr().cast();
        header.msg_namelen = name.1 as libc::socklen_t;
        header.msg_control = control.0.as_mut_ptr().cast();
        header.msg_controllen = control.1 as _;
        headers.push(libc::mmsghdr { msg_hdr: header, msg_len: 0 });
    }
    // SAFETY: every pointer in `headers` is to memory that `names`, `controls` and `messages`
    // hold with the length given beside it; the kernel writes to none but `headers`.
    unsafe { super::send_messages(socket, &mut headers) }
}

/// Buffer for one received message: a datagram, or several merged.
pub(crate) struct Slot {
    /// The first [`Pool::SMALL`] bytes.
    pub(crate) small: Packet,
    /// The bytes after those, at the same offset as in the packet.
    pub(crate) large: Packet,
    /// Number of bytes.
    pub(crate) len: usize,
    /// The sender.
    pub(crate) from: Option<SocketAddr>,
    /// Traffic class: DSCP and ECN.
    pub(crate) class: u8,
    /// The segment size that the kernel reported (`UDP_GRO`), in bytes; zero: none.
    /// `received::Received` decides which segments it refers to.
    pub(crate) segment: usize,
    /// Datagrams for which the socket's full buffer had no room, since it was opened
    /// (`SO_RXQ_OVFL`); zero: none, or not known.
    pub(crate) overflow: u32,
    /// The message or its control messages were truncated.
    pub(crate) cut: bool,
}

impl Slot {
    /// An empty slot. `small` and `large` are a small and a large packet of a pool.
    pub(crate) fn new(small: Packet, large: Packet) -> Self {
        debug_assert!(small.capacity() >= Pool::SMALL && large.capacity() > Pool::SMALL);
        Self { small, large, len: 0, from: None, class: 0, segment: 0, overflow: 0, cut: false }
    }
}

/// Maximum number of slots that one call fills.
pub(crate) const SLOTS: usize = 32;

/// Receives into up to [`SLOTS`] of `slots` without waiting. Returns how many were filled.
pub(crate) fn receive(socket: BorrowedFd<'_>, slots: &mut [Slot]) -> io::Result<usize> {
    let mut names: ArrayVec<Name, SLOTS> = ArrayVec::new();
    let mut controls: ArrayVec<Control, SLOTS> = ArrayVec::new();
    let mut parts: ArrayVec<[libc::iovec; 2], SLOTS> = ArrayVec::new();
    let mut headers: ArrayVec<libc::mmsghdr, SLOTS> = ArrayVec::new();
    for slot in slots.iter_mut().take(SLOTS) {
        let (small, large) = (slot.small.spare_mut(), slot.large.spare_mut());
        parts.push([part(&mut small[..Pool::SMALL]), part(&mut large[Pool::SMALL..])]);
        names.push(Name::empty());
        controls.push(Control::empty());
    }
    for ((part, name), control) in parts.iter_mut().zip(&mut names).zip(&mut controls) {
        let mut header = super::message_header(part.as_mut_ptr(), part.len());
        header.msg_name = name.as_mut_ptr().cast();
        header.msg_namelen = Name::LEN as libc::socklen_t;
        header.msg_control = control.as_mut_ptr().cast();
        header.msg_controllen = Control::LEN as _;
        headers.push(libc::mmsghdr { msg_hdr: header, msg_len: 0 });
    }
    // SAFETY: every pointer in `headers` is to memory that `names`, `controls`, `parts` and
    // `slots` hold with the length given beside it, exclusively borrowed until after the call.
    let count = unsafe { super::receive_messages(socket, &mut headers)? };
    for (at, (slot, header)) in slots.iter_mut().zip(&headers).take(count).enumerate() {
        slot.len = header.msg_len as usize;
        slot.cut = header.msg_hdr.msg_flags & (libc::MSG_TRUNC | libc::MSG_CTRUNC) != 0;
        slot.from = names[at].get();
        (slot.class, slot.segment, slot.overflow) =
            facts(&controls[at], super::control_len(&header.msg_hdr));
    }
    Ok(count)
}

/// Traffic class, segment size and overflow from the control messages.
fn facts(control: &Control, len: usize) -> (u8, usize, u32) {
    let (mut class, mut segment, mut overflow) = (0, 0, 0);
    let int = |data: &[u8]| data.first_chunk().map_or(0, |bytes| i32::from_ne_bytes(*bytes));
    control.each(len, |level, kind, data| match (level, kind) {
        (libc::IPPROTO_IP, libc::IP_TOS) => class = data.first().copied().unwrap_or(0),
        (libc::IPPROTO_IPV6, libc::IPV6_TCLASS) => class = int(data) as u8,
        (libc::SOL_SOCKET, libc::SO_RXQ_OVFL) => overflow = int(data) as u32,
        (libc::SOL_UDP, libc::UDP_GRO) => segment = usize::try_from(int(data)).unwrap_or(0),
        _ => {}
    });
    (class, segment, overflow)
}

fn part(bytes: &mut [u8]) -> libc::iovec {
    libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() }
}
