//! HTTP endpoints of a running switch: probes, `/metrics`, and optionally the page.

use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;

use podswitch_api::{PageAccess, WebServer};
use podswitch_node::Probes;

use crate::failure::Failure;

/// Default address with `--kubernetes` or `--page`.
const DEFAULT: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 9100);

/// See the module's description.
#[derive(clap::Args, Clone, Copy, Debug)]
pub(super) struct WebFlags {
    /// Address of `/metrics`, `/healthz`, `/readyz` and `/livez`. Default: 127.0.0.1:9100 with
    /// --kubernetes or --page, otherwise none.
    #[arg(long, value_name = "HOST:PORT|off", value_parser = address)]
    metrics_address: Option<Address>,
    /// Serve a page at `/` of that address: who talks to whom, what is dropped and why. It has no
    /// login and is read-only; anyone who can connect sees the names, addresses and connections of
    /// this node. `loopback`, the default: only clients that connect to a loopback address; `all`:
    /// everyone who can connect.
    #[arg(
        long,
        value_name = "loopback|all",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "loopback",
        value_parser = access
    )]
    page: Option<Page>,
}

/// `--metrics-address`.
#[derive(Clone, Copy, Debug)]
struct Address(Option<SocketAddr>);

fn address(text: &str) -> Result<Address, String> {
    match text {
        "off" => Ok(Address(None)),
        text => match text.parse() {
            Ok(address) => Ok(Address(Some(address))),
            Err(_) => Err("it is neither an address with a port nor off".to_owned()),
        },
    }
}

/// `--page`.
#[derive(Clone, Copy, Debug)]
struct Page(PageAccess);

fn access(text: &str) -> Result<Page, String> {
    match text {
        "loopback" => Ok(Page(PageAccess::Loopback)),
        "all" => Ok(Page(PageAccess::All)),
        _ => Err("it is neither loopback nor all".to_owned()),
    }
}

impl WebFlags {
    /// Whether the page is enabled.
    pub(super) fn has_page(self) -> bool {
        self.page.is_some()
    }

    /// Starts to serve probes, if enabled. `inherited`: a predecessor's socket, which is used if it has this address.
    pub(super) fn open(
        self,
        kubernetes: bool,
        probes: &Probes,
        inherited: Option<OwnedFd>,
    ) -> Result<Option<WebServer>, Failure> {
        let page = self.page.map_or(PageAccess::Off, |page| page.0);
        let address = match self.metrics_address {
            Some(Address(None)) if self.has_page() => {
                let text = "--page is served at --metrics-address, which is off";
                return Err(Failure::Input(text.to_owned()));
            }
            Some(Address(address)) => address,
            None => (kubernetes || self.has_page()).then_some(DEFAULT),
        };
        let Some(address) = address else { return Ok(None) };
        let inherited = inherited.map(TcpListener::from);
        let inherited = inherited.filter(|it| it.local_addr().is_ok_and(|its| its == address));
        let server = match inherited {
            Some(listener) => WebServer::on(listener, probes.clone(), page),
            None => WebServer::start(address, probes.clone(), page),
        };
        let server = server.map_err(|error| {
            Failure::Setup(format!("--metrics-address {address}: cannot listen: {error}"))
        })?;
        Ok(Some(server))
    }
}
