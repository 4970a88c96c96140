//! Open vSwitch with DPDK: one poll-mode thread. A DPDK driver feeds it by replaying a capture from memory (`net_pcap`,
//! `infinite_rx`), and the drivers discard its output. No device, no huge pages.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use etherparse::PacketBuilder;
use podswitch_core::port::pcap::{CaptureWriter, Direction, Format};
use podswitch_linux::NetNs;

use crate::Outcome;
use crate::paths::Missing;
use crate::paths::ovs::daemon::{Daemon, Programs};
use podswitch_benches::full::SERVICES;
use podswitch_benches::rig::{scattered, udp};

/// The installed version, in one line.
pub(super) use crate::paths::ovs::version;

/// The pipeline that packets pass.
#[derive(Clone, Copy, Debug)]
pub(super) enum Pipeline {
    /// One rule that matches the destination; 1,000 flows all hit the exact-match cache.
    Forward,
    /// Connection tracking and destination NAT to 200 Services, requests and replies, as OVN configures load balancers.
    Translate,
}

impl Pipeline {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Forward => "Open vSwitch, one rule",
            Self::Translate => "Open vSwitch, conntrack + NAT",
        }
    }

    fn flows(self) -> String {
        let mut text = String::new();
        match self {
            Self::Forward => text.push_str("in_port=1,ip,nw_dst=10.0.0.0/8,actions=output:2\n"),
            Self::Translate => {
                text.push_str(
                    "table=0,udp,actions=ct(table=1,nat)\n\
                     table=1,priority=200,ct_state=+trk+est-inv,in_port=1,actions=output:2\n\
                     table=1,priority=200,ct_state=+trk+est-inv,in_port=2,actions=output:1\n",
                );
                for service in 0..SERVICES {
                    let _ = writeln!(
                        text,
                        "table=1,priority=100,ct_state=+trk+new-inv,in_port=1,udp,nw_dst={},\
                         tp_dst=80,actions=ct(commit,nat(dst={}:8080)),output:2",
                        bytes(vip(service)),
                        bytes(backend(service))
                    );
                }
            }
        }
        text
    }

    /// The frames that arrive at each port. Those of the second port are the replies, if there are any.
    fn frames(self, count: usize) -> [Vec<Vec<u8>>; 2] {
        match self {
            Self::Forward => [scattered(count).map(|flow| udp(flow, false)).collect(), Vec::new()],
            Self::Translate => {
                let ask = |flow| {
                    let (from, service) = client(flow);
                    datagram(from, (vip(service), 80))
                };
                let answer = |flow| {
                    let (to, service) = client(flow);
                    datagram((backend(service), 8080), to)
                };
                [scattered(count).map(ask).collect(), scattered(count).map(answer).collect()]
            }
        }
    }
}

fn bytes([a, b, c, d]: [u8; 4]) -> String {
    format!("{a}.{b}.{c}.{d}")
}

fn vip(service: usize) -> [u8; 4] {
    [10, 96, 0, service as u8 + 1]
}

fn backend(service: usize) -> [u8; 4] {
    [10, 3, 0, service as u8 + 1]
}

/// A flow's client, and the Service to which it connects.
fn client(flow: usize) -> (([u8; 4], u16), usize) {
    let address = [10, 1, 1 + (flow / 60_000) as u8, 2];
    ((address, (flow % 60_000) as u16 + 1024), flow % SERVICES)
}

/// A frame of 60 bytes.
fn datagram(from: ([u8; 4], u16), to: ([u8; 4], u16)) -> Vec<u8> {
    let mut frame = Vec::new();
    PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2])
        .ipv4(from.0, to.0, 64)
        .udp(from.1, to.1)
        .write(&mut frame, &[0; 18])
        .expect("a valid frame");
    frame
}

const PAUSE: Duration = Duration::from_millis(20);
const SETTLING: Duration = Duration::from_secs(1);

/// A datapath that forwards as fast as it can from its creation on.
pub(super) struct Datapath {
    daemon: Daemon,
    /// Directory of its poll-mode thread in `/proc`.
    thread: PathBuf,
}

impl Datapath {
    /// Creates the datapath with this number of flows, all of them known.
    pub(super) fn start(pipeline: Pipeline, flows: usize) -> Result<Self, Missing> {
        let programs = Programs::find()?;
        if !programs.tso {
            return Err(Missing::Unavailable("Open vSwitch is built without DPDK".to_owned()));
        }
        let ns = NetNs::anonymous().map_err(|e| e.to_string())?;
        // The last processor polls. Without huge pages, memory is one block, allocated at the start.
        let processors = thread::available_parallelism().map_or(1, usize::from);
        let settings = [
            "other_config:dpdk-init=true".to_owned(),
            format!("other_config:pmd-cpu-mask={:#x}", 1u64 << (processors - 1).min(63)),
            "other_config:dpdk-extra=--no-huge --legacy-mem -m 2048 --no-pci --no-shconf \
             --no-telemetry"
                .to_owned(),
        ];
        let daemon = Daemon::start(&ns, &programs, &settings)?;
        daemon.vsctl("add-br br0 -- set bridge br0 datapath_type=netdev")?;
        daemon.ofctl("replace-flows", "br0", &pipeline.flows())?;
        for (number, frames) in pipeline.frames(flows).into_iter().enumerate() {
            let driver = match &frames[..] {
                [] => format!("net_null{number},no-rx=1"),
                frames => {
                    let file = daemon.folder().join(format!("{number}.pcap"));
                    write(&file, frames).map_err(|e| format!("{}: {e}", file.display()))?;
                    format!("net_pcap{number},rx_pcap={},infinite_rx=1", file.display())
                }
            };
            let port = format!(
                "add-port br0 p{number} -- set Interface p{number} type=dpdk ofport_request={} \
                 options:dpdk-devargs={driver}",
                number + 1
            );
            daemon.vsctl(&port)?;
            // Drivers are in separate packages.
            if daemon.vsctl(&format!("get Interface p{number} ofport"))?.trim() == "-1" {
                return Err(Missing::Unavailable(format!("DPDK has no driver for {driver}")));
            }
        }
        let thread = poll_mode_thread(&daemon)?;
        let datapath = Self { daemon, thread };
        // Waits until all flows are in the caches, as far as they fit.
        thread::sleep(SETTLING + Duration::from_micros(20) * flows as u32);
        Ok(datapath)
    }

    /// Returns ns per packet.
    pub(super) fn measure(&self, duration: Duration) -> Outcome<f64> {
        let begun = (self.busy()?, self.packets()?);
        thread::sleep(duration);
        let (busy, packets) = (self.busy()? - begun.0, self.packets()? - begun.1);
        if packets == 0.0 {
            return Err("Open vSwitch forwards nothing".to_owned());
        }
        Ok(busy / packets)
    }

    /// The thread's processor time in ns. The thread never waits.
    fn busy(&self) -> Outcome<f64> {
        let file = self.thread.join("schedstat");
        let text = fs::read_to_string(&file).map_err(|e| format!("{}: {e}", file.display()))?;
        let first = text.split_whitespace().next().and_then(|n| n.parse().ok());
        first.ok_or_else(|| format!("{}: {text}", file.display()))
    }

    /// Number of packets that it has received.
    fn packets(&self) -> Outcome<f64> {
        let text = self.daemon.appctl("dpif-netdev/pmd-stats-show")?;
        let counts = text.lines().filter_map(|line| line.trim().strip_prefix("packets received:"));
        let counts: Vec<f64> = counts.filter_map(|n| n.trim().parse().ok()).collect();
        if counts.is_empty() {
            return Err(format!("no packets in {text}"));
        }
        Ok(counts.iter().sum())
    }
}

fn write(file: &Path, frames: &[Vec<u8>]) -> std::io::Result<()> {
    let mut writer = CaptureWriter::create(file, Format::Pcap)?;
    for frame in frames {
        writer.write(0, frame, frame.len() as u32, Direction::Inbound)?;
    }
    writer.finish().map(drop)
}

fn poll_mode_thread(daemon: &Daemon) -> Outcome<PathBuf> {
    let tasks = PathBuf::from(format!("/proc/{}/task", daemon.pid()?));
    for _ in 0..500 {
        let entries = fs::read_dir(&tasks).map_err(|e| format!("{}: {e}", tasks.display()))?;
        for task in entries.flatten() {
            let name = fs::read_to_string(task.path().join("comm")).unwrap_or_default();
            if name.starts_with("pmd") {
                return Ok(task.path());
            }
        }
        thread::sleep(PAUSE);
    }
    Err("Open vSwitch has no poll-mode thread".to_owned())
}
