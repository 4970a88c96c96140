//! Routes in force, with what the proxy makes of them.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use hashbrown::HashMap;
use podswitch_core::id::Cookie;
use podswitch_kubernetes::{Action, Record};
use rustls::sign::CertifiedKey;

use super::objects::Objects;
use super::options::Options;
use super::{affinity, keys as certificates};
use crate::routes::{Certificate, Routes};

/// What a reload replaces.
#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) routes: Routes,
    /// By Secret; those that can be used.
    keys: HashMap<Cookie, (Arc<Certificate>, Arc<CertifiedKey>)>,
    /// Values of affinity cookies.
    pub(super) cookies: HashMap<SocketAddr, Box<str>>,
    /// Counters by object.
    pub(super) objects: Objects,
}

impl State {
    /// Keys of certificates that have not changed are kept.
    pub(super) fn new(routes: Routes, before: &Self, options: &Options) -> (Self, Vec<Record>) {
        let mut keys: HashMap<Cookie, (Arc<Certificate>, Arc<CertifiedKey>)> = HashMap::new();
        let mut records = Vec::new();
        for certificate in routes.certificates() {
            if keys.contains_key(&certificate.secret) {
                continue;
            }
            let known = before.keys.get(&certificate.secret);
            if let Some((_, key)) = known.filter(|(known, _)| known == certificate) {
                keys.insert(certificate.secret.clone(), (certificate.clone(), key.clone()));
                continue;
            }
            match certificates::certified(certificate) {
                Ok(key) => {
                    let value = (certificate.clone(), Arc::new(key));
                    keys.insert(certificate.secret.clone(), value);
                }
                Err(reason) => {
                    let record = refusal(&certificate.secret, reason);
                    if !records.contains(&record) {
                        records.push(record);
                    }
                }
            }
        }
        let mut cookies = HashMap::new();
        let sticky = routes.all().filter(|route| route.settings.affinity.is_some());
        for endpoint in sticky.flat_map(|route| &route.backend.endpoints) {
            cookies
                .entry(*endpoint)
                .or_insert_with(|| affinity::value(&options.affinity_key, *endpoint));
        }
        let objects = Objects::new(routes.all().map(|route| &route.ingress), &before.objects);
        (Self { routes, keys, cookies, objects }, records)
    }

    /// The key for a server name at a local address; the default one if the name's own cannot be used.
    pub(super) fn key(&self, address: IpAddr, name: Option<&str>) -> Option<&Arc<CertifiedKey>> {
        let of = |certificate: &Arc<Certificate>| Some(&self.keys.get(&certificate.secret)?.1);
        let named = self.routes.certificate_at(address, name).and_then(of);
        named.or_else(|| self.routes.certificate(None).and_then(of))
    }
}

fn refusal(secret: &Cookie, reason: String) -> Record {
    Record {
        origin: None,
        object: secret.clone(),
        field: "data".to_owned(),
        reason,
        action: Action::LeftOut,
        refused: true,
        by_switch: false,
    }
}
