//! Cluster DNS of `run`: which names the switch answers for, and the node's own resolver.

use std::fmt::Display;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::ValueEnum;
use podswitch_core::time::{Clock, Instant};
use podswitch_dns::{MAX_TTL, Name, PodNames, Settings};
use podswitch_kubernetes::NameOptions;
use podswitch_linux::confine;
use podswitch_node::resolver::{
    self, RESOLVER_ADDRESSES, Resolver, ResolverOptions, Stub, UpstreamProblems, Upstreams,
};
use podswitch_node::{Meters, NodeHandle};

use crate::failure::Failure;

/// When a resolver that did not start is tried again.
const RETRY: Duration = Duration::from_secs(10);
/// How often the Corefile is read again.
const REREAD: Duration = Duration::from_secs(10);

/// The cluster's DNS.
#[derive(clap::Args, Clone, Debug)]
pub(super) struct DnsFlags {
    /// Whether the switch answers DNS queries that pods send to the Service kube-system/kube-dns, if they are for names
    /// of the cluster. `off`: all go to the Service's pods.
    #[arg(long, value_enum, value_name = "on|off", default_value = "on")]
    dns: Switch,
    /// The cluster's domain.
    #[arg(long, value_name = "DOMAIN", default_value = "cluster.local", value_parser = name)]
    cluster_domain: Name,
    /// How names such as 10-1-0-7.shop.pod.cluster.local are answered: not at all, whether there is such a pod or not,
    /// or only if there is.
    #[arg(long, value_enum, value_name = "disabled|insecure|verified", default_value = "verified")]
    dns_pods: Pods,
    /// Time to live of answers, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 5, value_parser = clap::value_parser!(u32).range(..=i64::from(MAX_TTL)))]
    dns_ttl: u32,
    /// A server for names outside the cluster, used where no pod serves kube-dns. Default: those of --dns-resolv-conf.
    /// Can be repeated.
    #[arg(long, value_name = "ADDRESS[:PORT]", value_parser = resolver::server)]
    dns_upstream: Vec<SocketAddr>,
    /// Servers for the names of one domain. Can be repeated.
    #[arg(long, value_name = "DOMAIN=ADDRESS[:PORT][,...]", value_parser = stub)]
    dns_stub: Vec<Stub>,
    /// A CoreDNS Corefile, whose `forward` lines name servers. Read again every 10 s.
    #[arg(long, value_name = "FILE")]
    dns_corefile: Option<PathBuf>,
    /// The file that names the node's own servers. Read again every 10 s.
    #[arg(long, value_name = "FILE", default_value = "/etc/resolv.conf")]
    dns_resolv_conf: PathBuf,
    /// Add metrics of DNS under CoreDNS's names, for dashboards that were made for it.
    #[arg(long)]
    dns_coredns_metrics: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Switch {
    On,
    Off,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Pods {
    Disabled,
    Insecure,
    Verified,
}

/// `--dns-stub DOMAIN=ADDRESS,...`.
fn stub(text: &str) -> Result<Stub, String> {
    let (zone, servers) = text.split_once('=').ok_or("it is not DOMAIN=ADDRESS[:PORT][,...]")?;
    let servers = servers.split(',').map(resolver::server).collect::<Result<Vec<_>, _>>();
    Ok(Stub::new(name(zone)?, servers.map_err(|error| error.to_string())?))
}

fn name(text: &str) -> Result<Name, String> {
    Name::parse(text).map_err(|error| error.to_string())
}

impl DnsFlags {
    /// What the switch answers for.
    pub(super) fn names(&self) -> Option<NameOptions> {
        if self.dns == Switch::Off {
            return None;
        }
        let zone = Settings {
            domain: self.cluster_domain.clone(),
            ttl: self.dns_ttl,
            pods: match self.dns_pods {
                Pods::Disabled => PodNames::Disabled,
                Pods::Insecure => PodNames::Insecure,
                Pods::Verified => PodNames::Verified,
            },
            ..Settings::default()
        };
        Some(NameOptions { zone, resolver: RESOLVER_ADDRESSES.to_vec() })
    }

    /// The node's own resolver.
    ///
    /// # Errors
    /// The Corefile cannot be read.
    pub(super) fn open(&self, meters: &Meters) -> Result<Dns, Failure> {
        meters.set_coredns_names(self.dns_coredns_metrics);
        let mut corefile = Corefile { flags: self.clone(), text: None, reason: None };
        let upstreams = match corefile.changes() {
            Some(Ok((upstreams, left_out))) => {
                corefile.report(&left_out);
                upstreams
            }
            Some(Err(error)) => return Err(Failure::Input(format!("--dns-corefile {error}"))),
            None => self.upstreams("").map_err(Failure::Input)?.0,
        };
        let mut options = ResolverOptions::default();
        options.upstreams = upstreams;
        options.counters = meters.resolver();
        options.on_thread_start = Some(confine::worker_thread);
        let reported = UpstreamProblems::default();
        let (clock, attempts) = (Clock::start(), Attempts::default());
        let reread_at = clock.now() + REREAD;
        Ok(Dns { options, corefile, reread_at, resolver: None, clock, attempts, reported })
    }

    /// The servers for names outside the cluster, and what in the Corefile has no effect.
    fn upstreams(&self, corefile: &str) -> Result<(Upstreams, Vec<String>), String> {
        let mut upstreams = Upstreams::default();
        let left_out = upstreams.add_corefile(corefile).map_err(|error| error.to_string())?;
        // Flags go before what a Corefile says of the same domain.
        for stub in &self.dns_stub {
            upstreams.set(stub.clone());
        }
        if !self.dns_upstream.is_empty() {
            upstreams.set(Stub::new(name(".")?, self.dns_upstream.iter().copied()));
        }
        upstreams.set_default(self.dns_resolv_conf.clone());
        Ok((upstreams, left_out))
    }
}

/// The Corefile, if there is one.
#[derive(Debug)]
struct Corefile {
    flags: DnsFlags,
    /// What is in force of it.
    text: Option<String>,
    /// Why it could not be read the last time.
    reason: Option<String>,
}

impl Corefile {
    fn path(&self) -> impl Display + '_ {
        self.flags.dns_corefile.as_deref().unwrap_or(Path::new("")).display()
    }

    /// What is new since the last call: the servers, and what in the file has no effect; or file and reason, if it cannot
    /// be read. `None`: nothing.
    fn changes(&mut self) -> Option<Result<(Upstreams, Vec<String>), String>> {
        let path = self.flags.dns_corefile.as_ref()?;
        let text = fs::read_to_string(path).map_err(|error| error.to_string());
        if self.reason.is_none() && text.is_ok() && text.as_ref().ok() == self.text.as_ref() {
            return None;
        }
        match text.and_then(|text| Ok((self.flags.upstreams(&text)?, text))) {
            Ok((found, text)) => {
                (self.text, self.reason) = (Some(text), None);
                Some(Ok(found))
            }
            Err(reason) if self.reason.as_ref() == Some(&reason) => None,
            Err(reason) => {
                self.reason = Some(reason.clone());
                Some(Err(format!("{}: {reason}", self.path())))
            }
        }
    }

    /// Logs what in the file has no effect.
    fn report(&self, left_out: &[String]) {
        for what in left_out {
            tracing::warn!(target: "dns", file = %self.path(), "the Corefile is not followed in all: {what}");
        }
    }
}

/// Logs what is new in `now`.
fn report(before: &UpstreamProblems, now: &UpstreamProblems) {
    if now.has_no_server && !before.has_no_server {
        tracing::warn!(target: "dns", "the node's own resolver has no server for names outside the cluster: the node's resolv.conf and the flags name none but itself");
    }
    if before.has_no_server && !now.has_no_server {
        tracing::info!(target: "dns", "the node's own resolver has a server for names outside the cluster again");
    }
    for (file, error) in &now.unreadable {
        if before.unreadable.get(file) != Some(error) {
            tracing::warn!(target: "dns", file = %file.display(), %error, "the file cannot be read; the servers that it named before stay in force");
        }
    }
    for file in before.unreadable.keys().filter(|file| !now.unreadable.contains_key(*file)) {
        tracing::info!(target: "dns", file = %file.display(), "the file can be read again");
    }
    for (zone, server) in now.loops.difference(&before.loops) {
        tracing::warn!(target: "dns", %zone, %server, "the server forwards queries back to the node's own resolver; it is not asked for names of this zone");
    }
}

/// Attempts to start the resolver, and what has been logged of them.
#[derive(Debug, Default)]
struct Attempts {
    /// Not before then.
    retry_at: Option<Instant>,
    /// Why it does not run, as logged.
    reason: Option<String>,
}

impl Attempts {
    /// Whether the next one may be made.
    fn is_due(&self, now: Instant) -> bool {
        self.retry_at.is_none_or(|at| at <= now)
    }

    /// The resolver does not run, because it did not start or has ended. Returns whether that is to be logged: the same
    /// reason is logged once.
    fn failed(&mut self, now: Instant, reason: String) -> bool {
        self.retry_at = Some(now + RETRY);
        let is_new = self.reason.as_ref() != Some(&reason);
        self.reason = Some(reason);
        is_new
    }

    /// The resolver has started. Returns whether that is to be logged: it is, if it was logged why it did not run.
    fn started(&mut self) -> bool {
        std::mem::take(self).reason.is_some()
    }
}

/// The node's own resolver, which is there from when the name server's Service first is.
#[derive(Debug)]
pub(super) struct Dns {
    options: ResolverOptions,
    corefile: Corefile,
    /// When the Corefile is read again.
    reread_at: Instant,
    resolver: Option<Resolver>,
    clock: Clock,
    attempts: Attempts,
    /// What has been logged of the resolver's servers.
    reported: UpstreamProblems,
}

impl Dns {
    /// Ends the resolver. [`follow`](Self::follow) starts it again.
    pub(super) fn stop(&mut self) {
        self.resolver = None;
    }

    /// Reads the Corefile again when it is time. If that fails, what it said before stays in force.
    fn follow_corefile(&mut self) {
        if self.clock.now() < self.reread_at {
            return;
        }
        self.reread_at = self.clock.now() + REREAD;
        match self.corefile.changes() {
            None => {}
            Some(Ok((upstreams, left_out))) => {
                tracing::info!(target: "dns", file = %self.corefile.path(), "the Corefile has been read again");
                self.corefile.report(&left_out);
                if let Some(resolver) = &self.resolver {
                    resolver.set_upstreams(upstreams.clone());
                }
                // For the next start, too.
                self.options.upstreams = upstreams;
            }
            Some(Err(error)) => {
                tracing::warn!(target: "dns", "the Corefile cannot be read again, what it said before stays in force: {error}");
            }
        }
    }

    /// Starts the resolver if there is a Service for it, and again if it did not start or has ended. Called often.
    pub(super) fn follow(&mut self, node: &NodeHandle) {
        self.follow_corefile();
        if self.resolver.as_ref().is_some_and(Resolver::has_ended) {
            tracing::error!(target: "dns", "the node's own resolver has ended; it is started again after {} s", RETRY.as_secs());
            self.resolver = None;
            self.attempts.failed(self.clock.now(), "it has ended".to_owned());
        }
        if let Some(resolver) = &self.resolver {
            let problems = resolver.problems();
            report(&self.reported, &problems);
            self.reported = problems;
        }
        if self.resolver.is_some() || !self.attempts.is_due(self.clock.now()) {
            return;
        }
        let has_server = node.with(|node| {
            node.snapshot().names.as_ref().is_some_and(|names| !names.frontends.is_empty())
        });
        if !has_server.unwrap_or(false) {
            return;
        }
        match Resolver::start(node.caller(), self.options.clone()) {
            Ok(resolver) => {
                self.resolver = Some(resolver);
                self.reported = UpstreamProblems::default();
                if self.attempts.started() {
                    tracing::info!(target: "dns", "the node's own resolver is started again");
                }
            }
            Err(error) => {
                if self.attempts.failed(self.clock.now(), error.to_string()) {
                    tracing::warn!(target: "dns", %error, "the node's own resolver does not start; pods resolve names while others serve kube-dns");
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[test]
    fn why_the_resolver_does_not_start_is_logged_when_it_changes() {
        let mut attempts = Attempts::default();
        let mut now = Instant::from_secs(100);
        assert!(attempts.is_due(now));
        // What starts at once is no news.
        assert!(!attempts.started());
        let mut logged = Vec::new();
        for reason in ["no room", "no room", "no room", "no port", "no port", "no room"] {
            assert!(attempts.is_due(now));
            logged.push(attempts.failed(now, reason.to_owned()));
            assert!(!attempts.is_due(now + RETRY - Duration::from_millis(1)));
            now = now + RETRY;
        }
        assert_eq!(logged, [true, false, false, true, false, true]);
        assert!(attempts.is_due(now));
        assert!(attempts.started());
        assert!(attempts.is_due(now));
        // Each is logged again the next time.
        assert!(!attempts.started());
        assert!(attempts.failed(now, "no room".to_owned()));
        assert!(attempts.started());
    }

    #[derive(clap::Parser)]
    struct Program {
        #[command(flatten)]
        dns: DnsFlags,
    }

    #[test]
    fn a_corefile_is_followed_and_what_is_wrong_with_it_is_known_once() {
        let name = format!("podswitch-corefile-{}", std::process::id());
        let path = std::env::temp_dir().join(name);
        let server = |last: u8| format!(". {{\n forward . 192.0.2.{last}\n}}\n");
        fs::write(&path, server(1)).unwrap();
        let arguments = ["test", "--dns-stub", "corp.example=192.0.2.99", "--dns-corefile"];
        let arguments = arguments.into_iter().chain(path.to_str());
        let Program { dns: flags } = Program::parse_from(arguments);
        let mut corefile = Corefile { flags, text: None, reason: None };
        // All servers, as text; the flag's is always there.
        let mut changes = || match corefile.changes()? {
            Ok((upstreams, left_out)) => {
                let text = format!("{upstreams:?}");
                assert!(text.contains("192.0.2.99:53"), "{text}");
                let has = |last: u8| text.contains(&format!("192.0.2.{last}:53"));
                Some(Ok(((1..9).filter(|last| has(*last)).collect::<Vec<u8>>(), left_out)))
            }
            Err(error) => Some(Err(error)),
        };
        assert_eq!(changes(), Some(Ok((vec![1], vec![]))));
        assert_eq!(changes(), None);
        fs::write(&path, format!("import x\n{}", server(2))).unwrap();
        let left_out = vec!["line 1: `import x` is not read".to_owned()];
        assert_eq!(changes(), Some(Ok((vec![2], left_out))));
        assert_eq!(changes(), None);
        for wrong in ["nowhere", "nothing"] {
            fs::write(&path, format!(". {{\n forward . {wrong}\n}}\n")).unwrap();
            let error = changes().unwrap().unwrap_err();
            let place = format!("{}: line 2: \"{wrong}\"", path.display());
            assert!(error.starts_with(&place), "{error}");
            assert_eq!(changes(), None, "once");
        }
        fs::remove_file(&path).unwrap();
        let error = changes().unwrap().unwrap_err();
        assert!(error.contains("No such file"), "{error}");
        assert_eq!(changes(), None, "once");
        // The same as before the failures is news.
        fs::write(&path, server(2)).unwrap();
        assert_eq!(changes(), Some(Ok((vec![2], vec![]))));
        assert_eq!(changes(), None);
        fs::remove_file(&path).unwrap();
    }
}
