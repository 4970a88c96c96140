//! Restores settings of pods' interfaces that were removed.

use std::time::Duration;

use podswitch_core::time::Instant;
use podswitch_linux::attach::{self, InterfaceSettings, switch_interface};
use podswitch_linux::{HostError, NetNs, Netlink};

use super::{Attached, Pods, interface_of};
use crate::attachment::InterfaceKind;
use crate::events::Failure;
use crate::pod_name::PodName;

/// Time after a repair before the same pod is checked again: bounds the events of a pod that undoes
/// repairs.
const PAUSE: Duration = Duration::from_secs(1);

impl Pods {
    /// Restores settings of pods' interfaces. `sweep`: also checks those without notifications. Returns
    /// the pods whose interface is gone: not every port notices that before it sends.
    pub(crate) fn repair(&mut self, now: Instant, sweep: bool) -> Vec<PodName> {
        let mut lost = Vec::new();
        let (mtu, ours) = (self.mtu, self.switch_namespace.clone());
        for (name, attached) in &mut self.attached {
            if !attached.upkeep.is_due(now, sweep) {
                continue;
            }
            match repair(attached, mtu, ours.as_ref()) {
                Ok(None) => {
                    attached.upkeep.is_due = true;
                    attached.upkeep.not_before = Some(now + PAUSE);
                    lost.push(name.clone());
                }
                Ok(Some(done)) => {
                    if !done.is_empty() {
                        attached.upkeep.not_before = Some(now + PAUSE);
                    }
                    self.failures.remove(name);
                    self.reporter.repaired(name, done);
                }
                Err(error) => {
                    attached.upkeep.is_due = true;
                    attached.upkeep.not_before = Some(now + PAUSE);
                    let text = error.to_string();
                    if self.failures.get(name) != Some(&text) {
                        let object = name.to_string();
                        self.reporter.failure(Failure::NotRepaired { object, error });
                        self.failures.insert(name.clone(), text);
                    }
                }
            }
        }
        lost
    }
}

/// `None`: the interface is gone.
fn repair(
    attached: &Attached,
    mtu: u16,
    ours: Option<&NetNs>,
) -> Result<Option<Vec<String>>, HostError> {
    let pod = &attached.attachment;
    let mut done = Vec::new();
    if let (InterfaceKind::Veth, Some(ours)) = (pod.kind, ours) {
        let mut netlink = Netlink::open(ours)?;
        let Some(link) = netlink.find_link(&switch_interface(&pod.pod))? else { return Ok(None) };
        let wanted = InterfaceSettings { mtu: Some(mtu.into()), ..InterfaceSettings::default() };
        done = wanted.repair(ours, &mut netlink, &link)?;
    }
    let interface = interface_of(pod, mtu);
    let of_pod = attach::repair(&attached.namespace, attached.index, &interface)?;
    Ok(of_pod.map(|of_pod| {
        done.extend(of_pod);
        done
    }))
}
