//! Restores settings of pods' interfaces that were removed.

use std::time::Duration;

use podswitch_core::time::Instant;
use podswitch_linux::attach::{self, InterfaceSettings, switch_interface};
use podswitch_linux::{HostError, NetNs, Netlink};

use super::{Attached, Pods, interface_of};
use crate::attachment::InterfaceKind;
use crate::events::Failure;

/// Time after a repair before the same pod is checked again: bounds the events of a pod that undoes
/// repairs.
const PAUSE: Duration = Duration::from_secs(1);

impl Pods {
    /// Restores settings of pods' interfaces. `sweep`: also checks those without notifications.
    pub(crate) fn put_back(&mut self, now: Instant, sweep: bool) {
        let (mtu, ours) = (self.mtu, self.switch_namespace.clone());
        for (name, attached) in &mut self.attached {
            if !attached.upkeep.is_due(now, sweep) {
                continue;
            }
            match put_back(attached, mtu, ours.as_ref()) {
                Ok(done) => {
                    if !done.is_empty() {
                        attached.upkeep.not_before = Some(now + PAUSE);
                    }
                    self.failures.remove(name);
                    self.reporter.repaired(name, done);
                }
                // An interface that is gone is reported by its port's failure.
                Err(error) if error.is_not_found() => {}
                Err(error) => {
                    attached.upkeep.is_due = true;
                    attached.upkeep.not_before = Some(now + PAUSE);
                    let text = error.to_string();
                    if self.failures.get(name) != Some(&text) {
                        let object = name.to_string();
                        self.reporter.failure(Failure::NotPutBack { object, error });
                        self.failures.insert(name.clone(), text);
                    }
                }
            }
        }
    }
}

fn put_back(attached: &Attached, mtu: u16, ours: Option<&NetNs>) -> Result<Vec<String>, HostError> {
    let pod = &attached.attachment;
    let mut done = Vec::new();
    if let (InterfaceKind::Veth, Some(ours)) = (pod.kind, ours) {
        let mut netlink = Netlink::open(ours)?;
        let link = netlink.link(&switch_interface(&pod.pod))?;
        let wanted = InterfaceSettings { mtu: Some(mtu.into()), ..InterfaceSettings::default() };
        done = wanted.put_back(ours, &mut netlink, &link)?;
    }
    let interface = interface_of(pod, mtu);
    done.extend(attach::put_back(&attached.namespace, attached.index, &interface)?);
    Ok(done)
}
