//! An in-memory API server that serves list and watch over HTTP on loopback: the part of the
//! protocol that podswitch's clients use, with the faults of real servers. For tests and benches.

#![allow(missing_docs, reason = "only tests and benches use it")]
#![allow(
    clippy::disallowed_types,
    clippy::disallowed_methods,
    reason = "threads that wait for each other; nothing here is near a packet"
)]

mod http;
mod tls;
mod world;

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

pub use tls::Certificate;
pub use world::{Request, World};

/// A server that runs until it is dropped.
pub struct ApiServer {
    pub world: Arc<World>,
    address: SocketAddr,
    connections: Arc<Mutex<Vec<TcpStream>>>,
    stop: Arc<AtomicBool>,
    /// `None`: HTTP.
    certificate: Arc<Mutex<Option<Certificate>>>,
    thread: Option<JoinHandle<()>>,
}

impl ApiServer {
    /// Serves `world` on a free port.
    pub fn start(world: Arc<World>) -> Self {
        Self::start_at(world, SocketAddr::from(([127, 0, 0, 1], 0))).expect("a free port")
    }

    /// Serves `world` by HTTPS on a free port.
    pub fn start_tls(world: Arc<World>, certificate: Certificate) -> Self {
        let server = Self::start(world);
        server.set_certificate(certificate);
        server
    }

    /// Sets the certificate for new connections.
    pub fn set_certificate(&self, certificate: Certificate) {
        *self.certificate.lock().expect("no panic") = Some(certificate);
    }

    /// Serves `world` on an address.
    ///
    /// # Errors
    /// The address is in use.
    pub fn start_at(world: Arc<World>, address: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind(address)?;
        let address = listener.local_addr()?;
        let (stop, connections) = (Arc::new(AtomicBool::new(false)), Arc::default());
        let (world_of, stop_of) = (world.clone(), stop.clone());
        let certificate: Arc<Mutex<Option<Certificate>>> = Arc::default();
        let certificate_of = certificate.clone();
        let kept: Arc<Mutex<Vec<TcpStream>>> = Arc::clone(&connections);
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if stop_of.load(SeqCst) {
                    return;
                }
                let Ok(stream) = stream else { continue };
                if let Ok(copy) = stream.try_clone() {
                    kept.lock().expect("no panic").push(copy);
                }
                let (world, stop) = (world_of.clone(), stop_of.clone());
                let certificate = certificate_of.lock().expect("no panic").clone();
                std::thread::spawn(move || {
                    // A client that disconnects, or does not trust the certificate, is not an error here.
                    let _ = stream.set_nodelay(true);
                    let _ = match certificate {
                        None => http::serve(&stream, &world, &stop),
                        Some(it) => http::serve(it.encrypted(&stream), &world, &stop),
                    };
                    let _ = stream.shutdown(std::net::Shutdown::Both);
                });
            }
        });
        Ok(Self { world, address, connections, stop, certificate, thread: Some(thread) })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn url(&self) -> String {
        let has_tls = self.certificate.lock().expect("no panic").is_some();
        format!("{}://{}", if has_tls { "https" } else { "http" }, self.address)
    }

    /// Closes every connection, as a crashing server does.
    pub fn cut(&self) {
        for stream in self.connections.lock().expect("no panic").drain(..) {
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
    }

    /// Stops the server. Its address can be used again.
    pub fn stop(mut self) -> SocketAddr {
        self.end();
        self.address
    }

    fn end(&mut self) {
        self.stop.store(true, SeqCst);
        let _ = TcpStream::connect(self.address);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        self.cut();
        self.world.wake();
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.end();
    }
}

/// Writes a kubeconfig with the server `url`, and with `token_file` if it is given.
///
/// # Panics
/// It cannot be written.
pub fn kubeconfig(path: &Path, url: &str, token_file: Option<&Path>) {
    write_kubeconfig(path, &format!("{{server: \"{url}\"}}"), token_file);
}

/// As [`kubeconfig`], for HTTPS: `authority` is the file of the CA certificates.
///
/// # Panics
/// It cannot be written.
pub fn kubeconfig_tls(path: &Path, url: &str, token_file: Option<&Path>, authority: &Path) {
    let authority = authority.display();
    let cluster = format!("{{server: \"{url}\", certificate-authority: \"{authority}\"}}");
    write_kubeconfig(path, &cluster, token_file);
}

fn write_kubeconfig(path: &Path, cluster: &str, token_file: Option<&Path>) {
    let user =
        token_file.map_or("{}".to_owned(), |file| format!("{{tokenFile: {}}}", file.display()));
    let text = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: it\n\
         clusters: [{{name: it, cluster: {cluster}}}]\n\
         users: [{{name: it, user: {user}}}]\n\
         contexts: [{{name: it, context: {{cluster: it, user: it}}}}]\n"
    );
    std::fs::write(path, text).expect("it can be written");
}

/// Waits until `what` holds, at most for 30 s.
///
/// # Panics
/// It does not hold in time.
#[track_caller]
pub fn eventually(text: &str, mut what: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(30);
    while !what() {
        assert!(Instant::now() < until, "timed out waiting: {text}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
