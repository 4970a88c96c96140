//! What a switch that runs serves by TCP: probes, `/metrics`, and the page if it is wanted.

use std::net::SocketAddr;

use podswitch_api::{PageAccess, WebServer};
use podswitch_node::Probes;

use crate::failure::Failure;

/// Where it is with `--kubernetes` or `--page`, if nothing else is said.
const DEFAULT: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 9100);

/// See the module's description.
#[derive(clap::Args, Clone, Copy, Debug)]
pub(super) struct WebFlags {
    /// Where `/metrics`, `/healthz`, `/readyz` and `/livez` are answered. Without: 127.0.0.1:9100 with --kubernetes or
    /// --page, else nowhere.
    #[arg(long, value_name = "HOST:PORT|off", value_parser = address)]
    metrics_address: Option<Address>,
    /// Show a page there, at `/`: who talks to whom, what is dropped and why. It has no log-in and only reads; anybody who
    /// can connect sees the names, addresses and connections of this node. `loopback`, the default: those that connect to a
    /// loopback address; `all`: all that can connect.
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
    /// Whether there is a page.
    pub(super) fn has_page(self) -> bool {
        self.page.is_some()
    }

    /// Begins to answer probes, if anything is to be answered.
    pub(super) fn open(
        self,
        kubernetes: bool,
        probes: &Probes,
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
        let server = WebServer::start(address, probes.clone(), page).map_err(|error| {
            Failure::Setup(format!("--metrics-address {address}: cannot listen: {error}"))
        })?;
        Ok(Some(server))
    }
}
