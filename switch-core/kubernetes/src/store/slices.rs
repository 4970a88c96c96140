//! Index of slices by pods: the pod behind an endpoint may have ended before its slice is updated.

use std::net::IpAddr;
use std::sync::Arc;

use hashbrown::{HashMap, HashSet};
use podswitch_core::id::Cookie;
use podswitch_policy::service::model::{Endpoint, EndpointSlice};

/// See the module's description.
#[derive(Debug, Default)]
pub(super) struct SliceIndex {
    /// Slices by the pods that they name.
    by_pod: HashMap<Arc<str>, HashSet<Cookie>>,
    /// Slices by the addresses of endpoints that name no pod.
    by_address: HashMap<IpAddr, HashSet<Cookie>>,
    /// Addresses of ended pods, with the number of pods.
    ended: HashMap<IpAddr, usize>,
}

/// The key of an endpoint.
enum Known<'a> {
    Pod(&'a Arc<str>),
    Address(IpAddr),
}

/// The pod that an endpoint names, otherwise its address.
fn known(endpoint: &Endpoint) -> Option<Known<'_>> {
    match &endpoint.target {
        Some(target) if target.starts_with("Pod/") => Some(Known::Pod(target)),
        _ => endpoint.addresses.first().map(|address| Known::Address(*address)),
    }
}

impl SliceIndex {
    pub(super) fn add(&mut self, object: &Cookie, slice: &EndpointSlice) {
        for endpoint in &slice.endpoints {
            let slices = match known(endpoint) {
                Some(Known::Pod(pod)) => self.by_pod.entry(pod.clone()).or_default(),
                Some(Known::Address(address)) => self.by_address.entry(address).or_default(),
                None => continue,
            };
            slices.insert(object.clone());
        }
    }

    pub(super) fn remove(&mut self, object: &Cookie, slice: &EndpointSlice) {
        for endpoint in &slice.endpoints {
            match known(endpoint) {
                Some(Known::Pod(pod)) => {
                    if let Some(slices) = self.by_pod.get_mut(pod) {
                        slices.remove(object);
                        if slices.is_empty() {
                            self.by_pod.remove(pod);
                        }
                    }
                }
                Some(Known::Address(address)) => {
                    if let Some(slices) = self.by_address.get_mut(&address) {
                        slices.remove(object);
                        if slices.is_empty() {
                            self.by_address.remove(&address);
                        }
                    }
                }
                None => {}
            }
        }
    }

    /// A pod with these addresses has ended (1), or no longer counts as ended (-1).
    pub(super) fn ended(&mut self, addresses: &[IpAddr], by: isize) {
        for address in addresses {
            let count = self.ended.entry(*address).or_default();
            *count = count.saturating_add_signed(by);
            if *count == 0 {
                self.ended.remove(address);
            }
        }
    }

    /// Whether a pod that has ended had this address.
    pub(super) fn had_address(&self, address: IpAddr) -> bool {
        self.ended.contains_key(&address)
    }

    /// Slices with endpoints that are this pod.
    pub(super) fn of(&self, pod: &Cookie) -> Vec<Cookie> {
        self.by_pod.get(pod.as_str()).into_iter().flatten().cloned().collect()
    }

    /// Slices with endpoints of this address that name no pod.
    pub(super) fn at(&self, address: IpAddr) -> Vec<Cookie> {
        self.by_address.get(&address).into_iter().flatten().cloned().collect()
    }
}
