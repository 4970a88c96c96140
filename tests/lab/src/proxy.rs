//! The API server without TLS: for tests that send many requests.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use podswitch_linux::NetNs;
use serde_json::Value;

use crate::{Lab, Result, eventually};

const TIMEOUT: Duration = Duration::from_secs(30);
const PORT: u16 = 18_001;

/// `kubectl proxy` in the control plane's namespace. It ends when this is dropped.
pub struct ApiProxy {
    child: Child,
    namespace: NetNs,
}

impl ApiProxy {
    pub fn start(lab: &Lab) -> Result<Self> {
        let namespace = NetNs::open(lab.control_plane()).map_err(|error| error.to_string())?;
        let mut command = namespace.command(lab.part("prefix/root/usr/bin/kubectl"));
        command.arg("--kubeconfig").arg(lab.run_folder().join("admin.kubeconfig"));
        command.args(["proxy", &format!("--port={PORT}")]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().map_err(|error| error.to_string())?;
        let proxy = Self { child, namespace };
        eventually(TIMEOUT, || proxy.request("GET", "/version", "").map(drop))?;
        Ok(proxy)
    }

    /// Sends a request with a JSON body and returns the body of a successful response. A PATCH is a merge patch.
    pub fn request(&self, method: &str, path: &str, body: &str) -> Result<Value> {
        let answer = self.namespace.enter(|| send(method, path, body));
        let answer = answer.map_err(|error| error.to_string())?;
        let answer = answer.map_err(|error| format!("{method} {path}: {error}"))?;
        let (head, body) = answer.split_once("\r\n\r\n").ok_or("half a response")?;
        if !head.contains(" 20") {
            return Err(format!(
                "{} for {method} {path}: {body}",
                head.lines().next().unwrap_or("")
            ));
        }
        serde_json::from_str(body).map_err(|error| format!("{method} {path}: {error}"))
    }
}

fn send(method: &str, path: &str, body: &str) -> std::io::Result<String> {
    let kind = if method == "PATCH" { "merge-patch+json" } else { "json" };
    let mut stream =
        TcpStream::connect_timeout(&SocketAddr::from(([127, 0, 0, 1], PORT)), TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    // HTTP/1.0: the response is not chunked, and ends with the connection.
    let request = format!(
        "{method} {path} HTTP/1.0\r\nHost: localhost\r\nContent-Type: application/{kind}\r\nAccept: application/json\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

impl Drop for ApiProxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Lab {
    /// A command in the namespaces of node N.
    pub fn command_on_node(&self, node: usize, program: &str) -> Result<Command> {
        let pid = std::fs::read_to_string(self.node_folder(node).join("pid1"));
        let pid = pid.map_err(|error| error.to_string())?;
        let mut command = Command::new("nsenter");
        command.args(["-t", pid.trim(), "-m", "-n", "-p", "--", program]);
        Ok(command)
    }
}
