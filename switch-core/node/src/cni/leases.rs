//! Leases on disk: one file for each attachment, written atomically by rename.
//!
//! A lease is written before its pod's interface is created, and again when the pod is attached.
//! DEL moves it to the released leases, whose order says which addresses were released longest ago.
//! The folder should be on tmpfs: a lease of an earlier boot of the machine is useless, since its
//! namespace is gone, and is removed.

use std::fs;
use std::io::{self, ErrorKind};
use std::net::IpAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::key::Key;

/// Version of the file format.
const FORM: u32 = 1;
/// Released leases that are kept for their order.
const MAX_RELEASED: usize = 1024;

/// An attachment, as stored.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Lease {
    form: u32,
    boot: String,
    /// `CNI_CONTAINERID`.
    pub container: String,
    /// `CNI_IFNAME`.
    pub interface: String,
    /// `name` of the network.
    pub network: String,
    /// `CNI_NETNS`.
    pub netns: String,
    /// The pod, `namespace/name`.
    pub pod: String,
    /// Whether the runtime named the pod.
    pub is_pod: bool,
    /// Its UID.
    pub uid: Option<String>,
    /// Its addresses, at most one of each family.
    pub addresses: Vec<IpAddr>,
    /// MAC address of its interface.
    pub mac: String,
    /// `tap` or `veth`.
    pub port: String,
    /// Ports of the node that are forwarded to it.
    pub host_ports: Vec<LeasedPort>,
    /// The last known labels.
    pub labels: Vec<(String, String)>,
    /// Named ports: name, protocol, number.
    pub named_ports: Vec<(String, String, u16)>,
    /// Device and inode of its network namespace.
    pub namespace: (u64, u64),
    /// Whether ADD was completed.
    pub attached: bool,
}

/// A port of the node that is forwarded to a pod.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LeasedPort {
    /// The node's address; `None`: all.
    pub address: Option<IpAddr>,
    /// Protocol.
    pub protocol: String,
    /// The node's port.
    pub port: u16,
    /// The pod's port.
    pub target: u16,
}

impl Lease {
    /// The key by which it is released.
    pub fn key(&self) -> Key {
        Key { container: self.container.clone(), interface: self.interface.clone() }
    }
}

/// The leases found at the start.
#[derive(Debug, Default)]
pub struct Found {
    /// Leases in force.
    pub leases: Vec<Lease>,
    /// Addresses by time of release, the oldest first.
    pub released: Vec<(Duration, Vec<IpAddr>)>,
    /// Files that could not be used, with the reason. They are renamed.
    pub damaged: Vec<String>,
}

/// See the module's description.
#[derive(Debug)]
pub struct Leases {
    folder: PathBuf,
    released: PathBuf,
    boot: String,
    /// Released leases on disk, the oldest first.
    order: std::collections::VecDeque<PathBuf>,
}

impl Leases {
    /// Opens the leases in `folder`, and creates it if it is missing. `boot`: ID of this boot of
    /// the machine.
    ///
    /// # Errors
    /// The folder cannot be created or read.
    pub fn open(folder: &Path, boot: &str) -> io::Result<(Self, Found)> {
        let released = folder.join("released");
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&released)?;
        let mut found = Found::default();
        for path in files(folder)? {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if name.starts_with('.') {
                // An incomplete file of an earlier run that was killed.
                fs::remove_file(&path)?;
                continue;
            }
            if name.ends_with(".damaged") {
                continue;
            }
            match read(&path) {
                Ok(lease) if lease.boot != boot => fs::remove_file(&path)?,
                Ok(lease) if file_name(&lease.key()) == name => found.leases.push(lease),
                Ok(lease) => found.damaged.push(aside(&path, &format!("it is of {}", lease.key()))),
                Err(error) => found.damaged.push(aside(&path, &error)),
            }
        }
        let mut order = std::collections::VecDeque::new();
        for path in files(&released)? {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let at = name.split_once('-').and_then(|(nanos, _)| nanos.parse().ok());
            match (at, read(&path)) {
                (Some(at), Ok(lease)) if lease.boot == boot => {
                    found.released.push((Duration::from_nanos(at), lease.addresses));
                    order.push_back(path);
                }
                // No longer needed; not worth a message.
                _ => fs::remove_file(&path)?,
            }
        }
        Ok((Self { folder: folder.to_owned(), released, boot: boot.to_owned(), order }, found))
    }

    /// A new lease of this boot, to be filled in.
    pub fn blank(&self, key: &Key) -> Lease {
        Lease {
            form: FORM,
            boot: self.boot.clone(),
            container: key.container.clone(),
            interface: key.interface.clone(),
            network: String::new(),
            netns: String::new(),
            pod: String::new(),
            is_pod: false,
            uid: None,
            addresses: Vec::new(),
            mac: String::new(),
            port: String::new(),
            host_ports: Vec::new(),
            labels: Vec::new(),
            named_ports: Vec::new(),
            namespace: (0, 0),
            attached: false,
        }
    }

    /// Writes a lease. Replaces the one with the same key.
    ///
    /// # Errors
    /// The file system refused it; the earlier file stays.
    pub fn write(&self, lease: &Lease) -> io::Result<()> {
        let name = file_name(&lease.key());
        let text = serde_json::to_vec(lease).map_err(io::Error::other)?;
        put(&self.folder, &name, &text)
    }

    /// Marks a lease as released. A missing lease is not an error.
    ///
    /// # Errors
    /// The file system refused it; the lease stays.
    pub fn release(&mut self, key: &Key, now: Duration) -> io::Result<()> {
        let name = file_name(key);
        let to = self.released.join(format!("{:020}-{name}", now.as_nanos()));
        match fs::rename(self.folder.join(&name), &to) {
            Ok(()) => self.order.push_back(to),
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        }
        while self.order.len() > MAX_RELEASED
            && let Some(oldest) = self.order.pop_front()
        {
            // Its cool-down ended long ago. If the removal fails, the next start finds the file
            // again.
            let _ = fs::remove_file(oldest);
        }
        Ok(())
    }
}

/// Writes a file atomically: it is complete or absent whenever the process dies.
pub(super) fn put(folder: &Path, name: &str, text: &[u8]) -> io::Result<()> {
    let (temporary, path) = (folder.join(format!(".{name}")), folder.join(name));
    fs::write(&temporary, text)?;
    fs::rename(&temporary, &path).inspect_err(|_| drop(fs::remove_file(&temporary)))
}

/// The file name of a key. Both parts are known not to contain `/`; the interface name may contain
/// any other character.
pub(super) fn file_name(key: &Key) -> String {
    let mut name = format!("{}@", key.container);
    for byte in key.interface.bytes() {
        match byte {
            b if b.is_ascii_alphanumeric() || b"_-".contains(&b) => name.push(char::from(b)),
            b => name.push_str(&format!("%{b:02x}")),
        }
    }
    name
}

/// The files of a folder, sorted by name.
pub(super) fn files(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut list = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            list.push(entry.path());
        }
    }
    list.sort();
    Ok(list)
}

fn read(path: &Path) -> Result<Lease, String> {
    let text = fs::read(path).map_err(|error| error.to_string())?;
    let lease: Lease = serde_json::from_slice(&text).map_err(|error| error.to_string())?;
    match lease.form {
        FORM => Ok(lease),
        other => Err(format!("its format version is {other}, not {FORM}")),
    }
}

/// Renames a file that cannot be used. Returns a message.
fn aside(path: &Path, reason: &str) -> String {
    let mut to = path.as_os_str().to_owned();
    to.push(".damaged");
    let moved = match fs::rename(path, &to) {
        Ok(()) => String::new(),
        Err(error) => format!(", and cannot be renamed: {error}"),
    };
    format!("lease {}: {reason}{moved}", path.display())
}
