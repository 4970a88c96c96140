//! Addresses that must not appear as a source.

use std::net::IpAddr;

/// Whether no host may use `address` as a source towards another network (RFC 1812 §5.3.7, RFC 4291
/// §2.5): unspecified, loopback, link-local, multicast, class E, broadcast or IPv4-mapped.
pub(super) fn is_martian(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(a) => {
            let first = a.octets()[0];
            first == 0 || first == 127 || first >= 224 || a.is_link_local()
        }
        IpAddr::V6(a) => {
            a.is_unspecified()
                || a.is_loopback()
                || a.is_multicast()
                || a.is_unicast_link_local()
                || a.to_ipv4_mapped().is_some()
        }
    }
}

pub(super) fn is_link_local_v4(address: IpAddr) -> bool {
    matches!(address, IpAddr::V4(a) if a.is_link_local())
}

pub(super) fn is_link_local_v6(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(a) if a.is_unicast_link_local())
}
