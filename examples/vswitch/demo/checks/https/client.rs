//! An HTTPS client that trusts one certificate.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;

use podswitch_linux::NetNs;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, Stream};

use crate::demo::sockets::{self, Outcome, PATIENCE};

pub(super) const HOST: &str = "shop.demo.test";
/// The certificate of the host, signed by its own key, valid until 2120.
pub(super) const CERTIFICATE: &str = include_str!("shop.demo.test.crt");

/// See the module's description.
pub(super) struct Client(Arc<ClientConfig>);

/// A response with status 200.
pub(super) struct Page {
    /// Name and value of the cookie that it sets.
    pub(super) cookie: Option<String>,
    pub(super) body: String,
}

impl Client {
    pub(super) fn new() -> Outcome<Self> {
        let certificate = CertificateDer::from_pem_slice(CERTIFICATE.as_bytes());
        let mut roots = RootCertStore::empty();
        roots
            .add(certificate.map_err(|e| e.to_string())?)
            .map_err(|e| format!("the test certificate: {e}"))?;
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|e| e.to_string())?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Self(Arc::new(config)))
    }

    /// Gets `/` of the host at `to`; its certificate is verified.
    pub(super) fn get(&self, from: &NetNs, to: SocketAddr, cookie: Option<&str>) -> Outcome<Page> {
        let mut stream = sockets::open(from, || TcpStream::connect_timeout(&to, PATIENCE))
            .map_err(|e| format!("connect to {to}: {e}"))?;
        stream.set_read_timeout(Some(PATIENCE)).map_err(|e| e.to_string())?;
        stream.set_write_timeout(Some(PATIENCE)).map_err(|e| e.to_string())?;
        let name = ServerName::try_from(HOST).map_err(|e| e.to_string())?;
        let mut connection =
            ClientConnection::new(self.0.clone(), name).map_err(|e| e.to_string())?;
        let mut tls = Stream::new(&mut connection, &mut stream);
        let cookie = cookie.map_or(String::new(), |cookie| format!("Cookie: {cookie}\r\n"));
        write!(tls, "GET / HTTP/1.1\r\nHost: {HOST}\r\n{cookie}Connection: close\r\n\r\n")
            .map_err(|e| format!("TLS with {to}: {e}"))?;
        let mut text = String::new();
        tls.read_to_string(&mut text).map_err(|e| format!("read: {e}"))?;
        let odd = || format!("{text:?} is no page");
        let (head, body) = text.split_once("\r\n\r\n").ok_or_else(odd)?;
        if !head.starts_with("HTTP/1.1 200 ") {
            return Err(odd());
        }
        let value = |line: &str| {
            let (name, value) = line.split_once(": ")?;
            name.eq_ignore_ascii_case("set-cookie").then_some(value.split(';').next()?.to_owned())
        };
        Ok(Page { cookie: head.lines().find_map(value), body: body.to_owned() })
    }
}
