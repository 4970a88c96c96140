//! The servers that queries for other zones are forwarded to: from options, a CoreDNS Corefile, or the node's
//! `resolv.conf`.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use podswitch_dns::Name;

use super::resolv_conf::{MAX_SERVERS, PORT, ResolvConfs};

/// The root in wire form.
pub(super) const ROOT: &[u8] = &[0];

/// Where servers are named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A server itself.
    Server(SocketAddr),
    /// A file such as `resolv.conf`, which is read again every 10 s. Its first 15 servers count. While it
    /// cannot be read, those count that it named before.
    File(PathBuf),
}

/// A zone and its servers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stub {
    /// The zone; the root: all names that no other zone has.
    pub zone: Name,
    /// Its servers.
    pub servers: Vec<Source>,
}

/// Where queries for other zones go. Names that are in no zone here have no server.
#[derive(Clone, Debug, Default)]
pub struct Upstreams {
    stubs: Vec<Stub>,
    files: ResolvConfs,
}

/// The servers of each zone, as last read; zones in wire form and lower case.
pub(super) type Zones = Vec<(Vec<u8>, Vec<SocketAddr>)>;

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

impl Stub {
    /// A zone with these servers.
    pub fn new(zone: Name, servers: impl IntoIterator<Item = SocketAddr>) -> Self {
        Self { zone, servers: servers.into_iter().map(Source::Server).collect() }
    }
}

impl Upstreams {
    /// Sets a zone's servers. The longest zone that a name is in counts. Returns those that the zone had.
    pub fn set(&mut self, stub: Stub) -> Option<Stub> {
        let is_same = |it: &Stub| it.zone.wire().eq_ignore_ascii_case(stub.zone.wire());
        match self.stubs.iter_mut().find(|it| is_same(it)) {
            Some(old) => Some(std::mem::replace(old, stub)),
            None => {
                self.stubs.push(stub);
                None
            }
        }
    }

    /// Where the names that no other zone has go, if no servers are set for them yet: those that this file names.
    pub fn set_default(&mut self, resolv_conf: PathBuf) {
        if !self.stubs.iter().any(|stub| stub.zone.wire() == ROOT)
            && let Ok(zone) = name(".")
        {
            self.stubs.push(Stub { zone, servers: vec![Source::File(resolv_conf)] });
        }
    }

    /// Adds the `forward` lines of a CoreDNS Corefile. Zones of server blocks bound them, as there. A server that is a
    /// file is read as `resolv.conf`. Returns what has no effect here and changes where queries go, with its line.
    ///
    /// # Errors
    /// A zone or a server cannot be read, with its line.
    pub fn add_corefile(&mut self, text: &str) -> Result<Vec<String>, UpstreamError> {
        let mut zones: Vec<String> = Vec::new();
        let mut left_out = Vec::new();
        let mut depth = 0_usize;
        let mut is_in_forward = false;
        for (number, line) in text.lines().enumerate() {
            let number = number + 1;
            let at = |error: &dyn fmt::Display| UpstreamError(format!("line {number}: {error}"));
            let line = line.split('#').next().unwrap_or_default().trim();
            let words: Vec<&str> = line.split_whitespace().collect();
            let opens = line.ends_with('{');
            let words = if opens { &words[..words.len() - 1] } else { &words[..] };
            match (depth, words) {
                (_, ["import", what @ ..]) => {
                    let what = what.join(" ");
                    left_out.push(format!("line {number}: `import {what}` is not read"));
                }
                (0, labels) if opens => zones = labels.iter().map(|it| block_zone(it)).collect(),
                (1, ["forward", from, to @ ..]) => {
                    is_in_forward = opens;
                    let from = name(from).map_err(|error| at(&error))?;
                    let within = |zone: &String| name(zone).map_err(|error| at(&error));
                    let blocks = zones.iter().map(within).collect::<Result<Vec<_>, _>>()?;
                    let source = |to: &&str| match to.starts_with('/') {
                        true => Ok(Source::File(to.into())),
                        false => server(to).map(Source::Server).map_err(|error| at(&error)),
                    };
                    let mut servers = to.iter().map(source).collect::<Result<Vec<_>, _>>()?;
                    if servers.len() > MAX_SERVERS {
                        let rest = to[MAX_SERVERS..].join(" ");
                        left_out.push(format!(
                            "line {number}: more than {MAX_SERVERS} servers; not used: {rest}"
                        ));
                        servers.truncate(MAX_SERVERS);
                    }
                    if servers.is_empty() {
                        left_out.push(format!("line {number}: `forward` without a server"));
                    }
                    // `forward .` in the block of a zone is for that zone.
                    let blocks = if from.wire() == ROOT { blocks } else { vec![from] };
                    for zone in blocks.into_iter().filter(|_| !servers.is_empty()) {
                        let text = zone.to_string();
                        if self.set(Stub { zone, servers: servers.clone() }).is_some() {
                            left_out.push(format!(
                                "line {number}: an earlier `forward` for {text} is not used"
                            ));
                        }
                    }
                }
                (2, [option, ..]) if is_in_forward && !is_tuning(option) => {
                    left_out.push(format!("line {number}: `{line}` of `forward` has no effect"));
                }
                _ => {}
            }
            if opens {
                depth += 1;
            } else if line == "}" {
                depth = depth.saturating_sub(1);
                is_in_forward &= depth > 1;
            }
        }
        Ok(left_out)
    }

    /// The servers of each zone now, and the files that cannot be read, with the reason.
    pub(super) fn read(&mut self) -> (Zones, BTreeMap<PathBuf, String>) {
        let Self { stubs, files } = self;
        let mut unreadable = BTreeMap::new();
        let mut servers = |source: &Source| match source {
            Source::Server(server) => vec![*server],
            Source::File(path) => files.read(path, &mut unreadable),
        };
        let mut of_zone = |stub: &Stub| {
            let zone = stub.zone.wire().to_ascii_lowercase();
            (zone, stub.servers.iter().flat_map(&mut servers).collect())
        };
        let zones = stubs.iter().map(&mut of_zone).collect();
        (zones, unreadable)
    }

    /// Takes over what files named when `before` could read them last.
    pub(super) fn follow(&mut self, before: Self) {
        self.files = before.files;
    }
}

/// The zone of a name, and its servers; the name in wire form and lower case.
pub(super) fn of<'z>(zones: &'z Zones, name: &[u8]) -> (&'z [u8], &'z [SocketAddr]) {
    let around = zones.iter().filter(|(zone, _)| is_within(name, zone));
    let longest = around.max_by_key(|(zone, _)| zone.len());
    longest.map_or((ROOT, &[]), |(zone, servers)| (zone, servers))
}

/// Whether an option of `forward` says how hard servers are tried, not which or how. The limits here are others.
fn is_tuning(option: &str) -> bool {
    let known = ["max_concurrent", "policy", "health_check", "expire", "max_fails", "prefer_udp"];
    option == "}" || known.contains(&option)
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

#[cfg(test)]
mod tests {
    use std::fs;

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
        assert!(upstreams.add_corefile(text).unwrap().is_empty());
        let servers_of = |upstreams: &mut Upstreams, name: &str| {
            let wire = Name::parse(name).unwrap();
            let (zones, _) = upstreams.read();
            let (_, list) = of(&zones, &wire.wire().to_ascii_lowercase());
            list.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(
            servers_of(&mut upstreams, "example.com"),
            ["192.0.2.53:53", "[2001:db8::53]:5353"]
        );
        assert_eq!(servers_of(&mut upstreams, "a.CORP.example"), ["10.0.0.53:1053"]);
        assert_eq!(servers_of(&mut upstreams, "lab.example"), ["10.0.0.53:1053"]);
        assert_eq!(
            servers_of(&mut upstreams, "notlab.example"),
            ["192.0.2.53:53", "[2001:db8::53]:5353"]
        );

        let mut upstreams = Upstreams::default();
        upstreams.add_corefile(".:53 {\n forward . /etc/resolv.conf\n}\n").unwrap();
        let root = Stub {
            zone: Name::parse(".").unwrap(),
            servers: vec![Source::File("/etc/resolv.conf".into())],
        };
        assert_eq!(upstreams.stubs, [root]);
        let wrong =
            Upstreams::default().add_corefile(".:53 {\n forward . nowhere\n}\n").unwrap_err();
        assert!(wrong.to_string().starts_with("line 2: \"nowhere\""), "{wrong}");
    }
    /// A file in the default folder for temporary ones, with these servers.
    fn resolv_conf(test: &str, text: &str) -> PathBuf {
        let name = format!("podswitch-{test}-{}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::write(&path, text).unwrap();
        path
    }

    #[test]
    fn a_file_is_of_its_zone_and_beside_servers() {
        let file = resolv_conf("upstreams", "search example\nnameserver 192.0.2.9\n");
        let text = format!(
            "corp.example {{\n forward . {0}\n}}\n. {{\n forward . {0} 192.0.2.1\n}}\n",
            file.display()
        );
        let mut upstreams = Upstreams::default();
        assert!(upstreams.add_corefile(&text).unwrap().is_empty());
        let address = |last: u8| SocketAddr::from(([192, 0, 2, last], 53));
        let corp = b"\x04corp\x07example\0";
        let expected =
            [(corp.to_vec(), vec![address(9)]), (ROOT.to_vec(), vec![address(9), address(1)])];
        assert_eq!(upstreams.read().0, expected);
        // With servers for all other names, no file is the default.
        upstreams.set_default("/nowhere".into());
        assert_eq!(upstreams.read().0, expected);
        let old = upstreams.set(Stub::new(Name::parse(".").unwrap(), [address(2)]));
        assert_eq!(old.map(|stub| stub.servers.len()), Some(2));
        assert_eq!(upstreams.read().0[1].1, [address(2)]);
        let mut upstreams = Upstreams::default();
        upstreams.set(Stub::new(Name::parse("corp.example").unwrap(), [address(2)]));
        upstreams.set_default(file.clone());
        let (zones, _) = upstreams.read();
        assert_eq!(of(&zones, b"\x03www\0"), (ROOT, &[address(9)][..]));
        assert_eq!(of(&zones, corp), (&corp[..], &[address(2)][..]));
        fs::remove_file(file).unwrap();
    }

    #[test]
    fn what_a_corefile_says_in_vain_is_told() {
        let servers: String = (1..=17).map(|last| format!(" 192.0.2.{last}")).collect();
        let text = format!(
            ". {{
    import custom/*.override
    forward .{servers} {{
        except internal.example
        max_concurrent 1000
        tls_servername dns.example
    }}
    errors {{
        consolidate 5m
    }}
    forward lab.example
}}
. {{
    forward . 192.0.2.99
}}
"
        );
        let mut upstreams = Upstreams::default();
        let expected = [
            "line 2: `import custom/*.override` is not read",
            "line 3: more than 15 servers; not used: 192.0.2.16 192.0.2.17",
            "line 4: `except internal.example` of `forward` has no effect",
            "line 6: `tls_servername dns.example` of `forward` has no effect",
            "line 11: `forward` without a server",
            "line 14: an earlier `forward` for . is not used",
        ];
        assert_eq!(upstreams.add_corefile(&text).unwrap(), expected);
        assert_eq!(upstreams.read().0, [(ROOT.to_vec(), vec![([192, 0, 2, 99], 53).into()])]);
    }
}
