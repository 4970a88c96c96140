//! Files such as `resolv.conf`: what they name, and named when they could be read last.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{self, Read as _};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

/// The servers' port.
pub(super) const PORT: u16 = 53;
/// Most servers of a zone.
pub(super) const MAX_SERVERS: usize = 15;
/// Largest file, in bytes.
const MAX_SIZE: u64 = 64 << 10;

/// The servers of each file, from when it could be read last.
#[derive(Clone, Debug, Default)]
pub(super) struct ResolvConfs(HashMap<PathBuf, Vec<SocketAddr>>);

impl ResolvConfs {
    /// The servers that a file names. One that cannot be read, as while it is being replaced, keeps those that it named
    /// before, and is added to `unreadable` with the reason.
    pub(super) fn read(
        &mut self,
        path: &Path,
        unreadable: &mut BTreeMap<PathBuf, String>,
    ) -> Vec<SocketAddr> {
        match text(path) {
            Ok(text) => {
                let servers = parse(&text);
                self.0.insert(path.to_owned(), servers.clone());
                servers
            }
            Err(error) => {
                unreadable.insert(path.to_owned(), error.to_string());
                self.0.get(path).cloned().unwrap_or_default()
            }
        }
    }
}

fn text(path: &Path) -> io::Result<String> {
    let mut bytes = Vec::new();
    File::open(path)?.take(MAX_SIZE + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_SIZE {
        return Err(io::Error::other(format!("larger than {MAX_SIZE} bytes")));
    }
    // As glibc: a comment in another encoding does not matter.
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Lines `nameserver ADDRESS`, as glibc reads them.
fn parse(text: &str) -> Vec<SocketAddr> {
    let mut servers = Vec::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        if words.next() == Some("nameserver")
            && let Some(address) = words.next().and_then(|word| word.parse::<IpAddr>().ok())
        {
            servers.push(SocketAddr::new(address, PORT));
        }
    }
    servers.truncate(MAX_SERVERS);
    servers
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_file_that_cannot_be_read_keeps_its_servers() {
        let name = format!("podswitch-resolv-conf-{}", std::process::id());
        let path = std::env::temp_dir().join(name);
        let mut files = ResolvConfs::default();
        let mut read = || {
            let mut unreadable = BTreeMap::new();
            let servers = files.read(&path, &mut unreadable);
            (servers, unreadable.into_values().next().unwrap_or_default())
        };
        let one: SocketAddr = ([192, 0, 2, 9], PORT).into();
        let (servers, why) = read();
        assert!(servers.is_empty() && why.contains("No such file"), "{servers:?} {why}");
        fs::write(&path, b"# caf\xe9\nnameserver 192.0.2.9\n").unwrap();
        assert_eq!(read(), (vec![one], String::new()));
        fs::remove_file(&path).unwrap();
        let (servers, why) = read();
        assert!(servers == [one] && why.contains("No such file"), "{servers:?} {why}");
        fs::write(&path, vec![b'\n'; MAX_SIZE as usize + 1]).unwrap();
        assert_eq!(read(), (vec![one], "larger than 65536 bytes".to_owned()));
        // One that names none is as good as another.
        fs::write(&path, "search example\n").unwrap();
        assert_eq!(read(), (vec![], String::new()));
        fs::remove_file(&path).unwrap();
    }
}
