//! The configurations of a replay, and all ports that the node has in any of them.

use std::path::{Path, PathBuf};

use podswitch_core::config::{Config, PortConfig, PortRole};
use podswitch_core::id::PortId;
use podswitch_kubernetes::{Compiled, Store};
use podswitch_node::overlay::{UNKNOWN_NODE_MAC, attach_uplink};
use podswitch_node::{ClusterOptions, DEFAULT_MTU};

use crate::failure::Failure;
use crate::state;

/// The underlay's port, and the node's own.
const UPLINK: &str = "uplink";
const HOST: &str = "host";
/// Their numbers.
const UPLINK_PORT: PortId = PortId(0);
const HOST_PORT: PortId = PortId(1);

/// `--at SECONDS=DIR`.
#[derive(Clone, Debug)]
pub(super) struct Swap {
    /// Nanoseconds from the first frame.
    at: u64,
    manifests: PathBuf,
}

impl Swap {
    /// Parses the option's value.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let (seconds, manifests) = text.split_once('=').ok_or("it is not SECONDS=DIR")?;
        let at =
            nanoseconds(seconds).ok_or_else(|| format!("{seconds:?} is not a time in seconds"))?;
        if manifests.is_empty() {
            return Err("it names no manifests".to_owned());
        }
        Ok(Self { at, manifests: manifests.into() })
    }
}

/// Decimal seconds in nanoseconds, exact; digits beyond the ninth are truncated.
fn nanoseconds(seconds: &str) -> Option<u64> {
    let (whole, fraction) = seconds.split_once('.').unwrap_or((seconds, ""));
    let digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
    if !digits(whole) || !digits(fraction) || whole.is_empty() && fraction.is_empty() {
        return None;
    }
    let whole = if whole.is_empty() { 0 } else { whole.parse::<u64>().ok()? };
    let nanos = fraction.bytes().chain(std::iter::repeat(b'0')).take(9);
    let nanos = nanos.fold(0, |sum, digit| sum * 10 + u64::from(digit - b'0'));
    whole.checked_mul(1_000_000_000)?.checked_add(nanos)
}

/// A configuration, and when it takes effect.
#[derive(Debug)]
pub(super) struct ConfigChange {
    /// Nanoseconds from the first frame.
    pub(super) at: u64,
    /// The configuration.
    pub(super) config: Config,
}

/// See the module's description.
#[derive(Debug)]
pub(super) struct Setup {
    /// Configurations in order; the first one is in force from the beginning.
    pub(super) changes: Vec<ConfigChange>,
    /// Names of ports, by their numbers.
    ports: Vec<String>,
}

impl Setup {
    /// Reads all configurations.
    pub(super) fn load(
        first: &Path,
        swaps: &[Swap],
        node: &str,
        cluster: &ClusterOptions,
    ) -> Result<Self, Failure> {
        let mut setup = Self { changes: Vec::new(), ports: vec![UPLINK.into(), HOST.into()] };
        let mut store = Store::new(Some(node), cluster.kubernetes());
        setup.add(0, state::load(first, &mut store, cluster)?, node, first)?;
        let mut swaps: Vec<&Swap> = swaps.iter().collect();
        swaps.sort_by_key(|swap| swap.at);
        for swap in swaps {
            let compiled = state::load(&swap.manifests, &mut store, cluster)?;
            setup.add(swap.at, compiled, node, &swap.manifests)?;
        }
        Ok(setup)
    }

    fn add(
        &mut self,
        at: u64,
        mut state: Compiled,
        node: &str,
        path: &Path,
    ) -> Result<(), Failure> {
        let local = &state.config.node;
        let nothing = local.addresses.is_empty() && local.pod_cidrs.is_empty();
        if nothing && state.pods.is_empty() {
            let message =
                format!("{}: nothing is known of a node {node}, nor a pod on it", path.display());
            return Err(Failure::Input(message));
        }
        let mac =
            if local.underlay_mac.is_unicast() { local.underlay_mac } else { UNKNOWN_NODE_MAC };
        attach_uplink(&mut state.config, UPLINK_PORT);
        let role = PortRole::Host { mac, mtu: DEFAULT_MTU };
        state.config.ports.push(PortConfig { port: HOST_PORT, role });
        for pod in 0..state.pods.len() {
            let port = self.port_of(&state.pods[pod].name)?;
            state.attach(pod, port, DEFAULT_MTU);
        }
        self.changes.push(ConfigChange { at, config: state.config });
        Ok(())
    }

    /// The port of that name. Creates it if it is missing.
    fn port_of(&mut self, name: &str) -> Result<PortId, Failure> {
        if let Some(port) = self.find(name) {
            return Ok(port);
        }
        if self.ports.len() == PortId::MAX_PORTS {
            let message = format!("more pods on this node than {} ports", PortId::MAX_PORTS);
            return Err(Failure::Input(message));
        }
        self.ports.push(name.to_owned());
        Ok(PortId(self.ports.len() as u16 - 1))
    }

    /// The port with that name.
    pub(super) fn find(&self, name: &str) -> Option<PortId> {
        self.ports.iter().position(|port| port == name).map(|number| PortId(number as u16))
    }

    /// Names of ports, by their numbers.
    pub(super) fn ports(&self) -> &[String] {
        &self.ports
    }
}
