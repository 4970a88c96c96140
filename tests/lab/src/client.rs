//! Small HTTP requests from a network namespace.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::Duration;

use podswitch_linux::NetNs;

use crate::Result;

const TIMEOUT: Duration = Duration::from_secs(2);

/// A client that sends requests: a pod, a node, a machine outside.
#[derive(Clone, Debug)]
pub struct Client {
    pub name: String,
    ns: NetNs,
}

impl Client {
    pub fn new(name: impl Into<String>, netns: &Path) -> Result<Self> {
        let ns = NetNs::open(netns).map_err(|error| error.to_string())?;
        Ok(Self { name: name.into(), ns })
    }

    /// The body of the response to one GET. Each request uses a connection of its own.
    pub fn get(&self, address: SocketAddr) -> Result<String> {
        let answer = self.ns.enter(|| request(address)).map_err(|error| error.to_string())?;
        answer.map_err(|reason| format!("{} to {address}: {reason}", self.name))
    }

    /// The text that a server sends to every client after it connects.
    pub fn get_text(&self, address: SocketAddr) -> Result<String> {
        let answer =
            self.ns.enter(|| read(connect(address)?)).map_err(|error| error.to_string())?;
        answer.map_err(|reason| format!("{} to {address}: {reason}", self.name))
    }

    /// Checks that no connection can be opened.
    pub fn is_closed(&self, address: SocketAddr) -> Result {
        match self.get(address) {
            Ok(body) => Err(format!("{} reaches {address}: {body}", self.name)),
            Err(_) => Ok(()),
        }
    }

    pub fn namespace(&self) -> &NetNs {
        &self.ns
    }
}

fn connect(address: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&address, TIMEOUT).map_err(|e| e.to_string())?;
    stream.set_read_timeout(Some(TIMEOUT)).map_err(|error| error.to_string())?;
    Ok(stream)
}

fn read(mut stream: TcpStream) -> Result<String> {
    let mut answer = String::new();
    stream.read_to_string(&mut answer).map_err(|error| error.to_string())?;
    if answer.is_empty() { Err("no answer".to_owned()) } else { Ok(answer) }
}

fn request(address: SocketAddr) -> Result<String> {
    let mut stream = connect(address)?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").map_err(|error| error.to_string())?;
    let answer = read(stream)?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(|| format!("cut: {answer:?}"))?;
    match head.contains(" 200 ") {
        true => Ok(body.trim().to_owned()),
        false => Err(head.to_owned()),
    }
}
