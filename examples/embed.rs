//! podswitch as a library: two TCP/IP stacks in this process, connected by the switch, move a
//! megabyte. No privilege, no device, no thread.
//!
//! `cargo run --release --example embed`

use std::sync::Arc;

use podswitch::core::config::{Attachment, Config, Endpoint, PortConfig, PortRole};
use podswitch::core::control::{ControlPlane, Options};
use podswitch::core::id::Cookie;
use podswitch::core::port::Offloads;
use podswitch::core::port::memory::{self, MemoryEnd};
use podswitch::core::time::{Clock, Instant};
use podswitch::wire::addr::Mac;
use podswitch_policy::rule::{Labels, Workload};
use smoltcp::iface::{self, Interface, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp::{Socket, SocketBuffer};
use smoltcp::time;
use smoltcp::wire::{EthernetAddress, IpCidr, Ipv4Address};

const MEGABYTE: usize = 1 << 20;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut control = ControlPlane::new(Options::default());
    let mut worker = control.add_worker()?;
    let mut config = Config::default();
    let mut stacks = Vec::new();
    for n in 1..=2u8 {
        let (mac, address) = (Mac([0x0a, 0x58, 10, 1, 0, n]), Ipv4Address::new(10, 1, 0, n));
        let (device, end) = memory::pair(format!("pod{n}"), 1024, Offloads::NONE);
        let port = control.attach(Box::new(device))?;
        config.ports.push(PortConfig { port, role: PortRole::Pod });
        config.endpoints.push(Arc::new(Endpoint {
            cookie: Cookie::new(format!("Pod/default/pod{n}")),
            workload: Workload {
                namespace: "default".into(),
                name: format!("pod{n}").into(),
                labels: Labels::default(),
                addresses: vec![address.into()],
                ports: Vec::new(),
                host_network: false,
            },
            node: "".into(),
            attachment: Some(Attachment { port, mac, mtu: 1500 }),
            precedence: Default::default(),
        }));
        let mut phy = Phy(end);
        let interface = interface(&mut phy, mac, address);
        let buffer = || SocketBuffer::new(vec![0; 65_536]);
        let mut sockets = SocketSet::new(Vec::new());
        let socket = sockets.add(Socket::new(buffer(), buffer()));
        stacks.push((phy, interface, sockets, socket));
    }
    control.apply(&config)?;

    let (_, interface, sockets, socket) = &mut stacks[0];
    let server = (Ipv4Address::new(10, 1, 0, 2), 80);
    sockets.get_mut::<Socket>(*socket).connect(interface.context(), server, 40_000)?;
    let (_, _, sockets, socket) = &mut stacks[1];
    sockets.get_mut::<Socket>(*socket).listen(80)?;

    let micros = |now: Instant| time::Instant::from_micros(now.as_nanos() as i64 / 1000);
    let (clock, mut sent, mut received) = (Clock::start(), 0, 0);
    while received < MEGABYTE {
        let now = clock.now();
        worker.poll(now);
        for (phy, interface, sockets, socket) in &mut stacks {
            interface.poll(micros(now), phy, sockets);
            let socket = sockets.get_mut::<Socket>(*socket);
            if socket.remote_endpoint().is_some_and(|e| e.port == 80) && socket.can_send() {
                sent += socket.send_slice(&vec![7; (MEGABYTE - sent).min(16_384)])?;
            }
            received += socket.recv(|data| (data.len(), data.len())).unwrap_or(0);
        }
    }
    println!("{received} bytes through the switch: {:?}", control.connections());
    Ok(())
}

/// The switch's memory port as a smoltcp device, under a TCP/IP stack with one address, like a pod's.
struct Phy(MemoryEnd);

struct Rx(Vec<u8>);

impl RxToken for Rx {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

struct Tx<'a>(&'a MemoryEnd);

impl TxToken for Tx<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut packet = self.0.buffer(len);
        let result = f(packet.bytes_mut());
        // A full queue loses the frame, as a wire would; TCP retransmits it.
        let _ = self.0.send(packet);
        result
    }
}

impl Device for Phy {
    type RxToken<'a> = Rx;
    type TxToken<'a> = Tx<'a>;

    fn receive(&mut self, _now: time::Instant) -> Option<(Rx, Tx<'_>)> {
        Some((Rx(self.0.recv_frame()?), Tx(&self.0)))
    }

    fn transmit(&mut self, _now: time::Instant) -> Option<Tx<'_>> {
        Some(Tx(&self.0))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = 1514;
        capabilities
    }
}

/// An interface with `address`. To smoltcp all peers are on the link: the switch answers its ARP
/// requests for any of them.
fn interface(phy: &mut Phy, mac: Mac, address: Ipv4Address) -> Interface {
    let config = iface::Config::new(EthernetAddress(mac.0).into());
    let mut interface = Interface::new(config, phy, time::Instant::ZERO);
    interface.update_ip_addrs(|list| {
        list.push(IpCidr::new(address.into(), 24)).expect("room for one address");
    });
    interface
}
