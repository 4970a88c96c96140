//! The node's own settings, interfaces and folders.

use std::fs;
use std::ops::RangeInclusive;
use std::path::Path;

use podswitch_core::config::NAT_PORTS;

use super::check::{Check, Options};
use crate::{KubeProxy, NetNs, Netlink, sysctl};

/// With fewer source ports than this, the node's own connections may run out of ports.
const FEW_PORTS: usize = 2000;
/// The share of tracked connections above which the node's own table is nearly full, in percent.
const NEARLY_FULL: u64 = 90;

pub(super) fn checks(options: &Options) -> Vec<Check> {
    let ns = &options.namespace;
    let mut checks =
        vec![writable_settings(ns), forwarding(ns), reverse_path(ns, options), source_ports(ns)];
    checks.extend(tracked_connections(ns));
    checks.push(ipv6(ns));
    checks.push(mtu(ns, options));
    checks.push(kube_proxy(KubeProxy::detect(ns)));
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    checks.push(propagation(&options.netns_dir, &mounts));
    checks
}

fn writable_settings(ns: &NetNs) -> Check {
    const NAME: &str = "settings";
    match sysctl::is_writable(ns, "net/ipv4/ip_forward") {
        Ok(()) => Check::ok(NAME, "kernel settings of the network can be written"),
        Err(error) => {
            let mend = "in a container mount the node's /proc/sys/net at /host/proc/sys/net and give --proc-sys \
                        /host/proc/sys; otherwise run as root of the namespace";
            Check::fail(NAME, error.to_string(), mend)
        }
    }
}

fn forwarding(ns: &NetNs) -> Check {
    const NAME: &str = "forwarding";
    let is = |key: &str, value: &str| sysctl::get(ns, key).is_ok_and(|found| found == value);
    let mut off = Vec::new();
    if !is("net/ipv4/ip_forward", "1") {
        off.push("net.ipv4.ip_forward");
    }
    if is("net/ipv6/conf/all/forwarding", "0") {
        off.push("net.ipv6.conf.all.forwarding");
    }
    match off[..] {
        [] => Check::ok(NAME, "on"),
        _ => Check::ok(
            NAME,
            format!("{} is off; the switch turns it on while it runs", off.join(", ")),
        ),
    }
}

/// A strict check drops packets that arrive on another interface than the one used for replies.
fn reverse_path(ns: &NetNs, options: &Options) -> Check {
    const NAME: &str = "rp_filter";
    let read = |interface: &str| sysctl::get(ns, &format!("net/ipv4/conf/{interface}/rp_filter"));
    let uplink = options.uplink.as_deref().map(read).and_then(Result::ok);
    match (read("all").unwrap_or_default().as_str(), uplink.as_deref()) {
        (_, Some("1")) | ("1", Some(_)) => Check::warn(
            NAME,
            "the reverse path of what the uplink receives is checked strictly: clients that are reached by another interface \
             are dropped",
            format!(
                "sysctl -w net.ipv4.conf.all.rp_filter=2 net.ipv4.conf.{}.rp_filter=2",
                options.uplink.as_deref().unwrap_or("default")
            ),
        ),
        ("1", None) => {
            Check::ok(NAME, "strict for all interfaces; the switch sets its own to loose")
        }
        _ => Check::ok(NAME, "loose or off; the switch sets its own interface's"),
    }
}

/// The switch reserves ports for its source NAT, so that the kernel does not choose them.
fn source_ports(ns: &NetNs) -> Check {
    const NAME: &str = "source ports";
    let Some(range) = sysctl::get(ns, "net/ipv4/ip_local_port_range").ok().and_then(|t| pair(&t))
    else {
        return Check::ok(NAME, "the kernel's range is not known");
    };
    left_ports(&range)
}

fn left_ports(range: &RangeInclusive<u16>) -> Check {
    const NAME: &str = "source ports";
    let left = range.clone().filter(|port| !NAT_PORTS.contains(port)).count();
    let (first, last) = (range.start(), range.end());
    if left >= FEW_PORTS {
        return Check::ok(
            NAME,
            format!("{left} of {first}-{last} are left to the node's own connections"),
        );
    }
    let (nat, end) = (NAT_PORTS.start(), NAT_PORTS.end());
    let found = format!(
        "the switch reserves {nat}-{end} for its NAT, which leaves {left} of {first}-{last} to the node's own connections"
    );
    Check::warn(
        NAME,
        found,
        "sysctl -w net.ipv4.ip_local_port_range=\"32768 60999\" or a lower beginning",
    )
}

/// Two numbers separated by white space.
fn pair(text: &str) -> Option<RangeInclusive<u16>> {
    let mut numbers = text.split_whitespace().map(str::parse);
    let range = numbers.next()?.ok()?..=numbers.next()?.ok()?;
    (!range.is_empty()).then_some(range)
}

/// The kernel tracks connections that it masquerades or that other rules track.
fn tracked_connections(ns: &NetNs) -> Option<Check> {
    const NAME: &str = "nf_conntrack";
    let read = |key: &str| sysctl::get(ns, key).ok()?.parse::<u64>().ok();
    let (most, now) =
        (read("net/netfilter/nf_conntrack_max")?, read("net/netfilter/nf_conntrack_count")?);
    if most > 0 && now.saturating_mul(100) / most >= NEARLY_FULL {
        let found = format!(
            "{now} of {most} connections are tracked by the kernel: new ones are soon dropped"
        );
        return Some(Check::warn(
            NAME,
            found,
            format!("sysctl -w net.netfilter.nf_conntrack_max={}", most * 2),
        ));
    }
    Some(Check::ok(NAME, format!("{now} of {most} connections")))
}

fn ipv6(ns: &NetNs) -> Check {
    const NAME: &str = "IPv6";
    match sysctl::get(ns, "net/ipv6/conf/all/disable_ipv6").as_deref() {
        Ok("0") => Check::ok(NAME, "there is"),
        Ok(_) => Check::ok(
            NAME,
            "disabled (net.ipv6.conf.all.disable_ipv6): the node's side is IPv4 only",
        ),
        Err(_) => Check::ok(NAME, "the kernel has none: the node's side is IPv4 only"),
    }
}

fn mtu(ns: &NetNs, options: &Options) -> Check {
    const NAME: &str = "MTU";
    let links = match Netlink::open(ns).and_then(|mut n| {
        let used = match &options.uplink {
            Some(uplink) => vec![n.link(uplink)?.index],
            None => n
                .routes()?
                .iter()
                .filter(|r| r.destination.prefix() == 0)
                .filter_map(|r| r.link)
                .collect(),
        };
        Ok(n.links()?.into_iter().filter(|link| used.contains(&link.index)).collect::<Vec<_>>())
    }) {
        Ok(links) => links,
        Err(error) => {
            return Check::fail(NAME, error.to_string(), "give the right name to --uplink");
        }
    };
    let Some(link) = links.iter().min_by_key(|link| link.mtu) else {
        let mend =
            "without a tunnel there is nothing to do; otherwise give the node a default route";
        return Check::warn(NAME, "no default route: other nodes may be out of reach", mend);
    };
    mtu_of(&link.name, link.mtu)
}

/// IPv6 needs 1280 bytes inside the tunnel, and the tunnel 50 over IPv4, 70 over IPv6.
fn mtu_of(name: &str, mtu: u32) -> Check {
    const NAME: &str = "MTU";
    if mtu < 1280 + 70 {
        let found = format!(
            "{name} carries {mtu} bytes: less than IPv6 pods need inside the tunnel (1350)"
        );
        return Check::warn(
            NAME,
            found,
            format!("ip link set {name} mtu 1500, if the network carries it"),
        );
    }
    Check::ok(
        NAME,
        format!(
            "{name} carries {mtu} bytes, pods {} over IPv4 and {} over IPv6",
            mtu - 50,
            mtu - 70
        ),
    )
}

fn kube_proxy(found: Result<Option<KubeProxy>, crate::HostError>) -> Check {
    const NAME: &str = "kube-proxy";
    match found {
        Ok(None) => Check::ok(
            NAME,
            "not here: the switch serves Services, also to the node's own processes",
        ),
        Ok(Some(found)) => {
            let found = format!(
                "{found} is here, or its rules are left: node ports, load-balancer addresses and the node's own connections \
                 to Services stay with it; pods' are the switch's"
            );
            let mend = "to have all Services on the switch remove kube-proxy, run `kube-proxy --cleanup` or reboot, and give \
                        --api-server an address that does not need it (docs/install.md)";
            Check::warn(NAME, found, mend)
        }
        Err(error) => {
            Check::warn(NAME, format!("not known: {error}"), "load nf_tables; CAP_NET_ADMIN")
        }
    }
}

/// Namespaces that the runtime creates later must become visible here.
fn propagation(folder: &Path, mountinfo: &str) -> Check {
    const NAME: &str = "network namespaces of pods";
    // If several mounts have the same path, the last one is on top.
    let mount = mountinfo
        .lines()
        .filter_map(Mount::parse)
        .filter(|m| folder.starts_with(m.point))
        .max_by_key(|m| m.point.len());
    let shown = folder.display();
    let Some(mount) = mount else {
        return Check::warn(NAME, format!("{shown} is on no known mount"), "mount /proc");
    };
    let itself = Path::new(mount.point) == folder;
    if itself && !mount.receives {
        let found = format!(
            "the mount at {shown} is private: namespaces that the runtime makes later are not seen"
        );
        return Check::fail(NAME, found, "mountPropagation: HostToContainer on that volume mount");
    }
    if !itself && mount.kind == "overlay" && !mount.receives {
        let found =
            format!("{shown} is the container's own: the runtime's namespaces are not seen");
        return Check::warn(
            NAME,
            found,
            format!("mount the node's {shown} with mountPropagation: HostToContainer"),
        );
    }
    Check::ok(NAME, format!("{shown} is seen as it changes"))
}

/// A line of proc_pid_mountinfo(5).
struct Mount<'a> {
    point: &'a str,
    kind: &'a str,
    /// Mounts created elsewhere appear here.
    receives: bool,
}

impl<'a> Mount<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let (before, after) = line.split_once(" - ")?;
        let mut fields = before.split(' ');
        let point = fields.nth(4)?;
        let receives = fields.skip(1).any(|f| f.starts_with("shared:") || f.starts_with("master:"));
        Some(Self { point, kind: after.split(' ').next()?, receives })
    }
}

#[cfg(test)]
mod tests {
    use super::super::check::Level;
    use super::*;

    #[test]
    fn propagation_is_read_from_mountinfo() {
        let folder = Path::new("/run/netns");
        let root = "1 0 0:1 / / rw,relatime - overlay overlay rw\n";
        let shared_root = "1 0 0:1 / / rw,relatime shared:1 - ext4 /dev/vda rw\n";
        let private = "2 1 0:5 /netns /run/netns rw - tmpfs tmpfs rw\n";
        let slave = "2 1 0:5 /netns /run/netns rw master:7 - tmpfs tmpfs rw\n";
        for (mounts, level) in [
            (format!("{root}{private}"), Level::Fail),
            (format!("{root}{slave}"), Level::Ok),
            (format!("{private}{slave}"), Level::Ok),
            (root.to_owned(), Level::Warn),
            (shared_root.to_owned(), Level::Ok),
            (format!("{root}3 1 0:6 / /run rw shared:2 - tmpfs tmpfs rw\n"), Level::Ok),
            (String::new(), Level::Warn),
        ] {
            let check = propagation(folder, &mounts);
            assert_eq!(check.level, level, "{mounts}{check:?}");
            assert_eq!(check.mend.is_empty(), level == Level::Ok, "{check:?}");
        }
    }

    #[test]
    fn remaining_ports_are_counted() {
        assert_eq!(pair("32768\t60999"), Some(32768..=60999));
        assert_eq!(pair("7"), None);
        assert_eq!(left_ports(&(32_768..=60_999)).level, Level::Ok);
        assert_eq!(left_ports(&(NAT_PORTS.start() - 10..=65_535)).level, Level::Warn);
    }

    #[test]
    fn small_underlay_mtus_are_reported() {
        assert_eq!(mtu_of("eth0", 1349).level, Level::Warn);
        let check = mtu_of("eth0", 1500);
        assert_eq!((check.level, check.found.contains("1450")), (Level::Ok, true), "{check:?}");
    }

    #[test]
    fn kube_proxy_is_a_warning() {
        assert_eq!(kube_proxy(Ok(None)).level, Level::Ok);
        let check = kube_proxy(Ok(Some(KubeProxy::Nftables)));
        assert!(
            check.level == Level::Warn && check.found.contains("table kube-proxy"),
            "{check:?}"
        );
    }
}
