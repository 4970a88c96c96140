//! The servers that queries for other zones are forwarded to: from options, a CoreDNS Corefile, or the node's
//! `resolv.conf`.

use std::fmt;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use podswitch_dns::Name;

const PORT: u16 = 53;
/// Most servers of a zone.
const MAX_SERVERS: usize = 15;
/// The root in wire form.
pub(super) const ROOT: &[u8] = &[0];

/// A zone and its servers.
#[derive(Clone, Debug)]
pub struct Stub {
    /// The zone; the root: all names that no other zone has.
    pub zone: Name,
    /// Its servers, at most 15.
    pub servers: Vec<SocketAddr>,
}

/// Where queries for other zones go.
#[derive(Clone, Debug, Default)]
pub struct Upstreams {
    /// Zones with servers of their own. The longest one that a name is in counts.
    pub stubs: Vec<Stub>,
    /// Where the servers of everything else are named. `None`: in none, or a stub is the root.
    pub resolv_conf: Option<PathBuf>,
}

/// What is wrong with a list of servers.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct UpstreamError(String);

/// A server: an address with or without a port.
///
/// # Errors
/// It is neither.
pub fn server(text: &str) -> Result<SocketAddr, UpstreamError> {
    let text = text.strip_prefix("dns://").unwrap_or(text);
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(SocketAddr::new(address, PORT));
    }
    text.parse().map_err(|_| {
        UpstreamError(format!("{text:?} is not an address, ADDRESS:PORT or [ADDRESS]:PORT"))
    })
}

impl Upstreams {
    /// Adds the `forward` lines of a CoreDNS Corefile. Zones of server blocks bound them, as there. A server that is a
    /// file is read as `resolv.conf`.
    ///
    /// # Errors
    /// A zone or a server cannot be read, with its line.
    pub fn add_corefile(&mut self, text: &str) -> Result<(), UpstreamError> {
        let mut zones: Vec<String> = Vec::new();
        let mut depth = 0_usize;
        for (number, line) in text.lines().enumerate() {
            let at =
                |error: &dyn fmt::Display| UpstreamError(format!("line {}: {error}", number + 1));
            let line = line.split('#').next().unwrap_or_default().trim();
            let words: Vec<&str> = line.split_whitespace().collect();
            let opens = line.ends_with('{');
            let words = if opens { &words[..words.len() - 1] } else { &words[..] };
            match (depth, words) {
                (0, labels) if opens => zones = labels.iter().map(|it| block_zone(it)).collect(),
                (1, ["forward", from, to @ ..]) => {
                    let from = name(from).map_err(|error| at(&error))?;
                    let within = |zone: &String| name(zone).map_err(|error| at(&error));
                    let blocks = zones.iter().map(within).collect::<Result<Vec<_>, _>>()?;
                    let mut servers = Vec::new();
                    for to in to {
                        match to.starts_with('/') {
                            true => self.resolv_conf = Some(to.into()),
                            false => servers.push(server(to).map_err(|error| at(&error))?),
                        }
                    }
                    if servers.is_empty() {
                        if opens {
                            depth += 1
                        }
                        continue;
                    }
                    servers.truncate(MAX_SERVERS);
                    // `forward .` in the block of a zone is for that zone.
                    let blocks = if from.wire() == [0] { blocks } else { vec![from] };
                    for zone in blocks {
                        self.stubs.push(Stub { zone, servers: servers.clone() });
                    }
                }
                _ => {}
            }
            if opens {
                depth += 1;
            } else if line == "}" {
                depth = depth.saturating_sub(1);
            }
        }
        Ok(())
    }

    /// The zone of a name, and its servers; both names in wire form, the given one in lower case. `default` are the servers
    /// of `resolv.conf`.
    pub(super) fn of<'u>(
        &'u self,
        name: &[u8],
        default: &'u [SocketAddr],
    ) -> (&'u [u8], &'u [SocketAddr]) {
        let zones = self.stubs.iter().filter(|stub| is_within(name, stub.zone.wire()));
        let longest = zones.max_by_key(|stub| stub.zone.wire().len());
        longest.map_or((ROOT, default), |stub| (stub.zone.wire(), &stub.servers))
    }

    /// The servers that `resolv.conf` names now.
    pub(super) fn read_default(&self) -> Vec<SocketAddr> {
        self.resolv_conf.as_deref().map_or_else(Vec::new, read_resolv_conf)
    }
}

fn name(text: &str) -> Result<Name, UpstreamError> {
    Name::parse(text).map_err(|error| UpstreamError(format!("{text:?}: {error}")))
}

/// The zone of a server block's label: without scheme and port.
fn block_zone(label: &str) -> String {
    let label = label.trim_end_matches(',');
    let label = label.strip_prefix("dns://").unwrap_or(label);
    let zone = label.rsplit_once(':').map_or(label, |(zone, _)| zone);
    if zone.is_empty() { ".".to_owned() } else { zone.to_owned() }
}

/// Whether a name is in a zone, both in wire form; the name is in lower case.
fn is_within(name: &[u8], zone: &[u8]) -> bool {
    let mut rest = name;
    loop {
        if rest.eq_ignore_ascii_case(zone) {
            return true;
        }
        match rest.split_first() {
            Some((&len @ 1..=63, behind)) => match behind.get(usize::from(len)..) {
                Some(behind) => rest = behind,
                None => return false,
            },
            _ => return false,
        }
    }
}

/// Lines `nameserver ADDRESS`, as glibc reads them. A file that cannot be read names none.
fn read_resolv_conf(path: &Path) -> Vec<SocketAddr> {
    let text = fs::read_to_string(path).unwrap_or_default();
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
    use super::*;

    #[test]
    fn corefile() {
        let mut upstreams = Upstreams::default();
        let text = "
.:53 {
    errors
    kubernetes cluster.local in-addr.arpa ip6.arpa {
       pods insecure
    }
    forward . 192.0.2.53 [2001:db8::53]:5353 { # a comment
       max_concurrent 1000
    }
    cache 30
}
corp.example:53 lab.example {
    forward . 10.0.0.53:1053
}
";
        upstreams.add_corefile(text).unwrap();
        let of = |name: &str| {
            let wire = Name::parse(name).unwrap();
            let (_, list) = upstreams.of(&wire.wire().to_ascii_lowercase(), &[]);
            list.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(of("example.com"), ["192.0.2.53:53", "[2001:db8::53]:5353"]);
        assert_eq!(of("a.CORP.example"), ["10.0.0.53:1053"]);
        assert_eq!(of("lab.example"), ["10.0.0.53:1053"]);
        assert_eq!(of("notlab.example"), ["192.0.2.53:53", "[2001:db8::53]:5353"]);

        let mut upstreams = Upstreams::default();
        upstreams.add_corefile(".:53 {\n forward . /etc/resolv.conf\n}\n").unwrap();
        assert_eq!(upstreams.resolv_conf.as_deref(), Some(Path::new("/etc/resolv.conf")));
        assert!(upstreams.stubs.is_empty());
        let wrong =
            Upstreams::default().add_corefile(".:53 {\n forward . nowhere\n}\n").unwrap_err();
        assert!(wrong.to_string().starts_with("line 2: \"nowhere\""), "{wrong}");
    }
}
