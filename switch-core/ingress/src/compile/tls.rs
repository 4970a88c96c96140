//! Certificates by server name.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hashbrown::HashMap;
use podswitch_core::id::Cookie;

use super::records::{Records, Subject};
use super::rules::namespace;
use crate::annotations::quote;
use crate::objects::{IngressSpec, Name, Objects, SecretData, Stored, object_name};
use crate::options::Options;
use crate::routes::{Certificate, Routes};

/// The Secrets read so far: a certificate, or why there is none.
type Known = HashMap<Name, Result<Arc<Certificate>, String>>;

/// Adds the certificates of the served Ingresses, given in their order of precedence.
pub(super) fn add(
    routes: &mut Routes,
    objects: &Objects,
    served: &[Name],
    options: &Options,
    records: &mut Records,
) {
    let mut known = Known::new();
    if let Some(name) = &options.default_certificate {
        match get(objects, name, &mut known) {
            Ok(certificate) => routes.default_certificate = Some(certificate),
            Err(reason) => {
                let object = Cookie::new(object_name("Secret", name));
                records.left_out(&Subject { source: None, object }, "", reason, true);
            }
        }
    }
    for name in served {
        let Some(ingress) = objects.ingresses.get(name) else { continue };
        add_ingress(routes, objects, name, ingress, &mut known, records);
    }
    shadow(routes);
}

fn add_ingress(
    routes: &mut Routes,
    objects: &Objects,
    name: &Name,
    ingress: &Stored<IngressSpec>,
    known: &mut Known,
    records: &mut Records,
) {
    let of = Subject::ingress(name, ingress);
    for (at, entry) in ingress.it.tls.iter().flatten().enumerate() {
        let field = format!("spec.tls[{at}].secretName");
        let Some(secret) = entry.secret_name.as_deref().filter(|name| !name.is_empty()) else {
            records.note(&of, &field, "is missing: the default certificate is used".to_owned());
            continue;
        };
        let certificate = match get(objects, &(name.0.clone(), secret.to_owned()), known) {
            Ok(certificate) => certificate,
            Err(reason) => {
                records.field(&of, &field, format!("Secret {}: {reason}", quote(secret)));
                continue;
            }
        };
        // An entry without hosts is for those of the rules.
        let rules = ingress.it.rules.iter().flatten().filter_map(|rule| rule.host.clone());
        let hosts = match entry.hosts.as_deref() {
            None | Some([]) => rules.collect(),
            Some(hosts) => hosts.to_vec(),
        };
        for (number, host) in hosts.iter().enumerate().filter(|(_, host)| !host.is_empty()) {
            if let Err(reason) = insert(routes, &name.0, host, &certificate) {
                records.without_effect(&of, &format!("spec.tls[{at}].hosts[{number}]"), reason);
            }
        }
    }
}

/// The certificate for a host. The first one is kept, and one for a host of another namespace is
/// refused: no tenant answers with its certificate for another one.
fn insert(
    routes: &mut Routes,
    namespace: &str,
    host: &str,
    certificate: &Arc<Certificate>,
) -> Result<(), String> {
    if owner(routes, host).is_some_and(|owner| owner != namespace) {
        return Err(format!("the routes of {} belong to another namespace", quote(host)));
    }
    let (list, key) = match host.strip_prefix('*') {
        Some(suffix) => (&mut routes.wildcard_certificates, suffix),
        None => (&mut routes.certificates, host),
    };
    match list.get(key) {
        Some(Some(first)) if first.secret != certificate.secret => Err(format!(
            "{} has the certificate of {}, of an older Ingress",
            quote(host),
            first.secret
        )),
        Some(_) => Ok(()),
        None => {
            list.insert(key.into(), Some(certificate.clone()));
            Ok(())
        }
    }
}

/// The namespace that a host belongs to: that of its oldest route, or of the oldest route of the
/// wildcard that covers it.
fn owner<'r>(routes: &'r Routes, host: &str) -> Option<&'r str> {
    if let Some(suffix) = host.strip_prefix('*') {
        return routes.wildcards.get(suffix)?.owner.as_deref();
    }
    if let Some(owner) = routes.hosts.get(host).and_then(|paths| paths.owner.as_deref()) {
        return Some(owner);
    }
    let dot = host.find('.').filter(|&dot| dot > 0)?;
    routes.wildcards.get(&host[dot..])?.owner.as_deref()
}

/// A host of its own under a wildcard of another tenant does not use that one's certificate.
fn shadow(routes: &mut Routes) {
    for (host, paths) in &routes.hosts {
        let suffix = host.find('.').map(|dot| &host[dot..]);
        let Some(Some(wildcard)) = suffix.and_then(|it| routes.wildcard_certificates.get(it))
        else {
            continue;
        };
        let is_foreign =
            paths.owner.as_deref().is_some_and(|owner| owner != namespace(&wildcard.secret));
        if is_foreign && !routes.certificates.contains_key(host) {
            routes.certificates.insert(host.clone(), None);
        }
    }
}

fn get(objects: &Objects, name: &Name, known: &mut Known) -> Result<Arc<Certificate>, String> {
    let read = || match objects.secrets.get(name) {
        None => Err("is missing".to_owned()),
        Some(stored) => certificate(name, &stored.it).map(Arc::new),
    };
    known.entry(name.clone()).or_insert_with(read).clone()
}

/// The API server checks that Secrets of type kubernetes.io/tls have both keys; those of type Opaque,
/// the default, are used if they have.
pub(super) fn certificate(name: &Name, secret: &SecretData) -> Result<Certificate, String> {
    let kind = secret.kind.as_deref().filter(|kind| !kind.is_empty()).unwrap_or("Opaque");
    if kind != "kubernetes.io/tls" && kind != "Opaque" {
        return Err(format!("is of type {}, not kubernetes.io/tls or Opaque", quote(kind)));
    }
    let secret_name = Cookie::new(object_name("Secret", name));
    let (chain, key) = (value(secret, "tls.crt")?, value(secret, "tls.key")?);
    Ok(Certificate { secret: secret_name, chain: chain.into(), key: key.into() })
}

fn value(secret: &SecretData, key: &str) -> Result<Vec<u8>, String> {
    let written = |texts: &Option<_>| -> Option<String> {
        let texts: &std::collections::BTreeMap<String, Option<String>> = texts.as_ref()?;
        texts.get(key)?.clone()
    };
    if let Some(text) = written(&secret.string_data) {
        return Ok(text.into_bytes());
    }
    let text = written(&secret.data).ok_or_else(|| format!("has no {key}"))?;
    let text: String = text.split_ascii_whitespace().collect();
    STANDARD.decode(text).map_err(|_| format!("{key} is not Base64"))
}
