//! Data paths: two pods, and what joins them.

mod kernel;
mod podswitch;

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::time::Duration;

use switch_core::action::DropReason;
use switch_core::control::ControlPlane;
use switch_core::host::NetNs;
use switch_core::port::tap;
use wire::addr::Mac;

use crate::Outcome;

/// Name of the path that others are compared to.
pub(crate) const BASELINE: &str = "bridge";

/// A kind of path: its name, and how it is made.
pub(crate) struct Kind {
    pub(crate) name: &'static str,
    /// Whether this machine has what it takes.
    available: fn() -> Outcome<()>,
    make: fn() -> Outcome<(Pod, Pod, Between)>,
}

/// Every kind, in the order of the table.
pub(crate) const ALL: &[Kind] = &[
    Kind { name: "veth", available: always, make: kernel::veth },
    Kind { name: BASELINE, available: always, make: kernel::bridge },
    Kind { name: "podswitch/tap", available: tun, make: || podswitch::tap(1) },
    Kind { name: "podswitch/af_packet", available: always, make: || podswitch::af_packet(1) },
    Kind { name: "podswitch/tap/2_workers", available: tun, make: || podswitch::tap(2) },
    Kind {
        name: "podswitch/af_packet/2_workers",
        available: always,
        make: || podswitch::af_packet(2),
    },
];

fn always() -> Outcome<()> {
    Ok(())
}

fn tun() -> Outcome<()> {
    tap::is_available().map_err(|e| e.to_string())
}

/// What must live for the pods to reach each other. Going, it takes everything with it: what it
/// holds has no names.
#[derive(Default)]
pub(crate) struct Between {
    /// First, so that the switch ends before its interfaces go.
    switch: Option<ControlPlane>,
    _namespaces: Vec<NetNs>,
}

/// A path that is there.
pub(crate) struct Path {
    pub(crate) name: &'static str,
    pub(crate) client: Pod,
    pub(crate) server: Pod,
    between: Between,
}

impl Path {
    /// What the switch has dropped so far, by reason, if there is a switch.
    pub(crate) fn dropped(&self) -> Vec<(&'static str, u64)> {
        let Some(switch) = &self.between.switch else { return Vec::new() };
        let count = |&reason| switch.workers().map(|w| w.counters.dropped(reason)).sum();
        let all = DropReason::ALL.iter().map(|reason| (reason.name(), count(reason)));
        all.filter(|(_, count)| *count > 0).collect()
    }
}

/// One end of a path. Its interface is `eth0`.
pub(crate) struct Pod {
    pub(crate) namespace: NetNs,
    pub(crate) mac: Mac,
    pub(crate) v4: Ipv4Addr,
    pub(crate) v6: Ipv6Addr,
    /// Link-layer address of the next hop to the other end.
    pub(crate) next_hop: Mac,
}

/// Largest network-layer packet, everywhere.
const MTU: u32 = 1500;

impl Pod {
    /// Pod `number`, 0 or 1, so far without interface; `next_hop`: unless it is the other.
    fn new(number: u8, next_hop: Option<Mac>) -> Outcome<Self> {
        let mac = |number| Mac([0x0a, 0x58, 10, 78, 0, number + 2]);
        Ok(Self {
            namespace: NetNs::anonymous().map_err(|e| e.to_string())?,
            mac: mac(number),
            v4: Ipv4Addr::new(10, 78, 0, number + 2),
            v6: Ipv6Addr::new(0xfd78, 0, 0, 0, 0, 0, 0, u16::from(number) + 2),
            next_hop: next_hop.unwrap_or(mac(1 - number)),
        })
    }

    fn pair(next_hop: Option<Mac>) -> Outcome<[Self; 2]> {
        Ok([Self::new(0, next_hop)?, Self::new(1, next_hop)?])
    }

    fn addresses(&self) -> [IpAddr; 2] {
        [self.v4.into(), self.v6.into()]
    }

    /// Opens something inside. A socket stays there, whatever thread uses it afterwards.
    pub(crate) fn open<T: Send>(&self, f: impl FnOnce() -> io::Result<T> + Send) -> Outcome<T> {
        self.namespace.enter(f).map_err(|e| e.to_string())?.map_err(|e| e.to_string())
    }
}

/// Why a path is not there.
pub(crate) enum Missing {
    /// This machine lacks something.
    Unavailable(String),
    /// It should be there.
    Broken(String),
}

/// Makes a path, and sees a datagram of each family come through.
pub(crate) fn make(kind: &Kind) -> Result<Path, Missing> {
    (kind.available)().map_err(Missing::Unavailable)?;
    let (client, server, between) = (kind.make)().map_err(Missing::Broken)?;
    for address in server.addresses() {
        reach(&client, &server, address)
            .map_err(|e| Missing::Broken(format!("{address} is not reached: {e}")))?;
    }
    Ok(Path { name: kind.name, client, server, between })
}

fn reach(client: &Pod, server: &Pod, address: IpAddr) -> Outcome<()> {
    const TRIES: usize = 20;
    const PAUSE: Duration = Duration::from_millis(250);
    let receiver = server.open(|| UdpSocket::bind((address, 0)))?;
    let text = |e: io::Error| e.to_string();
    let target = receiver.local_addr().map_err(text)?;
    receiver.set_read_timeout(Some(PAUSE)).map_err(text)?;
    let sender = client.open(|| UdpSocket::bind((unspecified(address), 0)))?;
    let mut outcome = Err("never sent".to_owned());
    for _ in 0..TRIES {
        // The first may be lost while neighbours are looked for.
        outcome = sender
            .send_to(b"hello", target)
            .and_then(|_| receiver.recv(&mut [0; 16]))
            .map(drop)
            .map_err(text);
        if outcome.is_ok() {
            break;
        }
    }
    outcome
}

/// The address of a family that stands for any.
pub(crate) fn unspecified(like: IpAddr) -> IpAddr {
    match like {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    }
}
