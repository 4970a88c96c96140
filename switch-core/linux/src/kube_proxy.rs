//! Whether kube-proxy's rules are in a namespace. Called once when a node starts, and by [`preflight`](super::preflight).

use std::fmt;
use std::fs;
use std::os::fd::AsFd;

use rustix::net::{AddressFamily, SocketFlags, SocketType, ipproto, socket_with};

use super::{HostError, NetNs, Netlink, nft, sys};

/// The mode of kube-proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum KubeProxy {
    /// Chains of iptables.
    Iptables,
    /// Tables of nftables.
    Nftables,
    /// IPVS.
    Ipvs,
}

impl fmt::Display for KubeProxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Iptables => "kube-proxy (iptables: chain KUBE-SERVICES)",
            Self::Nftables => "kube-proxy (nftables: table kube-proxy)",
            Self::Ipvs => "kube-proxy (IPVS: interface kube-ipvs0)",
        })
    }
}

/// The first of kube-proxy's chains, which leads to all others.
const CHAIN: &str = "KUBE-SERVICES";

impl KubeProxy {
    /// Looks for its rules in `ns`. The rules stay after kube-proxy has ended, until `kube-proxy --cleanup` or a
    /// reboot.
    ///
    /// # Errors
    /// Missing privilege (CAP_NET_ADMIN).
    pub fn detect(ns: &NetNs) -> Result<Option<Self>, HostError> {
        if Netlink::open(ns)?.find_link("kube-ipvs0")?.is_some() {
            return Ok(Some(Self::Ipvs));
        }
        let found = nft::find_tables_and_chains(ns)?;
        if found.iter().any(|(table, _)| table == "kube-proxy") {
            return Ok(Some(Self::Nftables));
        }
        // Current iptables versions keep their chains in nf_tables.
        let is_chain = |(table, chain): &(String, String)| table == "nat" && chain == CHAIN;
        if found.iter().any(is_chain) || ns.enter(has_legacy_chain)? {
            return Ok(Some(Self::Iptables));
        }
        Ok(None)
    }
}

/// Whether iptables-legacy has the chain, in the calling thread's namespace.
fn has_legacy_chain() -> bool {
    // Querying a table that does not exist would load its module.
    let tables = fs::read_to_string("/proc/thread-self/net/ip_tables_names").unwrap_or_default();
    if !tables.lines().any(|table| table == "nat") {
        return false;
    }
    let (family, kind, flags) = (AddressFamily::INET, SocketType::RAW, SocketFlags::CLOEXEC);
    let socket = socket_with(family, kind, flags, Some(ipproto::RAW));
    let entries =
        socket.map_err(std::io::Error::from).and_then(|s| sys::iptables::entries(s.as_fd(), "nat"));
    entries.is_ok_and(|e| e.windows(CHAIN.len()).any(|part| part == CHAIN.as_bytes()))
}
