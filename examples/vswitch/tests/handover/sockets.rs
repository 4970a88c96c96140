//! Sockets that listen, and the run directory's lock: while switches are replaced nobody is refused, and the directory is
//! never free.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::thread;

use podswitch_linux::NetNs;
use podswitch_testkit::require_privilege;
use podswitch_vswitch_testkit::cluster::{Fabric, Limit, Node, PATIENCE, put};
use podswitch_vswitch_testkit::{Folder, RunDir};
use rustix::fs::{FlockOperation, flock};

const ROUNDS: usize = 4;
const HEALTH_CHECK: u16 = 30_500;

/// Tries something again and again, until it is to end.
struct Trying {
    what: &'static str,
    ends: Arc<AtomicBool>,
    tries: Arc<AtomicUsize>,
    thread: thread::JoinHandle<Option<String>>,
}

impl Trying {
    fn start(
        what: &'static str,
        mut one: impl FnMut() -> Result<(), String> + Send + 'static,
    ) -> Self {
        let (ends, tries) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
        let thread = thread::spawn({
            let (ends, tries) = (ends.clone(), tries.clone());
            move || {
                while !ends.load(Relaxed) {
                    if let Err(error) = one() {
                        return Some(error);
                    }
                    tries.fetch_add(1, Relaxed);
                }
                None
            }
        });
        Self { what, ends, tries, thread }
    }

    /// Waits for some more tries.
    fn goes_on(&self) {
        let (before, limit) = (self.tries.load(Relaxed), Limit::new(PATIENCE));
        while self.tries.load(Relaxed) < before + 3 && !self.thread.is_finished() {
            assert!(limit.left().is_some(), "{}: it hangs", self.what);
            thread::yield_now();
        }
    }

    fn never_failed(self) {
        self.ends.store(true, Relaxed);
        let failed = self.thread.join().expect("it ends");
        assert_eq!(failed, None, "{}, after {} tries", self.what, self.tries.load(Relaxed));
    }
}

fn text(error: io::Error) -> String {
    error.to_string()
}

/// Connects, and closes the connection.
fn connects(path: PathBuf) -> impl FnMut() -> Result<(), String> {
    move || {
        // The queue of a socket is full: it is not refused.
        match UnixStream::connect(&path) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            result => result.map(drop).map_err(text),
        }
    }
}

/// Asks a switch's control socket until one answers, and is never refused.
fn status(path: &Path) -> String {
    let mut stream = UnixStream::connect(path).expect("it listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("set");
    let request = b"GET /v1/status HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    stream.write_all(request).expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    answer
}

fn http(ns: Option<NetNs>, address: SocketAddr) -> impl FnMut() -> Result<(), String> {
    move || {
        let connect = || TcpStream::connect(address);
        let stream = match &ns {
            Some(ns) => ns.enter(connect).expect("entered"),
            None => connect(),
        };
        stream.map(drop).map_err(text)
    }
}

#[test]
fn nobody_is_refused() {
    require_privilege!();
    let fabric = Fabric::new(1500);
    let node = Node::new(&fabric, 1, &[false], &["tap"]);
    let service = "---\napiVersion: v1\nkind: Service\nmetadata: {name: s, namespace: a}\n\
                   spec: {type: LoadBalancer, externalTrafficPolicy: Local, \
                   healthCheckNodePort: 30500, clusterIP: 10.96.0.10, clusterIPs: [10.96.0.10], \
                   ports: [{port: 80, nodePort: 30501}]}\n";
    let folder = Folder::new();
    put(&folder, &[node.manifest(), service.to_owned()]);
    let run_dir = RunDir::new(&node.name);
    let free = TcpListener::bind("127.0.0.1:0").expect("bound").local_addr().expect("its address");
    let (run, metrics) = (run_dir.0.clone(), free.to_string());
    let flags = ["--run-dir", &run, "--take-over", "--metrics-address", &metrics];
    let start = || node.start(&folder, &flags);
    let mut switch = start();
    switch.event("ready");
    let of_run = |name: &str| Path::new(&run).join(name);
    let health = SocketAddr::new(node.addresses[0], HEALTH_CHECK);
    let limit = Limit::new(PATIENCE);
    while http(Some(node.ns.clone()), health)().is_err() {
        assert!(limit.left().is_some(), "no health checks");
    }
    let lock = of_run("lock");
    let trying = [
        Trying::start("cni.sock", connects(of_run("cni.sock"))),
        Trying::start("ctl.sock", connects(of_run("ctl.sock"))),
        Trying::start("metrics", http(None, free)),
        Trying::start("health checks", http(Some(node.ns.clone()), health)),
        Trying::start("the lock", move || {
            let file = File::open(&lock).map_err(text)?;
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => Err("nobody has it".to_owned()),
                Err(_) => Ok(()),
            }
        }),
    ];
    for _ in 0..ROUNDS {
        let next = start();
        next.event("ready");
        assert_eq!(switch.ends(), Some(0));
        switch = next;
        trying.iter().for_each(Trying::goes_on);
        let answer = status(&of_run("ctl.sock"));
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
    trying.into_iter().for_each(Trying::never_failed);
    assert_eq!(switch.stop(), Some(0));
    assert!(!of_run("ctl.sock").exists());
}
