//! What pods' interfaces were set up with is put back when somebody takes it away.

use std::time::Duration;

use podswitch_core::time::Instant;
use podswitch_linux::attach::{self, InterfaceSettings, switch_interface};
use podswitch_linux::netlink::Changes;
use podswitch_linux::{HostError, NetNs, Netlink};

use super::{Attached, Pods, interface_of};
use crate::attachment::InterfaceKind;
use crate::events::Failure;
use crate::pod_name::PodName;

/// How soon after a repair the same pod is looked at again: a pod that undoes it over and over has so many
/// notes and no more.
const PAUSE: Duration = Duration::from_secs(1);

/// When a pod's interface is to be compared with what it was set up with.
#[derive(Debug)]
pub(super) struct Upkeep {
    /// What tells of changes in the pod's namespace. Without (descriptors may be short) it is compared at each sweep.
    changes: Option<Changes>,
    is_due: bool,
    not_before: Option<Instant>,
}

impl Upkeep {
    /// For an interface that was set up just now.
    pub(super) fn of(namespace: &NetNs) -> Self {
        Self { changes: Changes::listen(namespace).ok(), is_due: false, not_before: None }
    }

    /// Whether to compare now. `sweep`: whether to do so even though nothing tells of a change.
    fn is_due(&mut self, now: Instant, sweep: bool) -> bool {
        self.is_due |= self.changes.as_mut().map_or(sweep, Changes::happened);
        let is_due = self.is_due && self.not_before.is_none_or(|at| now >= at);
        self.is_due &= !is_due;
        is_due
    }
}

impl Pods {
    /// Puts back what somebody took from pods' interfaces. `sweep`: looks at those, too, whose changes are not told of.
    /// Returns the pods whose interface itself is gone: not every port notices before it is to send something.
    pub(crate) fn put_back(&mut self, now: Instant, sweep: bool) -> Vec<PodName> {
        let mut lost = Vec::new();
        let (mtu, ours) = (self.mtu, self.switch_namespace.clone());
        for (name, attached) in &mut self.attached {
            if !attached.upkeep.is_due(now, sweep) {
                continue;
            }
            match put_back(attached, mtu, ours.as_ref()) {
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
                        self.reporter.failure(Failure::NotPutBack { object, error });
                        self.failures.insert(name.clone(), text);
                    }
                }
            }
        }
        lost
    }
}

/// `None`: the interface is gone.
fn put_back(
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
        done = wanted.put_back(ours, &mut netlink, &link)?;
    }
    let interface = interface_of(pod, mtu);
    let of_pod = attach::put_back(&attached.namespace, attached.index, &interface)?;
    Ok(of_pod.map(|of_pod| {
        done.extend(of_pod);
        done
    }))
}
