//! Certificates and keys for TLS, from what Secrets hold.

use rustls::crypto::ring as provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;

use crate::routes::Certificate;

/// The key of a certificate that can be used.
pub(super) fn certified(certificate: &Certificate) -> Result<CertifiedKey, String> {
    let chain = CertificateDer::pem_slice_iter(&certificate.chain)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| format!("tls.crt is not PEM: {error}"))?;
    if chain.is_empty() {
        return Err("tls.crt has no certificate".to_owned());
    }
    // What is wrong with a key is not quoted.
    let key = PrivateKeyDer::from_pem_slice(&certificate.key)
        .map_err(|_| "tls.key has no private key in PEM".to_owned())?;
    let provider = provider::default_provider();
    CertifiedKey::from_der(chain, key, &provider).map_err(|error| match error {
        rustls::Error::InconsistentKeys(_) => "tls.key is not the key of tls.crt".to_owned(),
        error => format!("tls.crt or tls.key cannot be used: {error}"),
    })
}
