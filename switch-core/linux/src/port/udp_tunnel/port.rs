//! One worker's sockets of a tunnel.

use std::collections::VecDeque;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use podswitch_core::packet::{Batch, Packet, Pool};
use podswitch_core::port::{Port, PortInfo};

use super::plan::Plan;
use super::senders::Senders;
use super::tunnel_gso::TunnelGso;

/// Initial number of slots for a call of `recvmmsg`; grows while bursts fill them.
pub(super) const FEW_SLOTS: usize = 4;

/// A receiving socket.
#[derive(Debug)]
pub(super) struct Receiver {
    pub(super) socket: Arc<OwnedFd>,
    /// The address that it is bound to.
    pub(super) address: IpAddr,
    /// Number of datagrams, or merged runs of them, for which the next call has room.
    pub(super) slots: usize,
    /// Datagrams dropped for lack of buffer space, as far as the kernel counts them. `None`: not known yet.
    pub(super) overflow: Option<u32>,
}

impl Receiver {
    pub(super) fn new(address: IpAddr, socket: OwnedFd, overflow: Option<u32>) -> Self {
        Self { socket: Arc::new(socket), address, slots: FEW_SLOTS, overflow }
    }
}

/// One worker's sockets of a tunnel.
#[derive(Debug)]
pub struct UdpTunnelPort {
    pub(super) receivers: Vec<Receiver>,
    pub(super) senders: Arc<Senders>,
    /// The epoll set: all receivers, `errors`, `signal`.
    pub(super) watch: OwnedFd,
    /// Readable while `reports` holds any.
    pub(super) signal: OwnedFd,
    /// Readable while there are ICMP errors about sent datagrams; only in the port that reads them.
    pub(super) errors: Option<OwnedFd>,
    /// Sending failed with an error that may be one of those.
    pub(super) suspicious: bool,
    pub(super) port: u16,
    /// Sends GSO packets unsegmented.
    pub(super) tunnel_gso: Option<Arc<TunnelGso>>,
    /// Segment size for GSO packets whose segment size is unknown, in bytes.
    pub(super) inner_mtu: usize,
    pub(super) info: PortInfo,
    /// Received frames for which the burst had no room.
    pub(super) waiting: VecDeque<Packet>,
    /// ICMP errors waiting to be received.
    pub(super) reports: VecDeque<Packet>,
    pub(super) plan: Plan,
    /// Datagrams lost here that are not reported yet.
    pub(super) lost: u64,
}

impl Port for UdpTunnelPort {
    fn rx(&mut self, pool: &mut Pool, batch: &mut Batch) -> io::Result<usize> {
        let before = batch.len();
        self.take_reports(batch);
        while !batch.is_full()
            && let Some(packet) = self.waiting.pop_front()
        {
            batch.push(packet);
        }
        if batch.len() == before {
            self.receive(pool, batch)?;
        }
        if self.suspicious {
            self.suspicious = false;
            self.read_errors();
        }
        Ok(batch.len() - before)
    }

    fn tx(&mut self, pool: &mut Pool, batch: &mut Batch) -> io::Result<usize> {
        Ok(self.transmit(pool, batch))
    }

    fn info(&self) -> &PortInfo {
        &self.info
    }

    fn take_lost(&mut self) -> u64 {
        std::mem::take(&mut self.lost)
    }

    fn poll_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.watch.as_fd())
    }

    fn arm(&mut self) -> bool {
        self.read_errors();
        self.waiting.is_empty() && self.reports.is_empty()
    }

    fn hold(&mut self) -> bool {
        !(self.waiting.is_empty() && self.reports.is_empty())
    }
}
