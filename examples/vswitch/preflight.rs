//! `preflight`: checks whether this machine has what a node's switch needs.

use std::net::SocketAddr;
use std::path::PathBuf;

use podswitch_linux::preflight::{self, Check, Level, Options};
use podswitch_linux::{NetNs, sysctl};
use serde::Serialize;

use crate::failure::Failure;
use crate::{Done, print};

/// Check this node: whether the switch can run here, what is missing or in conflict, and how to fix
/// it.
///
/// Changes nothing. Each line is `ok`, `warn` (the switch runs with limited function) or `fail`.
/// Use the same options as for `run`.
///
/// Exit status: 0 no check failed, 1 at least one did.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// UDP port of the tunnel. Default: 4789; 8472 is checked as well.
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    vxlan_port: Option<u16>,
    /// Where health and metrics will be served.
    #[arg(long, value_name = "HOST:PORT|off", default_value = "127.0.0.1:9100", value_parser = address)]
    metrics_address: Listen,
    /// The interface for traffic without a tunnel.
    #[arg(long, value_name = "IF")]
    uplink: Option<String>,
    /// Where the container runtime looks for CNI configuration.
    #[arg(long, value_name = "DIR", default_value = "/etc/cni/net.d")]
    cni_conf_dir: PathBuf,
    /// Where the container runtime keeps network namespaces.
    #[arg(long, value_name = "DIR", default_value = "/run/netns")]
    netns_dir: PathBuf,
    /// Threads that will forward.
    #[arg(long, value_name = "N", default_value_t = 1)]
    workers: u16,
    /// The node's own network namespace, if it is not that of this process.
    #[arg(long, value_name = "PATH")]
    node_netns: Option<PathBuf>,
    /// Path of the node's kernel settings, if /proc/sys is read-only.
    #[arg(long, value_name = "DIR")]
    proc_sys: Option<PathBuf>,
    /// Exit with status 0 even if a check failed.
    #[arg(long)]
    warn_only: bool,
}

/// `HOST:PORT`, or `None` for `off`.
#[derive(Clone, Copy, Debug)]
struct Listen(Option<SocketAddr>);

fn address(text: &str) -> Result<Listen, String> {
    match text {
        "off" => Ok(Listen(None)),
        _ => text.parse().map(Some).map(Listen).map_err(|_| "it is not ADDRESS:PORT or off".into()),
    }
}

#[derive(Serialize)]
struct Report<'a> {
    ok: bool,
    checks: Vec<Line<'a>>,
}

#[derive(Serialize)]
struct Line<'a> {
    name: &'a str,
    level: &'a str,
    found: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    mend: &'a str,
}

pub(crate) fn run(args: &Args, json: bool) -> Done {
    if let Some(path) = &args.proc_sys {
        sysctl::use_root(path);
    }
    let namespace = args.node_netns.as_deref().map_or_else(NetNs::current, NetNs::open)?;
    let mut options = Options::new(namespace);
    options.vxlan_port = args.vxlan_port;
    options.listen = args.metrics_address.0;
    options.uplink.clone_from(&args.uplink);
    options.cni_conf_dir = Some(args.cni_conf_dir.clone());
    options.netns_dir.clone_from(&args.netns_dir);
    options.workers = args.workers.into();
    let checks = preflight::run(&options);
    let good = checks.iter().all(|check| check.level < Level::Fail);
    if json {
        print::json(&Report { ok: good, checks: checks.iter().map(line).collect() });
    } else {
        checks.iter().for_each(print_check);
        print::line(summary(&checks));
    }
    if good || args.warn_only { Ok(()) } else { Err(Failure::Checked) }
}

fn line(check: &Check) -> Line<'_> {
    let (level, found, mend) = (check.level.name(), check.found.as_str(), check.mend.as_str());
    Line { name: check.name, level, found, mend }
}

fn print_check(check: &Check) {
    print::line(format_args!("{:<5} {}: {}", check.level.name(), check.name, check.found));
    if !check.mend.is_empty() {
        print::line(format_args!("      to fix it: {}", check.mend));
    }
}

fn summary(checks: &[Check]) -> String {
    let count = |level| checks.iter().filter(|check| check.level == level).count();
    let (failed, warned) = (count(Level::Fail), count(Level::Warn));
    match (failed, warned) {
        (0, 0) => "the switch can run here".to_owned(),
        (0, _) => format!("the switch can run here; warnings: {warned}"),
        _ => {
            format!("the switch cannot run properly here; failed: {failed}, warnings: {warned}")
        }
    }
}
