//! Upgraded connections, HTTP/2, the access log.

use std::convert::Infallible;
use std::io::{Read as _, Write};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::OnceLock;
use std::sync::mpsc::{Sender, channel};
use std::task::{Context, Poll};
use std::thread;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body::{Body, Frame};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use podswitch_ingress::proxy::LogWriter;
use rustls::pki_types::ServerName;
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use tokio::time::timeout;

use crate::lab::{Client, LONG, Lab, ingress};
use crate::tls::{certificate, secret, trusting};

const UPGRADE: &str = "GET /chat HTTP/1.1\r\nHost: a.test\r\nConnection: keep-alive, Upgrade\r\n\
                       Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                       Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

fn says(client: &mut Client, text: &str) {
    client.stream.get_mut().write_all(text.as_bytes()).unwrap();
    let mut back = vec![0; text.len()];
    client.stream.read_exact(&mut back).unwrap();
    assert_eq!(back, text.as_bytes());
}

#[test]
fn a_websocket_lives_through_100_reloads() {
    let mut lab = Lab::new();
    lab.echo("web");
    lab.ingress("a", "a.test", "web", json!({}));
    lab.publish();
    let mut client = Client::new(lab.http());
    let response = client.send(UPGRADE).unwrap();
    assert_eq!(response.status, 101);
    assert_eq!(response.field("upgrade"), Some("websocket"));
    for number in 0..100 {
        // The route changes, and at last is gone.
        if number % 2 == 0 {
            lab.ingress("b", &format!("h{number}.test"), "web", json!({}));
        } else {
            lab.ingress("a", &format!("x{number}.test"), "web", json!({}));
        }
        lab.publish();
        says(&mut client, &format!("message {number}"));
    }
    assert_eq!(lab.get("a.test", "/").status, 404);
    assert_eq!(lab.metric("podswitch_ingress_reloads_total"), 101);
    assert_eq!(lab.metric("podswitch_ingress_upgrades_total"), 1);
    // The end is passed on.
    client.stream.get_ref().shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(client.stream.read(&mut [0]).unwrap(), 0);
}

/// A side that resets its connection, and two that say nothing.
#[test]
fn the_end_of_a_tunnel_is_counted() {
    let mut lab = Lab::new();
    lab.echo("web");
    let timeouts = json!({"proxy-read-timeout": "1", "proxy-send-timeout": "1"});
    lab.ingress("a", "a.test", "web", timeouts);
    lab.publish();
    let upgraded = || {
        let mut client = Client::new(lab.http());
        assert_eq!(client.send(UPGRADE).unwrap().status, 101);
        client
    };
    let mut client = upgraded();
    // Closed with something unread, a socket sends RST.
    client.stream.get_mut().write_all(b"hello").unwrap();
    assert!(client.stream.get_ref().peek(&mut [0; 5]).unwrap() > 0);
    drop(client);
    lab.wait_refused("tunnel", 1);
    let mut silent = upgraded();
    assert_eq!(silent.stream.read(&mut [0]).unwrap(), 0);
    lab.wait_refused("tunnel_timeout", 1);
}

/// HTTP/2 in a tunnel would pass by the routes.
#[test]
fn an_upgrade_to_h2c_is_not_passed_on() {
    let mut lab = Lab::new();
    lab.echo("web");
    lab.ingress("a", "a.test", "web", json!({}));
    lab.publish();
    let response = lab.send(
        "GET / HTTP/1.1\r\nHost: a.test\r\nConnection: Upgrade, HTTP2-Settings\r\n\
         Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n\r\n",
    );
    assert_eq!(response.seen("upgrade"), None);
    assert_eq!(response.seen("http2-settings"), None);
}

pub(crate) fn runtime() -> &'static Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| {
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
    })
}

/// A body with trailers, as gRPC has them.
pub(crate) struct Message(pub(crate) Option<Bytes>, pub(crate) Option<HeaderMap>);

impl Body for Message {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if let Some(data) = self.0.take() {
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
        Poll::Ready(self.1.take().map(|trailers| Ok(Frame::trailers(trailers))))
    }
}

pub(crate) async fn collect(mut body: Incoming) -> (Vec<u8>, HeaderMap) {
    let (mut data, mut trailers) = (Vec::new(), HeaderMap::new());
    while let Some(frame) = std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
        match frame.unwrap().into_data() {
            Ok(bytes) => data.extend_from_slice(&bytes),
            Err(frame) => trailers = frame.into_trailers().unwrap_or_default(),
        }
    }
    (data, trailers)
}

/// An endpoint that speaks HTTP/2 without TLS, like a gRPC server: the message is echoed, with a
/// status in the trailers.
pub(crate) fn grpc_endpoint() -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    runtime().spawn(async move {
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        while let Ok((stream, _)) = listener.accept().await {
            let service = hyper::service::service_fn(|request: Request<Incoming>| async move {
                let te = request.headers().get("te").cloned();
                let host = request.uri().authority().map(ToString::to_string).unwrap_or_default();
                let (data, _) = collect(request.into_body()).await;
                let mut trailers = HeaderMap::new();
                trailers.insert("grpc-status", HeaderValue::from_static("0"));
                let mut response = Response::new(Message(Some(data.into()), Some(trailers)));
                let headers = response.headers_mut();
                headers.insert("content-type", HeaderValue::from_static("application/grpc"));
                headers.insert("x-host", HeaderValue::from_str(&host).unwrap());
                if let Some(te) = te {
                    headers.insert("x-te", te);
                }
                Ok::<_, Infallible>(response)
            });
            let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            tokio::spawn(builder.serve_connection(TokioIo::new(stream), service));
        }
    });
    address
}

/// Sends requests on one HTTP/2 connection.
fn http2(
    lab: &Lab,
    der: &[u8],
    requests: Vec<Request<Message>>,
) -> Vec<(http::response::Parts, Vec<u8>, HeaderMap)> {
    let config = trusting(der, &[b"h2"]);
    let address = lab.proxy.https().unwrap();
    let talk = async move {
        let stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let connector = tokio_rustls::TlsConnector::from(config);
        let name = ServerName::try_from("a.test").unwrap();
        let stream = connector.connect(name, stream).await.unwrap();
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
        let builder = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
        let (mut sender, connection) = builder.handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        let mut answers = Vec::new();
        for request in requests {
            let (parts, body) = sender.send_request(request).await.unwrap().into_parts();
            let (data, trailers) = collect(body).await;
            answers.push((parts, data, trailers));
        }
        answers
    };
    runtime().block_on(async { timeout(LONG, talk).await }).unwrap()
}

pub(crate) fn tls_lab(annotations: Value) -> (Lab, Vec<u8>) {
    let mut lab = Lab::new();
    let one = certificate(&["a.test"]);
    lab.add(secret("a", &one));
    let paths = json!([{"path": "/", "pathType": "Prefix", "backend": crate::lab::backend("web")}]);
    let spec = json!({
        "tls": [{"hosts": ["a.test"], "secretName": "a"}],
        "rules": [{"host": "a.test", "http": {"paths": paths}}],
    });
    lab.add(ingress("a", annotations, spec));
    (lab, one.der)
}

#[test]
fn http2_requests_go_to_endpoints_of_http1() {
    let (mut lab, der) = tls_lab(json!({}));
    lab.echo("web");
    assert_eq!(lab.publish(), []);
    let get = |uri: &str| Request::get(uri).body(Message(None, None)).unwrap();
    let post = Request::post("https://a.test/p").body(Message(Some("hello".into()), None)).unwrap();
    let clash = Request::get("https://a.test/").header("host", "b.test");
    let clash = clash.body(Message(None, None)).unwrap();
    let requests = vec![get("https://a.test/x?y=1"), post, get("https://b.test/"), clash];
    let answers = http2(&lab, &der, requests);
    let statuses: Vec<_> = answers.iter().map(|(parts, ..)| parts.status.as_u16()).collect();
    assert_eq!(statuses, [200, 200, 404, 400]);
    let seen: Value = serde_json::from_slice(&answers[0].1).unwrap();
    assert_eq!((&seen["target"], &seen["fields"]["host"]), (&json!("/x?y=1"), &json!("a.test")));
    assert_eq!(seen["fields"]["x-forwarded-proto"], "https");
    let seen: Value = serde_json::from_slice(&answers[1].1).unwrap();
    assert_eq!((&seen["method"], &seen["body"]), (&json!("POST"), &json!("hello")));
}

#[test]
fn grpc_with_trailers() {
    let (mut lab, der) = tls_lab(json!({"backend-protocol": "GRPC"}));
    lab.service("web", &[grpc_endpoint()]);
    assert_eq!(lab.publish(), []);
    let call = || {
        Request::post("https://a.test/echo.Echo/Say")
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(Message(Some(Bytes::from_static(b"\0\0\0\0\x02hi")), None))
            .unwrap()
    };
    for (parts, data, trailers) in http2(&lab, &der, vec![call(), call()]) {
        assert_eq!(parts.status, 200);
        assert_eq!(
            (&parts.headers["x-te"], &parts.headers["x-host"]),
            (
                &"trailers".parse::<HeaderValue>().unwrap(),
                &"a.test".parse::<HeaderValue>().unwrap()
            )
        );
        assert_eq!(data, b"\0\0\0\0\x02hi");
        assert_eq!(trailers["grpc-status"], "0");
    }
    assert_eq!(lab.metric("podswitch_ingress_endpoint_connections_total"), 1);
}

/// Writes lines into a channel.
struct Lines(Sender<String>);

impl Write for Lines {
    fn write(&mut self, text: &[u8]) -> std::io::Result<usize> {
        for line in String::from_utf8_lossy(text).lines() {
            _ = self.0.send(line.to_owned());
        }
        Ok(text.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn every_request_is_logged() {
    let (send, lines) = channel();
    let mut lab = Lab::with_log(|_| {}, Some(LogWriter::start(Box::new(Lines(send))).unwrap()));
    let endpoint = lab.echo("web");
    lab.ingress("a", "a.test", "web", json!({}));
    lab.publish();
    let length = lab.get("a.test", "/x?y=1").body.len();
    lab.get("b.test", "/z");
    let mut entries: Vec<Value> = Vec::new();
    while entries.len() < 2 {
        entries.push(serde_json::from_str(&lines.recv_timeout(LONG).unwrap()).unwrap());
    }
    entries.sort_by_key(|entry| entry["url.domain"].to_string());
    let served = &entries[0];
    for (name, value) in [
        ("event.dataset", json!("podswitch.ingress")),
        ("url.path", json!("/x")),
        ("url.query", json!("y=1")),
        ("http.response.status_code", json!(200)),
        ("http.response.body.bytes", json!(length)),
        ("source.ip", json!("127.0.0.1")),
        ("destination.port", json!(endpoint.port())),
        ("podswitch.ingress.object", json!("Ingress/default/a")),
        ("podswitch.ingress.backend", json!("default/web:8080")),
    ] {
        assert_eq!(served[name], value, "{name} in {served}");
    }
    assert_eq!(entries[1]["event.reason"], "no_route");
    assert_eq!(entries[1]["http.response.status_code"], 404);
}

/// An endpoint that ends in its response.
#[test]
fn a_response_that_breaks_is_counted_and_logged() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let (send, lines) = channel();
    let mut lab = Lab::with_log(|_| {}, Some(LogWriter::start(Box::new(Lines(send))).unwrap()));
    lab.service("web", &[listener.local_addr().unwrap()]);
    lab.ingress("a", "a.test", "web", json!({}));
    lab.publish();
    let mut client = Client::new(lab.http());
    client.stream.get_mut().write_all(b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n").unwrap();
    let (mut stream, _) = listener.accept().unwrap();
    let mut head = vec![0; 4096];
    let length = stream.read(&mut head).unwrap();
    assert!(head[..length].ends_with(b"\r\n\r\n"));
    stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabcde").unwrap();
    drop(stream);
    assert!(client.response().is_none(), "half a body");
    let entry: Value = serde_json::from_str(&lines.recv_timeout(LONG).unwrap()).unwrap();
    assert_eq!(
        (&entry["event.reason"], &entry["http.response.status_code"]),
        (&json!("endpoint"), &json!(200))
    );
    assert_eq!(entry["http.response.body.bytes"], 5);
    assert_eq!(lab.refused("endpoint"), 1);
}

/// An access log that cannot be written.
#[test]
fn lines_that_cannot_be_written_are_counted() {
    struct Full;
    impl Write for Full {
        fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
            Err(std::io::ErrorKind::StorageFull.into())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let lab = Lab::with_log(|_| {}, Some(LogWriter::start(Box::new(Full)).unwrap()));
    assert_eq!(lab.get("a.test", "/").status, 404);
    crate::lab::wait("a lost line", || lab.metric("podswitch_ingress_log_lost_total") == 1);
}

/// Requests in flight are finished, and then the proxy ends.
#[test]
fn a_stop_drains() {
    let mut lab = Lab::new();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    lab.service("web", &[listener.local_addr().unwrap()]);
    lab.ingress("a", "a.test", "web", json!({}));
    lab.publish();
    let mut client = Client::new(lab.http());
    let head = "GET / HTTP/1.1\r\nHost: a.test\r\n\r\n";
    client.stream.get_mut().write_all(head.as_bytes()).unwrap();
    let (mut stream, _) = listener.accept().unwrap();
    let (address, proxy) = (lab.http(), lab.proxy);
    let metrics = proxy.metrics();
    assert!(metrics.is_healthy());
    let stopping = thread::spawn(move || proxy.stop(LONG));
    // New connections are refused at some time from now on.
    crate::lab::wait("refused", || std::net::TcpStream::connect(address).is_err());
    stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").unwrap();
    assert_eq!(client.response().unwrap().body, b"ok");
    stopping.join().unwrap();
    assert!(!metrics.is_healthy(), "the workers have ended");
}
