//! `probe`: a small server and client to test whether pods reach each other, for images without a
//! shell.
#![expect(clippy::disallowed_methods, reason = "waits for real servers by the real clock")]

use std::collections::BTreeSet;
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use clap::Subcommand;
use podswitch_linux::HostError;
use serde::Serialize;

use crate::failure::Failure;
use crate::{Done, print};

/// Longest wait for a connection and its response.
const TIMEOUT: Duration = Duration::from_secs(3);
/// Longest wait for the first response: pods and policies may just have been created.
const SETTLE: Duration = Duration::from_secs(30);
/// Longest response, in bytes.
const MAX_ANSWER: u64 = 1024;

/// Serve and connect, to test connectivity. Used by `helm test`.
///
/// Exit status: 0 everything is as expected, 1 something is not.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Respond to every TCP connection with the addresses of this pod, until killed.
    Serve {
        /// The addresses to respond with, separated by commas.
        #[arg(long, value_name = "ADDRESS", value_delimiter = ',', required = true)]
        addresses: Vec<IpAddr>,
        /// Ports to listen on.
        #[arg(required = true, value_name = "PORT")]
        ports: Vec<u16>,
    },
    /// Connect to a server or a Service of servers.
    Connect(Connect),
}

#[derive(clap::Args, Debug)]
struct Connect {
    /// Address of the server or Service.
    address: IpAddr,
    /// Its port, which must respond.
    port: u16,
    /// Number of connections to make.
    #[arg(long, value_name = "N", default_value_t = 1)]
    repeat: u32,
    /// On every server that responded, this port must respond with that server's address.
    #[arg(long, value_name = "PORT")]
    direct: Vec<u16>,
    /// On every server that responded, this port must not be reachable.
    #[arg(long, value_name = "PORT")]
    closed: Vec<u16>,
    /// This port of ADDRESS must not be reachable.
    #[arg(long, value_name = "PORT")]
    service_closed: Vec<u16>,
}

#[derive(Serialize)]
struct Report {
    ok: bool,
    servers: Vec<IpAddr>,
    checks: Vec<Checked>,
}

#[derive(Serialize)]
struct Checked {
    name: String,
    ok: bool,
    #[serde(skip_serializing_if = "String::is_empty")]
    reason: String,
}

pub(crate) fn run(args: &Args, json: bool) -> Done {
    match &args.command {
        Command::Serve { addresses, ports } => serve(addresses, ports),
        Command::Connect(connect) => {
            let report = connect.run();
            if json {
                print::json(&report);
            } else {
                for Checked { name, ok, reason } in &report.checks {
                    let (level, between) = if *ok { ("ok  ", "") } else { ("FAIL", ": ") };
                    print::line(format_args!("{level} {name}{between}{reason}"));
                }
            }
            if report.ok { Ok(()) } else { Err(Failure::Checked) }
        }
    }
}

fn serve(addresses: &[IpAddr], ports: &[u16]) -> Done {
    let texts: Vec<String> = addresses.iter().map(ToString::to_string).collect();
    let answer = texts.join(",") + "\n";
    let open = |port: &u16| {
        // Listen on both families if the system has both.
        let listener =
            TcpListener::bind(("::", *port)).or_else(|_| TcpListener::bind(("0.0.0.0", *port)));
        listener.map_err(|error| HostError::new(format!("listen on port {port}"), error))
    };
    let listeners = ports.iter().map(open).collect::<Result<Vec<_>, _>>()?;
    thread::scope(|scope| {
        for listener in &listeners {
            scope.spawn(|| {
                for mut stream in listener.incoming().flatten() {
                    // A client that disconnects early is not an error.
                    let _ = stream.set_write_timeout(Some(TIMEOUT));
                    let _ = stream.write_all(answer.as_bytes());
                }
            });
        }
    });
    Ok(())
}

/// The addresses that a server reports.
fn query(address: SocketAddr) -> io::Result<Vec<IpAddr>> {
    let stream = TcpStream::connect_timeout(&address, TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    let mut answer = String::new();
    stream.take(MAX_ANSWER).read_to_string(&mut answer)?;
    let parsed = answer.trim().split(',').map(str::parse).collect::<Result<Vec<_>, _>>();
    parsed.map_err(|_| {
        io::Error::new(
            io::ErrorKind::InvalidData,
            format!("the answer {answer:?} is no list of addresses"),
        )
    })
}

impl Connect {
    fn run(&self) -> Report {
        let mut report = Report { ok: true, servers: Vec::new(), checks: Vec::new() };
        let mut servers = BTreeSet::new();
        let target = SocketAddr::new(self.address, self.port);
        // Only the first connection is retried.
        let deadline = Instant::now() + SETTLE;
        while query(target).is_err() && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(200));
        }
        let mut failed = Vec::new();
        for _ in 0..self.repeat {
            match query(target) {
                Ok(addresses) => servers.extend(addresses),
                Err(error) => failed.push(error.to_string()),
            }
        }
        let name = format!("{} connections to {target}, {} servers", self.repeat, servers.len());
        report.add(name, failed.first().map(|first| format!("{} failed: {first}", failed.len())));
        let family = |address: &&IpAddr| address.is_ipv4() == self.address.is_ipv4();
        for server in servers.iter().filter(family) {
            for port in &self.direct {
                let found = query(SocketAddr::new(*server, *port));
                let reason = match found {
                    Ok(addresses) if addresses.contains(server) => None,
                    Ok(addresses) => Some(format!("another server answered: {addresses:?}")),
                    Err(error) => Some(error.to_string()),
                };
                report.add(format!("{} answers", SocketAddr::new(*server, *port)), reason);
            }
            for port in &self.closed {
                report.closed(SocketAddr::new(*server, *port));
            }
        }
        for port in &self.service_closed {
            report.closed(SocketAddr::new(self.address, *port));
        }
        report.servers = servers.into_iter().collect();
        report
    }
}

impl Report {
    fn add(&mut self, name: String, reason: Option<String>) {
        self.ok &= reason.is_none();
        self.checks.push(Checked {
            name,
            ok: reason.is_none(),
            reason: reason.unwrap_or_default(),
        });
    }

    fn closed(&mut self, address: SocketAddr) {
        let reached = query(address).ok().map(|_| "it answers".to_owned());
        self.add(format!("{address} is not reached"), reached);
    }
}
