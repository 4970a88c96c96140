//! Information from the machine: the process, and the node's network and kernel.

use std::fs;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};

use podswitch_linux::NetNs;
use rustix::net::sockopt::socket_peercred;

use super::redact::{command_line, environment};

/// Maximum number of bytes from the end of a log.
const LOG_TAIL: u64 = 1 << 20;
/// Settings of the kernel that forwarding depends on.
const SYSCTLS: [&str; 24] = [
    "kernel/osrelease",
    "kernel/unprivileged_userns_clone",
    "net/core/busy_poll",
    "net/core/netdev_max_backlog",
    "net/core/rmem_default",
    "net/core/rmem_max",
    "net/core/wmem_default",
    "net/core/wmem_max",
    "net/ipv4/conf/all/accept_local",
    "net/ipv4/conf/all/forwarding",
    "net/ipv4/conf/all/route_localnet",
    "net/ipv4/conf/all/rp_filter",
    "net/ipv4/conf/podswitch0/forwarding",
    "net/ipv4/conf/podswitch0/rp_filter",
    "net/ipv4/ip_forward",
    "net/ipv4/ip_local_port_range",
    "net/ipv4/ip_local_reserved_ports",
    "net/ipv4/neigh/default/gc_thresh3",
    "net/ipv6/conf/all/disable_ipv6",
    "net/ipv6/conf/all/forwarding",
    "net/ipv6/conf/podswitch0/forwarding",
    "net/netfilter/nf_conntrack_count",
    "net/netfilter/nf_conntrack_max",
    "user/max_user_namespaces",
];

/// A part, or why it could not be read.
type Part = Result<String, String>;

/// The process that listens at the control socket.
pub(super) fn process_id(socket: &Path) -> Result<u32, String> {
    let said = |error: std::io::Error| format!("{}: {error}", socket.display());
    let stream = UnixStream::connect(socket).map_err(said)?;
    let peer = socket_peercred(&stream).map_err(|error| said(error.into()))?;
    match peer.pid.as_raw_nonzero().get() {
        pid if pid > 0 => Ok(pid.unsigned_abs()),
        _ => Err("the process is in another PID namespace".to_owned()),
    }
}

pub(super) fn read(path: impl AsRef<Path>) -> Part {
    let path = path.as_ref();
    let bytes = fs::read(path).map_err(|error| format!("{}: {error}", path.display()))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The strings of a file of `/proc`.
fn strings(path: &Path) -> Result<Vec<String>, String> {
    let text = read(path)?;
    Ok(text.split('\0').filter(|text| !text.is_empty()).map(str::to_owned).collect())
}

/// Parts about a process, by name.
pub(super) fn process(pid: u32) -> Vec<(String, Part)> {
    let folder = Path::new("/proc").join(pid.to_string());
    let mut parts: Vec<(String, Part)> = Vec::new();
    for name in ["status", "limits", "stat", "schedstat", "cgroup"] {
        parts.push((format!("process/{name}"), read(folder.join(name))));
    }
    let flags = strings(&folder.join("cmdline")).map(|words| command_line(&words));
    parts.push(("process/command-line".into(), flags));
    let variables = strings(&folder.join("environ")).map(|list| environment(&list));
    parts.push(("process/environment".into(), variables));
    parts.push(("process/threads".into(), threads(&folder)));
    parts.push(("log-tail".into(), log_tail(&folder)));
    parts
}

/// One line per thread: its number, name, and `/proc/PID/task/TID/stat`, which contains its times.
fn threads(folder: &Path) -> Part {
    let tasks = folder.join("task");
    let entries = fs::read_dir(&tasks).map_err(|error| format!("{}: {error}", tasks.display()))?;
    let mut lines: Vec<String> =
        entries.flatten().filter_map(|entry| read(entry.path().join("stat")).ok()).collect();
    lines.sort();
    Ok(lines.concat())
}

/// The end of what the process writes to standard error, if that is a file.
fn log_tail(folder: &Path) -> Part {
    let link = folder.join("fd/2");
    let said = |error: std::io::Error| format!("{}: {error}", link.display());
    let target = fs::read_link(&link).map_err(said)?;
    if !fs::metadata(&link).map_err(said)?.is_file() {
        return Err(format!(
            "standard error is {}, not a file: see the journal or the container's log",
            target.display()
        ));
    }
    let mut file = fs::File::open(&link).map_err(said)?;
    let length = file.metadata().map_err(said)?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL))).map_err(said)?;
    let mut tail = Vec::new();
    file.take(LOG_TAIL).read_to_end(&mut tail).map_err(said)?;
    Ok(String::from_utf8_lossy(&tail).into_owned())
}

/// Names, sizes and kinds of the files beside the control socket, without their contents.
pub(super) fn run_dir(socket: &Path) -> Part {
    let folder = socket.parent().unwrap_or(Path::new("/"));
    let entries = fs::read_dir(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    let mut lines: Vec<String> = entries
        .flatten()
        .map(|entry| {
            let name = entry.file_name().to_string_lossy().into_owned();
            match entry.metadata() {
                Ok(facts) => format!("{:>10} {name}\n", facts.len()),
                Err(error) => format!("{name}: {error}\n"),
            }
        })
        .collect();
    lines.sort();
    Ok(format!("{}\n{}", folder.display(), lines.concat()))
}

/// Parts of the node's network namespace, which is that of the process unless `--node-netns` names another.
pub(super) fn network(pid: u32) -> Vec<(String, Part)> {
    let folder = Path::new("/proc").join(pid.to_string());
    let words = strings(&folder.join("cmdline")).unwrap_or_default();
    let named = words.iter().enumerate().find_map(|(at, word)| match word.split_once('=') {
        Some(("--node-netns", path)) => Some(path.to_owned()),
        _ if word == "--node-netns" => words.get(at + 1).cloned(),
        _ => None,
    });
    // A path such as /proc/self/… is relative to that process.
    let path = match named {
        Some(path) => path.replace("/proc/self/", &format!("/proc/{pid}/")).into(),
        None => folder.join("ns/net"),
    };
    match NetNs::open(&path).and_then(|netns| netns.enter(network_here)) {
        Ok(parts) => parts,
        Err(error) => {
            vec![("network/namespace".into(), Err(format!("{}: {error}", path.display())))]
        }
    }
}

/// Runs in the namespace.
fn network_here() -> Vec<(String, Part)> {
    let mut parts: Vec<(String, Part)> = Vec::new();
    for name in [
        "dev",
        "sockstat",
        "sockstat6",
        "softnet_stat",
        "snmp",
        "snmp6",
        "netstat",
        "udp",
        "udp6",
        "packet",
    ] {
        let path = Path::new("/proc/thread-self/net").join(name);
        parts.push((format!("network/{name}"), read(path)));
    }
    for (name, arguments) in [
        ("interfaces", &["-d", "-s", "address"][..]),
        ("routes4", &["-4", "route", "show", "table", "all"]),
        ("routes6", &["-6", "route", "show", "table", "all"]),
        ("rules4", &["-4", "rule"]),
        ("rules6", &["-6", "rule"]),
        ("neighbours", &["neigh"]),
    ] {
        let found = output("ip", arguments).or_else(|why| from_proc(name).ok_or(why));
        parts.push((format!("network/{name}"), found));
    }
    parts.push(("network/nftables".into(), own_tables()));
    parts.push(("sysctls".into(), Ok(sysctls())));
    parts
}

/// The kernel's own tables, if the program `ip` is missing.
fn from_proc(name: &str) -> Option<String> {
    let file = match name {
        "interfaces" => "if_inet6",
        "routes4" => "route",
        "routes6" => "ipv6_route",
        "neighbours" => "arp",
        _ => return None,
    };
    let text = read(Path::new("/proc/thread-self/net").join(file)).ok()?;
    Some(format!("(there is no program `ip`: /proc/net/{file})\n{text}"))
}

/// The rules of the switch's own nf_tables tables only.
fn own_tables() -> Part {
    let tables = output("nft", &["list", "tables"])?;
    let own = tables.lines().filter_map(|line| line.strip_prefix("table "));
    let own = own.filter(|table| table.contains("podswitch"));
    let mut text = String::new();
    for table in own {
        let words = ["list", "table"].into_iter().chain(table.split_whitespace());
        let listed = output("nft", &words.collect::<Vec<_>>());
        text.push_str(&listed.unwrap_or_else(|why| format!("table {table}: {why}\n")));
    }
    Ok(text)
}

fn sysctls() -> String {
    let line = |name: &&str| {
        let value = read(Path::new("/proc/sys").join(name));
        let value = value.unwrap_or_else(|_| "(there is none)".to_owned());
        format!("{} = {}\n", name.replace('/', "."), value.trim().replace('\t', " "))
    };
    SYSCTLS.iter().map(line).collect()
}

/// What a program prints.
fn output(program: &str, arguments: &[&str]) -> Part {
    let said = |why: String| format!("{program} {}: {why}", arguments.join(" "));
    let done = Command::new(program).args(arguments).stdin(Stdio::null()).output();
    let done = done.map_err(|error| said(error.to_string()))?;
    match done.status.success() {
        true => Ok(String::from_utf8_lossy(&done.stdout).into_owned()),
        false => Err(said(String::from_utf8_lossy(&done.stderr).trim().to_owned())),
    }
}

/// Parts about the machine, by name.
pub(super) fn machine() -> Vec<(String, Part)> {
    let mut parts: Vec<(String, Part)> = Vec::new();
    for name in ["version", "cpuinfo", "meminfo", "loadavg", "uptime", "interrupts", "softirqs"] {
        parts.push((format!("machine/{name}"), read(Path::new("/proc").join(name))));
    }
    parts.push(("machine/os-release".into(), read("/etc/os-release")));
    parts
}
