//! The node's pods: which are attached, and by what.

use std::thread;
use std::time::Duration;

use hashbrown::HashMap;
use podswitch_core::control::ControlPlane;
use podswitch_core::id::PortId;
use podswitch_core::port::Device;
use podswitch_kubernetes::{Compiled, InterfaceKind, LocalPod, PodInterface as Place};
use podswitch_linux::attach::{
    PodInterface, TapOptions, attach_tap, attach_veth, detach_veth, switch_interface,
    switch_namespace,
};
use podswitch_linux::port::af_packet::PacketConfig;
use podswitch_linux::{HostError, NetNs, Netlink};

use super::NodeOptions;
use crate::print;
use crate::state::MTU;

/// How often a device that is still in use is tried again, and how long in between: a worker
/// lets go of a port a moment after it is told to.
const TRIES: usize = 20;
const PAUSE: Duration = Duration::from_millis(10);

/// The pods to be attached, by name.
#[derive(Clone, Debug, Default)]
pub(super) struct Wanted(HashMap<String, (LocalPod, Place)>);

impl Wanted {
    /// Those of the state that name a namespace.
    pub(super) fn of(state: &Compiled) -> Self {
        let named =
            |pod: &LocalPod| Some((pod.name.clone(), (pod.clone(), pod.interface.clone()?)));
        Self(state.pods.iter().filter_map(named).collect())
    }
}

/// An attached pod.
#[derive(Debug)]
pub(super) struct Attached {
    pod: LocalPod,
    place: Place,
    namespace: NetNs,
    port: PortId,
}

impl Attached {
    /// Whether it is attached as `pod` wants to be, where `pod` is now: a pod that was started
    /// again may have a new namespace under the old path, and one that ended has none.
    fn fits(&self, pod: &LocalPod, place: &Place) -> bool {
        (self.pod.mac, &self.pod.addresses, &self.place) == (pod.mac, &pod.addresses, place)
            && NetNs::open(&place.netns).is_ok_and(|now| now.is_same(&self.namespace))
    }
}

/// See the module's description.
#[derive(Debug)]
pub(super) struct Pods {
    node: String,
    multi_queue: bool,
    switch_namespace: Option<NetNs>,
    /// Whether the switch's namespace has a name that is to go with the switch.
    named: bool,
    attached: HashMap<String, Attached>,
    ports: HashMap<String, PortId>,
    /// Largest network-layer packet of each, in bytes.
    mtu: u16,
    /// What was said of pods that could not be attached, so that it is said once.
    troubles: HashMap<String, String>,
}

impl Pods {
    pub(super) fn new(options: &NodeOptions) -> Self {
        Self {
            node: options.name.clone(),
            multi_queue: options.workers > 1,
            switch_namespace: options.switch_namespace.clone(),
            named: false,
            attached: HashMap::new(),
            ports: HashMap::new(),
            mtu: MTU,
            troubles: HashMap::new(),
        }
    }

    /// The port of a pod.
    pub(super) fn port(&self, name: &str) -> Option<PortId> {
        self.ports.get(name).copied()
    }

    /// Ports by name.
    pub(super) fn ports(&self) -> &HashMap<String, PortId> {
        &self.ports
    }

    /// The MTU of pods' interfaces, in bytes.
    pub(super) fn mtu(&self) -> u16 {
        self.mtu
    }

    /// Gives all pods, now and later, this MTU. Says whether it is another than before.
    pub(super) fn set_mtu(&mut self, mtu: u16) -> bool {
        if mtu == self.mtu {
            return false;
        }
        self.mtu = mtu;
        for attached in self.attached.values() {
            if let Err(error) = self.set_mtu_of(attached) {
                // The switch answers what is too long all the same.
                print::note(format_args!("{}: {error}", attached.pod.name));
            }
        }
        true
    }

    fn set_mtu_of(&self, attached: &Attached) -> Result<(), HostError> {
        let mtu = u32::from(self.mtu);
        set_mtu(&attached.namespace, &attached.place.name, mtu)?;
        match (attached.place.kind, &self.switch_namespace) {
            (InterfaceKind::Veth, Some(ours)) => {
                set_mtu(ours, &switch_interface(&attached.pod.name), mtu)
            }
            _ => Ok(()),
        }
    }

    /// Names of those attached that are not wanted, or not as they are.
    pub(super) fn not_in(&self, wanted: &Wanted) -> Vec<String> {
        let fits = |a: &Attached| wanted.0.get(&a.pod.name).is_some_and(|(p, i)| a.fits(p, i));
        self.attached.values().filter(|a| !fits(a)).map(|a| a.pod.name.clone()).collect()
    }

    /// Has the next configuration not tell of these pods' ports.
    pub(super) fn forget(&mut self, names: &[String]) {
        for name in names {
            self.ports.remove(name);
        }
    }

    /// Takes back [`forget`](Self::forget).
    pub(super) fn recall(&mut self, names: Vec<String>) {
        for name in names {
            if let Some(attached) = self.attached.get(&name) {
                self.ports.insert(name, attached.port);
            }
        }
    }

    /// Whether some wanted pod is not attached.
    pub(super) fn is_lacking(&self, wanted: &Wanted) -> bool {
        wanted.0.len() > self.attached.len()
    }

    /// Detaches pods and removes their interfaces.
    pub(super) fn detach(&mut self, control: &mut ControlPlane, names: Vec<String>) {
        for name in names {
            let Some(attached) = self.attached.remove(&name) else { continue };
            // It is attached, or it would not be in the list.
            let _ = control.detach(attached.port);
            if let Err(error) = self.remove_interface(&attached) {
                print::note(format_args!("{}: its interface stays: {error}", attached.pod.name));
            }
        }
    }

    /// Attaches the wanted pods that are not. Says whether there is any that was not before; of
    /// those that cannot be attached a person is told.
    pub(super) fn attach(&mut self, control: &mut ControlPlane, wanted: &Wanted) -> bool {
        let mut pods: Vec<_> =
            wanted.0.values().filter(|(p, _)| !self.attached.contains_key(&p.name)).collect();
        pods.sort_unstable_by_key(|(pod, _)| &pod.name);
        self.troubles.retain(|name, _| wanted.0.contains_key(name));
        let mut news = false;
        for (pod, place) in pods {
            match self.attach_one(control, pod, place) {
                Ok(()) => {
                    self.troubles.remove(&pod.name);
                    news = true;
                }
                Err(error) => self.trouble(&pod.name, error),
            }
        }
        news
    }

    fn trouble(&mut self, name: &str, error: String) {
        if self.troubles.get(name) != Some(&error) {
            print::note(format_args!("{name} is not attached: {error}"));
            self.troubles.insert(name.to_owned(), error);
        }
    }

    fn attach_one(
        &mut self,
        control: &mut ControlPlane,
        pod: &LocalPod,
        place: &Place,
    ) -> Result<(), String> {
        let namespace = NetNs::open(&place.netns).map_err(|e| e.to_string())?;
        let mut tries = TRIES;
        let device = loop {
            match self.open(&namespace, pod, place) {
                Err(error) if error.raw_os_error() == Some(EBUSY) && tries > 0 => {
                    tries -= 1;
                    thread::sleep(PAUSE);
                }
                result => break result.map_err(|e| e.to_string())?,
            }
        };
        let port = control.attach(device).map_err(|e| e.to_string())?;
        let (pod, place) = (pod.clone(), place.clone());
        self.ports.insert(pod.name.clone(), port);
        self.attached.insert(pod.name.clone(), Attached { pod, place, namespace, port });
        Ok(())
    }

    fn open(
        &mut self,
        namespace: &NetNs,
        pod: &LocalPod,
        place: &Place,
    ) -> Result<Box<dyn Device>, HostError> {
        let mut interface = PodInterface::new(pod.mac, pod.addresses.iter().copied());
        interface.name.clone_from(&place.name);
        interface.mtu = u32::from(self.mtu);
        match place.kind {
            InterfaceKind::Tap => {
                let options = TapOptions { persistent: true, multi_queue: self.multi_queue };
                Ok(Box::new(attach_tap(namespace, &interface, options)?))
            }
            InterfaceKind::Veth => {
                let ours = self.own_namespace()?;
                let name = switch_interface(&pod.name);
                let config = PacketConfig::default();
                Ok(Box::new(attach_veth(namespace, &interface, &ours, &name, config)?))
            }
        }
    }

    /// The switch's own namespace.
    pub(super) fn own_namespace(&mut self) -> Result<NetNs, HostError> {
        if let Some(namespace) = &self.switch_namespace {
            return Ok(namespace.clone());
        }
        let namespace = switch_namespace(&self.node)?;
        self.named = true;
        self.switch_namespace = Some(namespace.clone());
        Ok(namespace)
    }

    /// The pod that has a port.
    pub(super) fn at(&self, port: PortId) -> Option<String> {
        self.attached.values().find(|a| a.port == port).map(|a| a.pod.name.clone())
    }

    fn remove_interface(&self, attached: &Attached) -> Result<(), HostError> {
        match (attached.place.kind, &self.switch_namespace) {
            (InterfaceKind::Veth, Some(ours)) => {
                detach_veth(ours, &switch_interface(&attached.pod.name))
            }
            _ => {
                let mut netlink = Netlink::open(&attached.namespace)?;
                match netlink.find_link(&attached.place.name)? {
                    Some(link) => netlink.delete_link(link.index),
                    None => Ok(()),
                }
            }
        }
    }

    /// Removes all interfaces and the switch's namespace. To be called when no worker has a
    /// device any more. Goes on after an error; the first one is told.
    pub(super) fn remove(self) -> Result<(), HostError> {
        let mut result = Ok(());
        for attached in self.attached.values() {
            let removed = self.remove_interface(attached);
            if result.is_ok() {
                result = removed;
            }
        }
        if self.named
            && let Some(namespace) = &self.switch_namespace
        {
            namespace.remove_on_drop();
        }
        result
    }
}

/// Sets the MTU of an interface, if that is another one now.
pub(super) fn set_mtu(namespace: &NetNs, name: &str, mtu: u32) -> Result<(), HostError> {
    let mut netlink = Netlink::open(namespace)?;
    let link = netlink.link(name)?;
    if link.mtu == mtu { Ok(()) } else { netlink.set_mtu(link.index, mtu) }
}

/// `EBUSY` of every architecture that Linux runs on.
const EBUSY: i32 = 16;
