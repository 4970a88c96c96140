//! Who serves Services on the node's own side: the switch, or kube-proxy. Decided once, when the node starts.

use podswitch_linux::{KubeProxy, NetNs};

use crate::events::{Event, Failure, Reporter};

/// Whether kube-proxy serves the node. Where it does, the switch leaves to it what it has rules for: node ports,
/// load-balancer and external addresses, health check ports, and the node's own connections to Services. Connections
/// of pods never come to those rules.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum KubeProxyMode {
    /// It does if its rules are there when the switch starts.
    #[default]
    Auto,
    /// It does.
    Present,
    /// It does not: what is left of its rules is not minded.
    Absent,
}

impl KubeProxyMode {
    /// Whether kube-proxy serves the node; what was found is reported.
    pub(crate) fn is_present(self, namespace: &NetNs, reporter: &Reporter) -> bool {
        let found = match self {
            Self::Absent => return false,
            Self::Present => "kube-proxy".to_owned(),
            Self::Auto => match KubeProxy::detect(namespace) {
                Ok(Some(found)) => found.to_string(),
                Ok(None) => return false,
                Err(error) => {
                    reporter.failure(Failure::KubeProxy(error));
                    return false;
                }
            },
        };
        reporter.event(Event::BesideKubeProxy { found });
        true
    }
}
