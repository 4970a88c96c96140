//! Cluster DNS: the zone, and the addresses to which clients send queries.

use std::net::SocketAddr;
use std::sync::Arc;

use podswitch_dns::Zone;
use podswitch_wire::flow_key::{FlowKey, proto};

/// The names that the switch answers for. See the module's description.
#[derive(Clone, Debug)]
pub struct Names {
    /// The names.
    pub zone: Arc<Zone>,
    /// Cluster IPs and UDP ports of the Service that clients send their queries to
    /// ([`Settings::name_server`](podswitch_dns::Settings::name_server)).
    pub frontends: Box<[SocketAddr]>,
}

impl Names {
    /// Whether packets with this key are datagrams to the name server's Service.
    #[inline]
    pub fn is_queried_by(&self, key: &FlowKey) -> bool {
        key.proto == proto::UDP
            && self
                .frontends
                .iter()
                .any(|frontend| frontend.port() == key.dst_port && frontend.ip() == key.dst_addr())
    }
}
