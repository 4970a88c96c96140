//! Index of slices by pods: the pod of an endpoint may have ended before its slice is updated.

use std::hash::Hash;
use std::net::IpAddr;
use std::sync::Arc;

use hashbrown::hash_map::Entry;
use hashbrown::{HashMap, HashSet};
use podswitch_core::id::Cookie;
use podswitch_policy::service::model::{Endpoint, EndpointSlice};

/// See the module's description.
#[derive(Debug, Default)]
pub(super) struct SliceIndex {
    /// Slices by the pods that they name.
    by_pod: HashMap<Arc<str>, Slices>,
    /// Slices by the addresses of endpoints that name no pod.
    by_address: HashMap<IpAddr, Slices>,
    /// Addresses of ended pods, with the number of such pods.
    ended: HashMap<IpAddr, usize>,
}

/// The slices that contain a pod or an address: seldom more than one or two.
#[derive(Debug)]
enum Slices {
    One(Cookie),
    Many(Box<HashSet<Cookie>>),
}

impl Slices {
    /// Adds a slice.
    fn insert(&mut self, slice: &Cookie) {
        match self {
            Self::One(first) if first == slice => {}
            Self::One(first) => {
                let both = [first.clone(), slice.clone()].into();
                *self = Self::Many(Box::new(both));
            }
            Self::Many(slices) => drop(slices.insert(slice.clone())),
        }
    }

    /// Removes a slice. Returns whether none is left.
    fn remove(&mut self, slice: &Cookie) -> bool {
        match self {
            Self::One(first) => first == slice,
            Self::Many(slices) => {
                slices.remove(slice);
                slices.is_empty()
            }
        }
    }

    fn iter(&self) -> impl Iterator<Item = &Cookie> {
        let (one, many) = match self {
            Self::One(slice) => (Some(slice), None),
            Self::Many(slices) => (None, Some(slices)),
        };
        one.into_iter().chain(many.into_iter().flat_map(|slices| slices.iter()))
    }
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

fn add<K: Eq + Hash>(index: &mut HashMap<K, Slices>, key: K, slice: &Cookie) {
    match index.entry(key) {
        Entry::Occupied(mut entry) => entry.get_mut().insert(slice),
        Entry::Vacant(entry) => drop(entry.insert(Slices::One(slice.clone()))),
    }
}

fn remove<K: Eq + Hash>(index: &mut HashMap<K, Slices>, key: &K, slice: &Cookie) {
    if index.get_mut(key).is_some_and(|slices| slices.remove(slice)) {
        index.remove(key);
    }
}

impl SliceIndex {
    pub(super) fn add(&mut self, object: &Cookie, slice: &EndpointSlice) {
        for endpoint in &slice.endpoints {
            match known(endpoint) {
                Some(Known::Pod(pod)) => add(&mut self.by_pod, pod.clone(), object),
                Some(Known::Address(address)) => add(&mut self.by_address, address, object),
                None => {}
            }
        }
    }

    pub(super) fn remove(&mut self, object: &Cookie, slice: &EndpointSlice) {
        for endpoint in &slice.endpoints {
            match known(endpoint) {
                Some(Known::Pod(pod)) => remove(&mut self.by_pod, pod, object),
                Some(Known::Address(address)) => remove(&mut self.by_address, &address, object),
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

    /// Whether an ended pod had this address.
    pub(super) fn had_address(&self, address: IpAddr) -> bool {
        self.ended.contains_key(&address)
    }

    /// Slices with endpoints that name this pod.
    pub(super) fn of(&self, pod: &Cookie) -> Vec<Cookie> {
        self.by_pod.get(pod.as_str()).into_iter().flat_map(Slices::iter).cloned().collect()
    }

    /// Slices with endpoints of this address that name no pod.
    pub(super) fn at(&self, address: IpAddr) -> Vec<Cookie> {
        self.by_address.get(&address).into_iter().flat_map(Slices::iter).cloned().collect()
    }
}
