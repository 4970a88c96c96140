//! Connections that were upgraded, such as WebSockets: bytes are copied both ways.

use std::time::Duration;

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, split};
use tokio::time::{Instant, sleep_until};

use super::metrics::Reason;

/// Copies until both sides have ended, one fails, or neither sends anything for `pause`.
pub(super) async fn run(
    client: OnUpgrade,
    endpoint: OnUpgrade,
    pause: Duration,
) -> Result<(), Reason> {
    let (Ok(client), Ok(endpoint)) = (client.await, endpoint.await) else {
        return Err(Reason::Tunnel);
    };
    let (mut client_in, mut client_out) = split(TokioIo::new(client));
    let (mut endpoint_in, mut endpoint_out) = split(TokioIo::new(endpoint));
    let last = std::cell::Cell::new(Instant::now());
    let up = copy(&mut client_in, &mut endpoint_out, &last);
    let down = copy(&mut endpoint_in, &mut client_out, &last);
    let both = async { tokio::try_join!(up, down) };
    let idle = async {
        while last.get().elapsed() < pause {
            sleep_until(last.get() + pause).await;
        }
    };
    tokio::select! {
        ended = both => ended.map(drop).map_err(|_| Reason::Tunnel),
        () = idle => Err(Reason::TunnelTimeout),
    }
}

async fn copy(
    from: &mut (impl tokio::io::AsyncRead + Unpin),
    to: &mut (impl tokio::io::AsyncWrite + Unpin),
    last: &std::cell::Cell<Instant>,
) -> std::io::Result<()> {
    let mut buffer = vec![0; 16 << 10];
    loop {
        let length = from.read(&mut buffer).await?;
        if length == 0 {
            return to.shutdown().await;
        }
        last.set(Instant::now());
        to.write_all(&buffer[..length]).await?;
        to.flush().await?;
    }
}
