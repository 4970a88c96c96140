//! HTTPS with certificates that are made for one test.

use std::net::TcpStream;
use std::sync::Arc;

use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};

/// A certificate for 127.0.0.1 that signs itself: a client that trusts it trusts only this server.
#[derive(Clone)]
pub struct Certificate {
    pem: String,
    config: Arc<ServerConfig>,
}

impl Default for Certificate {
    fn default() -> Self {
        let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]);
        let made = made.expect("a certificate");
        let chain = vec![CertificateDer::from(made.cert.der().to_vec())];
        let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(chain, PrivateKeyDer::from(key))
            .expect("a key of the certificate");
        Self { pem: made.cert.pem(), config: Arc::new(config) }
    }
}

impl Certificate {
    /// The certificate, for the client's file of CA certificates.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    pub(crate) fn encrypted<'a>(
        &self,
        stream: &'a TcpStream,
    ) -> StreamOwned<ServerConnection, &'a TcpStream> {
        let connection = ServerConnection::new(self.config.clone()).expect("a valid configuration");
        StreamOwned::new(connection, stream)
    }
}
