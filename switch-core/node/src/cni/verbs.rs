//! Implements the verbs.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use podswitch_linux::port::underlay_mac;
use podswitch_linux::{HostError, NetNs, Netlink};
use podswitch_wire::cidr::Cidr;
use serde_json::Value;

use super::cluster_view::{PodFacts, ViewError};
use super::error::CniError;
use super::ipam::{AddressRange, IpamError, RangeSet};
use super::key::Key;
use super::leased::{self, io_error, node_error};
use super::leases::Lease;
use super::protocol::Call;
use super::request::{Add, Request, Verb};
use super::result::{self, Attached};
use super::shared::{CniEvent, Shared, State};
use super::version::Version;
use crate::attachment::{ExistingInterface, InterfaceKind};
use crate::boot::since_boot;
use crate::node::Node;
use crate::pod_name::PodName;

/// Maximum time that ADD waits until the pod is known.
const POD_TIMEOUT: Duration = Duration::from_secs(20);
/// Time of the plugin's budget that is reserved for everything else.
const MARGIN: Duration = Duration::from_secs(5);

impl Shared {
    /// Performs a call. Returns the result or the error that the plugin prints.
    pub(super) fn answer(
        self: &Arc<Self>,
        call: &Call,
        received: Instant,
    ) -> Result<String, CniError> {
        let request = Request::read(&call.environment, &call.config, call.ipam.as_ref())?;
        let Request { verb, version, network, previous } = request;
        match verb {
            Verb::Add(add) => {
                let _guard = self.busy.lock(&add.key);
                let budget = Duration::from_millis(call.budget);
                let deadline = received + budget.saturating_sub(MARGIN).min(POD_TIMEOUT);
                let lease = self.add(&add, &network, deadline)?;
                let answer = self.answer_of(&add, &lease, version, previous.as_ref());
                if answer.is_err() {
                    // A preceding plugin's result is invalid and cannot be passed on. Report that
                    // error.
                    let _ = self.detach(&add.key);
                }
                answer
            }
            Verb::Del(key) => {
                let _guard = self.busy.lock(&key);
                match self.detach(&key) {
                    Ok(()) => self.queue.done(&key),
                    Err(error) => {
                        // The runtime could do nothing about the error: retry until it succeeds.
                        self.queue.put(&key, call).map_err(io_error("queue the DEL"))?;
                        self.report(CniEvent::Failed {
                            verb: "DEL".into(),
                            key: key.to_string(),
                            error,
                        });
                    }
                }
                Ok(String::new())
            }
            Verb::Check { key, netns } => {
                let _guard = self.busy.lock(&key);
                self.check(&key, &netns, previous.as_ref())?;
                Ok(String::new())
            }
            Verb::Gc(valid) => {
                self.collect(&network, &valid)?;
                Ok(String::new())
            }
        }
    }

    fn answer_of(
        &self,
        add: &Add,
        lease: &Lease,
        version: Version,
        previous: Option<&Value>,
    ) -> Result<String, CniError> {
        let dns = add.ipam.as_ref().and_then(|ipam| ipam.dns.as_ref()).or(add.dns.as_ref());
        let attached = Attached {
            interface: &lease.interface,
            mac: &lease.mac,
            mtu: self.with_node(|node| node.pod_mtu())?,
            netns: &lease.netns,
            addresses: &lease.addresses,
            dns,
        };
        Ok(result::added(version, previous, &attached)?.to_string())
    }

    fn add(
        self: &Arc<Self>,
        add: &Add,
        network: &str,
        deadline: Instant,
    ) -> Result<Lease, CniError> {
        let key = &add.key;
        if self.queue.has(key) {
            // A queued DEL of an earlier attachment with the same key.
            self.detach(key)?;
            self.queue.done(key);
        }
        let earlier = self.state().leases.get(key).cloned();
        if let Some(earlier) = earlier {
            if earlier.attached {
                let message = format!("{key} is already attached, to {}", earlier.netns);
                return Err(CniError::new(CniError::INTERFACE_EXISTS, message));
            }
            // An ADD that was interrupted by a crash.
            self.detach(key)?;
        }
        let facts = self.facts(add, deadline)?;
        let mut lease = self.reserve(add, network, &facts)?;
        let attached = self.attach(&mut lease);
        if let Err(error) = attached {
            // Report the first error. DEL releases whatever is left.
            let _ = self.release(key);
            return Err(error);
        }
        let pod = leased::pod(&lease)?;
        let addresses = lease.addresses.clone();
        if lease.is_pod {
            self.view.report_addresses(&pod, lease.uid.as_deref(), &addresses);
        }
        self.report(CniEvent::Attached { pod, addresses });
        Ok(lease)
    }

    /// Gets the facts about the pod.
    fn facts(&self, add: &Add, deadline: Instant) -> Result<PodFacts, CniError> {
        if !add.is_pod {
            return Ok(PodFacts::default());
        }
        let uid = add.uid.as_deref();
        self.view.pod(&add.pod, uid, deadline).map_err(|error| {
            let pod = &add.pod;
            let message = match error {
                ViewError::OtherUid(found) => format!(
                    "pod {pod} has the UID {found}, but CNI_ARGS has {}",
                    uid.unwrap_or_default()
                ),
                error => format!("pod {pod}: {error}"),
            };
            CniError::new(CniError::TRY_AGAIN, message)
        })
    }

    /// Allocates addresses for an attachment, and writes the lease.
    fn reserve(
        self: &Arc<Self>,
        add: &Add,
        network: &str,
        facts: &PodFacts,
    ) -> Result<Lease, CniError> {
        let (shared, wanted) = (self.clone(), add.clone());
        let (namespace, addresses) = self.with_node(move |node| {
            let namespace = NetNs::open(&wanted.netns).and_then(|namespace| namespace.id());
            let namespace = namespace.map_err(|error| CniError::variable("CNI_NETNS", error))?;
            Ok((namespace, shared.state().take_addresses(&wanted, node)?))
        })??;
        let kind = add.kind.unwrap_or_else(InterfaceKind::available);
        let mac = add.mac.or_else(|| addresses.first().copied().map(underlay_mac));
        let mut state = self.state();
        let mut lease = state.store.blank(&add.key);
        lease.network = network.to_owned();
        lease.netns.clone_from(&add.netns);
        lease.pod = add.pod.to_string();
        lease.is_pod = add.is_pod;
        lease.uid.clone_from(&add.uid);
        lease.addresses = addresses;
        lease.namespace = namespace;
        lease.mac = mac.map(|mac| mac.to_string()).unwrap_or_default();
        lease.port = if kind == InterfaceKind::Veth { "veth" } else { "tap" }.to_owned();
        lease.host_ports = add.ports.iter().map(leased::leased_port).collect();
        leased::describe(&mut lease, facts);
        if let Err(error) = state.store.write(&lease) {
            state.pool.release(&add.key, since_boot());
            return Err(io_error("write the lease")(error));
        }
        state.leases.insert(add.key.clone(), lease.clone());
        Ok(lease)
    }

    /// Attaches the pod of a new lease.
    fn attach(&self, lease: &mut Lease) -> Result<(), CniError> {
        let (key, pod) = (lease.key(), leased::pod(lease)?);
        let attachment = leased::attachment(lease)?.existing(ExistingInterface::Refuse);
        self.with_node(move |node| node.add_pod(attachment))?.map_err(node_error)?;
        lease.attached = true;
        let mut state = self.state();
        // From here on the pod belongs to this attachment; an older sandbox of it is no longer in
        // force.
        state.attached.insert(pod.clone(), key.clone());
        if let Err(error) = state.store.write(lease) {
            state.attached.remove(&pod);
            drop(state);
            let _ = self.with_node(move |node| node.remove_pod(&pod));
            return Err(io_error("write the lease")(error));
        }
        state.leases.insert(key, lease.clone());
        Ok(())
    }

    /// Detaches and releases an attachment. A missing one is not an error. The caller holds the
    /// lock of the key.
    pub(super) fn detach(&self, key: &Key) -> Result<(), CniError> {
        let (lease, is_current) = {
            let state = self.state();
            let Some(lease) = state.leases.get(key).cloned() else { return Ok(()) };
            let pod = lease.pod.parse::<PodName>().ok();
            let is_current = pod.is_some_and(|pod| state.attached.get(&pod) == Some(key));
            (lease, is_current)
        };
        if is_current {
            let pod = leased::pod(&lease)?;
            let removed = pod.clone();
            self.with_node(move |node| node.remove_pod(&removed))?.map_err(node_error)?;
            self.state().attached.remove(&pod);
        } else {
            // Not current: after a restart its namespace was not accessible, it is an older
            // sandbox, or its ADD was interrupted. The container is gone in any case, so a failure
            // is not reported.
            let _ = self.with_node(move |_| remove_left_interface(&lease));
        }
        self.release(key)
    }

    /// Releases the addresses of an attachment that has no port.
    fn release(&self, key: &Key) -> Result<(), CniError> {
        let now = since_boot();
        let mut state = self.state();
        state.store.release(key, now).map_err(io_error("release the lease"))?;
        state.leases.remove(key);
        state.pool.release(key, now);
        drop(state);
        self.report(CniEvent::Released { key: key.clone() });
        Ok(())
    }

    fn check(&self, key: &Key, netns: &str, previous: Option<&Value>) -> Result<(), CniError> {
        let wrong = |text: String| CniError::new(CniError::NOT_AS_ADDED, format!("{key}: {text}"));
        let lease = self.state().leases.get(key).cloned().filter(|lease| lease.attached);
        let Some(lease) = lease else {
            let message = format!("{key} is not attached");
            return Err(CniError::new(CniError::UNKNOWN_CONTAINER, message));
        };
        let previous = previous.unwrap_or(&Value::Null);
        let expected = result::expected(previous, &key.interface, netns)?;
        for address in &lease.addresses {
            if !expected.addresses.contains(address) {
                let reason = format!("lacks {address} of {key}");
                return Err(CniError::field("prevResult.ips", reason));
            }
        }
        let pod = leased::pod(&lease)?;
        let (path, name) = (netns.to_owned(), key.interface.clone());
        let (found, has_port) =
            self.with_node(move |node| (Seen::at(&path, &name), node.port(&pod).is_some()))?;
        let seen = found.map_err(|error| wrong(error.to_string()))?;
        if seen.namespace != lease.namespace {
            return Err(wrong(format!("{netns} is a different namespace now")));
        }
        let mac = expected.mac.unwrap_or(lease.mac);
        match &seen.mac {
            None => return Err(wrong("the interface is gone".to_owned())),
            Some(found) if !found.eq_ignore_ascii_case(&mac) => {
                return Err(wrong(format!("its MAC address is {found}, not {mac}")));
            }
            Some(_) => {}
        }
        for address in &lease.addresses {
            if !seen.addresses.contains(address) {
                return Err(wrong(format!("it has no address {address}")));
            }
            if !seen.defaults.contains(&address.is_ipv6()) {
                let family = if address.is_ipv4() { "IPv4" } else { "IPv6" };
                return Err(wrong(format!("it has no {family} default route")));
            }
        }
        if !has_port {
            let message = format!("{key}: the switch is reattaching it");
            return Err(CniError::new(CniError::TRY_AGAIN, message));
        }
        Ok(())
    }

    /// Detaches all attachments of a network that are not valid. Continues after errors, and
    /// reports all of them.
    fn collect(&self, network: &str, valid: &[Key]) -> Result<(), CniError> {
        let stale: Vec<Key> = {
            let state = self.state();
            let of_network = state.leases.values().filter(|lease| lease.network == network);
            of_network.map(Lease::key).filter(|key| !valid.contains(key)).collect()
        };
        let mut errors = Vec::new();
        for key in stale {
            let _guard = self.busy.lock(&key);
            if let Err(error) = self.detach(&key) {
                errors.push(format!("{key}: {error}"));
            }
        }
        match errors.is_empty() {
            true => Ok(()),
            false => {
                let message = format!("{} attachments cannot be released", errors.len());
                Err(CniError::new(CniError::GC, message).details(errors.join("; ")))
            }
        }
    }
}

impl State {
    /// Allocates all addresses of an attachment, or none.
    fn take_addresses(&mut self, add: &Add, node: &Node) -> Result<Vec<IpAddr>, CniError> {
        let result = self.try_addresses(add, node);
        if result.is_err() {
            self.pool.release(&add.key, since_boot());
        }
        result
    }

    fn try_addresses(&mut self, add: &Add, node: &Node) -> Result<Vec<IpAddr>, CniError> {
        let snapshot = node.snapshot();
        let own = add.pod.cookie();
        let node_addresses = &self.node_addresses;
        let taken_by = |address: IpAddr| {
            if node_addresses.contains(&address) || snapshot.is_gateway(address) {
                return Some("the node itself".to_owned());
            }
            let owner = &snapshot.endpoints.get(&address)?.endpoint.cookie;
            (*owner != own).then(|| owner.to_string())
        };
        let asked = match &add.ipam {
            Some(ipam) => &ipam.addresses,
            None => &add.addresses,
        };
        let mut addresses = Vec::new();
        for address in asked {
            self.pool.hold(&add.key, *address).map_err(|error| refused(add, error))?;
            if let Some(by) = taken_by(*address) {
                return Err(refused(add, IpamError::Taken { address: *address, by }));
            }
            addresses.push(*address);
        }
        if add.ipam.is_none() {
            let sets = match &add.ranges {
                Some(sets) => sets.clone(),
                None => range_sets(node.pod_cidrs()),
            };
            if sets.is_empty() && addresses.is_empty() {
                let message = "the node has no podCIDRs to allocate addresses from";
                return Err(CniError::new(CniError::TRY_AGAIN, message));
            }
            for set in sets {
                if asked.iter().any(|address| address.is_ipv6() == set[0].is_ipv6()) {
                    continue;
                }
                let address = self
                    .pool
                    .allocate(&add.key, &set, since_boot(), taken_by)
                    .map_err(|error| refused(add, error))?;
                addresses.push(address);
            }
        }
        // IPv4 first: the MAC address is derived from the first address.
        addresses.sort_by_key(IpAddr::is_ipv6);
        Ok(addresses)
    }
}

fn refused(add: &Add, error: IpamError) -> CniError {
    let code = match error {
        IpamError::Exhausted { .. } => CniError::TRY_AGAIN,
        // Until a DEL arrives, the other plugin's records may differ from ours.
        _ if add.ipam.is_some() => CniError::TRY_AGAIN,
        _ => CniError::CONFIGURATION,
    };
    CniError::new(code, format!("addresses of {}: {error}", add.key))
}

/// A node's ranges by family.
fn range_sets(ranges: &[Cidr]) -> Vec<RangeSet> {
    let of_family = |is_ipv6: bool| -> RangeSet {
        let ranges = ranges.iter().filter(|range| range.address().is_ipv6() == is_ipv6);
        ranges.map(|range| AddressRange::of(*range)).collect()
    };
    [false, true].map(of_family).into_iter().filter(|set| !set.is_empty()).collect()
}

/// The reason why no pod can be attached, if there is one. STATUS returns it.
pub(super) fn problem(shared: &Shared, node: &Node) -> Option<(u32, String)> {
    let sets = range_sets(node.pod_cidrs());
    let not_available = |text: String| Some((CniError::NOT_AVAILABLE, text));
    if sets.is_empty() {
        return not_available("the node has no podCIDRs".to_owned());
    }
    let snapshot = node.snapshot();
    let state = shared.state();
    for set in &sets {
        let family = if set.iter().any(AddressRange::is_ipv6) { "ipv6" } else { "ipv4" };
        shared.meters.set_ipam_free(family, state.pool.free(set, since_boot()));
    }
    let taken_by = |address: IpAddr| {
        let is_taken =
            state.node_addresses.contains(&address) || snapshot.endpoints.get(&address).is_some();
        is_taken.then(String::new)
    };
    let full = sets.iter().find(|set| !state.pool.has_free(set, since_boot(), taken_by))?;
    let ranges: Vec<String> = full.iter().map(ToString::to_string).collect();
    not_available(format!("no address is free in {}", ranges.join(", ")))
}

/// An interface as CHECK finds it.
struct Seen {
    namespace: (u64, u64),
    /// `None`: the interface is gone.
    mac: Option<String>,
    addresses: Vec<IpAddr>,
    /// The families with a default route through the interface: whether each is IPv6.
    defaults: Vec<bool>,
}

impl Seen {
    fn at(netns: &str, interface: &str) -> Result<Self, HostError> {
        let namespace = NetNs::open(netns)?;
        let mut netlink = Netlink::open(&namespace)?;
        let namespace = namespace.id()?;
        let Some(link) = netlink.find_link(interface)? else {
            return Ok(Self { namespace, mac: None, addresses: Vec::new(), defaults: Vec::new() });
        };
        let addresses = netlink.addresses()?.into_iter().filter(|found| found.link == link.index);
        let addresses = addresses.map(|found| found.address.address()).collect();
        let routes = netlink.routes()?.into_iter().filter(|route| route.link == Some(link.index));
        let defaults = routes.filter(|route| route.destination.prefix() == 0);
        let defaults = defaults.map(|route| route.destination.address().is_ipv6()).collect();
        let mac = Some(link.mac.map(|mac| mac.to_string()).unwrap_or_default());
        Ok(Self { namespace, mac, addresses, defaults })
    }
}

/// Removes the interface of a lease whose pod is not attached, if the namespace is the same and
/// kind and MAC address show that the interface is ours.
fn remove_left_interface(lease: &Lease) -> Result<(), HostError> {
    let namespace = NetNs::open(&lease.netns)?;
    if namespace.id()? != lease.namespace {
        return Ok(());
    }
    let mut netlink = Netlink::open(&namespace)?;
    let kind = if lease.port == "veth" { "veth" } else { "tun" };
    match netlink.find_link(&lease.interface)? {
        Some(link)
            if link.kind.as_deref() == Some(kind)
                && link.mac.is_some_and(|mac| mac.to_string() == lease.mac) =>
        {
            netlink.delete_link(link.index)
        }
        _ => Ok(()),
    }
}
