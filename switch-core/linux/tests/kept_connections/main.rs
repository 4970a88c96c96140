//! Connections that survive a restart: the table's slots in files on tmpfs, and a switch with memory ports.

mod formats;
mod running;

use podswitch_testkit::rig;

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use podswitch_core::config::{Config, Masquerade};
use podswitch_core::control::{ControlPlane, MemoryError, Options, Restored, Saved, memory_size};
use podswitch_core::engine::Limits;
use podswitch_core::id::PortId;
use podswitch_core::port::Offloads;
use podswitch_core::port::memory::{self, MemoryEnd};
use podswitch_linux::kept_connections::{KeptConnections, Opened};
use podswitch_wire::flow_key::{HashKey, proto};
use rig::services::*;
use rig::{HOST, Switch, addresses, framed};

const LIMITS: Limits =
    Limits { connections: 4096, connections_per_port: 2048, flows: 8192, fdb: 16 };
const NAMES: [&str; 4] = ["pod default/p0", "pod default/p1", "pod default/p2", "node"];

/// Bytes of memory for one chunk of connections, and number of chunks allocated in each run: each connection of a test
/// may need another chunk.
const CHUNK_BYTES: usize = 256 * 256;
const CHUNKS: u32 = 16;

/// A folder on tmpfs, removed at the end.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = format!("/dev/shm/podswitch-connections-{}-{number}", std::process::id());
        fs::create_dir(&path).unwrap();
        Self(path.into())
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A run of the switch.
struct Run {
    switch: Switch,
    files: KeptConnections,
    saved: Vec<Result<Saved, MemoryError>>,
    /// The other ends of ports that come before the pods' ports.
    _others: Vec<MemoryEnd>,
}

/// Starts a run. Its port numbers are those of the first run plus `shift`, and its clock is ahead by `later`.
fn run(folder: &Path, config: &Config, shift: u16, later: Duration) -> Run {
    let Opened { mut files, mut memory, saved } =
        KeptConnections::open(folder, memory_size(LIMITS.connections)).unwrap();
    memory.monotonic += later;
    let hash_key = Some(HashKey::new(u128::from(shift) + 7));
    let options = Options { limits: LIMITS, hash_key, ..Options::default() };
    let mut control = ControlPlane::with_memory(options, memory).unwrap();
    // Only a little, since it stays mapped as long as the test program runs.
    let (bytes, chunks) = control.wanted_memory(0).unwrap();
    files.allocate(bytes - (chunks - CHUNKS) as usize * CHUNK_BYTES).unwrap();
    control.allow_memory(CHUNKS);
    let mut others = Vec::new();
    for n in 0..shift {
        let (device, end) = memory::pair(format!("other{n}"), 1, Offloads::ALL);
        control.attach(Box::new(device)).unwrap();
        others.push(end);
    }
    let mut config = config.clone();
    let moved = |port: PortId| PortId(port.0 + shift);
    config.ports.iter_mut().for_each(|port| port.port = moved(port.port));
    for endpoint in &mut config.endpoints {
        if let Some(attachment) = &mut Arc::make_mut(endpoint).attachment {
            attachment.port = moved(attachment.port);
        }
    }
    let mut switch = Switch::unpublished(control, &rig::config(), 1);
    for (n, name) in NAMES.iter().enumerate() {
        switch.control.name_port(PortId(n as u16 + shift), name);
    }
    switch.control.apply(&config).unwrap();
    let saved = saved.into_iter().map(Saved::read).collect();
    Run { switch, files, saved, _others: others }
}

impl Run {
    fn restore(&mut self) -> Restored {
        let saved = self.saved.iter_mut().map(|saved| saved.as_mut().expect("readable"));
        let each = saved.map(|saved| self.switch.control.restore_connections(saved, true));
        each.fold(Restored::default(), |sum, one| Restored {
            restored: sum.restored + one.restored,
            lost: sum.lost + one.lost,
            waiting: sum.waiting + one.waiting,
        })
    }

    /// A segment or datagram of pod 0 to the Service, which must arrive at `backend`.
    #[track_caller]
    fn up(
        &mut self,
        client: SocketAddr,
        vip: SocketAddr,
        fields: Option<(u32, u32, u8)>,
        backend: usize,
    ) {
        let bytes = match fields {
            Some(fields) => segment(client, vip, fields),
            None => packet(proto::UDP, (client.ip(), client.port()), (vip.ip(), vip.port())),
        };
        self.switch.send(0, &framed(0, &bytes));
        let f = usize::from(client.is_ipv6());
        ends(&one(&mut self.switch, backend).1.key, client, at(addresses(backend)[f], 8080));
    }

    #[track_caller]
    fn down(
        &mut self,
        client: SocketAddr,
        vip: SocketAddr,
        fields: (u32, u32, u8),
        backend: usize,
    ) {
        let f = usize::from(client.is_ipv6());
        let bytes = segment(at(addresses(backend)[f], 8080), client, fields);
        self.switch.send(backend, &framed(backend, &bytes));
        ends(&one(&mut self.switch, 0).1.key, vip, client);
    }

    fn open(&mut self, client: SocketAddr, vip: SocketAddr, backend: usize) {
        self.up(client, vip, Some((100, 0, SYN)), backend);
        self.down(client, vip, (500, 101, SYN | ACK), backend);
        self.up(client, vip, Some((101, 501, ACK)), backend);
    }
}

fn ends_of(f: usize, port: u16) -> (SocketAddr, SocketAddr) {
    (at(addresses(0)[f], port), at(vip(f), 80))
}

/// Both families, TCP and UDP. The ports have other numbers, and the table would select another backend.
#[test]
fn connections_continue_with_their_backends() {
    let folder = Folder::new();
    let mut first = run(&folder.0, &config(&[1]), 0, Duration::ZERO);
    for f in FAMILIES {
        let (client, vip) = ends_of(f, 4000);
        first.open(client, vip, 1);
        first.up(client, vip, None, 1);
    }
    drop(first);
    let mut second = run(&folder.0, &config(&[2, 1]), 1, Duration::ZERO);
    assert_eq!(second.restore(), Restored { restored: 4, ..Restored::default() });
    for f in FAMILIES {
        let (client, vip) = ends_of(f, 4000);
        second.up(client, vip, Some((101, 501, ACK)), 1);
        second.down(client, vip, (501, 101, ACK), 1);
        second.up(client, vip, None, 1);
        assert_eq!(second.switch.dropped(), []);
    }
    second.switch.assert_adds_up();
    // A third run restores those of the second; if the second ended at once, those of the first.
    drop(second);
    let mut third = run(&folder.0, &config(&[2, 1]), 2, Duration::ZERO);
    assert_eq!(third.saved.len(), 2);
    let restored = third.restore();
    assert_eq!((restored.restored, restored.lost), (4, 0), "those of the first exist already");
    let (client, vip) = ends_of(0, 4000);
    third.up(client, vip, Some((101, 501, ACK)), 1);
    third.files.settle();
    drop(third);
    assert_eq!(run(&folder.0, &config(&[1]), 0, Duration::ZERO).saved.len(), 1);
}

#[test]
fn without_the_file_a_connection_is_reset() {
    let folder = Folder::new();
    let (client, vip) = ends_of(0, 4000);
    let mut first = run(&folder.0, &config(&[1]), 0, Duration::ZERO);
    first.open(client, vip, 1);
    first.files.remove();
    let mut second = run(&folder.0, &config(&[1]), 0, Duration::ZERO);
    assert!(second.saved.is_empty());
    second.switch.send(0, &framed(0, &segment(client, vip, (101, 501, ACK))));
    assert_eq!(second.switch.recv(1).len(), 0);
    assert_eq!(one(&mut second.switch, 0).1.tcp_flags & RST, RST);
}

/// Closed connections, and connections that timed out while no switch was running, are not restored.
#[test]
fn ended_connections_are_not_restored() {
    let folder = Folder::new();
    let mut first = run(&folder.0, &config(&[1]), 0, Duration::ZERO);
    let (client, vip) = ends_of(0, 4000);
    first.open(client, vip, 1);
    first.down(client, vip, (501, 101, RST | ACK), 1);
    let (other, vip) = ends_of(1, 4001);
    first.up(other, vip, None, 1);
    drop(first);
    let mut second = run(&folder.0, &config(&[1]), 0, Duration::from_secs(90));
    assert_eq!(
        second.restore(),
        Restored { restored: 1, ..Restored::default() },
        "UDP has two minutes"
    );
    drop(second);
    let mut third = run(&folder.0, &config(&[1]), 0, Duration::from_secs(600));
    assert_eq!(third.restore(), Restored::default());
}

/// If policy denies a connection now, it is denied for restored connections, too.
#[test]
fn policy_is_evaluated_again() {
    let folder = Folder::new();
    let (client, vip) = ends_of(0, 4000);
    let mut first = run(&folder.0, &config(&[1]), 0, Duration::ZERO);
    first.open(client, vip, 1);
    drop(first);
    let mut closed = config(&[1]);
    rig::allow_udp(&mut closed, &[8080]);
    let mut second = run(&folder.0, &closed, 0, Duration::ZERO);
    assert_eq!(second.restore().restored, 1);
    second.switch.send(0, &framed(0, &segment(client, vip, (101, 501, ACK))));
    assert_eq!(second.switch.recv(1).len(), 0);
    assert_eq!(second.switch.dropped().len(), 1);
}

/// The source port of a masqueraded client still belongs to it.
#[test]
fn leased_ports_stay_leased() {
    let folder = Folder::new();
    let mut config = rig::config();
    config.masquerade = Some(Masquerade {
        ipv4: Some("192.168.0.1".parse().unwrap()),
        ipv6: Some("fd00:1::1".parse().unwrap()),
        cluster: Vec::new(),
    });
    let mut first = run(&folder.0, &config, 0, Duration::ZERO);
    let ask = |run: &mut Run, pod: usize, f: usize| {
        let to = (outside(f), 53);
        run.switch.send(pod, &framed(pod, &packet(proto::UDP, (addresses(pod)[f], 700), to)));
        one(&mut run.switch, HOST).1.key
    };
    let before: Vec<_> = FAMILIES.iter().map(|&f| ask(&mut first, 0, f)).collect();
    assert_eq!(before[0].src_addr(), node(0));
    drop(first);
    let mut second = run(&folder.0, &config, 1, Duration::ZERO);
    assert_eq!(second.restore().restored, 2);
    assert_eq!(second.switch.control.shared().tracker.nat().in_use(), 2);
    let after: Vec<_> = FAMILIES.iter().map(|&f| ask(&mut second, 0, f)).collect();
    assert_eq!(before, after);
    for f in FAMILIES {
        assert_ne!(ask(&mut second, 1, f).src_port, before[f].src_port);
    }
}

/// If a client's pod is attached later, its connection is restored then.
#[test]
fn connections_wait_for_their_ports() {
    let folder = Folder::new();
    let (client, vip) = ends_of(0, 4000);
    let mut first = run(&folder.0, &config(&[1]), 0, Duration::ZERO);
    first.open(client, vip, 1);
    drop(first);
    let mut second = run(&folder.0, &config(&[1]), 0, Duration::ZERO);
    second.switch.control.name_port(PortId(0), "pod default/another");
    assert_eq!(second.restore(), Restored { waiting: 1, ..Restored::default() });
    second.switch.control.name_port(PortId(0), NAMES[0]);
    assert_eq!(second.restore(), Restored { restored: 1, ..Restored::default() });
    second.up(client, vip, Some((101, 501, ACK)), 1);
}

/// More connections than memory was allocated for: the excess is not kept, and everything continues.
#[test]
fn memory_that_is_not_allocated_is_not_used() {
    let folder = Folder::new();
    let mut first = run(&folder.0, &config(&[1]), 0, Duration::ZERO);
    first.switch.control.allow_memory(3);
    for port in 2000..4000 {
        let (client, vip) = ends_of(usize::from(port % 2), port);
        first.up(client, vip, None, 1);
    }
    drop(first);
    let mut second = run(&folder.0, &config(&[1]), 0, Duration::ZERO);
    let restored = second.restore().restored;
    assert!((1..=3 * 256).contains(&restored), "{restored}");
}

/// Truncated files, files of another version, and random bytes: they are refused or restored in part, and nothing
/// panics.
#[test]
fn damaged_files_do_not_panic() {
    let folder = Folder::new();
    let mut first = run(&folder.0, &config(&[1]), 0, Duration::ZERO);
    for port in 2000..2010 {
        let (client, vip) = ends_of(usize::from(port % 2), port);
        first.open(client, vip, 1);
    }
    drop(first);
    let path = folder.0.join("connections.0");
    let whole = fs::read(&path).unwrap();
    let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    let again = |change: &dyn Fn()| {
        file.write_all_at(&whole, 0).unwrap();
        change();
        let mut run = run(&folder.0, &config(&[1]), 0, Duration::ZERO);
        let number = run.saved.len();
        let saved = run.saved.pop().expect("the oldest is the first run's");
        let result =
            saved.map(|mut saved| run.switch.control.restore_connections(&mut saved, true));
        for n in 1..number {
            let _ = fs::remove_file(folder.0.join(format!("connections.{n}")));
        }
        let _ = fs::remove_file(folder.0.join(format!("connections.{number}")));
        result
    };
    assert_eq!(again(&|| {}).unwrap().restored, 10);
    assert_eq!(again(&|| file.write_all_at(&[0; 8], 0).unwrap()), Err(MemoryError::Empty));
    assert_eq!(again(&|| file.write_all_at(&[9], 16).unwrap()), Err(MemoryError::Version(9)));
    let mut seed = 1_u64;
    let mut random = move || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        seed >> 33
    };
    for _ in 0..8 {
        let noise: Vec<u8> = (0..4096).map(|_| random() as u8).collect();
        let places: Vec<u64> =
            (0..200).map(|_| 32 + random() % (whole.len() as u64 - 5000)).collect();
        let restored = again(&|| {
            places.iter().for_each(|place| file.write_all_at(&noise, *place).unwrap());
        });
        assert!(restored.is_ok_and(|restored| restored.restored <= 4096));
    }
    for length in [1, 4096, 1 << 20, memory_size(LIMITS.connections) as u64 - (1 << 16)] {
        let restored = again(&|| file.set_len(length).unwrap());
        assert_eq!(restored, Err(MemoryError::Unfit), "{length}");
    }
}
