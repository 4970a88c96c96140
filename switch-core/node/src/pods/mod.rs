//! The node's pods: which are attached, and by what.

mod counted;
mod schedule;
mod upkeep;

pub(crate) use counted::{PodCounts, Share};

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use hashbrown::HashMap;
use podswitch_core::config::{Attachment, Endpoint, Precedence};
use podswitch_core::control::ControlPlane;
use podswitch_core::id::{Cookie, PortId};
use podswitch_core::port::Device;
use podswitch_linux::attach::{
    PodInterface, TapOptions, attach_tap, attach_veth, detach_veth, switch_interface,
    switch_namespace,
};
use podswitch_linux::handover::Inherited;
use podswitch_linux::netlink::Link;
use podswitch_linux::port::af_packet::PacketConfig;
use podswitch_linux::{HostError, NetNs, Netlink};
use podswitch_policy::rule::Workload;
use podswitch_policy::service::model::HostPort;
use podswitch_wire::addr::Mac;

use crate::DEFAULT_MTU;
use crate::attachment::{ExistingInterface, InterfaceKind, PodAttachment};
use crate::error::PodError;
use crate::events::{Event, Failure, Reporter};
use crate::options::Settings;
use crate::pod_name::PodName;
use schedule::Upkeep;

/// How often a device that is still in use is tried again, and how long in between: a worker
/// closes a port some time after the command.
pub(crate) const BUSY_RETRIES: usize = 20;
pub(crate) const BUSY_PAUSE: Duration = Duration::from_millis(10);

/// The pods to be attached, by name.
#[derive(Debug, Default)]
pub(crate) struct Wanted(BTreeMap<PodName, PodAttachment>);

impl Wanted {
    /// Those of the state, and those that were added one by one, which go before.
    pub(crate) fn of(
        desired: &BTreeMap<PodName, PodAttachment>,
        added: &HashMap<PodName, PodAttachment>,
    ) -> Self {
        let all = desired.values().chain(added.values());
        Self(all.map(|attachment| (attachment.pod.clone(), attachment.clone())).collect())
    }

    /// The smallest MTU that their interfaces may have, in bytes: IPv6 needs 1280 (RFC 8200 §5), and the kernel takes it
    /// from an interface that has less.
    pub(crate) fn least_mtu(&self) -> u16 {
        let mut addresses = self.0.values().flat_map(|attachment| &attachment.addresses);
        if addresses.any(IpAddr::is_ipv6) { 1280 } else { 0 }
    }

    /// Whether a pod of this name is among them.
    pub(crate) fn has(&self, pod: &PodName) -> bool {
        self.0.contains_key(pod)
    }
}

/// An attached pod.
#[derive(Debug)]
struct Attached {
    attachment: PodAttachment,
    cookie: Cookie,
    namespace: NetNs,
    /// The index of its interface there.
    index: u32,
    port: PortId,
    /// What is its own of what the port counts.
    share: Share,
    upkeep: Upkeep,
}

impl Attached {
    /// Whether it is attached as wanted, in the pod's present namespace: a restarted pod may have a
    /// new namespace under the old path, and one that ended has none.
    fn fits(&self, wanted: &PodAttachment) -> bool {
        self.attachment.is_same_interface(wanted)
            && wanted.netns.open().is_ok_and(|now| now.is_same(&self.namespace))
    }
}

/// Where a pod's packets leave it.
#[derive(Debug)]
pub(crate) struct Exit {
    pub(crate) pod: String,
    pub(crate) namespace: NetNs,
    pub(crate) index: u32,
    pub(crate) mac: Mac,
    pub(crate) mtu: u16,
}

/// See the module's description.
#[derive(Debug)]
pub(crate) struct Pods {
    node: String,
    node_namespace: NetNs,
    multi_queue: bool,
    inherited: Inherited,
    switch_namespace: Option<NetNs>,
    /// Whether the switch's namespace has a name to be removed with the switch.
    named: bool,
    attached: HashMap<PodName, Attached>,
    /// Ports to be named by the next publish.
    ports: HashMap<PodName, PortId>,
    /// What earlier runs counted for pods that are not attached yet, by name.
    earlier: BTreeMap<String, PodCounts>,
    /// MTU of each, in bytes.
    mtu: u16,
    /// Failures of pods that have been reported, so that each is reported once.
    failures: HashMap<PodName, String>,
    reporter: Reporter,
}

impl Pods {
    pub(crate) fn new(settings: &Settings, reporter: &Reporter) -> Self {
        Self {
            node: settings.name.clone(),
            node_namespace: settings.namespace.clone(),
            multi_queue: settings.workers > 1,
            inherited: settings.inherited.clone(),
            switch_namespace: settings.switch_namespace.clone(),
            named: false,
            attached: HashMap::new(),
            ports: HashMap::new(),
            earlier: BTreeMap::new(),
            mtu: DEFAULT_MTU,
            failures: HashMap::new(),
            reporter: reporter.clone(),
        }
    }

    /// There is no predecessor any more.
    pub(crate) fn forget_inherited(&mut self) {
        self.inherited = Inherited::default();
    }

    /// The port of a pod.
    pub(crate) fn port(&self, pod: &PodName) -> Option<PortId> {
        self.ports.get(pod).copied()
    }

    /// Ports by pod.
    pub(crate) fn ports(&self) -> &HashMap<PodName, PortId> {
        &self.ports
    }

    /// The interface of the pod that has this address.
    pub(crate) fn exit(&self, address: IpAddr) -> Option<Exit> {
        let mut attached = self.attached.values();
        let found = attached.find(|pod| pod.attachment.addresses.contains(&address))?;
        Some(Exit {
            pod: found.attachment.pod.to_string(),
            namespace: found.namespace.clone(),
            index: found.index,
            mac: found.attachment.mac,
            mtu: self.mtu,
        })
    }

    /// Attached pods, in no order.
    pub(crate) fn list(&self) -> impl Iterator<Item = (&PodAttachment, PortId, Share)> {
        self.attached.values().map(|it| (&it.attachment, it.port, it.share))
    }

    /// Adds what earlier runs counted: a pod that is attached later gets it then, and none gets it twice.
    pub(crate) fn restore_counts(&mut self, earlier: BTreeMap<String, PodCounts>) {
        self.earlier = earlier;
        for attached in self.attached.values_mut() {
            if let Some(earlier) = self.earlier.remove(&attached.attachment.pod.to_string()) {
                attached.share.earlier = earlier;
            }
        }
    }

    /// Adds what another run counted meanwhile.
    pub(crate) fn add_counts(&mut self, mut more: BTreeMap<String, PodCounts>) {
        for attached in self.attached.values_mut() {
            if let Some(more) = more.remove(&attached.attachment.pod.to_string()) {
                attached.share.add(more);
            }
        }
    }

    /// Gives up what earlier runs counted for pods that are not attached yet.
    pub(crate) fn forget_waiting_counts(&mut self) {
        self.earlier.clear();
    }

    /// What earlier runs counted for pods that are not attached yet.
    pub(crate) fn waiting_counts(&self) -> &BTreeMap<String, PodCounts> {
        &self.earlier
    }

    /// The pod that has a port.
    pub(crate) fn at(&self, port: PortId) -> Option<PodName> {
        self.attached.values().find(|a| a.port == port).map(|a| a.attachment.pod.clone())
    }

    fn attachment(&self, attached: &Attached) -> Attachment {
        Attachment { port: attached.port, mac: attached.attachment.mac, mtu: self.mtu }
    }

    /// A pod as it is published. `described`: the pod in the state, if it is there. A pod of this
    /// node gets the port that it is attached to. A pod that the state does not describe is
    /// published if its attachment has labels, and has no port otherwise (N13).
    pub(crate) fn published(
        &self,
        cookie: &Cookie,
        described: Option<&Arc<Endpoint>>,
        node: &Arc<str>,
    ) -> Option<Arc<Endpoint>> {
        let attached = self.named(cookie);
        let Some(described) = described else { return self.described(attached?, node) };
        let attached = attached.filter(|_| described.node == *node);
        let attachment = attached.map(|attached| self.attachment(attached));
        let mut endpoint = described.clone();
        if endpoint.attachment != attachment {
            Arc::make_mut(&mut endpoint).attachment = attachment;
        }
        if let Some(attached) = attached
            && !is_same_set(&endpoint.workload.addresses, &attached.attachment.addresses)
        {
            // The object may still say those of a former sandbox.
            let addresses = attached.attachment.addresses.clone();
            Arc::make_mut(&mut endpoint).workload.addresses = addresses;
        }
        Some(endpoint)
    }

    /// Host ports that pods with a port brought along.
    pub(crate) fn host_ports(&self) -> impl Iterator<Item = (&Cookie, &Arc<[HostPort]>)> {
        let named = self.attached.iter().filter(|(name, _)| self.ports.contains_key(*name));
        let all = named.map(|(_, attached)| (&attached.cookie, &attached.attachment.host_ports));
        all.filter(|(_, ports)| !ports.is_empty())
    }

    /// Those of one pod.
    pub(crate) fn host_ports_of(&self, cookie: &Cookie) -> Option<&Arc<[HostPort]>> {
        let ports = &self.named(cookie)?.attachment.host_ports;
        (!ports.is_empty()).then_some(ports)
    }

    /// Largest network-layer packet of pods, in bytes.
    pub(crate) fn mtu(&self) -> u16 {
        self.mtu
    }

    /// Cookies of all attached pods, including those whose port is being withdrawn.
    pub(crate) fn cookies(&self) -> impl Iterator<Item = &Cookie> {
        self.attached.values().map(|attached| &attached.cookie)
    }

    /// The attached pod with this cookie, unless its port is being withdrawn.
    fn named(&self, cookie: &Cookie) -> Option<&Attached> {
        let name: PodName = cookie.as_str().strip_prefix("Pod/")?.parse().ok()?;
        self.attached.get(&name).filter(|_| self.ports.contains_key(&name))
    }

    /// The endpoint of a pod that the state does not describe, if its attachment has labels.
    fn described(&self, attached: &Attached, node: &Arc<str>) -> Option<Arc<Endpoint>> {
        let pod = &attached.attachment;
        Some(Arc::new(Endpoint {
            cookie: attached.cookie.clone(),
            workload: Workload {
                namespace: pod.pod.namespace().into(),
                name: pod.pod.name().into(),
                labels: pod.labels.clone()?,
                addresses: pod.addresses.clone(),
                ports: pod.ports.clone(),
                host_network: false,
            },
            node: node.clone(),
            attachment: Some(self.attachment(attached)),
            precedence: Precedence::default(),
        }))
    }

    /// Sets the MTU of all pods, present and future. Returns whether it changed.
    pub(crate) fn set_mtu(&mut self, mtu: u16) -> bool {
        if mtu == self.mtu {
            return false;
        }
        self.mtu = mtu;
        for attached in self.attached.values() {
            if let Err(error) = self.set_mtu_of(attached) {
                // The switch still answers packets that are too long.
                let pod = attached.attachment.pod.clone();
                self.reporter.failure(Failure::PodMtu { pod, error });
            }
        }
        true
    }

    fn set_mtu_of(&self, attached: &Attached) -> Result<(), HostError> {
        let (mtu, pod) = (u32::from(self.mtu), &attached.attachment);
        set_mtu(&attached.namespace, &pod.interface, mtu)?;
        match (pod.kind, &self.switch_namespace) {
            (InterfaceKind::Veth, Some(ours)) => set_mtu(ours, &switch_interface(&pod.pod), mtu),
            _ => Ok(()),
        }
    }

    /// Attached pods that are not wanted, or not in this way, among those for which `is_concerned`
    /// holds.
    pub(crate) fn outdated(
        &self,
        wanted: &Wanted,
        is_concerned: impl Fn(&PodName) -> bool,
    ) -> Vec<PodName> {
        let fits = |name: &PodName, attached: &Attached| {
            wanted.0.get(name).is_some_and(|wanted| attached.fits(wanted))
        };
        let concerned = self.attached.iter().filter(|(name, _)| is_concerned(name));
        let outdated = concerned.filter(|(name, attached)| !fits(name, attached));
        outdated.map(|(name, _)| name.clone()).collect()
    }

    /// Withdraws these pods' ports from the next publish.
    pub(crate) fn withdraw(&mut self, pods: &[PodName]) {
        for pod in pods {
            self.ports.remove(pod);
        }
    }

    /// Undoes [`withdraw`](Self::withdraw).
    pub(crate) fn restore(&mut self, pods: Vec<PodName>) {
        for pod in pods {
            if let Some(attached) = self.attached.get(&pod) {
                self.ports.insert(pod, attached.port);
            }
        }
    }

    /// Detaches pods and removes their interfaces.
    pub(crate) fn detach(&mut self, control: &mut ControlPlane, pods: Vec<PodName>) {
        for pod in pods {
            let Some(attached) = self.attached.remove(&pod) else { continue };
            self.ports.remove(&pod);
            // It is attached, since it is in the list.
            let _ = control.detach(attached.port);
            self.reporter.event(match self.remove_interface(&attached) {
                Ok(()) => Event::PodDetached { pod },
                Err(error) => Event::Failure(Failure::PodInterfaceStays { pod, error }),
            });
        }
    }

    /// Attaches the wanted pods that are not attached. Returns whether any was; failures are
    /// reported.
    pub(crate) fn attach(&mut self, control: &mut ControlPlane, wanted: &Wanted) -> bool {
        self.failures.retain(|pod, _| wanted.0.contains_key(pod));
        let mut changed = false;
        for attachment in wanted.0.values() {
            if self.attached.contains_key(&attachment.pod) {
                continue;
            }
            match self.attach_one(control, attachment) {
                Ok(_) => changed = true,
                Err(error) => self.report(&attachment.pod, error),
            }
        }
        changed
    }

    fn report(&mut self, pod: &PodName, error: PodError) {
        let text = error.to_string();
        if self.failures.get(pod) != Some(&text) {
            self.reporter.failure(Failure::PodNotAttached { pod: pod.clone(), error });
            self.failures.insert(pod.clone(), text);
        }
    }

    /// Attaches a pod.
    pub(crate) fn attach_one(
        &mut self,
        control: &mut ControlPlane,
        attachment: &PodAttachment,
    ) -> Result<PortId, PodError> {
        attachment.check()?;
        let namespace = attachment.netns.open()?;
        self.check_namespace(&attachment.pod, &namespace)?;
        check_existing(&namespace, attachment)?;
        let mut tries = BUSY_RETRIES;
        let device = loop {
            match self.open(&namespace, attachment) {
                Err(error) if error.raw_os_error() == Some(EBUSY) && tries > 0 => {
                    tries -= 1;
                    thread::sleep(BUSY_PAUSE);
                }
                result => break result?,
            }
        };
        let index = Netlink::open(&namespace)?.link(&attachment.interface)?.index;
        let port = control.attach(device)?;
        let pod = attachment.pod.clone();
        control.name_port(port, &format!("pod {pod}"));
        let cookie = pod.cookie();
        let upkeep = Upkeep::of(&namespace);
        let attachment = attachment.clone();
        let workers = control.workers().cloned().collect();
        let share = Share {
            before: PodCounts::of_port(&workers, port),
            earlier: self.earlier.remove(&pod.to_string()).unwrap_or_default(),
        };
        let attached = Attached { attachment, cookie, namespace, index, port, share, upkeep };
        self.attached.insert(pod.clone(), attached);
        self.ports.insert(pod.clone(), port);
        self.failures.remove(&pod);
        self.reporter.event(Event::PodAttached { pod, port });
        Ok(port)
    }

    /// Refuses a namespace that is not the pod's own: an annotation may name any.
    fn check_namespace(&self, pod: &PodName, namespace: &NetNs) -> Result<(), PodError> {
        let refuse = |reason: String| Err(PodError::Invalid { field: "netns", reason });
        let own = [Some(&self.node_namespace), self.switch_namespace.as_ref()];
        if own.into_iter().flatten().any(|own| own.is_same(namespace)) {
            return refuse(format!("{namespace} is the node's own"));
        }
        // That of this process, and that of the machine where it is visible.
        let system = [NetNs::current(), NetNs::open("/proc/1/ns/net")];
        if system.into_iter().flatten().any(|system| system.is_same(namespace)) {
            return refuse(format!("{namespace} is the system's"));
        }
        let other = self
            .attached
            .iter()
            .find(|(name, attached)| *name != pod && attached.namespace.is_same(namespace));
        match other {
            Some((name, _)) => refuse(format!("{namespace} is {name}'s already")),
            None => Ok(()),
        }
    }

    /// Gives an attached pod the labels and named ports of `attachment`. Returns whether they changed.
    pub(crate) fn set_labels(&mut self, attachment: &PodAttachment) -> bool {
        let Some(attached) = self.attached.get_mut(&attachment.pod) else { return false };
        let now = &mut attached.attachment;
        let changed = (&now.labels, &now.ports) != (&attachment.labels, &attachment.ports);
        now.labels.clone_from(&attachment.labels);
        now.ports.clone_from(&attachment.ports);
        changed
    }

    fn open(
        &mut self,
        namespace: &NetNs,
        pod: &PodAttachment,
    ) -> Result<Box<dyn Device>, HostError> {
        let interface = interface_of(pod, self.mtu);
        match pod.kind {
            InterfaceKind::Tap => {
                let (multi_queue, inherited) = (self.multi_queue, self.inherited.clone());
                let options = TapOptions { persistent: true, multi_queue, inherited };
                Ok(Box::new(attach_tap(namespace, &interface, options)?))
            }
            InterfaceKind::Veth => {
                let ours = self.own_namespace()?;
                let name = switch_interface(&pod.pod);
                let inherited = self.inherited.clone();
                let config = PacketConfig { inherited, ..PacketConfig::default() };
                Ok(Box::new(attach_veth(namespace, &interface, &ours, &name, config)?))
            }
        }
    }

    /// The switch's own namespace.
    pub(crate) fn own_namespace(&mut self) -> Result<NetNs, HostError> {
        if let Some(namespace) = &self.switch_namespace {
            return Ok(namespace.clone());
        }
        let namespace = switch_namespace(&self.node)?;
        self.named = true;
        self.switch_namespace = Some(namespace.clone());
        Ok(namespace)
    }

    fn remove_interface(&self, attached: &Attached) -> Result<(), HostError> {
        let pod = &attached.attachment;
        match (pod.kind, &self.switch_namespace) {
            (InterfaceKind::Veth, Some(ours)) => detach_veth(ours, &switch_interface(&pod.pod)),
            _ => {
                let mut netlink = Netlink::open(&attached.namespace)?;
                match netlink.find_link_at(attached.index)? {
                    // Indices are given again.
                    Some(link) if link.kind.as_deref() == Some("tun") => {
                        netlink.delete_link(link.index)
                    }
                    _ => Ok(()),
                }
            }
        }
    }

    /// Removes the interfaces of all pods but `kept`, and the switch's namespace unless one of
    /// those needs it. To be called when no worker has a device any more. Continues after an error;
    /// the first one is returned.
    pub(crate) fn remove(self, kept: &HashMap<PodName, PodAttachment>) -> Result<(), HostError> {
        let mut result = Ok(());
        let mut is_needed = false;
        for (name, attached) in &self.attached {
            if kept.contains_key(name) {
                is_needed |= attached.attachment.kind == InterfaceKind::Veth;
                continue;
            }
            let removed = self.remove_interface(attached);
            if result.is_ok() {
                result = removed;
            }
        }
        if self.named
            && !is_needed
            && let Some(namespace) = &self.switch_namespace
        {
            namespace.remove_on_drop();
        }
        result
    }
}

/// Refuses an interface that is there and not to be used.
fn check_existing(namespace: &NetNs, pod: &PodAttachment) -> Result<(), PodError> {
    if pod.existing == ExistingInterface::Use {
        return Ok(());
    }
    let found = Netlink::open(namespace)?.find_link(&pod.interface)?;
    let is_own = |link: &Link| {
        pod.existing == ExistingInterface::UseOwn && link.mac.is_none_or(|mac| mac == pod.mac)
    };
    match found {
        Some(link) if !is_own(&link) => Err(PodError::InterfaceExists {
            interface: pod.interface.clone(),
            namespace: namespace.to_string(),
        }),
        _ => Ok(()),
    }
}

/// Whether two lists have the same addresses. An endpoint may say an address twice.
fn is_same_set(some: &[IpAddr], others: &[IpAddr]) -> bool {
    some.iter().all(|a| others.contains(a)) && others.iter().all(|a| some.contains(a))
}

/// The wanted interface of a pod.
fn interface_of(pod: &PodAttachment, mtu: u16) -> PodInterface {
    let mut interface = PodInterface::new(pod.mac, pod.addresses.iter().copied());
    interface.name.clone_from(&pod.interface);
    interface.mtu = u32::from(mtu);
    // A pod that had to resolve its gateway would have none while the switch restarts.
    interface.static_gateway = true;
    interface
}

/// Sets the MTU of an interface, if it differs.
pub(crate) fn set_mtu(namespace: &NetNs, name: &str, mtu: u32) -> Result<(), HostError> {
    let mut netlink = Netlink::open(namespace)?;
    let link = netlink.link(name)?;
    if link.mtu == mtu { Ok(()) } else { netlink.set_mtu(link.index, mtu) }
}

/// `EBUSY` of every architecture that Linux runs on.
pub(crate) const EBUSY: i32 = 16;
