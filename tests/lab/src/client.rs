//! Small HTTP requests from a network namespace.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::Duration;

use podswitch_linux::NetNs;

use crate::Result;

const TIMEOUT: Duration = Duration::from_secs(2);

/// Somebody who sends requests: a pod, a node, a machine outside.
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

    /// The body of the answer to one GET, each on a connection of its own.
    pub fn get(&self, address: SocketAddr) -> Result<String> {
        let answer = self.ns.enter(|| request(address)).map_err(|error| error.to_string())?;
        answer.map_err(|reason| format!("{} to {address}: {reason}", self.name))
    }

    /// No connection can be opened.
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

fn request(address: SocketAddr) -> Result<String> {
    let text = |error: std::io::Error| error.to_string();
    let mut stream = TcpStream::connect_timeout(&address, TIMEOUT).map_err(text)?;
    stream.set_read_timeout(Some(TIMEOUT)).map_err(text)?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").map_err(text)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).map_err(text)?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(|| format!("cut: {answer:?}"))?;
    match head.contains(" 200 ") {
        true => Ok(body.trim().to_owned()),
        false => Err(head.to_owned()),
    }
}
