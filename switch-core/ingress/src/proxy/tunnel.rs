//! Connections that were upgraded, such as WebSockets: bytes are copied both ways.

use std::cell::Cell;
use std::io;
use std::time::Duration;

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, split};
use tokio::time::{Instant, sleep_until};

use super::metrics::Reason;

/// Copies until both directions have ended, or neither side sends anything for `pause`.
///
/// A direction that ends or fails does not end the other one: a side that takes nothing more may
/// still have something to say.
///
/// # Errors
/// A direction failed, or the pause is over.
pub(super) async fn run(
    client: OnUpgrade,
    endpoint: OnUpgrade,
    pause: Duration,
) -> Result<(), Reason> {
    let (Ok(client), Ok(endpoint)) = (client.await, endpoint.await) else {
        return Err(Reason::Tunnel);
    };
    relay(TokioIo::new(client), TokioIo::new(endpoint), pause).await
}

async fn relay(
    client: impl AsyncRead + AsyncWrite,
    endpoint: impl AsyncRead + AsyncWrite,
    pause: Duration,
) -> Result<(), Reason> {
    let (mut client_in, mut client_out) = split(client);
    let (mut endpoint_in, mut endpoint_out) = split(endpoint);
    let (last, has_failed) = (Cell::new(Instant::now()), Cell::new(false));
    let fail = |result: io::Result<()>| has_failed.set(has_failed.get() || result.is_err());
    let up = async { fail(copy(&mut client_in, &mut endpoint_out, &last).await) };
    let down = async { fail(copy(&mut endpoint_in, &mut client_out, &last).await) };
    let both = async { tokio::join!(up, down) };
    let idle = async {
        while last.get().elapsed() < pause {
            sleep_until(last.get() + pause).await;
        }
    };
    let is_over = tokio::select! {
        // What has come goes before the clock.
        biased;
        _ = both => true,
        () = idle => false,
    };
    match (has_failed.get(), is_over) {
        (true, _) => Err(Reason::Tunnel),
        (false, true) => Ok(()),
        (false, false) => Err(Reason::TunnelTimeout),
    }
}

/// Copies one direction to its end. The end is passed on, also after an error of the sender.
async fn copy(
    from: &mut (impl AsyncRead + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
    last: &Cell<Instant>,
) -> io::Result<()> {
    let mut buffer = vec![0; 16 << 10];
    loop {
        let length = match from.read(&mut buffer).await {
            Ok(0) => return to.shutdown().await,
            Ok(length) => length,
            Err(error) => {
                _ = to.shutdown().await;
                return Err(error);
            }
        };
        last.set(Instant::now());
        to.write_all(&buffer[..length]).await?;
        to.flush().await?;
    }
}

#[cfg(test)]
mod tests {
    use std::pin::Pin;
    use std::task::{Context, Poll};

    use tokio::io::{DuplexStream, ReadBuf, duplex};

    use super::*;

    const LONG: Duration = Duration::from_secs(3600);

    /// A side of which one half fails at once.
    struct Broken {
        stream: DuplexStream,
        reads: bool,
        writes: bool,
    }

    fn reset<T>() -> Poll<io::Result<T>> {
        Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()))
    }

    impl AsyncRead for Broken {
        fn poll_read(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            buffer: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            if self.reads { Pin::new(&mut self.stream).poll_read(cx, buffer) } else { reset() }
        }
    }

    impl AsyncWrite for Broken {
        fn poll_write(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            if self.writes { Pin::new(&mut self.stream).poll_write(cx, bytes) } else { reset() }
        }

        fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.stream).poll_flush(cx)
        }

        fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.stream).poll_shutdown(cx)
        }
    }

    /// The endpoint takes nothing of what the client says; what it says itself arrives, all of it.
    #[tokio::test]
    async fn an_error_of_one_direction_does_not_end_the_other() {
        // Small, so that the answer cannot be under way already.
        let (client, mut client_end) = duplex(16);
        let (endpoint, mut endpoint_end) = duplex(16);
        let endpoint = Broken { stream: endpoint, reads: true, writes: false };
        let answer = vec![7; 1000];
        let says = async {
            client_end.write_all(b"question").await.expect("room");
            let mut got = vec![0; 500];
            client_end.read_exact(&mut got).await.expect("the first half");
            client_end.read_to_end(&mut got).await.expect("the rest");
            got
        };
        let answers = async {
            endpoint_end.write_all(&answer).await.expect("taken");
            endpoint_end.shutdown().await.expect("ended");
        };
        let (result, got, ()) = tokio::join!(relay(client, endpoint, LONG), says, answers);
        assert_eq!((result, got), (Err(Reason::Tunnel), answer));
    }

    /// What cannot be read has an end for the other side, which may go on.
    #[tokio::test]
    async fn an_error_of_the_sender_is_an_end_for_the_other_side() {
        let (client, mut client_end) = duplex(16);
        let (endpoint, mut endpoint_end) = duplex(16);
        let client = Broken { stream: client, reads: false, writes: true };
        let ends = async {
            let mut got = Vec::new();
            endpoint_end.read_to_end(&mut got).await.expect("an end");
            endpoint_end.write_all(b"bye").await.expect("taken");
            drop(endpoint_end);
            client_end.read_to_end(&mut got).await.expect("an end");
            got
        };
        let (result, got) = tokio::join!(relay(client, endpoint, LONG), ends);
        assert_eq!((result, got), (Err(Reason::Tunnel), b"bye".to_vec()));
    }

    /// A side that ends is no error, and the other one goes on.
    #[tokio::test]
    async fn half_closed_connections_go_on() {
        let (client, client_end) = duplex(16);
        let (endpoint, mut endpoint_end) = duplex(16);
        let (mut hears, mut says) = split(client_end);
        let talk = async {
            says.shutdown().await.expect("ended");
            let mut got = Vec::new();
            endpoint_end.read_to_end(&mut got).await.expect("an end");
            endpoint_end.write_all(&[1; 100]).await.expect("taken");
            drop(endpoint_end);
        };
        let mut got = Vec::new();
        let hear = hears.read_to_end(&mut got);
        let (result, (), length) = tokio::join!(relay(client, endpoint, LONG), talk, hear);
        assert_eq!((result, length.ok()), (Ok(()), Some(100)));
    }

    #[tokio::test]
    async fn silence_and_an_error_have_their_own_reasons() {
        let (client, _client_end) = duplex(16);
        let (endpoint, _endpoint_end) = duplex(16);
        let short = Duration::from_millis(10);
        assert_eq!(relay(client, endpoint, short).await, Err(Reason::TunnelTimeout));
        let (client, _client_end) = duplex(16);
        let (endpoint, _endpoint_end) = duplex(16);
        let client = Broken { stream: client, reads: false, writes: true };
        assert_eq!(relay(client, endpoint, short).await, Err(Reason::Tunnel));
    }
}
