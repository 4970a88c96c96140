//! Over TLS: certificates that hold, and those that do not.

use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use podswitch_api::{Elasticsearch, ElasticsearchOptions};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use tokio_rustls::rustls::crypto::ring::default_provider;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{ServerConfig, ServerConnection, StreamOwned};

use crate::server::{Reply, Server};
use crate::{all, deliver, settled, start};

/// A folder that is removed at the end.
struct Folder(PathBuf);

impl Folder {
    fn new(test: &str) -> Self {
        let path =
            std::env::temp_dir().join(format!("podswitch-tls-{test}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.join(name);
        std::fs::write(&path, text).unwrap();
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// An authority, as Elasticsearch makes one for itself.
struct Authority {
    params: CertificateParams,
    key: KeyPair,
    pem: String,
}

impl Authority {
    fn new(name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self { params, key, pem }
    }

    /// What a server with a certificate for `name` needs.
    fn certify(&self, name: &str, change: impl FnOnce(&mut CertificateParams)) -> ServerConfig {
        let mut params = CertificateParams::new([name.to_owned()]).unwrap();
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let issuer = Issuer::from_params(&self.params, &self.key);
        let certificate: CertificateDer<'static> =
            params.signed_by(&key, &issuer).unwrap().der().clone();
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        ServerConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key)
            .unwrap()
    }
}

fn server(config: ServerConfig, reply: fn(usize, usize, usize) -> Reply) -> Server {
    let config = Arc::new(config);
    let accept = move |stream| -> Box<dyn crate::server::Stream> {
        let connection = ServerConnection::new(Arc::clone(&config)).unwrap();
        Box::new(StreamOwned::new(connection, stream))
    };
    Server::listen_with(TcpListener::bind("127.0.0.1:0").unwrap(), accept, reply)
}

fn options(server: &Server, host: &str, ca_file: PathBuf) -> ElasticsearchOptions {
    let endpoint = format!("https://{host}:{}", server.port).parse().unwrap();
    let plain = server.options();
    let mut options = ElasticsearchOptions::new(endpoint);
    (options.flush, options.pause) = (plain.flush, plain.pause);
    options.ca_file = Some(ca_file);
    options
}

#[test]
fn over_tls_records_arrive_at_a_server_with_a_certificate_that_holds() {
    let folder = Folder::new("holds");
    let authority = Authority::new("ours");
    // Others may be in the file as well.
    let text = [Authority::new("other").pem, authority.pem.clone()].concat();
    let ca_file = folder.write("ca.pem", &text);
    // By address, and by name. A failed connection is opened again.
    for name in ["127.0.0.1", "localhost"] {
        let reply = |bulk, _, _| if bulk == 1 { Reply::Cut } else { Reply::Take };
        let server = server(authority.certify(name, |_| ()), reply);
        let (output, _) = start(options(&server, name, ca_file.clone()));
        for part in 0..3 {
            deliver(&output, part * 100..part * 100 + 100);
        }
        let counts = output.finish();
        assert_eq!((counts.delivered, counts.lost()), (300, 0), "{name}");
        assert_eq!(server.stored(), all(300), "{name}");
    }
}

#[test]
fn over_tls_nothing_is_sent_to_a_server_whose_certificate_does_not_hold() {
    let folder = Folder::new("does-not-hold");
    let [authority, other, namesake] = ["ours", "other", "ours"].map(Authority::new);
    let ca_file = folder.write("ca.pem", &authority.pem);
    let expired = |params: &mut CertificateParams| {
        params.not_after = rcgen::date_time_ymd(2001, 1, 1);
    };
    for (config, reason) in [
        (other.certify("127.0.0.1", |_| ()), "UnknownIssuer"),
        (namesake.certify("127.0.0.1", |_| ()), "BadSignature"),
        (authority.certify("elsewhere.example", |_| ()), "not valid for name"),
        (authority.certify("127.0.0.1", expired), "expired"),
    ] {
        let server = server(config, |_, _, _| Reply::Take);
        let mut options = options(&server, "127.0.0.1", ca_file.clone());
        options.linger = Duration::from_millis(300);
        let (output, reports) = start(options);
        (0..10).for_each(|number| output.write(&crate::record(number)));
        let counts = output.finish();
        // Without files for them, they are lost at the end.
        assert_eq!((counts.delivered, counts.lost()), (0, 10), "{reason}");
        assert_eq!(server.stored(), all(0));
        let reports = reports.lock().unwrap();
        assert!(reports[0].contains(reason), "{reports:?}");
    }
}

/// A server without TLS on the port: its answer is no handshake.
#[test]
fn over_tls_a_plain_server_is_unreachable_until_it_speaks_tls() {
    let folder = Folder::new("plain");
    let authority = Authority::new("ours");
    let ca_file = folder.write("ca.pem", &authority.pem);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let again = listener.try_clone().unwrap();
    let plain = std::thread::spawn(move || {
        for stream in listener.incoming().take(2) {
            let (mut stream, answer) = (stream.unwrap(), b"HTTP/1.1 400 Bad Request\r\n\r\n");
            let _ = std::io::Write::write_all(&mut stream, answer);
        }
    });
    let endpoint = format!("https://127.0.0.1:{port}").parse().unwrap();
    let mut options = ElasticsearchOptions::new(endpoint);
    options.flush = Duration::from_millis(20);
    options.pause = (Duration::from_millis(5), Duration::from_millis(40));
    options.ca_file = Some(ca_file);
    let (output, reports) = start(options);
    (0..10).for_each(|number| output.write(&crate::record(number)));
    plain.join().unwrap();
    let config = Arc::new(authority.certify("127.0.0.1", |_| ()));
    let accept = move |stream| -> Box<dyn crate::server::Stream> {
        let connection = ServerConnection::new(Arc::clone(&config)).unwrap();
        Box::new(StreamOwned::new(connection, stream))
    };
    let server = Server::listen_with(again, accept, |_, _, _| Reply::Take);
    assert_eq!(settled(&output).delivered, 10);
    assert_eq!(server.stored(), all(10));
    let reports = reports.lock().unwrap();
    assert!(reports[0].contains("records wait") && reports[1].contains("again"), "{reports:?}");
}

#[test]
fn over_tls_a_file_without_usable_certificates_is_refused_at_the_start() {
    let folder = Folder::new("files");
    let broken = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    for (path, reason) in [
        (folder.write("empty.pem", ""), "no certificate"),
        (folder.write("broken.pem", broken), "certificate"),
        (folder.0.join("missing.pem"), "No such file"),
    ] {
        let mut options = ElasticsearchOptions::new("https://127.0.0.1:1".parse().unwrap());
        options.ca_file = Some(path.clone());
        let error = Elasticsearch::start(options, || (), |_| ()).unwrap_err().to_string();
        let name = path.display().to_string();
        assert!(error.contains(&name) && error.contains(reason), "{error}");
    }
}
