//! Objects to configuration: every object checked as the API server checks it, then against the
//! others, then put into the form that the switch is told in. Called by whoever embeds the switch,
//! off the packet path, once for each state.

mod cluster_policy;
mod names;
mod namespace;
mod network_policy;
mod node;
mod pod;
mod selector;
mod service;
mod slice;

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use hashbrown::{HashMap, HashSet};
use podswitch_core::config::{Attachment, Config, Endpoint, Gateway, PortConfig, PortRole};
use podswitch_core::id::{Cookie, PortId};
use podswitch_policy::rule::{ClusterNetworkPolicy, Namespace, NetworkPolicy};
use podswitch_policy::service::model::EndpointSlice;
use podswitch_wire::addr::Mac;
use podswitch_wire::cidr::Cidr;

use crate::load::Manifests;
use crate::object::{Loaded, Object};
use crate::refusal::{Faults, Field, Note, Refusal};
use names::Names;
use node::Nodes;
pub use node::Overlay;
use pod::Pods;
use service::Services;

/// Choices that manifests do not make.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// What pods see as their gateway.
    pub gateway: Gateway,
    /// Ranges that the addresses of Services come from, beside those of ServiceCIDR objects.
    pub service_cidrs: Vec<Cidr>,
    /// Ranges in which `externalIPs` of Services are honoured; none by default (CVE-2020-8554).
    pub allowed_external_ips: Vec<Cidr>,
}

/// A state compiled from manifests.
#[derive(Clone, Debug, Default)]
pub struct Compiled {
    /// What to tell the control plane. Its `ports` are empty and no endpoint is attached until
    /// [`Compiled::attach`] says which port each pod has.
    pub config: Config,
    /// The pods of this node that can be attached, in the order of the manifests: those that have
    /// an address of their own. Empty if no node was named.
    pub pods: Vec<LocalPod>,
    /// What Flannel's annotations say of the overlay, if any node has them.
    pub flannel: Option<Overlay>,
    /// What is worth saying to a person.
    pub notes: Vec<Note>,
}

/// A pod of this node, to be attached to a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalPod {
    /// `namespace/pod`, as captures and references name it.
    pub name: String,
    /// Its name in drops, flows and explanations.
    pub cookie: Cookie,
    /// Which of [`Config::endpoints`] it is.
    pub endpoint: usize,
    /// Its MAC address.
    pub mac: Mac,
    /// Its addresses, at most one of each family.
    pub addresses: Vec<IpAddr>,
    /// How to attach it to its network namespace. `None`: it names none, and is known only.
    pub interface: Option<PodInterface>,
}

/// Where and how a pod is attached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodInterface {
    /// Its network namespace, a path such as `/run/netns/web`.
    pub netns: PathBuf,
    /// Kind of device.
    pub kind: InterfaceKind,
    /// Name of the device as the pod sees it.
    pub name: String,
}

/// The device that a pod is attached by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InterfaceKind {
    /// A TAP made in the pod's namespace.
    Tap,
    /// A veth pair, the switch's end under AF_PACKET.
    Veth,
}

impl Compiled {
    /// Says that pod number `pod` of [`Compiled::pods`] has the port `port`, and takes packets
    /// of up to `mtu` bytes.
    ///
    /// # Panics
    /// There is no such pod.
    pub fn attach(&mut self, pod: usize, port: PortId, mtu: u16) {
        let pod = &self.pods[pod];
        let endpoint = Arc::make_mut(&mut self.config.endpoints[pod.endpoint]);
        endpoint.attachment = Some(Attachment { port, mac: pod.mac, mtu });
        self.config.ports.push(PortConfig { port, role: PortRole::Pod });
    }
}

impl Manifests {
    /// Compiles the manifests for the node `node`; without one, for nobody's point of view: no
    /// pod is local.
    ///
    /// # Errors
    /// Some object is wrong: everything that is wrong with any of them, in the order of the
    /// manifests. The state is whole or it is refused.
    pub fn compile(&self, node: Option<&str>, options: &Options) -> Result<Compiled, Vec<Refusal>> {
        let mut compiler = Compiler::new(node, options);
        compiler.refusals.extend(self.found.refusals.iter().cloned());
        compiler.notes.extend(self.notes.iter().cloned());
        compiler.notes.extend(self.found.notes());
        let objects = compiler.without_doubles(&self.found.objects);
        // Nodes before pods: pods with their node's network have its addresses.
        compiler.namespaces(&objects);
        compiler.nodes(&objects);
        compiler.pods(&objects);
        compiler.policies(&objects);
        // After pods: a slice may still name one that has ended.
        compiler.services(&objects);
        compiler.finish()
    }
}

/// The work in progress.
struct Compiler<'a> {
    node: Option<&'a str>,
    options: &'a Options,
    names: Names,
    refusals: Vec<Refusal>,
    notes: Vec<Note>,
    namespaces: Vec<Arc<Namespace>>,
    known_namespaces: HashSet<Arc<str>>,
    nodes: Nodes,
    pods: Pods,
    policies: Vec<Arc<NetworkPolicy>>,
    cluster_policies: Vec<Arc<ClusterNetworkPolicy>>,
    services: Services,
    slices: Vec<Arc<EndpointSlice>>,
    service_cidrs: Vec<Cidr>,
}

impl<'a> Compiler<'a> {
    fn new(node: Option<&'a str>, options: &'a Options) -> Self {
        Self {
            node,
            options,
            names: Names::default(),
            refusals: Vec::new(),
            notes: Vec::new(),
            namespaces: Vec::new(),
            known_namespaces: HashSet::new(),
            nodes: Nodes::default(),
            pods: Pods::default(),
            policies: Vec::new(),
            cluster_policies: Vec::new(),
            services: Services::default(),
            slices: Vec::new(),
            service_cidrs: options.service_cidrs.clone(),
        }
    }

    /// Refuses what was defined before, and gives the rest.
    fn without_doubles<'o>(&mut self, objects: &'o [Loaded]) -> Vec<&'o Loaded> {
        let mut first: HashMap<&str, &Loaded> = HashMap::with_capacity(objects.len());
        let mut rest = Vec::with_capacity(objects.len());
        for object in objects {
            match first.try_insert(object.cookie.as_str(), object) {
                Ok(_) => rest.push(object),
                Err(taken) => {
                    let before = &taken.entry.get().origin;
                    let mut faults = Faults::default();
                    let name = Field::root("metadata");
                    faults.add(&name.child("name"), format!("defined before, at {before}"));
                    self.refuse(object, faults);
                }
            }
        }
        rest
    }

    fn refuse(&mut self, object: &Loaded, faults: Faults) {
        self.refusals.extend(faults.into_refusals(&object.origin, &object.cookie));
    }

    fn note(&mut self, object: &Loaded, text: impl std::fmt::Display) {
        let text = format!("{}: {text}", object.cookie);
        self.notes.push(Note { origin: Some(object.origin.clone()), text });
    }

    fn namespaces(&mut self, objects: &[&Loaded]) {
        for object in objects {
            if let Object::Namespace = object.object {
                namespace::compile(self, object);
            }
        }
    }

    fn nodes(&mut self, objects: &[&Loaded]) {
        for object in objects {
            if let Object::Node(node) = &object.object {
                node::compile(self, object, node);
            }
        }
        node::check_ranges(self);
    }

    fn pods(&mut self, objects: &[&Loaded]) {
        for object in objects {
            if let Object::Pod(pod) = &object.object {
                pod::compile(self, object, pod);
            }
        }
    }

    fn policies(&mut self, objects: &[&Loaded]) {
        for object in objects {
            match &object.object {
                Object::NetworkPolicy(policy) => network_policy::compile(self, object, policy),
                Object::ClusterNetworkPolicy(policy) => {
                    cluster_policy::compile(self, object, policy);
                }
                _ => {}
            }
        }
    }

    fn services(&mut self, objects: &[&Loaded]) {
        for object in objects {
            match &object.object {
                Object::Service(service) => service::compile(self, object, service),
                Object::EndpointSlice(slice) => slice::compile(self, object, slice),
                Object::ServiceCidr(cidr) => slice::compile_cidr(self, object, cidr),
                _ => {}
            }
        }
    }

    fn finish(mut self) -> Result<Compiled, Vec<Refusal>> {
        if !self.refusals.is_empty() {
            self.refusals.sort_by(|a, b| {
                let place = |r: &Refusal| (r.origin.file.clone(), r.origin.document);
                place(a).cmp(&place(b))
            });
            return Err(self.refusals);
        }
        let flannel = self.nodes.flannel();
        let (local, remote) = self.nodes.split(self.node, self.options.gateway, &mut self.notes);
        self.notes.extend(pod::notes_on_host_ports(&self.pods.host_ports, &local));
        let config = Config {
            node: local,
            endpoints: self.pods.endpoints,
            namespaces: self.namespaces,
            policies: self.policies,
            cluster_policies: self.cluster_policies,
            services: self.services.list,
            slices: self.slices,
            host_ports: self.pods.host_ports,
            service_cidrs: self.service_cidrs,
            allowed_external_ips: self.options.allowed_external_ips.clone(),
            nodes: remote,
            ..Config::default()
        };
        Ok(Compiled { config, pods: self.pods.local, flannel, notes: self.notes })
    }
}
