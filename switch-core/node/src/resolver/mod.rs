//! This node's own resolver: the backend of the name server's Service where no pod serves it.
//!
//! A workload of the switch with a network namespace of its own. To policies it is a pod of the namespace `kube-system`
//! with the label `k8s-app: kube-dns`, so policies for the cluster's DNS apply to it unchanged. It serves the zone by UDP
//! and TCP, and forwards other names to other servers, as the node reaches them.

mod cache;
mod forward;
mod loops;
mod message;
mod problems;
mod resolv_conf;
mod server;
mod stream;
mod upstreams;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;

use podswitch_linux::{HostError, NetNs, Netlink, sysctl};
use podswitch_policy::rule::Labels;

pub use problems::UpstreamProblems;
pub use upstreams::{Source, Stub, UpstreamError, Upstreams, server};

use crate::attachment::PodAttachment;
use crate::error::NodeError;
use crate::handle::NodeCaller;
pub use crate::metrics::{Count, ResolverCounters};
use crate::pod_name::PodName;
use problems::SharedProblems;
use server::{Listeners, Server};

/// Its addresses: the same on every node, and known to the node alone. Link-local for IPv4, as NodeLocal DNSCache's;
/// unique local for IPv6, because link-local addresses are not routed there.
pub const RESOLVER_ADDRESSES: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(169, 254, 53, 53)),
    IpAddr::V6(Ipv6Addr::new(0xfd70, 0x6f64, 0x7377, 0, 0, 0, 0, 0x53)),
];

/// Options of the resolver.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct ResolverOptions {
    /// Where queries for other zones go.
    pub upstreams: Upstreams,
    /// Called by the resolver's thread before it serves, for example to drop privileges.
    pub on_thread_start: Option<fn()>,
    /// What it counts.
    pub counters: Arc<ResolverCounters>,
}

/// See the module's description. It ends when dropped.
#[derive(Debug)]
pub struct Resolver {
    node: NodeCaller,
    pod: PodName,
    stop: Arc<AtomicBool>,
    problems: SharedProblems,
    upstreams: Sender<Upstreams>,
    thread: Option<JoinHandle<Result<(), HostError>>>,
}

impl Resolver {
    /// Attaches the resolver to the switch and starts its thread.
    ///
    /// # Errors
    /// Its namespace cannot be made or attached, its sockets cannot be opened, or its thread cannot be started.
    pub fn start(node: NodeCaller, options: ResolverOptions) -> Result<Self, NodeError> {
        let pod = PodName::resolver();
        let place = NetNs::anonymous()?;
        // The thread that opens the sockets need not have the privilege for low ports.
        sysctl::set(&place, "net/ipv4/ip_unprivileged_port_start", "53")?;
        let labels: Labels = [("k8s-app", "kube-dns")].into_iter().collect();
        let attachment =
            PodAttachment::new(pod.clone(), place.clone(), RESOLVER_ADDRESSES).labels(labels);
        let (snapshots, home) = node.with(move |node| {
            node.add_pod(attachment)?;
            Ok::<_, NodeError>((node.control().snapshots(), node.namespace().clone()))
        })??;
        let stop = Arc::new(AtomicBool::new(false));
        let (changed, changes) = channel();
        let mut it = Self {
            node,
            pod,
            stop: stop.clone(),
            problems: SharedProblems::default(),
            upstreams: changed,
            thread: None,
        };
        let mut netlink = Netlink::open(&place)?;
        for address in RESOLVER_ADDRESSES {
            netlink.wait_until_local(address)?;
        }
        let listeners = place
            .enter(|| Listeners::open(&RESOLVER_ADDRESSES))?
            .map_err(|error| HostError::new("open the resolver's sockets", error))?;
        let ResolverOptions { upstreams, on_thread_start, counters } = options;
        let addresses = &RESOLVER_ADDRESSES;
        let server = Server::new(listeners, addresses, snapshots, upstreams, changes, counters);
        it.problems = server.problems();
        let thread = home.spawn("resolver", move || {
            if let Some(start) = on_thread_start {
                start();
            }
            server.run(&stop);
        })?;
        it.thread = Some(thread);
        Ok(it)
    }

    /// What is wrong with the servers that other names are forwarded to.
    pub fn problems(&self) -> UpstreamProblems {
        self.problems.get()
    }

    /// Forwards queries for other zones to these servers from now on.
    pub fn set_upstreams(&self, upstreams: Upstreams) {
        // A thread that has ended forwards none.
        let _ = self.upstreams.send(upstreams);
    }

    /// Whether its thread has ended, which it does not by itself.
    pub fn has_ended(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }
}

impl Drop for Resolver {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        let pod = self.pod.clone();
        // The node may have ended before.
        let _ = self.node.with(move |node| node.remove_pod(&pod));
    }
}
