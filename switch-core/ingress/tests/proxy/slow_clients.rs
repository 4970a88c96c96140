//! Clients that are idle, slow, take nothing, or pause one stream of an HTTP/2 connection.

use std::future::poll_fn;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::pin::Pin;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use http::Request;
use http_body::Body;
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use podswitch_ingress::proxy::Options;
use rustls::pki_types::ServerName;
use serde_json::json;
use tokio::net::TcpStream as Stream;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use crate::lab::{LONG, Lab, backend, ingress};
use crate::tls::{certificate, connect, connect_with, secret, trusting};
use crate::upgrade::{Message, collect, grpc_endpoint, runtime, tls_lab};

/// The window of a stream (RFC 9113 section 6.9.2), in bytes: less than one read from an endpoint.
const WINDOW: u32 = 1000;

/// Bytes of a long response: more than what is kept for a client.
const BIG: usize = 4 << 20;

/// A lab with an endpoint whose connections are given to the test.
fn lab(change: impl FnOnce(&mut Options)) -> (Lab, Vec<u8>, Receiver<(String, TcpStream)>) {
    let mut lab = Lab::with(change);
    let one = certificate(&["a.test"]);
    lab.add(secret("a", &one));
    let paths = json!([{"path": "/", "pathType": "Prefix", "backend": backend("web")}]);
    lab.add(ingress(
        "a",
        json!({}),
        json!({"tls": [{"hosts": ["a.test"], "secretName": "a"}],
            "rules": [{"host": "a.test", "http": {"paths": paths}}]}),
    ));
    let (address, requests) = endpoint();
    lab.service("web", &[address]);
    assert_eq!(lab.publish(), []);
    (lab, one.der, requests)
}

/// The path of each request, and its connection to answer on.
fn endpoint() -> (SocketAddr, Receiver<(String, TcpStream)>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (send, requests) = channel();
    thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let send = send.clone();
            thread::spawn(move || {
                let (mut head, mut part) = (Vec::new(), [0; 1024]);
                while !head.ends_with(b"\r\n\r\n") {
                    let length = stream.read(&mut part).ok().filter(|length| *length > 0)?;
                    head.extend_from_slice(&part[..length]);
                }
                let head = String::from_utf8_lossy(&head);
                send.send((head.split(' ').nth(1)?.to_owned(), stream)).ok()
            });
        }
    });
    (address, requests)
}

/// Answers with `length` bytes that the writer of the body gives.
fn answer(
    mut stream: TcpStream,
    length: usize,
    body: impl FnOnce(&mut TcpStream) -> std::io::Result<()> + Send + 'static,
) {
    thread::spawn(move || {
        write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n")?;
        body(&mut stream)
    });
}

/// A connection, and the task that ends with it.
async fn connect_http2(
    lab_https: SocketAddr,
    der: &[u8],
) -> (SendRequest<Message>, JoinHandle<hyper::Result<()>>) {
    let stream = Stream::connect(lab_https).await.unwrap();
    let connector = tokio_rustls::TlsConnector::from(trusting(der, &[b"h2"]));
    let stream = connector.connect(ServerName::try_from("a.test").unwrap(), stream).await.unwrap();
    let (sender, connection) = Builder::new(TokioExecutor::new())
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(1 << 20)
        .handshake(TokioIo::new(stream))
        .await
        .unwrap();
    (sender, tokio::spawn(connection))
}

fn get(path: &str) -> Request<Message> {
    Request::get(format!("https://a.test{path}")).body(Message(None, None)).unwrap()
}

/// hyper's client acknowledges PINGs, which the proxy sends as often as a connection may be idle.
#[test]
fn a_client_that_only_acknowledges_pings_is_idle() {
    let (lab, der, requests) = lab(|options| options.head_timeout = Duration::from_secs(2));
    let talk = async {
        let (mut sender, connection) = connect_http2(lab.proxy.https().unwrap(), &der).await;
        thread::spawn(move || {
            let (_, stream) = requests.recv().unwrap();
            answer(stream, 2, |stream| stream.write_all(b"ok"));
        });
        let response = sender.send_request(get("/")).await.unwrap();
        assert_eq!(collect(response.into_body()).await.0, b"ok");
        // Until its end; the sender is kept.
        _ = connection.await.unwrap();
        drop(sender);
    };
    runtime().block_on(async { timeout(LONG, talk).await }).expect("the connection ends");
    assert_eq!(lab.refused("client_stalled"), 0);
}

/// So is one that sends PINGs itself, whose acknowledgements the proxy writes.
#[test]
fn a_client_that_only_sends_pings_is_idle() {
    let (lab, der, _requests) = lab(|options| options.head_timeout = Duration::from_secs(2));
    let mut client = connect_with(&lab, "a.test", &der, &[b"h2"]).unwrap();
    let short = Some(Duration::from_millis(100));
    client.stream.get_ref().get_ref().set_read_timeout(short).unwrap();
    // The preface with empty SETTINGS, and the acknowledgement of the other side's.
    let hello = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0\0\0\0\x04\x01\0\0\0\0";
    client.stream.get_mut().write_all(hello).unwrap();
    let ping = b"\0\0\x08\x06\0\0\0\0\0pingping";
    let mut acknowledged = 0;
    let has_ended = (0..LONG.as_millis() / 100).any(|_| {
        let sent =
            client.stream.get_mut().write_all(ping).and_then(|()| client.stream.get_mut().flush());
        let mut buffer = [0; 4096];
        match client.stream.read(&mut buffer) {
            Ok(0) => true,
            Ok(length) => {
                acknowledged += buffer[..length].windows(8).filter(|it| it == b"pingping").count();
                thread::sleep(Duration::from_millis(50));
                false
            }
            Err(error) => sent.is_err() || error.kind() != ErrorKind::WouldBlock,
        }
    });
    assert!(has_ended, "the connection lives");
    assert!(acknowledged > 0, "nothing was acknowledged");
}

/// The client takes nothing of one response, and all of another one, for longer than a client may
/// pause. When the other one is over, it takes nothing at all.
#[test]
fn a_paused_stream_does_not_end_another_one() {
    const PARTS: usize = 15;
    let (lab, der, requests) = lab(|options| options.client_timeout = Duration::from_secs(1));
    thread::spawn(move || {
        for (path, stream) in requests {
            if path == "/big" {
                answer(stream, BIG, |stream| stream.write_all(&vec![0; BIG]));
            } else {
                answer(stream, PARTS, |stream| {
                    (0..PARTS).try_for_each(|_| {
                        thread::sleep(Duration::from_millis(200));
                        stream.write_all(b"x")
                    })
                });
            }
        }
    });
    let talk = async {
        let (mut sender, connection) = connect_http2(lab.proxy.https().unwrap(), &der).await;
        let paused = sender.send_request(get("/big")).await.unwrap();
        let moving = sender.send_request(get("/slow")).await.unwrap();
        let body = collect(moving.into_body()).await.0;
        let stalled = lab.refused("client_stalled");
        _ = connection.await.unwrap();
        drop((paused, sender));
        (body.len(), stalled)
    };
    let (length, stalled) = runtime().block_on(async { timeout(LONG, talk).await }).unwrap();
    // The paused response alone is given up, and then the connection.
    assert_eq!((length, stalled), (PARTS, 1));
    lab.wait_refused("client_stalled", 2);
}

/// The endpoint of a response that the client pauses is let go, while another one moves.
#[test]
fn a_paused_stream_does_not_hold_its_endpoint() {
    let (lab, der, requests) = lab(|options| options.client_timeout = Duration::from_secs(1));
    let (ended, has_ended) = channel();
    thread::spawn(move || {
        for (path, mut stream) in requests {
            let ended = ended.clone();
            thread::spawn(move || {
                let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
                stream.write_all(head.as_bytes()).unwrap();
                let (part, pause) =
                    if path == "/big" { (&[0; 0x8000][..], 0) } else { (&[0; 1][..], 200) };
                let chunk = [format!("{:x}\r\n", part.len()).as_bytes(), part, b"\r\n"].concat();
                // Until the proxy ends the connection.
                while stream.write_all(&chunk).is_ok() {
                    thread::sleep(Duration::from_millis(pause));
                }
                ended.send(path)
            });
        }
    });
    let talk = async {
        let (mut sender, _connection) = connect_http2(lab.proxy.https().unwrap(), &der).await;
        let paused = sender.send_request(get("/big")).await.unwrap();
        let mut moving = sender.send_request(get("/slow")).await.unwrap().into_body();
        let mut next = async || {
            poll_fn(|cx| Body::poll_frame(Pin::new(&mut moving), cx)).await.unwrap().unwrap()
        };
        while has_ended.try_recv().ok().as_deref() != Some("/big") {
            next().await;
        }
        // Not what the client still takes.
        for _ in 0..5 {
            next().await;
        }
        // The client gets what there was, and no end.
        let mut body = paused.into_body();
        loop {
            match poll_fn(|cx| Body::poll_frame(Pin::new(&mut body), cx)).await {
                Some(Ok(_)) => {}
                end => return end.is_some_and(|end| end.is_err()),
            }
        }
    };
    let is_broken = runtime().block_on(async { timeout(LONG, talk).await }).expect("it is let go");
    assert!(is_broken, "the response looks complete");
    assert_eq!(lab.refused("client_stalled"), 1);
}

/// Paused responses of one client take more streams than an endpoint permits on one connection.
#[test]
fn paused_responses_leave_streams_for_other_clients() {
    /// hyper's server has 200 streams.
    const CLIENTS: usize = 2;
    const PAUSED: usize = 110;
    let (mut lab, der) = tls_lab(json!({"backend-protocol": "GRPC", "proxy-read-timeout": "5"}));
    lab.service("web", &[grpc_endpoint()]);
    assert_eq!(lab.publish(), []);
    let call = |length: usize| {
        let request = Request::post("https://a.test/echo.Echo/Say");
        let request = request.header("content-type", "application/grpc").header("te", "trailers");
        request.body(Message(Some(vec![0; length].into()), None)).unwrap()
    };
    let talk = async {
        let https = lab.proxy.https().unwrap();
        let (mut paused, mut clients) = (Vec::new(), Vec::new());
        for _ in 0..CLIENTS {
            let (mut sender, connection) = connect_http2(https, &der).await;
            for _ in 0..PAUSED {
                paused.push(sender.send_request(call(70_000)).await.unwrap());
            }
            clients.push((sender, connection));
        }
        let (mut other, _connection) = connect_http2(https, &der).await;
        let response = other.send_request(call(5)).await.unwrap();
        (response.status(), collect(response.into_body()).await.0.len())
    };
    let answer = runtime().block_on(async { timeout(LONG, talk).await }).unwrap();
    assert_eq!(answer, (http::StatusCode::OK, 5));
}

/// All clients share a connection to an endpoint of gRPC: responses that one of them does not take must not fill it.
#[test]
fn paused_responses_leave_room_for_other_clients() {
    let (mut lab, der) = tls_lab(
        json!({"backend-protocol": "GRPC", "proxy-body-size": "0", "proxy-read-timeout": "5"}),
    );
    lab.service("web", &[grpc_endpoint()]);
    assert_eq!(lab.publish(), []);
    let call = |length: usize| {
        let request = Request::post("https://a.test/echo.Echo/Say");
        let request = request.header("content-type", "application/grpc").header("te", "trailers");
        request.body(Message(Some(vec![0; length].into()), None)).unwrap()
    };
    let talk = async {
        let https = lab.proxy.https().unwrap();
        let (mut pausing, _connection) = connect_http2(https, &der).await;
        let mut paused = Vec::new();
        for _ in 0..8 {
            paused.push(pausing.send_request(call(BIG)).await.unwrap());
        }
        // The endpoint sends what it may.
        sleep(Duration::from_secs(1)).await;
        let (mut other, _connection) = connect_http2(https, &der).await;
        let response = other.send_request(call(5)).await.unwrap();
        (response.status(), collect(response.into_body()).await.0.len())
    };
    let answer = runtime().block_on(async { timeout(LONG, talk).await }).unwrap();
    assert_eq!(answer, (http::StatusCode::OK, 5));
}

/// The endpoint's response is over and waits for room in the client's window. The client reads it in
/// more time than an idle connection has.
#[test]
fn the_end_of_a_response_is_not_cut() {
    const LENGTH: usize = 7 * WINDOW as usize;
    let (lab, der, requests) = lab(|options| options.head_timeout = Duration::from_secs(2));
    thread::spawn(move || {
        let (_, mut stream) = requests.recv().unwrap();
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {LENGTH}\r\n\r\n");
        // At once, so that the proxy reads it at once.
        stream.write_all(&[head.as_bytes(), &[0; LENGTH]].concat())
    });
    let talk = async {
        let (mut sender, _connection) = connect_http2(lab.proxy.https().unwrap(), &der).await;
        let mut body = sender.send_request(get("/")).await.unwrap().into_body();
        let mut length = 0;
        loop {
            sleep(Duration::from_millis(700)).await;
            let frame = poll_fn(|cx| Body::poll_frame(Pin::new(&mut body), cx));
            match frame.await {
                Some(frame) => length += frame.unwrap().into_data().unwrap().len(),
                None => return length,
            }
        }
    };
    let length = runtime().block_on(async { timeout(LONG, talk).await }).unwrap();
    assert_eq!(length, LENGTH);
    assert_eq!(lab.refused("client_stalled"), 0);
}

/// The sockets' buffers are full, and then the client takes nothing.
#[test]
fn a_client_that_reads_nothing_is_ended() {
    /// More than all buffers on the way.
    const LENGTH: usize = 64 << 20;
    let (lab, der, requests) = lab(|options| options.client_timeout = Duration::from_secs(1));
    thread::spawn(move || {
        let (_, stream) = requests.recv().unwrap();
        answer(stream, LENGTH, |stream| stream.write_all(&vec![0; LENGTH]));
    });
    let mut client = connect(&lab, "a.test", &der).unwrap();
    client.stream.get_mut().write_all(b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n").unwrap();
    lab.wait_refused("client_stalled", 1);
}
