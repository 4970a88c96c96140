//! TLS: certificates by name, reloads, HTTP/2.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use serde_json::{Value, json};

use crate::lab::{Client, LONG, Lab, backend, ingress};

/// A certificate that signs itself.
pub(crate) struct Certified {
    chain: String,
    key: String,
    pub(crate) der: Vec<u8>,
}

pub(crate) fn certificate(names: &[&str]) -> Certified {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let made = rcgen::generate_simple_self_signed(names).unwrap();
    let (chain, key) = (made.cert.pem(), made.signing_key.serialize_pem());
    Certified { chain, key, der: made.cert.der().to_vec() }
}

pub(crate) fn secret(name: &str, it: &Certified) -> Value {
    secret_in("default", name, it)
}

fn secret_in(namespace: &str, name: &str, it: &Certified) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls",
        "metadata": {"name": name, "namespace": namespace},
        "stringData": {"tls.crt": it.chain, "tls.key": it.key},
    })
}

/// A connection to the HTTPS port that trusts one certificate only.
pub(crate) fn connect(
    lab: &Lab,
    name: &str,
    trusted: &[u8],
) -> Option<Client<StreamOwned<ClientConnection, TcpStream>>> {
    connect_with(lab, name, trusted, &[])
}

/// A client that trusts one certificate and offers these protocols.
pub(crate) fn trusting(certificate: &[u8], protocols: &[&[u8]]) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from(certificate.to_vec())).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|it| it.to_vec()).collect();
    Arc::new(config)
}

pub(crate) fn connect_with(
    lab: &Lab,
    name: &str,
    trusted: &[u8],
    protocols: &[&[u8]],
) -> Option<Client<StreamOwned<ClientConnection, TcpStream>>> {
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let mut connection = ClientConnection::new(trusting(trusted, protocols), name).unwrap();
    let mut stream = TcpStream::connect(lab.proxy.https().unwrap()).unwrap();
    stream.set_read_timeout(Some(LONG)).unwrap();
    while connection.is_handshaking() {
        connection.complete_io(&mut stream).ok()?;
    }
    let stream = StreamOwned::new(connection, stream);
    Some(Client { stream: std::io::BufReader::new(stream) })
}

fn tls_ingress(name: &str, namespace: &str, host: &str, secret: &str, service: &str) -> Value {
    let paths = json!([{"path": "/", "pathType": "Prefix", "backend": backend(service)}]);
    let spec = json!({
        "tls": [{"hosts": [host], "secretName": secret}],
        "rules": [{"host": host, "http": {"paths": paths}}],
    });
    let mut value = ingress(name, json!({}), spec);
    value["metadata"]["namespace"] = namespace.into();
    value
}

#[test]
fn plain_requests_of_a_host_with_tls_are_redirected() {
    let mut lab = Lab::new();
    lab.echo("web");
    let one = certificate(&["a.test"]);
    lab.add(secret("a", &one));
    lab.add(tls_ingress("a", "default", "a.test", "a", "web"));
    assert_eq!(lab.publish(), []);
    let response = lab.get("a.test:8080", "/x/../y?z=1");
    assert_eq!(response.status, 308);
    assert_eq!(response.field("location"), Some("https://a.test/y?z=1"));
    let mut client = connect(&lab, "a.test", &one.der).unwrap();
    let response = client.send("GET / HTTP/1.1\r\nHost: a.test\r\n\r\n").unwrap();
    assert_eq!(response.service(), "web");
}

/// HTTP/2 is agreed on, and then the client says nothing, or only that it speaks it.
#[test]
fn a_silent_http2_connection_ends() {
    let mut lab = Lab::with(|options| options.head_timeout = Duration::from_secs(2));
    let one = certificate(&["a.test"]);
    lab.add(secret("a", &one));
    lab.add(tls_ingress("a", "default", "a.test", "a", "web"));
    lab.publish();
    // The preface with empty SETTINGS, and the acknowledgement of the other side's.
    let hello = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0\0\0\0\x04\x01\0\0\0\0";
    for first in [&b""[..], hello] {
        let mut client = connect_with(&lab, "a.test", &one.der, &[b"h2"]).unwrap();
        client.stream.get_mut().write_all(first).unwrap();
        // Until its end: a read that takes longer than `LONG` is another error.
        let ended = client.stream.read_to_end(&mut Vec::new());
        let kind = ended.err().map(|error| error.kind());
        assert!(!matches!(kind, Some(ErrorKind::WouldBlock | ErrorKind::TimedOut)), "{kind:?}");
    }
}

#[test]
fn a_new_certificate_is_shown_to_new_connections_and_living_ones_stay() {
    let mut lab = Lab::new();
    lab.echo("web");
    let (old, new) = (certificate(&["a.test"]), certificate(&["a.test"]));
    lab.add(secret("a", &old));
    lab.add(tls_ingress("a", "default", "a.test", "a", "web"));
    lab.publish();
    let request = "GET / HTTP/1.1\r\nHost: a.test\r\n\r\n";
    let mut living = connect(&lab, "a.test", &old.der).unwrap();
    assert_eq!(living.send(request).unwrap().service(), "web");
    lab.add(secret("a", &new));
    assert_eq!(lab.publish(), []);
    assert_eq!(living.send(request).unwrap().service(), "web");
    assert!(connect(&lab, "a.test", &old.der).is_none(), "the old one is shown");
    assert!(connect(&lab, "a.test", &new.der).is_some());
}

#[test]
fn a_certificate_is_never_shown_for_another_tenant() {
    let mut lab = Lab::new();
    let (mine, other, default) =
        (certificate(&["*.a.test"]), certificate(&["b.a.test"]), certificate(&["default.test"]));
    lab.add(secret_in("mine", "wild", &mine));
    lab.add(secret_in("other", "b", &other));
    lab.add(secret("default", &default));
    lab.options.default_certificate = Some(("default".into(), "default".into()));
    lab.add(tls_ingress("w", "mine", "*.a.test", "wild", "web"));
    // A host of another tenant without TLS, under the wildcard.
    let paths = json!([{"path": "/", "pathType": "Prefix", "backend": backend("web")}]);
    let mut plain =
        ingress("p", json!({}), json!({"rules": [{"host": "p.a.test", "http": {"paths": paths}}]}));
    plain["metadata"]["namespace"] = "other".into();
    lab.add(plain);
    // A tenant names a host of another one, and a Secret that is not its own.
    lab.add(tls_ingress("x", "zz", "b.a.test", "b", "web"));
    lab.add(tls_ingress("b", "other", "b.a.test", "b", "web"));
    let records = lab.publish();
    let shown = |name: &str| {
        [("mine", &mine), ("other", &other), ("default", &default)]
            .iter()
            .find(|(_, it)| connect_any(&lab, name, &it.der))
            .map(|(which, _)| *which)
    };
    assert_eq!(shown("x.a.test"), Some("mine"));
    assert_eq!(shown("b.a.test"), Some("other"));
    assert_eq!(shown("p.a.test"), Some("default"));
    assert_eq!(shown("unknown.test"), Some("default"));
    let about = records.iter().find(|record| record.object.as_str() == "Ingress/zz/x");
    assert!(about.is_some(), "{records:?}");
}

/// A host belongs to its oldest route, or to that of the wildcard that covers it.
#[test]
fn a_host_shows_only_certificates_of_its_owner() {
    let mut lab = Lab::new();
    let (mine, other, default) =
        (certificate(&["*.a.test"]), certificate(&["x.a.test"]), certificate(&["default.test"]));
    lab.add(secret_in("mine", "wild", &mine));
    lab.add(secret_in("other", "x", &other));
    lab.add(secret("default", &default));
    lab.options.default_certificate = Some(("default".into(), "default".into()));
    let with = |name: &str, namespace: &str, created: &str, spec: Value| {
        let mut value = ingress(name, json!({}), spec);
        value["metadata"]["namespace"] = namespace.into();
        value["metadata"]["creationTimestamp"] = created.into();
        value
    };
    let rule = |host: &str, path: &str| {
        let paths = json!([{"path": path, "pathType": "Prefix", "backend": backend("web")}]);
        json!({"host": host, "http": {"paths": paths}})
    };
    let (old, new) = ("2024-01-01T00:00:00Z", "2025-01-01T00:00:00Z");
    let spec = json!({"tls": [{"hosts": ["*.a.test"], "secretName": "wild"}],
        "rules": [rule("*.a.test", "/")]});
    lab.add(with("wild", "mine", old, spec));
    lab.add(with("own", "mine", old, json!({"rules": [rule("own.a.test", "/")]})));
    lab.add(with("plain", "mine", old, json!({"rules": [rule("b.test", "/")]})));
    // A certificate without a rule, and with a younger one.
    let spec = json!({"tls": [{"hosts": ["x.a.test", "own.a.test", "b.test"], "secretName": "x"}],
        "rules": [rule("own.a.test", "/p"), rule("b.test", "/p")]});
    lab.add(with("grab", "other", new, spec));
    let records = lab.publish();
    for name in ["x.a.test", "own.a.test"] {
        assert!(connect_any(&lab, name, &mine.der), "{name}");
    }
    assert!(connect_any(&lab, "b.test", &default.der));
    let is_refused = |record: &&podswitch_kubernetes::Record| {
        record.object.as_str() == "Ingress/other/grab" && record.field.contains("spec.tls[0].hosts")
    };
    assert_eq!(records.iter().filter(is_refused).count(), 3, "{records:?}");
}

/// Whether the handshake shows exactly this certificate, whatever its names.
fn connect_any(lab: &Lab, name: &str, der: &[u8]) -> bool {
    #[derive(Debug)]
    struct Exactly(Vec<u8>);
    use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
    impl ServerCertVerifier for Exactly {
        fn verify_server_cert(
            &self,
            shown: &CertificateDer<'_>,
            _: &[CertificateDer<'_>],
            _: &ServerName<'_>,
            _: &[u8],
            _: rustls::pki_types::UnixTime,
        ) -> Result<ServerCertVerified, rustls::Error> {
            if shown.as_ref() == self.0 {
                return Ok(ServerCertVerified::assertion());
            }
            Err(rustls::Error::General("another one".to_owned()))
        }
        fn verify_tls12_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &rustls::DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            Ok(HandshakeSignatureValid::assertion())
        }
        fn verify_tls13_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &rustls::DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            Ok(HandshakeSignatureValid::assertion())
        }
        fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
            let provider = rustls::crypto::ring::default_provider();
            provider.signature_verification_algorithms.supported_schemes()
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Exactly(der.to_vec())))
        .with_no_client_auth();
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let mut connection = ClientConnection::new(Arc::new(config), name).unwrap();
    let mut stream = TcpStream::connect(lab.proxy.https().unwrap()).unwrap();
    stream.set_read_timeout(Some(LONG)).unwrap();
    while connection.is_handshaking() {
        if connection.complete_io(&mut stream).is_err() {
            return false;
        }
    }
    true
}

#[test]
fn a_secret_that_cannot_be_used_is_reported_and_hurts_nobody_else() {
    let mut lab = Lab::new();
    lab.echo("web");
    let (good, other) = (certificate(&["good.test"]), certificate(&["x.test"]));
    lab.add(secret("good", &good));
    let mixed = Certified { chain: good.chain.clone(), key: other.key.clone(), der: Vec::new() };
    lab.add(secret("mixed", &mixed));
    lab.add(tls_ingress("good", "default", "good.test", "good", "web"));
    lab.add(tls_ingress("mixed", "default", "mixed.test", "mixed", "web"));
    lab.add(tls_ingress("none", "default", "none.test", "absent", "web"));
    let records = lab.publish();
    let objects: Vec<_> = records.iter().map(|record| record.object.as_str()).collect();
    assert_eq!(objects, ["Ingress/default/none", "Secret/default/mixed"], "{records:?}");
    assert!(connect(&lab, "good.test", &good.der).is_some());
    // Without a default certificate, other names have none.
    assert!(!connect_any(&lab, "mixed.test", &good.der));
    lab.wait_refused("tls_handshake", 1);
}
